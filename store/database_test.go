package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"sallyport/acme/pki"
)

func TestPragmasHoldOnEveryConnection(t *testing.T) {
	c := openCore(t, filepath.Join(t.TempDir(), "core.db"))
	if n := c.db.writer.Stats().MaxOpenConnections; n != 1 {
		t.Errorf("%d connections may write", n)
	}
	check := func(pool *sql.DB, n int, want map[string]string) {
		var conns []*sql.Conn
		for range n {
			conn, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
			for pragma, want := range want {
				var got string
				if err := conn.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
					t.Errorf("connection %d: %s is %q (%v), want %q", len(conns), pragma, got, err, want)
				}
			}
		}
		for _, conn := range conns {
			conn.Close()
		}
	}
	common := map[string]string{"journal_mode": "wal", "busy_timeout": "10000", "foreign_keys": "1", "trusted_schema": "0"}
	write := map[string]string{"synchronous": "2", "query_only": "0"}
	read := map[string]string{"query_only": "1"}
	for k, v := range common {
		write[k], read[k] = v, v
	}
	check(c.db.writer, 1, write)
	check(c.db.reader, readers, read)
	if _, err := c.db.reader.Exec("DELETE FROM policies"); err == nil {
		t.Error("a reader can write")
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data #1?x=%41")
	path := filepath.Join(dir, "core.db")
	c := openCore(t, path)
	add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"}, tokenFor("a"))
	modes := func() {
		t.Helper()
		for name, want := range map[string]os.FileMode{"": 0o700, "core.db": 0o600, "core.db-wal": 0o600, "core.db-shm": 0o600, "core.db.lock": 0o600} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Error(err)
			} else if info.Mode().Perm() != want {
				t.Errorf("%q is %v, want %v", name, info.Mode().Perm(), want)
			}
		}
	}
	modes()
	c.Close()

	// What was opened to others meanwhile is closed again.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	add(t, openCore(t, path), ComponentRecord{Role: pki.RoleGateway, Name: "b"}, tokenFor("b"))
	modes()

	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCore(filepath.Join(shared, "core.db")); err == nil || !strings.Contains(err.Error(), "shared by all users") {
		t.Errorf("in a directory like /tmp: %v", err)
	}
}

func TestTwoOpenersAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	first := openCore(t, path)
	_, err := OpenCore(path)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Fatalf("second opener: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	openCore(t, path)
}

func TestReadersBesideTheWriter(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		const writers, each = 4, 25
		var wg, reading sync.WaitGroup
		done := make(chan struct{})
		for range 4 {
			reading.Go(func() {
				for last := 0; ; {
					select {
					case <-done:
						return
					default:
					}
					rows, err := c.AuditRows(t.Context(), 0, 10_000)
					if err != nil {
						t.Error(err)
						return
					}
					policy, err := c.Policy(t.Context(), 0)
					if err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
						return
					}
					// Decision and audit row appear together: no reader sees
					// fewer decisions later than rows before.
					if len(rows) < last || int(policy.Version) < len(rows) {
						t.Errorf("%d audit rows after %d, policy %d", len(rows), last, policy.Version)
						return
					}
					last = len(rows)
					if err := c.VerifyAudit(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if _, err := c.ApplyPolicy(t.Context(), operator, fmt.Appendf(nil, "%d %d", w, i)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		close(done)
		reading.Wait()
		if p, err := c.Policy(t.Context(), 0); err != nil || p.Version != writers*each {
			t.Errorf("policy version %d, %v", p.Version, err)
		}
		verify(t, c)
	})
}

func TestACancelledWriteLeavesNothing(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx, cancel := context.WithCancel(t.Context())
		err := c.decide(ctx, operator, func(t *tx) error {
			if err := t.audit("x", "y", "z"); err != nil {
				return err
			}
			cancel()
			return nil
		})
		if err == nil {
			t.Fatal("committed after its context ended")
		}
		if a := actions(t, c); len(a) != 0 {
			t.Fatalf("it left %v", a)
		}
		if err := c.Audit(t.Context(), operator, "x", "y", "z"); err != nil {
			t.Fatalf("the writer does not go on: %v", err)
		}
	})
}

const crashDir = "SALLYPORT_STORE_CRASH_DIR"

// crashChild decides as fast as it can and says what it has decided, until it
// is killed.
func crashChild(dir string) {
	c, err := OpenCore(filepath.Join(dir, "core.db"))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for {
		n, err := c.NextGeneration(context.Background(), pki.RoleGateway, "crash")
		if err == nil {
			err = c.Audit(context.Background(), operator, "crash", strconv.FormatUint(n, 10), "")
		}
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

func TestKilledProcessLosesNothingItSaid(t *testing.T) {
	dir := t.TempDir()
	last := uint64(0)
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if last, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatal(lines.Text())
			}
			if n == 20+round*7 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()

		c := openCore(t, filepath.Join(dir, "core.db"))
		verify(t, c)
		rows, err := c.AuditRows(t.Context(), 0, 1)
		if err != nil || len(rows) != 1 {
			t.Fatal(rows, err)
		}
		if newest, _ := strconv.ParseUint(rows[0].Subject, 10, 64); newest < last || newest > last+1 {
			t.Errorf("it said %d, the newest row is %d", last, newest)
		}
		if n, err := c.NextGeneration(t.Context(), pki.RoleGateway, "crash"); err != nil || n <= last {
			t.Errorf("generation %d after %d, %v", n, last, err)
		}
		c.Close()
	}
}

// TestCutLog opens the database with only a part of what was written since the
// last checkpoint, as after a loss of power: every part has to be a state that
// was.
func TestCutLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	c := openCore(t, path)
	for i := range 30 {
		if _, err := c.ApplyPolicy(t.Context(), operator, fmt.Appendf(nil, "version %d", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	base, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path + "-wal")
	if err != nil || len(log) == 0 {
		t.Fatal(len(log), err)
	}
	states := map[uint64]bool{}
	for i := range 40 {
		cut := len(log) * i / 39
		copied := filepath.Join(t.TempDir(), "core.db")
		if err := errors.Join(os.WriteFile(copied, base, 0o600), os.WriteFile(copied+"-wal", log[:cut], 0o600)); err != nil {
			t.Fatal(err)
		}
		c, err := OpenCore(copied)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		verify(t, c)
		rows, err := c.AuditRows(t.Context(), 0, 100)
		policy, perr := c.Policy(t.Context(), 0)
		if err != nil || perr != nil && !errors.Is(perr, ErrNotFound) || int(policy.Version) != len(rows) {
			t.Errorf("cut at %d: policy %d, %d audit rows, %v, %v", cut, policy.Version, len(rows), err, perr)
		}
		states[policy.Version] = true
		if ok, err := one(t.Context(), c.db.reader, value[string], "PRAGMA integrity_check"); err != nil || ok != "ok" {
			t.Errorf("cut at %d: %s, %v", cut, ok, err)
		}
		c.Close()
	}
	if len(states) < 5 || !states[30] {
		t.Errorf("only the states %v were seen: this test cuts at the wrong places", states)
	}
}
