package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// foreignCA is a CA as somebody else makes one. by is its parent, none for a
// root.
func foreignCA(t testing.TB, name string, by *issuer, shape func(c *x509.Certificate)) issuer {
	t.Helper()
	key := testKey(t)
	hash, err := SPKIHash(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.AddDate(5, 0, 0),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1, SubjectKeyId: hash[:20]}
	if shape != nil {
		shape(c)
	}
	if by == nil {
		by = &issuer{c, key}
	}
	return issuer{forge(t, *by, c, key.Public()), key}
}

func pemOf(t testing.TB, key crypto.Signer, certs ...*x509.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	keyPEM, err := MarshalKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	return MarshalCertificatesPEM(certs), keyPEM
}

func importCA(t testing.TB, a *Authority, ca issuer, above ...*x509.Certificate) (*Authority, *Imported) {
	t.Helper()
	certPEM, keyPEM := pemOf(t, ca.key, append([]*x509.Certificate{ca.cert}, above...)...)
	b, imported, err := a.ImportCallers(certPEM, keyPEM, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return b, imported
}

func pathlenZero(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }

func TestImportCallers(t *testing.T) {
	root := foreignCA(t, "example root", nil, nil)
	sub := foreignCA(t, "example issuing", &root, nil)
	for name, tc := range map[string]struct {
		ca     issuer
		above  []*x509.Certificate
		direct bool
		chain  int               // certificates in what is issued; one on top that is no root is sent
		top    *x509.Certificate // what others install
		warns  []string
	}{
		"a root":                    {root, nil, false, 2, root.cert, nil},
		"an intermediate and above": {sub, []*x509.Certificate{root.cert}, false, 3, root.cert, nil},
		"an intermediate alone":     {sub, nil, false, 3, sub.cert, []string{"not in the file"}},
		"pathlen:0":                 {foreignCA(t, "last", nil, pathlenZero), nil, true, 2, nil, []string{"cannot be rotated"}},
		"pathlen:0 under a root":    {foreignCA(t, "last", &root, pathlenZero), []*x509.Certificate{root.cert}, true, 2, root.cert, []string{"cannot be rotated"}},
		"pathlen:1 above": {func() issuer {
			r := foreignCA(t, "r", nil, func(c *x509.Certificate) { c.MaxPathLen = 1 })
			return foreignCA(t, "s", &r, nil)
		}(), nil, false, 3, nil, []string{"not in the file"}},
		"of 30 days, as openssl's": {foreignCA(t, "short", nil, func(c *x509.Certificate) { c.NotAfter = epoch.AddDate(0, 0, 30) }), nil, false, 2, nil, []string{"-days 3650"}},
		"with something beside it": {root, []*x509.Certificate{sub.cert}, false, 2, root.cert, []string{"left out"}},
		"without CRLs":             {foreignCA(t, "nocrl", nil, func(c *x509.Certificate) { pathlenZero(c); c.KeyUsage = x509.KeyUsageCertSign }), nil, true, 2, nil, []string{"cannot be rotated", "revocation lists"}},
		"bound to names":           {foreignCA(t, "bound", nil, func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.org"} }), nil, false, 2, nil, []string{"bound to certain names"}},
	} {
		a := testAuthority(t)
		former, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "old"), PublicKey: testKey(t).Public(), Client: true}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		b, imported := importCA(t, a, tc.ca, tc.above...)
		if imported.Direct != tc.direct || imported.Direct != imported.Issuer.Equal(tc.ca.cert) || !imported.Issuer.Equal(b.callers.cert) {
			t.Errorf("%s: direct %v, issuer %s", name, imported.Direct, imported.Issuer.Subject)
		}
		for _, w := range tc.warns {
			if !slices.ContainsFunc(imported.Warnings, func(s string) bool { return strings.Contains(s, w) }) {
				t.Errorf("%s: no warning of %q in %q", name, w, imported.Warnings)
			}
		}
		if len(imported.Warnings) != len(tc.warns) {
			t.Errorf("%s: warnings %q", name, imported.Warnings)
		}
		plain, err := b.state.encode()
		if err != nil {
			t.Fatal(err)
		}
		der, _ := x509.MarshalPKCS8PrivateKey(tc.ca.key)
		if kept := bytes.Contains(plain, []byte(base64Of(der))); kept != tc.direct {
			t.Errorf("%s: the imported key is kept: %v", name, kept)
		}
		if opened, err := OpenAuthority(b.dir, Secret{}); err != nil || !opened.Bundle().Equal(b.Bundle()) {
			t.Errorf("%s: opened again: %v", name, err)
		}
		// The component hierarchy is the same.
		if bb, ab := b.Bundle(), a.Bundle(); !bb.Roots[0].Equal(ab.Roots[0]) || len(bb.Roots) != 1 || !bb.ComponentIntermediates[0].Equal(ab.ComponentIntermediates[0]) || len(bb.ComponentIntermediates) != 1 {
			t.Errorf("%s: the component hierarchy changed", name)
		}
		if n := len(b.Bundle().CallerIntermediates); n != 2 || !b.Bundle().CallerIntermediates[0].Equal(imported.Issuer) {
			t.Errorf("%s: %d issuers of callers, or the present one is not the first", name, n)
		}
		if back, err := BundleFromProto(b.Bundle().Proto()); err != nil || !back.Equal(b.Bundle()) {
			t.Errorf("%s: the bundle does not travel: %v", name, err)
		}
		issueComponent(t, b, RoleGateway, "office", 1)
		v := b.Bundle().CallerVerifier(func() time.Time { return epoch }, nil)
		if id, err := v.Caller(former.Chain); err != nil || id.Name != "old" {
			t.Errorf("%s: a client of the former issuer: %v", name, err)
		}
		if name == "bound to names" {
			continue
		}
		client, err := b.IssueLeaf(LeafRequest{ID: testID(RoleClient, "new"), PublicKey: testKey(t).Public(), Client: true}, epoch)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if id, err := v.Caller(client.Chain); err != nil || id.Name != "new" {
			t.Errorf("%s: a client of the new issuer: %v", name, err)
		}
		// Other software has the CA file, and what the other side sends.
		server, err := b.IssueLeaf(LeafRequest{PublicKey: testKey(t).Public(), Server: true, DNS: []string{"orders.example.org"}}, epoch)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		between := x509.NewCertPool()
		for _, c := range server.Chain[1:] {
			between.AddCert(c)
		}
		if _, err := server.Chain[0].Verify(x509.VerifyOptions{DNSName: "orders.example.org", Roots: b.Bundle().RootPool(), Intermediates: between, CurrentTime: epoch}); err != nil {
			t.Errorf("%s: with the CA file for others: %v", name, err)
		}
		if len(server.Chain) != tc.chain {
			t.Errorf("%s: a chain of %d, want %d", name, len(server.Chain), tc.chain)
		}
		if tc.top != nil && !slices.ContainsFunc(b.Bundle().CallerRoots, tc.top.Equal) {
			t.Errorf("%s: its root is not among those for others", name)
		}
		if tc.direct && len(tc.warns) > 1 { // may not sign lists
			if ders, err := b.CRLs(nil, 1, epoch); err != nil || len(ders) != 2 {
				t.Errorf("%s: %d lists: %v", name, len(ders), err)
			}
		} else if ders, err := b.CRLs([]CRLEntry{CRLEntryOf(client.Chain[0], epoch, "")}, 1, epoch); err != nil || len(ders) != 3 {
			t.Errorf("%s: %d lists: %v", name, len(ders), err)
		} else if l := parseCRLs(t, ders)[0]; len(l.RevokedCertificateEntries) != 1 {
			t.Errorf("%s: the client is not in its list", name)
		}
	}
}

func TestImportCallersRefuses(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	good := foreignCA(t, "example root", nil, nil)
	leaf := issueComponent(t, other, RoleCore, "core", 1)
	pathlen0 := foreignCA(t, "zero", nil, pathlenZero)
	over := foreignCA(t, "over", nil, func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Second) })
	for name, tc := range map[string]struct {
		ca    issuer
		above []*x509.Certificate
		want  string
	}{
		"another key":                     {issuer{good.cert, testKey(t)}, nil, "does not belong"},
		"a leaf":                          {issuer{leaf.Chain[0], leaf.Key}, nil, "not that of a CA"},
		"our root":                        {issuer{a.root, a.state.base.root.key}, nil, "in force here"},
		"our issuer of callers":           {a.callers.issuer, nil, "in force here"},
		"our issuer of components":        {a.components, nil, "issuer of components"},
		"another's issuer of components":  {other.components, nil, "issuer of components"},
		"expired":                         {foreignCA(t, "x", nil, func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Second) }), nil, "clock"},
		"not valid yet":                   {foreignCA(t, "x", nil, func(c *x509.Certificate) { c.NotBefore = epoch.Add(time.Hour) }), nil, "clock"},
		"under one that is over":          {foreignCA(t, "x", &over, nil), []*x509.Certificate{over.cert}, "clock"},
		"may not sign":                    {foreignCA(t, "x", nil, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), nil, "keyCertSign"},
		"for mail only":                   {foreignCA(t, "x", nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }), nil, "may not issue for"},
		"for servers only":                {foreignCA(t, "x", nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), nil, "clients"},
		"a CA that its CA does not allow": {foreignCA(t, "x", &pathlen0, nil), []*x509.Certificate{pathlen0.cert}, "0 CAs below it"},
		"a critical extension": {foreignCA(t, "x", nil, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), nil, "critical extension"},
	} {
		certPEM, keyPEM := pemOf(t, tc.ca.key, append([]*x509.Certificate{tc.ca.cert}, tc.above...)...)
		if _, _, err := a.ImportCallers(certPEM, keyPEM, epoch); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	certPEM, keyPEM := pemOf(t, good.key, good.cert)
	if _, _, err := a.ImportCallers(certPEM, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"), epoch); err == nil || !strings.Contains(err.Error(), "openssl pkey") {
		t.Errorf("an encrypted key: %v", err)
	}
	if b, err := OpenAuthority(a.dir, Secret{}); err != nil || b.state.revision != 0 {
		t.Errorf("a refused import was written: %v", err)
	}
	if _, _, err := a.ImportCallers(certPEM, keyPEM, epoch); err != nil {
		t.Error(err)
	}
}

// TestImportedNeverMakesComponents: whoever has the imported CA's key signs
// what he likes, and no component port takes it, with any anchor that we have.
func TestImportedNeverMakesComponents(t *testing.T) {
	a := testAuthority(t)
	ca := foreignCA(t, "evil", nil, nil)
	b, _ := importCA(t, a, ca)
	key := testKey(t)
	leaf := componentTemplate(t, a, RoleCore, "core", key.Public())
	marked := foreignCA(t, "marked", &ca, func(c *x509.Certificate) { markComponentIssuer(c, testDomain) })
	copied := *a.components.cert
	twin := foreignCA(t, "twin", &ca, func(c *x509.Certificate) {
		c.RawSubject, c.SubjectKeyId, c.Policies, c.PermittedURIDomains = copied.RawSubject, copied.SubjectKeyId, copied.Policies, copied.PermittedURIDomains
		pathlenZero(c)
	})
	at := func() time.Time { return epoch }
	for name, chain := range map[string][]*x509.Certificate{
		"by the CA":             {forge(t, ca, leaf, key.Public()), ca.cert},
		"by a marked one":       {forge(t, marked, leaf, key.Public()), marked.cert, ca.cert},
		"by a twin of ours":     {forge(t, twin, leaf, key.Public()), twin.cert, ca.cert, a.components.cert},
		"by our callers' under": {forge(t, b.callers.issuer, leaf, key.Public()), b.callers.cert, ca.cert},
	} {
		bundle := b.Bundle()
		for _, v := range []*Verifier{bundle.ComponentVerifier(at, nil), bundle.RootVerifier(at, nil), bundle.CallerVerifier(at, nil), b.RecoveryVerifier(at, nil)} {
			if id, err := v.Component(chain, Expect{Role: RoleCore}); err == nil {
				t.Errorf("%s: taken for %s", name, id)
			}
			if id, err := v.Caller(chain); err == nil {
				t.Errorf("%s: taken for the caller %s", name, id)
			}
		}
		tok := gatewayToken(t, b)
		if _, err := tok.VerifyCore(append(slices.Clone(chain), bundle.Roots...), epoch); err == nil {
			t.Errorf("%s: a newcomer took it for core", name)
		}
	}
	// A client identity that the CA itself signs is believed only where the CA
	// issues directly: otherwise our intermediate alone makes callers.
	client := &x509.Certificate{SerialNumber: leaf.SerialNumber, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{testID(RoleClient, "billing").URI()}}
	if id, err := b.Bundle().CallerVerifier(at, nil).Caller([]*x509.Certificate{forge(t, ca, client, key.Public()), ca.cert}); err == nil {
		t.Errorf("made elsewhere: taken for %s", id)
	}
}

// TestImportAndRotation: an imported issuer stays through rotations, in
// whatever phase it comes, and goes with a compromise.
func TestImportAndRotation(t *testing.T) {
	for name, steps := range map[string][]rotationStep{"steady": nil, "published": {stepPublish}, "activated": {stepPublish, stepActivate}} {
		a := walk(t, testAuthority(t), epoch, steps...)
		old, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "old"), PublicKey: testKey(t).Public(), Client: true}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		b, imported := importCA(t, a, foreignCA(t, "example", nil, nil))
		for _, s := range []rotationStep{stepPublish, stepActivate, stepRollback, stepActivate, stepRetire} {
			next, err := s.do(b, epoch)
			if errors.Is(err, ErrWrongPhase) {
				continue
			}
			if err != nil {
				t.Fatalf("%s: %s: %v", name, s.name, err)
			}
			b = next
			if !b.callers.cert.Equal(imported.Issuer) {
				t.Errorf("%s: after %s %s issues to callers", name, s.name, b.callers.cert.Subject)
			}
			out, err := b.IssueLeaf(LeafRequest{ID: testID(RoleClient, "new"), PublicKey: testKey(t).Public(), Client: true}, epoch)
			if err != nil {
				t.Fatal(err)
			}
			v := b.Bundle().CallerVerifier(func() time.Time { return epoch }, nil)
			for _, chain := range [][]*x509.Certificate{old.Chain, out.Chain} {
				if _, err := v.Caller(chain); err != nil {
					t.Errorf("%s: after %s: %v", name, s.name, err)
				}
			}
		}
		if b.Phase() != PhaseSteady || b.Generation() != 2 {
			t.Errorf("%s: %s, generation %d", name, b.Phase(), b.Generation())
		}
		fresh := walk(t, b, epoch, stepCompromised)
		if fresh.state.imported != nil || len(fresh.Bundle().CallerRoots) != 0 || len(fresh.Bundle().CallerIntermediates) != 1 {
			t.Errorf("%s: after a compromise the imported CA is still there", name)
		}
	}
}

func TestPruneCallers(t *testing.T) {
	a := testAuthority(t)
	first := a.callers.cert
	old, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "old"), PublicKey: testKey(t).Public(), Client: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	b := rotate(t, a, epoch)
	end := old.Chain[0].NotAfter
	last := func(by *x509.Certificate) time.Time {
		if IssuedBy(old.Chain[0], by) {
			return end
		}
		return time.Time{}
	}
	if c, err := b.PruneCallers(end, last); err != nil || c != b {
		t.Errorf("before its last certificate has ended: %v", err)
	}
	c, err := b.PruneCallers(end.Add(time.Second), last)
	if err != nil || len(c.Bundle().CallerIntermediates) != 1 || c.Bundle().CallerIntermediates[0].Equal(first) || len(c.Bundle().CallerRoots) != 0 {
		t.Errorf("after it: %v", err)
	}
	// One that nothing is known of goes at once.
	d := rotate(t, c, epoch)
	if d, err = d.PruneCallers(epoch, last); err != nil || len(d.state.former) != 0 {
		t.Errorf("%v", err)
	}
	// There is a bound, and an import says so.
	for range maxFormer {
		d, _ = importCA(t, d, foreignCA(t, "example", nil, nil))
	}
	ca := foreignCA(t, "one more", nil, nil)
	certPEM, keyPEM := pemOf(t, ca.key, ca.cert)
	if _, _, err := d.ImportCallers(certPEM, keyPEM, epoch); err == nil || !strings.Contains(err.Error(), "wait") {
		t.Errorf("%v", err)
	}
	if _, err := BundleFromProto(walk(t, d, epoch, stepPublish).Bundle().Proto()); err != nil {
		t.Errorf("the fullest bundle does not travel: %v", err)
	}
}

// TestLeadOver: after a rotation, who has installed the old CA file verifies
// the new certificates, and who has the new one the old certificates.
func TestLeadOver(t *testing.T) {
	a := testAuthority(t)
	serve := func(a *Authority) *Issued {
		out, err := a.IssueLeaf(LeafRequest{PublicKey: testKey(t).Public(), Server: true, DNS: []string{"orders.example.org"}}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	verify := func(a *Authority, i *Issued) error {
		between := x509.NewCertPool()
		for _, c := range i.Chain[1:] {
			between.AddCert(c)
		}
		_, err := i.Chain[0].Verify(x509.VerifyOptions{DNSName: "orders.example.org", Roots: a.Bundle().RootPool(), Intermediates: between, CurrentTime: epoch})
		return err
	}
	before := serve(a)
	for _, s := range []rotationStep{stepPublish, stepActivate, stepRetire} {
		b := walk(t, a, epoch, s)
		after := serve(b)
		if err := verify(a, after); err != nil {
			t.Errorf("%s: the new certificate with the CA file of before: %v", s.name, err)
		}
		if err := verify(b, before); err != nil {
			t.Errorf("%s: the first certificate with the new CA file: %v", s.name, err)
		}
		a = b
	}
	if after := serve(walk(t, a, epoch, stepCompromised)); verify(a, after) == nil || len(after.Chain) != 2 {
		t.Error("after a compromise the old CA file still leads to the new")
	}
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
