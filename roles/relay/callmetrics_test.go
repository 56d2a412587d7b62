package relay

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

func TestStatusNamesAreThoseOfTheSpecification(t *testing.T) {
	want := []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
		"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
	for c, name := range want {
		if got := StatusName(codes.Code(c)); got != name {
			t.Errorf("StatusName(%d) = %s, want %s", c, got, name)
		}
	}
}

func TestCallMetricsOfTwoRolesShareARegistry(t *testing.T) {
	reg := prometheus.NewRegistry()
	core, edge := NewCallMetrics("core", reg), NewCallMetrics("proxy", reg)
	core.Begin()
	edge.Begin()
	edge.End(CallRecord{Code: codes.PermissionDenied, Denied: "no_permission", Duration: time.Millisecond})
	if core.InFlight() != 1 || edge.InFlight() != 0 {
		t.Errorf("in flight: core %d, proxy %d; want 1 and 0", core.InFlight(), edge.InFlight())
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var text []string
			for _, l := range m.GetLabel() {
				text = append(text, l.GetName()+"="+l.GetValue())
			}
			if f.GetName() == "sallyport_calls_total" && strings.Join(text, ",") == "code=PERMISSION_DENIED,role=proxy" {
				found = m.GetCounter().GetValue() == 1
			}
		}
	}
	if !found {
		t.Error("the refused call is not counted under its status and role")
	}
}

func TestAccessLogModesAndLimit(t *testing.T) {
	for _, c := range []struct {
		mode    string
		ok, bad bool
	}{{"off", false, false}, {"failures", false, true}, {"all", true, true}} {
		var out bytes.Buffer
		a := NewAccessLog(slog.New(slog.NewTextHandler(&out, nil)), c.mode)
		a.Write(CallRecord{Method: "/a.B/Good", RequestID: "1"})
		a.Write(CallRecord{Method: "/a.B/Bad", Code: codes.Unavailable})
		if got := strings.Contains(out.String(), "/a.B/Good"); got != c.ok {
			t.Errorf("%s: line of the good call: %v, want %v", c.mode, got, c.ok)
		}
		if got := strings.Contains(out.String(), "/a.B/Bad"); got != c.bad {
			t.Errorf("%s: line of the failed call: %v, want %v", c.mode, got, c.bad)
		}
	}
	var out bytes.Buffer
	a := NewAccessLog(slog.New(slog.NewTextHandler(&out, nil)), "failures")
	for range 100000 {
		a.Write(CallRecord{Method: "/a.B/C", Code: codes.PermissionDenied, Denied: "no_permission"})
	}
	if n := strings.Count(out.String(), "\n"); n > 1000 {
		t.Errorf("100000 refused calls wrote %d lines", n)
	}
}
