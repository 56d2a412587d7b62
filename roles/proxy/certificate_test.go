package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

// TestWhenThePublicPortRenews: at 0.60 to 0.66 of the life counted from the
// making, also where the backdating is as long as the life.
func TestWhenThePublicPortRenews(t *testing.T) {
	made := time.Now()
	for _, life := range []time.Duration{time.Minute, 24 * time.Hour, 30 * 24 * time.Hour} {
		leaf := &x509.Certificate{NotBefore: made.Add(-backdate), NotAfter: made.Add(life)}
		for range 20 {
			if in := renewIn(leaf, made); in < life*60/100 || in > life*66/100+time.Second {
				t.Errorf("a life of %s is renewed after %s", life, in)
			}
		}
	}
}

// TestAnotherIssuer: a certificate for which the bundle no longer vouches is
// replaced at once, and no other.
func TestAnotherIssuer(t *testing.T) {
	core, other := newFakeCore(t), newFakeCore(t)
	i := &issued{again: make(chan struct{}, 1)}
	i.held.Store(&tls.Certificate{Leaf: core.clientCertificate("any", time.Hour).Chain[0]})
	if i.trusts(core.authority.Bundle()); len(i.again) != 0 {
		t.Error("a good certificate is replaced")
	}
	if i.trusts(other.authority.Bundle()); len(i.again) != 1 {
		t.Error("a certificate of a CA that is gone stays")
	}
}
