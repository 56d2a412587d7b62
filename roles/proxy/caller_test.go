package proxy

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/policy"
)

func TestAJudgementEndsWithTheCertificate(t *testing.T) {
	core := newFakeCore(t)
	now := time.Now()
	clock := now
	v := &view{callers: &callers{own: core.authority.Bundle().CallerVerifier(func() time.Time { return clock }, nil)}}
	c := newClient(netip.MustParseAddrPort("192.0.2.7:4711"), core.clientCertificate("billing", 10*time.Minute).Chain)
	first := c.certificate(v, now)
	if first.refusal != nil || first.who.ID != "spiffe://test.internal/client/billing" {
		t.Fatalf("judged %+v", first)
	}
	if claim, err := policy.ParseClaim(first.claim); err != nil || claim.ID != first.who.ID {
		t.Errorf("claim %q: %v", first.claim, err)
	}
	if c.certificate(v, now.Add(time.Minute)) != first {
		t.Error("judged anew without need")
	}
	clock = now.Add(11 * time.Minute)
	if j := c.certificate(v, clock); j.refusal == nil || j.refusal.Code != pki.CodeExpired {
		t.Errorf("after its end it is judged %+v", j)
	}
	// Another view, another judgement: it may revoke.
	clock = now
	other := *v
	other.callers = &callers{own: core.authority.Bundle().CallerVerifier(func() time.Time { return clock }, nil)}
	if j := c.certificate(&other, now); j == first || j.refusal != nil {
		t.Errorf("judged %+v", j)
	}
	// The certificate of a component is no caller's.
	if j := newClient(netip.AddrPort{}, core.self.Credentials().Chain).certificate(v, now); j.refusal == nil {
		t.Error("a component's certificate is accepted from a caller")
	}
}

func TestStrangersAreCountedByPrefix(t *testing.T) {
	for source, want := range map[string]string{"192.0.2.7:1": "192.0.2.7/32", "[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64"} {
		if got := (origin{name: newClient(netip.MustParseAddrPort(source), nil).name}).stranger(); got != want {
			t.Errorf("%s is counted as %s, want %s", source, got, want)
		}
	}
	if got := (origin{name: newClient(netip.AddrPort{}, nil).name}).stranger(); got != "unknown source" {
		t.Errorf("no address is counted as %s", got)
	}
}
