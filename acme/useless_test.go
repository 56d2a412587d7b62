package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/acme/acmetest"
)

// TestUselessCertificates: what a CA hands out is looked at before it replaces
// anything, in service and in the storage; until there is one of use, orders
// back off.
func TestUselessCertificates(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"a.example.org": "no certificate for it, but for other.example.org",
		"b.example.org": "for another key",
		"c.example.org": "its end was at",
	}
	h, dir := newHost(t), t.TempDir()
	o := h.options()
	o.Validity = 8
	ca := acmetest.Start(t, o)
	s := Settings{HTTP: true, CA: ca.Settings(), Domains: slices.Sorted(maps.Keys(want))}
	r := runManager(t, dir, h, s)
	all := func(good func(State) bool) func() bool {
		return func() bool { return !slices.ContainsFunc(r.States(), func(s State) bool { return !good(s) }) }
	}
	until(t, "the first certificates", all(func(s State) bool { return s.Leaf != nil }))
	first := make(map[string]*x509.Certificate)
	for _, s := range r.States() {
		first[s.Domain] = s.Leaf
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca.Forge(func(chain []byte) []byte {
		block, _ := pem.Decode(chain)
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Error(err)
			return nil
		}
		names, public, end := leaf.DNSNames, leaf.PublicKey, time.Now().Add(time.Hour)
		switch names[0] {
		case "a.example.org":
			names = []string{"other.example.org"}
		case "b.example.org":
			public = &key.PublicKey
		default:
			end = time.Now().Add(-time.Hour)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: end.Add(-time.Hour), NotAfter: end},
			&x509.Certificate{Subject: leaf.Issuer, SubjectKeyId: []byte{1}, PublicKey: &key.PublicKey}, public, key)
		if err != nil {
			t.Error(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	})
	until(t, "the refusals", all(func(s State) bool { return strings.Contains(s.Error, want[s.Domain]) }))
	for _, s := range r.States() {
		if s.Leaf.VerifyHostname(s.Domain) != nil || s.Leaf.Issuer.String() != first[s.Domain].Issuer.String() || s.Leaf.NotAfter.After(time.Now().Add(time.Minute)) {
			t.Errorf("%s: it serves %v until %v", s.Domain, s.Leaf.DNSNames, s.Leaf.NotAfter)
		}
	}
	ca.Forge(nil)
	until(t, "good certificates", all(func(s State) bool { return s.Error == "" && !s.Leaf.Equal(first[s.Domain]) }))
	for name := range want {
		c, err := r.Certificate(name, s.Domains)
		if err != nil {
			t.Fatal(err)
		}
		good(t, ca, c, name)
		if k, ok := c.PrivateKey.(*ecdsa.PrivateKey); !ok || !k.PublicKey.Equal(c.Leaf.PublicKey) {
			t.Errorf("%s: the key is another's", name)
		}
	}
	for _, chain := range []string{"", "none", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := usable("a.example.org", []byte(chain), nil, time.Now()); err == nil {
			t.Errorf("%q is of use", chain)
		}
	}
	for n := range len(refusalPauses) {
		if wait := backoff(n+1, errors.Join(errors.New("saving"), &useless{"no use"})); wait < refusalPauses[n] {
			t.Errorf("after %d of no use the next is ordered in %v", n+1, wait)
		}
	}
}

// TestDueAtOnce: certificates that are due as soon as they are there, as with a
// clock that is ahead, are not ordered one after the other.
func TestDueAtOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		due        int
		left, want time.Duration
	}{
		{0, time.Hour, 0},
		{1, 240 * time.Hour, time.Minute},
		{5, 240 * time.Hour, time.Hour},
		{50, 2400 * time.Hour, 6 * time.Hour},
		{50, 30 * time.Minute, 10 * time.Minute}, // of a CA whose certificates are that short
		{50, -time.Hour, 0},
	} {
		if got := pace(c.due, c.left); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	h := newHost(t)
	o := h.options()
	o.Validity = 20
	ca := acmetest.Start(t, o)
	// Looks are so rare that with them in mind each certificate is due at once.
	r := runManager(t, t.TempDir(), h, Settings{HTTP: true, CA: ca.Settings(), Domains: []string{"api.example.org"}, Check: time.Second})
	until(t, "the renewal", func() bool { return ca.Count(acmetest.Download) > 1 })
	until(t, "that it is noted", func() bool { return strings.Contains(r.log.String(), "due for renewal as soon as it is there") })
	if n := strings.Count(r.log.String(), "due for renewal as soon"); n != 1 {
		t.Errorf("said %d times", n)
	}
}
