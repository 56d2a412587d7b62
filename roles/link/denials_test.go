package link

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func TestDenialsAreAggregatedAndBounded(t *testing.T) {
	var d Denials
	if d.Take() != nil {
		t.Error("a report of nothing")
	}
	now := time.Unix(1_700_000_055, 0)
	for range 3 {
		d.Add("apikey:ci", "/a.B/C", "no_permission", codes.PermissionDenied, now)
	}
	d.Add("apikey:ci", "/a.B/C", "no_permission", codes.PermissionDenied, now.Add(50*time.Second)) // the next minute
	r := d.Take()
	counts := map[int64]uint64{}
	for _, row := range r.GetDenials() {
		counts[row.GetMinuteUnix()] = row.GetCount()
		if row.GetCode() != "PERMISSION_DENIED" || row.GetMinuteUnix()%60 != 0 {
			t.Errorf("row %v", row)
		}
	}
	if len(counts) != 2 || counts[1_700_000_040] != 3 || counts[1_700_000_100] != 1 {
		t.Errorf("rows %v", r.GetDenials())
	}
	if d.Take() != nil {
		t.Error("reported twice")
	}

	// A stranger invents methods.
	long := strings.Repeat("x", 10_000)
	for i := range 100_000 {
		d.Add("192.0.2.0/24", fmt.Sprintf("/a.B/%d%s", i, long), "no_row", codes.Unauthenticated, now)
	}
	r = d.Take()
	var total uint64
	for _, row := range r.GetDenials() {
		total += row.GetCount()
		if len(row.GetMethod()) > maxDenialText+len("…") {
			t.Fatalf("a text of %d bytes", len(row.GetMethod()))
		}
	}
	if len(r.GetDenials()) != maxDenialRows || total+r.GetOverflow() != 100_000 {
		t.Errorf("%d rows, %d counted, %d overflowed", len(r.GetDenials()), total, r.GetOverflow())
	}
}
