package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

func TestAuditRows(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		for i := range 10 {
			if err := c.Audit(ctx, operator, "test", fmt.Sprint(i), "detail"); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := c.AuditRows(ctx, 0, 3)
		if err != nil || len(rows) != 3 || rows[0].Sequence != 10 || rows[2].Sequence != 8 || rows[0].Subject != "9" || rows[0].Time != noon || rows[0].Actor != operator {
			t.Errorf("newest: %+v, %v", rows, err)
		}
		if rows, err := c.AuditRows(ctx, 3, 100); err != nil || len(rows) != 2 || rows[0].Sequence != 2 {
			t.Errorf("before 3: %+v, %v", rows, err)
		}
		// What a peer said cannot forge lines on a terminal, nor fill the disk.
		if err := c.Audit(ctx, "a\nb", "x", "\x1b[2J\xff", strings.Repeat("é", 1<<20)); err != nil {
			t.Fatal(err)
		}
		rows, _ = c.AuditRows(ctx, 0, 1)
		if r := rows[0]; r.Actor != "a\ufffdb" || r.Subject != "\ufffd[2J\ufffd" || len(r.Detail) > 4096 || !strings.HasSuffix(r.Detail, "é…") {
			t.Errorf("%q %q, %d bytes", r.Actor, r.Subject, len(r.Detail))
		}
		verify(t, c)
	})
}

// auditGolden was computed by another program from the description of AuditRow.
const auditGolden = "c45d143d736e081c1670a0ea2ba0a78606765b50aa2d876d867603997f600abc"

// TestAuditEncoding pins the hash: whoever noted one must be able to check it
// in later versions.
func TestAuditEncoding(t *testing.T) {
	r := AuditRow{Sequence: 1, Time: noon, Actor: operator, Action: "component.add", Subject: "gateway/orders", Detail: "incarnation 1"}
	if got := hex.EncodeToString(r.hash(make([]byte, 32))); got != auditGolden {
		t.Errorf("hash is %s", got)
	}
	// Moving a byte from one field into the next is another row.
	moved := r
	moved.Action, moved.Subject = "component.addg", "ateway/orders"
	if string(moved.hash(make([]byte, 32))) == string(r.hash(make([]byte, 32))) {
		t.Error("two rows have one hash")
	}
}

func TestTamperingShows(t *testing.T) {
	const free = "DROP TRIGGER audit_is_not_changed; DROP TRIGGER audit_is_not_deleted; "
	for name, test := range map[string]struct{ sql, want string }{
		"nothing":        {"", ""},
		"actor":          {"UPDATE audit SET actor = 'somebody' WHERE sequence = 5", "row 5"},
		"action":         {"UPDATE audit SET action = 'other' WHERE sequence = 5", "row 5"},
		"subject":        {"UPDATE audit SET subject = 'other' WHERE sequence = 5", "row 5"},
		"detail":         {"UPDATE audit SET detail = '' WHERE sequence = 5", "row 5"},
		"time":           {"UPDATE audit SET time = time + 1 WHERE sequence = 5", "row 5"},
		"hash":           {"UPDATE audit SET hash = zeroblob(32) WHERE sequence = 5", "row 5"},
		"first":          {"UPDATE audit SET detail = 'x' WHERE sequence = 1", "row 1"},
		"deleted":        {"DELETE FROM audit WHERE sequence = 5", "row 5 is missing"},
		"first deleted":  {"DELETE FROM audit WHERE sequence = 1", "row 1 is missing"},
		"end deleted":    {"DELETE FROM audit WHERE sequence > 8", "rows 9 to 10 are missing"},
		"all deleted":    {"DELETE FROM audit", "rows 1 to 10 are missing"},
		"swapped":        {"UPDATE audit SET sequence = -sequence WHERE sequence IN (5, 6); UPDATE audit SET sequence = 11 + sequence WHERE sequence < 0", "row 5"},
		"inserted":       {"INSERT INTO audit SELECT 11, time, actor, action, subject, detail, hash FROM audit WHERE sequence = 10", "row 11"},
		"last":           {"UPDATE audit SET detail = 'x' WHERE sequence = 10", "row 10"},
		"head forgotten": {"UPDATE state SET audit_sequence = 9, audit_hash = (SELECT hash FROM audit WHERE sequence = 9)", "newest row"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "core.db")
			c := openCore(t, path)
			for i := range 10 {
				if err := c.Audit(t.Context(), operator, "test", fmt.Sprint(i), "detail"); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.db.writer.Exec(free + test.sql); err != nil {
				t.Fatal(err)
			}
			c.Close()
			err := openCore(t, path).VerifyAudit(t.Context())
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
			} else if !errors.Is(err, ErrAuditBroken) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestAuditRowsAreNotChangedByMistake(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		if err := c.Audit(t.Context(), operator, "a", "b", "c"); err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{"UPDATE audit SET detail = 'x'", "DELETE FROM audit"} {
			if _, err := c.db.writer.Exec(sql); err == nil {
				t.Errorf("%s works", sql)
			}
		}
	})
}
