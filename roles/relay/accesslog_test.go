package relay

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// TestAccessLogOfStrangers: failures that anybody can make, also with a name that
// nobody has proven here, cost a bounded number of lines.
func TestAccessLogOfStrangers(t *testing.T) {
	for _, c := range []struct {
		what  string
		r     CallRecord
		bound bool
	}{
		{"nobody", CallRecord{Code: codes.Unavailable}, true},
		{"refused", CallRecord{Caller: "spiffe://a/client/b", Denied: "no_permission", Code: codes.PermissionDenied}, true},
		{"a token that the next hop judges", CallRecord{Caller: "(token)", Unproven: true, Code: codes.Unauthenticated}, true},
		{"a caller whose call failed", CallRecord{Caller: "spiffe://a/client/b", Code: codes.Unavailable}, false},
		{"calls that went well", CallRecord{Caller: "(token)", Unproven: true}, false},
	} {
		var b bytes.Buffer
		a := NewAccessLog(slog.New(slog.NewTextHandler(&b, nil)), "all")
		for range 1000 {
			a.Write(c.r)
		}
		if n := strings.Count(b.String(), "msg=call"); c.bound && n > 500 || !c.bound && n != 1000 {
			t.Errorf("%s: %d lines", c.what, n)
		}
	}
}
