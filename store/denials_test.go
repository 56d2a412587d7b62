package store

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func denials(t *testing.T, c *Core) []DenialRow {
	t.Helper()
	rows, err := c.Denials(t.Context(), time.Time{}, math.MaxInt)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestDenialsAddUp(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		row := DenialRow{Minute: noon.Add(17 * time.Second), Caller: "192.0.2.0/24", Method: "/s.Orders/Get", Reason: "no_permission", Code: "PERMISSION_DENIED", Count: 2}
		other := row
		other.Reason, other.Minute = "bad_key", noon.Add(-time.Minute)
		for range 3 {
			if err := c.AddDenials(t.Context(), []DenialRow{row, other, row}); err != nil {
				t.Fatal(err)
			}
		}
		got := denials(t, c)
		row.Minute, row.Count, other.Count = noon, 12, 6
		if len(got) != 2 || got[0] != row || got[1] != other {
			t.Errorf("%+v", got)
		}
		if got, err := c.Denials(t.Context(), noon, 10); err != nil || len(got) != 1 {
			t.Errorf("since noon: %+v, %v", got, err)
		}
	})
}

func TestAFloodOfStrangersIsBounded(t *testing.T) {
	const strangers, report = 100_000, 1000
	path := filepath.Join(t.TempDir(), "core.db")
	c := openCore(t, path)
	known := DenialRow{Minute: noon, Caller: "spiffe://sallyport.internal/client/billing", Method: "/s.Orders/Get", Reason: "no_permission", Code: "PERMISSION_DENIED", Count: 1}
	if err := c.AddDenials(t.Context(), []DenialRow{known}); err != nil {
		t.Fatal(err)
	}
	var rows []DenialRow
	for i := range strangers {
		rows = append(rows, DenialRow{Minute: noon, Caller: fmt.Sprintf("2001:db8:%x::/48", i), Method: "/" + strings.Repeat("x", 5000), Reason: "no_credentials", Code: "UNAUTHENTICATED", Count: 3})
		if len(rows) == report {
			if err := c.AddDenials(t.Context(), append(rows, known)); err != nil {
				t.Fatal(err)
			}
			rows = rows[:0]
		}
	}
	got := denials(t, c)
	if len(got) != MaxDenialsPerMinute+1 {
		t.Fatalf("%d rows of one minute", len(got))
	}
	total := uint64(0)
	for _, r := range got {
		total += r.Count
		if len(r.Method) > 256 {
			t.Errorf("method of %d bytes", len(r.Method))
		}
	}
	if want := uint64(strangers*3 + strangers/report + 1); total != want {
		t.Errorf("%d calls counted, %d denied", total, want)
	}
	if r := got[0]; r.Reason != DenialOverflow || r.Caller != "" || r.Method != "" {
		t.Errorf("most of them are in %+v", r)
	}
	if n := len(actions(t, c)); n != 0 {
		t.Errorf("%d audit rows", n)
	}
	c.Close()
	if info, err := os.Stat(path); err != nil || info.Size() > 1<<20 {
		t.Errorf("the database has %d bytes, %v", info.Size(), err)
	}
}

func TestOldDenialsGiveWay(t *testing.T) {
	c := openCore(t, filepath.Join(t.TempDir(), "core.db"))
	count := func() int {
		t.Helper()
		n, err := one(t.Context(), c.db.reader, value[int], "SELECT count(*) FROM denials")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// As many as are kept, of the minutes before noon.
	if _, err := c.db.writer.Exec(`WITH RECURSIVE i (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM i WHERE i < ?1 - 1)
		INSERT INTO denials SELECT ?2 - (1 + i / ?3) * 60000000000, 'caller ' || i, '', 'no_credentials', '', 1 FROM i`,
		MaxDenials, nanos(noon), MaxDenialsPerMinute); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != MaxDenials {
		t.Fatalf("%d rows before", n)
	}
	minute := noon
	c.Now = func() time.Time { return minute }
	for range 3 {
		minute = minute.Add(time.Minute)
		rows := make([]DenialRow, MaxDenialsPerMinute+1)
		for i := range rows {
			rows[i] = DenialRow{Minute: minute, Caller: fmt.Sprint(i), Reason: "no_credentials", Count: 1}
		}
		if err := c.AddDenials(t.Context(), rows); err != nil {
			t.Fatal(err)
		}
		if n := count(); n > MaxDenials || n < MaxDenials-2*MaxDenialsPerMinute {
			t.Errorf("%d rows are kept", n)
		}
	}
	if got, err := c.Denials(t.Context(), noon, 1000); err != nil || len(got) != 3*(MaxDenialsPerMinute+1) || got[0].Minute != minute {
		t.Errorf("%d rows of the new minutes, %v", len(got), err)
	}
}

// TestReportsCannotChooseTheirMinute: a component that was taken over could
// otherwise push out everything by reports about the future.
func TestReportsCannotChooseTheirMinute(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		for _, at := range []time.Time{{}, noon.Add(-time.Hour), noon.Add(time.Hour), time.Unix(0, math.MaxInt64), time.Unix(math.MinInt64/4, 0)} {
			if err := c.AddDenials(t.Context(), []DenialRow{{Minute: at, Caller: "x", Count: 1}}); err != nil {
				t.Fatal(err)
			}
		}
		if got := denials(t, c); len(got) != 1 || got[0].Minute != noon || got[0].Count != 5 {
			t.Errorf("%+v", got)
		}
	})
}

func TestCountsDoNotWrap(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		row := DenialRow{Minute: noon, Caller: "x", Count: math.MaxUint64}
		for range 3 {
			if err := c.AddDenials(t.Context(), []DenialRow{row, row}); err != nil {
				t.Fatal(err)
			}
		}
		if got := denials(t, c); len(got) != 1 || got[0].Count != math.MaxInt64 {
			t.Errorf("%+v", got)
		}
	})
}
