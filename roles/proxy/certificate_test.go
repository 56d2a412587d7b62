package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"sallyport/acme/pki"
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

// TestAnotherIssuer: a certificate for which the bundle no longer vouches, or
// whose issuer issues no more, is replaced at once, and no other.
func TestAnotherIssuer(t *testing.T) {
	core, other := newFakeCore(t), newFakeCore(t)
	i := &issued{again: make(chan struct{}, 1)}
	i.held.Store(&tls.Certificate{Leaf: core.clientCertificate("any", time.Hour).Chain[0]})
	bundle := core.authority.Bundle()
	issuer := pki.SPKI(bundle.CallerIntermediates[0])
	if i.follow(bundle, issuer[:]); len(i.again) != 0 {
		t.Error("a good certificate is replaced")
	}
	if i.follow(bundle, nil); len(i.again) != 0 {
		t.Error("a good certificate is replaced where core does not say who issues")
	}
	if i.follow(other.authority.Bundle(), nil); len(i.again) != 1 {
		t.Error("a certificate of a CA that is gone stays")
	}
	<-i.again
	if next := sha256.Sum256([]byte("next")); true {
		i.follow(bundle, next[:])
	}
	if len(i.again) != 1 {
		t.Error("a certificate of the CA before the rotation stays")
	}
}
