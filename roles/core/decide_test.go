package core

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

func TestTraceparentIsWellFormedOrGone(t *testing.T) {
	good := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if !validTraceparent(good) {
		t.Errorf("%s is refused", good)
	}
	for _, bad := range []string{"", good + "0", good[1:], "01" + good[2:], strings.ToUpper(good), strings.Replace(good, "-01", "_01", 1), strings.Replace(good, "4b", "g!", 1)} {
		if validTraceparent(bad) {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestOnwardDropsWhatOnlyComponentsSay(t *testing.T) {
	v := &verdict{}
	v.Permissions = []string{"a", "b c"}
	v.caller = policy.Caller{ID: "cn:x y", ClientCA: "partner"}
	in := []relay.Field{{Name: "sallyport-caller", Value: "forged"}, {Name: "sallyport_caller", Value: "forged"}, {Name: "sallyport-anything", Value: "forged"},
		{Name: "authorization", Value: "Bearer x"}, {Name: "traceparent", Value: "forged"}, {Name: "sallyporter", Value: "kept"},
		// What a neighbour says of where the call came from is not what upstreams read.
		{Name: "x-forwarded-for", Value: "forged"}, {Name: "forwarded", Value: "forged"}, {Name: "x-real-ip", Value: "forged"}, {Name: "content-type", Value: "application/grpc"}}
	before := len(in)
	var text []string
	for _, f := range onward(in, v, "id") {
		text = append(text, f.Name+"="+f.Value)
	}
	want := "sallyporter=kept content-type=application/grpc sallyport-request-id=id sallyport-caller=cn:x%20y;ca=partner sallyport-permissions=a,b%20c"
	if got := strings.Join(text, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if len(in) != before || in[0].Value != "forged" {
		t.Error("the header that came was changed in place")
	}
}

func TestStrangersAreCountedByTheirNetwork(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.77": "192.0.2.0/24", "192.0.2.77:1234": "192.0.2.0/24", "2001:db8:1:2:3::4": "2001:db8:1:2::/64",
		"::ffff:192.0.2.77": "192.0.2.0/24", "[2001:db8::1]:443": "2001:db8::/64", "fe80::1%eth0": "fe80::/64", "": "unknown", "nonsense": "unknown"} {
		if got := prefix(in); got != want {
			t.Errorf("prefix(%q) = %q, want %q", in, got, want)
		}
	}
}

func testRuling(t testing.TB) *ruling {
	p, err := policy.Parse("test", []byte(`
[methods]
"/a.v1.S/Public" = ["public"]
"/a.v1.S/Get" = ["read"]
[[grant]]
caller = "spiffe://test.internal/client/billing"
permissions = ["read"]
via_proxy = ["dmz1"]
`))
	if err != nil {
		t.Fatal(err)
	}
	return &ruling{policy: p, keys: policy.NewKeys(nil)}
}

func TestJudge(t *testing.T) {
	r := testRuling(t)
	claim := func(id string) relay.Field {
		return relay.Field{Name: relay.HeaderClientCert, Value: policy.EncodeClaim(policy.Claim{ID: id})}
	}
	source := relay.Field{Name: relay.HeaderSource, Value: "192.0.2.9"}
	billing := claim("spiffe://test.internal/client/billing")
	for _, c := range []struct {
		what, path, proxy string
		header            []relay.Field
		code              codes.Code
		denied            string
	}{
		{"anybody, public", "/a.v1.S/Public", "dmz1", nil, codes.OK, ""},
		{"anybody, not public", "/a.v1.S/Get", "dmz1", []relay.Field{source}, codes.Unauthenticated, "192.0.2.0/24"},
		{"granted", "/a.v1.S/Get", "dmz1", []relay.Field{billing}, codes.OK, ""},
		{"the same from another proxy", "/a.v1.S/Get", "dmz2", []relay.Field{billing}, codes.PermissionDenied, "spiffe://test.internal/client/billing"},
		{"a bad key on a public method", "/a.v1.S/Public", "dmz1", []relay.Field{{Name: "authorization", Value: "Bearer spk_nope"}, source}, codes.Unauthenticated, "192.0.2.0/24"},
		{"a bad key beside a good certificate", "/a.v1.S/Get", "dmz1", []relay.Field{{Name: "authorization", Value: "Bearer spk_nope"}, billing}, codes.Unauthenticated, "unknown"},
		{"an unreadable claim on a public method", "/a.v1.S/Public", "dmz1", []relay.Field{{Name: relay.HeaderClientCert, Value: "%%%"}}, codes.Unauthenticated, "unknown"},
		{"what core would say", "/a.v1.S/Get", "dmz1", []relay.Field{{Name: relay.HeaderCaller, Value: "spiffe://test.internal/client/billing"}}, codes.Unauthenticated, "unknown"},
		{"a method that is not there", "/a.v1.S/Nope", "dmz1", []relay.Field{billing}, codes.PermissionDenied, "spiffe://test.internal/client/billing"},
	} {
		v := r.judge(c.path, c.header, &neighbour{role: pki.RoleProxy, name: c.proxy, link: c.proxy}, time.Now())
		if v.Allowed != (c.code == codes.OK) || !v.Allowed && v.Code != c.code || v.denied != c.denied {
			t.Errorf("%s: allowed %v, %v, counted for %q; want %v, %q", c.what, v.Allowed, v.Code, v.denied, c.code, c.denied)
		}
		if !v.Allowed && (v.Reason == "" || v.Message == "") {
			t.Errorf("%s: refused without a word", c.what)
		}
	}
}

func BenchmarkJudgeAndWriteHeaders(b *testing.B) {
	r := testRuling(b)
	header := []relay.Field{{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "grpc-go/1.85.0"}, {Name: "grpc-timeout", Value: "9999m"},
		{Name: relay.HeaderRequestID, Value: "0123456789abcdef"}, {Name: relay.HeaderSource, Value: "192.0.2.9"},
		{Name: relay.HeaderClientCert, Value: policy.EncodeClaim(policy.Claim{ID: "spiffe://test.internal/client/billing"})}}
	now := time.Now()
	from := &neighbour{role: pki.RoleProxy, name: "dmz1", link: "dmz1"}
	b.ReportAllocs()
	for b.Loop() {
		v := r.judge("/a.v1.S/Get", header, from, now)
		if !v.Allowed {
			b.Fatal("not allowed")
		}
		if len(onward(header, &v, "0123456789abcdef")) != 6 {
			b.Fatal("headers")
		}
	}
}
