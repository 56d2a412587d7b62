package pki

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVerifySteps spoils a service's chain in one way at a time and looks which
// step names it.
func TestVerifySteps(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	key := testKey(t)
	good, err := a.IssueLeaf(LeafRequest{ID: testID(RoleService, "orders"), PublicKey: key.Public(), Server: true, DNS: []string{"orders.example.org"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	template := func(spoil func(c *x509.Certificate)) *x509.Certificate {
		p, err := a.prepareLeaf(LeafRequest{ID: testID(RoleService, "orders"), PublicKey: key.Public(), Server: true, DNS: []string{"orders.example.org"}}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		spoil(p.template)
		return p.template
	}
	leaf := func(by issuer, spoil func(c *x509.Certificate)) []*x509.Certificate {
		return []*x509.Certificate{forge(t, by, template(spoil), key.Public()), by.cert}
	}
	nothing := func(*x509.Certificate) {}
	twin := foreignCA(t, "twin", nil, func(c *x509.Certificate) { c.RawSubject = a.callers.cert.RawSubject })
	bound := foreignCA(t, "bound", nil, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} })
	noSign := foreignCA(t, "nosign", nil, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	zero := foreignCA(t, "zero", nil, pathlenZero)
	below := foreignCA(t, "below", &zero, nil)
	mail := foreignCA(t, "mail", nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} })
	noCA := foreignCA(t, "leaf", nil, func(c *x509.Certificate) { c.IsCA = false })
	ended := foreignCA(t, "ended", nil, func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Hour) })
	t.Setenv("GODEBUG", "rsa1024min=0")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	roots := a.Bundle().Roots
	for _, tc := range []struct {
		name    string
		chain   []*x509.Certificate
		roots   []*x509.Certificate
		host    string
		purpose Purpose
		at      time.Time
		step    string // "" passes
		code    string
		text    string
	}{
		{"good", good.Chain, roots, "orders.example.org", PurposeServer, epoch, "", "", ""},
		{"good, by address", good.Chain, roots, "192.0.2.7", PurposeServer, epoch, "", "", ""},
		{"good, nothing asked", good.Chain, roots, "", PurposeAny, epoch, "", "", ""},
		{"good, the root sent along", slices.Concat(good.Chain, roots), roots, "", PurposeServer, epoch, "", "", ""},
		{"good, by its intermediate as the root", good.Chain[:1], a.Bundle().CallerIntermediates, "", PurposeServer, epoch, "", "", ""},
		{"the root itself", roots, roots, "", PurposeAny, epoch, "", "", ""},
		{"nothing", nil, roots, "", PurposeAny, epoch, StepChain, CodeCertificateRequired, ""},
		{"without the intermediate", good.Chain[:1], roots, "", PurposeAny, epoch, StepTrust, CodeUnknownAuthority, "fullchain.pem"},
		{"another CA", good.Chain, other.Bundle().Roots, "", PurposeAny, epoch, StepTrust, CodeUnknownAuthority, "not trusted"},
		{"no roots", good.Chain, nil, "", PurposeAny, epoch, StepTrust, CodeUnknownAuthority, ""},
		{"a CA made anew under its name", []*x509.Certificate{good.Chain[0], twin.cert}, []*x509.Certificate{twin.cert}, "", PurposeAny, epoch, StepChain, CodeBadCertificate, "did not sign it"},
		{"signed by a leaf", leaf(noCA, nothing), []*x509.Certificate{noCA.cert}, "", PurposeAny, epoch, StepIssuers, CodeCACertificate, "not a CA"},
		{"signed by one that may not", leaf(noSign, nothing), []*x509.Certificate{noSign.cert}, "", PurposeAny, epoch, StepIssuers, CodeWrongKeyUsage, "keyCertSign"},
		{"too many CAs", append(leaf(below, nothing), zero.cert), []*x509.Certificate{zero.cert}, "", PurposeAny, epoch, StepIssuers, CodePathLength, ""},
		{"expired", good.Chain, roots, "", PurposeAny, epoch.AddDate(1, 0, 0), StepValidity, CodeExpired, "service/orders"},
		{"not valid yet", good.Chain, roots, "", PurposeAny, epoch.Add(-time.Second * 30).Add(-time.Minute), StepValidity, CodeNotYetValid, ""},
		{"an expired CA", leaf(ended, nothing), []*x509.Certificate{ended.cert}, "", PurposeAny, epoch, StepValidity, CodeExpired, "above the certificate"},
		{"for a client", good.Chain, roots, "", PurposeClient, epoch, StepUsage, CodeWrongUsage, "--client"},
		{"a CA for mail", leaf(mail, nothing), []*x509.Certificate{mail.cert}, "", PurposeServer, epoch, StepUsage, CodeWrongUsage, "\"CN=mail\""},
		{"without EKU it serves all", leaf(a.callers.issuer, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), roots, "", PurposeClient, epoch, "", "", ""},
		{"another name", good.Chain, roots, "stock.example.org", PurposeServer, epoch, StepName, CodeNameMismatch, "orders.example.org"},
		{"a common name only", leaf(a.callers.issuer, func(c *x509.Certificate) { c.DNSNames, c.URIs = nil, nil }), roots, "orders", PurposeServer, epoch, StepName, CodeCommonNameOnly, ""},
		{"a weak key", []*x509.Certificate{forge(t, a.callers.issuer, template(nothing), weak.Public()), a.callers.cert}, roots, "", PurposeAny, epoch, StepKeys, CodeWeakKey, "1024"},
		{"a name that the CA may not give", leaf(bound, nothing), []*x509.Certificate{bound.cert}, "", PurposeAny, epoch, StepRules, CodeNameConstraint, ""},
		{"a critical extension", leaf(a.callers.issuer, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), roots, "", PurposeAny, epoch, StepRules, CodeCriticalExtension, ""},
	} {
		v := Verify(tc.chain, tc.roots, tc.host, tc.purpose, tc.at)
		failed := v.Failed()
		if (failed == nil) != (tc.step == "") || (failed == nil) != (v.Err() == nil) {
			t.Errorf("%s: %v", tc.name, v.Err())
			continue
		}
		if failed != nil && (failed.Name != tc.step || failed.Refusal.Code != tc.code || !strings.Contains(failed.Refusal.Error(), tc.text)) {
			t.Errorf("%s: step %s, code %s, want %s, %s: %v", tc.name, failed.Name, failed.Refusal.Code, tc.step, tc.code, failed.Refusal)
		}
		if len(tc.chain) > 0 && len(v.Steps) != 8 {
			t.Errorf("%s: %d steps", tc.name, len(v.Steps))
		}
		// The steps never say yes where crypto/x509 says no, and the other way
		// round only for weak keys.
		if len(tc.chain) == 0 {
			continue
		}
		pool, between := x509.NewCertPool(), x509.NewCertPool()
		for _, c := range tc.roots {
			pool.AddCert(c)
		}
		for _, c := range tc.chain[1:] {
			between.AddCert(c)
		}
		use := map[Purpose]x509.ExtKeyUsage{PurposeAny: x509.ExtKeyUsageAny, PurposeServer: x509.ExtKeyUsageServerAuth, PurposeClient: x509.ExtKeyUsageClientAuth}[tc.purpose]
		_, err := tc.chain[0].Verify(x509.VerifyOptions{DNSName: tc.host, Roots: pool, Intermediates: between, CurrentTime: tc.at, KeyUsages: []x509.ExtKeyUsage{use}})
		if (err == nil) != (failed == nil) && tc.code != CodeWeakKey {
			t.Errorf("%s: crypto/x509 says %v, and the steps %v", tc.name, err, v.Err())
		}
	}
	// After the first fault the next ones are named too.
	v := Verify(good.Chain[:1], roots, "stock.example.org", PurposeClient, epoch.AddDate(1, 0, 0))
	var failed []string
	for _, s := range v.Steps {
		if s.Refusal != nil {
			failed = append(failed, s.Name)
		}
	}
	if strings.Join(failed, " ") != "trust validity usage name" {
		t.Errorf("%v", failed)
	}
}

// TestVerifyOverRotation: with the root of before, with both kinds of the new
// root's certificate in the file, in either order.
func TestVerifyOverRotation(t *testing.T) {
	a := testAuthority(t)
	b := rotate(t, a, epoch)
	core := issueComponent(t, b, RoleCore, "core", 1)
	chain := b.RecoveryChain(core)
	other := slices.Clone(chain)
	slices.Reverse(other[2:])
	for name, c := range map[string][]*x509.Certificate{"as sent": chain, "the other way round": other} {
		if v := Verify(c, a.Bundle().Roots, "", PurposeServer, epoch); v.Err() != nil || len(v.Path) != 4 {
			t.Errorf("%s: a path of %d: %v", name, len(v.Path), v.Err())
		}
	}
}

func TestOutlives(t *testing.T) {
	ca := foreignCA(t, "short", nil, func(c *x509.Certificate) { c.NotAfter = epoch.AddDate(0, 0, 30) })
	leaf := foreignCA(t, "long", &ca, func(c *x509.Certificate) { c.NotAfter = epoch.AddDate(1, 0, 0) })
	if s := Outlives([]*x509.Certificate{leaf.cert, ca.cert}); !strings.Contains(s, "2026-03-31") || !strings.Contains(s, "short") {
		t.Errorf("%q", s)
	}
	if s := Outlives([]*x509.Certificate{ca.cert, leaf.cert}); s != "" {
		t.Errorf("%q", s)
	}
}
