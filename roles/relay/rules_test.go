package relay

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func TestValidPath(t *testing.T) {
	for path, want := range map[string]bool{
		"/a.b.C/D": true, "/C/D": true, "/a_1.B2/C_3": true, "/_a/_b": true, "/a/b": true,
		"": false, "/": false, "//": false, "a/b": false, "/a": false, "/a/": false, "//a": false, "/a//b": false, "/a/b/": false, "/a/b/c": false,
		"/a.b.C/D?x": false, "/a.b.C/%44": false, "/a.b.C/D ": false, "/.a/b": false, "/a./b": false, "/a..b/c": false, "/a/b.c": false,
		"/a/../b/c": false, "/a\\b/c": false, "/a;x/b": false, "/a/b#c": false, "/1a/b": false, "/a/1b": false, "/a.1b/c": false, "/ä/b": false, "*": false, "/a/b\x00": false, "/*/b": false, "/a-b/c": false,
	} {
		if got := ValidPath(path); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func TestReserved(t *testing.T) {
	for name, want := range map[string]bool{
		"sallyport-caller": true, "sallyport_caller": true, "SALLYPORT-CALLER": true, "Sallyport_Caller": true, "sallyport-": true, "sallyport-permissions": true,
		"forwarded": true, "Forwarded": true, "x-forwarded-for": true, "X_Forwarded_Proto": true, "x-forwarded-": true, "x-real-ip": true, "x_real_ip": true,
		"sallyport": false, "sallyportx": false, "my-sallyport-caller": false, "forwarded-x": false, "x-forwarded": false, "x-real-ip2": false, "x-request-id": false, "": false,
	} {
		if got := Reserved(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
	kept := StripReserved([]Field{{Name: "a"}, {Name: "sallyport_x"}, {Name: "b"}, {Name: "x-real-ip"}, {Name: "c"}})
	if len(kept) != 3 || kept[0].Name+kept[1].Name+kept[2].Name != "abc" {
		t.Error(kept)
	}
}

// TestCheckRequest has one row per rule of the hop, each with the answer that
// the caller reads.
func TestCheckRequest(t *testing.T) {
	good := func() map[string]string {
		return map[string]string{":method": "POST", ":scheme": "https", ":path": "/t.S/Ok", "content-type": "application/grpc", "te": "trailers"}
	}
	for _, c := range []struct {
		name        string
		key, value  string
		add         *Field
		edge, inner string // reason, at an edge and on a link; "" is fine
	}{
		{name: "good"},
		{name: "proto", key: "content-type", value: "application/grpc+proto"},
		{name: "parameter", key: "content-type", value: "application/grpc; charset=x"},
		{name: "no te", key: "te"},
		{name: "method", key: ":method", value: "GET", edge: "method", inner: "method"},
		{name: "path", key: ":path", value: "/t.S/Ok/", edge: "path", inner: "path"},
		{name: "content-type", key: "content-type", value: "application/json", edge: "content_type", inner: "content_type"},
		{name: "web", key: "content-type", value: "application/grpc-web", edge: "content_type", inner: "content_type"},
		{name: "no content-type", key: "content-type", edge: "content_type", inner: "content_type"},
		{name: "te", key: "te", value: "gzip", edge: "te", inner: "te"},
		{name: "one authorization", add: &Field{Name: "authorization", Value: "x"}},
		{name: "timeout", add: &Field{Name: "grpc-timeout", Value: "5"}, edge: "timeout", inner: "timeout"},
		{name: "good timeout", add: &Field{Name: "grpc-timeout", Value: "5S"}},
		{name: "hop by hop", add: &Field{Name: "keep-alive", Value: "5"}, edge: "hop_by_hop", inner: "hop_by_hop"},
		{name: "control character", add: &Field{Name: "x", Value: "a\x01b"}, edge: "characters", inner: "characters"},
		{name: "ours, from a neighbour", add: &Field{Name: "sallyport-caller", Value: "x"}},
		{name: "ours, misspelt", add: &Field{Name: "sallyport_caller", Value: "x"}, inner: "reserved"},
	} {
		for _, edge := range []bool{true, false} {
			fields := good()
			if c.key != "" {
				fields[c.key] = c.value
			}
			var list []Field
			for k, v := range fields {
				if v != "" {
					list = append(list, Field{Name: k, Value: v})
				}
			}
			if c.add != nil {
				list = append(list, *c.add)
			}
			want, got := c.inner, ""
			if edge {
				want = c.edge
			}
			if v := CheckRequest(list, edge); v != nil {
				got = v.Reason
			}
			if got != want {
				t.Errorf("%s, edge %v: %q, want %q", c.name, edge, got, want)
			}
		}
	}
	two := []Field{{Name: "authorization", Value: "a"}, {Name: "authorization", Value: "b"}}
	if v := CheckRequest(two, true); v == nil || v.Code != codes.Unauthenticated {
		t.Error("two authorization headers passed")
	}
}

// TestViolations looks at the answers on the wire.
func TestViolations(t *testing.T) {
	r, _, _ := rawTo(t, &Options{Edge: true}, answering)
	r.request(1, "//t.S/Ok", true)
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=12 grpc-message=malformed method name")
	r.request(3, "/t.S/Ok", true, "authorization", "a", "authorization", "b")
	r.expect("HEADERS 3 END :status=200 content-type=application/grpc grpc-status=16")
	r.headers(5, true, ":method", "GET", ":scheme", "http", ":path", "/")
	r.expect("HEADERS 5 END :status=405")
	r.headers(7, true, ":method", "POST", ":scheme", "http", ":path", "/t.S/Ok", "content-type", "text/plain")
	r.expect("HEADERS 7 END :status=415")
}

func TestParseTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "4m": 4 * time.Millisecond, "5u": 5 * time.Microsecond, "6n": 6, "0n": 0,
		"99999999H": 10 * 365 * 24 * time.Hour,
		"":          -1, "H": -1, "1": -1, "1h": -1, "-1S": -1, "123456789S": -1, "1 S": -1, "１S": -1,
	} {
		got, ok := parseTimeout(s)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestMessages(t *testing.T) {
	for _, s := range []string{"", "plain", "100%", "ünï", "a\nb\x00", strings.Repeat("ß", 100), "%zz", "%4"} {
		e := EncodeMessage(s)
		for i := range len(e) {
			if e[i] < ' ' || e[i] > '~' {
				t.Errorf("%q has %q", s, e[i])
			}
		}
		if d := DecodeMessage(e); d != s {
			t.Errorf("%q became %q", s, d)
		}
	}
	if DecodeMessage("%zz%4") != "%zz%4" {
		t.Error("what is no escape was changed")
	}
}
