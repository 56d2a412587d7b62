package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// rawSAN puts an alternative-name extension in place of the one x509 would
// make.
func rawSAN(t testing.TB, c *x509.Certificate, names ...asn1.RawValue) {
	t.Helper()
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	c.URIs = nil
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidSubjectAltName, Value: der})
}

func generalName(tag int, s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(s)}
}

// TestComponentVerifierRefuses spoils a good gateway certificate in one way at
// a time. Each row is signed by the real component intermediate unless it says
// otherwise, so nothing but the rule in question can refuse it.
func TestComponentVerifierRefuses(t *testing.T) {
	a := testAuthority(t)
	other := testAuthority(t)
	t.Setenv("GODEBUG", "rsa1024min=0") // to make a weak key at all
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	good := spoil{by: a.components}

	for _, tc := range []struct {
		name string
		code string
		text string // in the message
		do   func(s *spoil)
	}{
		{"nothing spoiled", "", "", func(*spoil) {}},
		{"CA certificate as leaf", CodeCACertificate, "", func(s *spoil) { s.leaf.IsCA = true; s.leaf.KeyUsage |= x509.KeyUsageCertSign }},
		{"the intermediate itself", CodeCACertificate, "", func(s *spoil) { s.chain = []*x509.Certificate{a.components.cert} }},
		{"the root itself", CodeCACertificate, "", func(s *spoil) { s.chain = []*x509.Certificate{a.root}; s.anchors = []*x509.Certificate{a.root} }},
		{"no basic constraints", CodeCACertificate, "basic constraints", func(s *spoil) { s.leaf.BasicConstraintsValid = false }},
		{"no EKU", CodeWrongUsage, "", func(s *spoil) { s.leaf.ExtKeyUsage = nil }},
		{"server EKU only", CodeWrongUsage, "", func(s *spoil) { s.leaf.ExtKeyUsage = s.leaf.ExtKeyUsage[:1] }},
		{"client EKU only", CodeWrongUsage, "", func(s *spoil) { s.leaf.ExtKeyUsage = s.leaf.ExtKeyUsage[1:] }},
		{"any EKU", CodeWrongUsage, "", func(s *spoil) { s.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }},
		{"one EKU twice", CodeWrongUsage, "", func(s *spoil) {
			s.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageServerAuth}
		}},
		{"code signing too", CodeWrongUsage, "", func(s *spoil) { s.leaf.ExtKeyUsage = append(s.leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }},
		{"unknown EKU too", CodeWrongUsage, "", func(s *spoil) { s.leaf.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999, 1}} }},
		{"no key usage", CodeWrongKeyUsage, "", func(s *spoil) { s.leaf.KeyUsage = 0 }},
		{"encipherment only", CodeWrongKeyUsage, "", func(s *spoil) { s.leaf.KeyUsage = x509.KeyUsageKeyEncipherment }},
		{"may sign certificates", CodeWrongKeyUsage, "", func(s *spoil) { s.leaf.KeyUsage |= x509.KeyUsageCRLSign }},
		{"not marked", CodeWrongIssuer, "marked", func(s *spoil) { s.leaf.Policies = nil }},
		{"no URI", CodeNoIdentity, "", func(s *spoil) { s.leaf.URIs = nil }},
		{"two identities", CodeManyIdentities, "", func(s *spoil) {
			s.leaf.URIs = append(s.leaf.URIs, mustURL(t, "spiffe://sallyport.internal/core/core"))
		}},
		{"identity and another URI", CodeManyIdentities, "2 URIs", func(s *spoil) { s.leaf.URIs = append(s.leaf.URIs, mustURL(t, "https://sallyport.internal/x")) }},
		{"wrong trust domain (name constraint)", CodeNameConstraint, "", func(s *spoil) { s.leaf.URIs = []*url.URL{mustURL(t, "spiffe://example.org/gateway/office")} }},
		{"a domain below ours", CodeWrongTrustDomain, "a.sallyport.internal", func(s *spoil) { s.leaf.URIs = []*url.URL{mustURL(t, "spiffe://a.sallyport.internal/gateway/office")} }},
		{"a URI without a domain", CodeNameConstraint, "", func(s *spoil) { s.leaf.URIs = append(s.leaf.URIs, mustURL(t, "urn:x:y")) }},
		{"verifier of another trust domain", CodeWrongTrustDomain, "", func(s *spoil) { s.domain = "example.org" }},
		{"wrong role", CodeWrongRole, "proxy office, and a gateway is expected", func(s *spoil) { s.leaf.URIs = []*url.URL{testID(RoleProxy, "office").URI()} }},
		{"a gateway where core is expected", CodeWrongRole, "gateway office, and a core is expected", func(s *spoil) { s.want = Expect{Role: RoleCore} }},
		{"a client", CodeWrongRole, "not of a component", func(s *spoil) { s.leaf.URIs = []*url.URL{testID(RoleClient, "office").URI()} }},
		{"a role that does not exist", CodeBadIdentity, "not a role", func(s *spoil) { s.leaf.URIs = []*url.URL{mustURL(t, "spiffe://sallyport.internal/admin/office")} }},
		{"wrong name", CodeWrongName, "office", func(s *spoil) { s.want.Name = "depot" }},
		{"name of another case", CodeBadIdentity, "", func(s *spoil) { s.leaf.URIs = []*url.URL{mustURL(t, "spiffe://sallyport.internal/gateway/Office")} }},
		{"no name", CodeBadIdentity, "", func(s *spoil) { s.leaf.URIs = []*url.URL{mustURL(t, "spiffe://sallyport.internal/gateway")} }},
		{"trailing slash", CodeBadIdentity, "", func(s *spoil) { s.leaf.URIs = []*url.URL{mustURL(t, "spiffe://sallyport.internal/gateway/office/")} }},
		{"dot segments", CodeBadIdentity, "", func(s *spoil) {
			s.leaf.URIs = []*url.URL{mustURL(t, "spiffe://sallyport.internal/gateway/office/../depot")}
		}},
		{"escaped slash", CodeBadIdentity, "", func(s *spoil) {
			rawSAN(t, s.leaf, generalName(6, "spiffe://sallyport.internal/gateway%2Foffice"))
		}},
		{"a spelling of the URI that url.URL would mend", CodeBadIdentity, "", func(s *spoil) {
			rawSAN(t, s.leaf, generalName(6, "SPIFFE://sallyport.internal/gateway/office"))
		}},
		{"a query", CodeBadIdentity, "", func(s *spoil) { rawSAN(t, s.leaf, generalName(6, "spiffe://sallyport.internal/gateway/office?x")) }},
		{"a name of a kind that Go passes over", CodeBadIdentity, "kind 8", func(s *spoil) {
			rawSAN(t, s.leaf, generalName(6, "spiffe://sallyport.internal/gateway/office"), generalName(8, "\x2a\x03\x04"))
		}},
		{"an e-mail name", CodeBadIdentity, "kind 1", func(s *spoil) { s.leaf.EmailAddresses = []string{"x@sallyport.internal"} }},
		{"no incarnation", CodeBadIdentity, "incarnation", func(s *spoil) { s.leaf.Subject.SerialNumber = "" }},
		{"incarnation 0", CodeBadIdentity, "incarnation", func(s *spoil) { s.leaf.Subject.SerialNumber = "0" }},
		{"incarnation with a leading zero", CodeBadIdentity, "incarnation", func(s *spoil) { s.leaf.Subject.SerialNumber = "01" }},
		{"two incarnations", CodeBadIdentity, "incarnation", func(s *spoil) {
			s.leaf.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 5}, Value: "7"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 5}, Value: "1"}}
			s.leaf.Subject.SerialNumber = ""
		}},
		{"expired", CodeExpired, "expired at 2026-03-02 12:00:00 UTC, and the clock of the machine that checked it says 2026-03-02 12:00:01 UTC, 1s later", func(s *spoil) { s.now = epoch.Add(24*time.Hour + time.Second) }},
		{"not yet valid", CodeNotYetValid, "valid from 2026-03-01 11:59:00 UTC, and the clock of the machine that checked it says 2026-03-01 10:59:00 UTC, 1h 0m earlier", func(s *spoil) { s.now = epoch.Add(-61 * time.Minute) }},
		{"issuer expired", CodeExpired, "Sallyport Components CA", func(s *spoil) {
			s.leaf.NotAfter = epoch.AddDate(20, 0, 0)
			s.now = epoch.AddDate(11, 0, 0)
		}},
		{"revoked", CodeRevoked, "incarnation 1", func(s *spoil) { s.revoked = true }},
		{"unknown critical extension", CodeCriticalExtension, "", func(s *spoil) {
			s.leaf.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 2}, Critical: true, Value: []byte{5, 0}}}
		}},
		{"weak RSA key", CodeWeakKey, "1024 bits", func(s *spoil) { s.pub = weak.Public() }},
		{"weak curve", CodeWeakKey, "P-224", func(s *spoil) { s.pub = p224.Public() }},
		{"callers' intermediate", CodeWrongIssuer, "callers and services", func(s *spoil) { s.by = a.callers.issuer }},
		{"callers' intermediate, root anchored", CodeWrongIssuer, "callers and services", func(s *spoil) { s.by = a.callers.issuer; s.anchors = []*x509.Certificate{a.root} }},
		{"another CA", CodeUnknownAuthority, "not trusted here", func(s *spoil) { s.by = other.components }},
		{"another CA's root in the chain", CodeUnknownAuthority, "not trusted here", func(s *spoil) {
			s.by = other.components
			s.extra = []*x509.Certificate{other.root, a.components.cert, a.root}
		}},
		{"signed by the root", CodeWrongIssuer, "", func(s *spoil) {
			s.by = testRoot(t)
			s.anchors = []*x509.Certificate{s.by.cert}
		}},
		{"signed by a gateway", CodeUnknownAuthority, "", func(s *spoil) {
			c := issueComponent(t, a, RoleGateway, "depot", 1)
			s.by, s.extra = issuer{c.Chain[0], c.Key}, c.Chain[1:]
			s.leaf.URIs = []*url.URL{testID(RoleCore, "core").URI()}
		}},
		{"a CA below the component intermediate", CodePathLength, "", func(s *spoil) {
			key := testKey(t)
			sub, err := authorityTemplate("Sub CA", testDomain, key.Public(), epoch)
			if err != nil {
				t.Fatal(err)
			}
			markComponentIssuer(sub, testDomain)
			s.by = issuer{forge(t, a.components, sub, key.Public()), key}
			s.anchors = []*x509.Certificate{a.root}
			s.extra = []*x509.Certificate{a.components.cert}
		}},
		{"no certificate", CodeCertificateRequired, "", func(s *spoil) { s.chain = []*x509.Certificate{} }},
		{"a chain without end", CodeBadCertificate, "", func(s *spoil) {
			for range 10 {
				s.extra = append(s.extra, a.root)
			}
		}},
		{"no anchors", CodeUnknownAuthority, "no CA yet", func(s *spoil) { s.anchors = []*x509.Certificate{} }},
		{"no expected role", CodeOther, "", func(s *spoil) { s.want = Expect{} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := good
			key := testKey(t)
			s.pub, s.now, s.domain = key.Public(), epoch, testDomain
			s.anchors = []*x509.Certificate{a.components.cert}
			s.want = Expect{Role: RoleGateway, Name: "office"}
			s.leaf = componentTemplate(t, a, RoleGateway, "office", key.Public())
			tc.do(&s)
			if s.chain == nil {
				s.leaf.SubjectKeyId = nil
				s.chain = append([]*x509.Certificate{forge(t, s.by, s.leaf, s.pub), s.by.cert}, s.extra...)
			}
			v := &Verifier{TrustDomain: s.domain, Anchors: s.anchors, Now: func() time.Time { return s.now }}
			v.Revoked = func(*x509.Certificate, ID, uint64) bool { return s.revoked }
			id, err := v.Component(s.chain, s.want)
			if tc.code == "" {
				if err != nil || id != testID(RoleGateway, "office") {
					t.Fatalf("the unspoiled certificate: %v, %v", id, err)
				}
				return
			}
			if err == nil {
				t.Fatal("it was accepted")
			}
			if got := refusalCode(err); got != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("code %q, want %q; want %q in the message: %v", got, tc.code, tc.text, err)
			}
			if r, _ := AsRefusal(err); r.Remedy == "" {
				t.Errorf("no remedy: %v", err)
			}
			if id != (ID{}) {
				t.Errorf("a refusal came with the identity %s", id)
			}
		})
	}
}

type spoil struct {
	by      issuer
	leaf    *x509.Certificate
	pub     crypto.PublicKey
	chain   []*x509.Certificate // instead of leaf
	extra   []*x509.Certificate
	anchors []*x509.Certificate
	domain  string
	want    Expect
	now     time.Time
	revoked bool
}

// testRoot is a root of which the test holds the key.
func testRoot(t testing.TB) issuer {
	t.Helper()
	key := testKey(t)
	template, err := authorityTemplate("Root CA", testDomain, key.Public(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	template.MaxPathLen = 2
	return issuer{forge(t, issuer{template, key}, template, key.Public()), key}
}

func TestComponentVerifierByRoot(t *testing.T) {
	a := testAuthority(t)
	c := issueComponent(t, a, RoleProxy, "dmz1", 3)
	v := a.Bundle().RootVerifier(func() time.Time { return epoch }, nil)
	if _, err := v.Component(c.Chain, Expect{Role: RoleProxy, Name: "dmz1"}); err != nil {
		t.Error(err)
	}
	if _, err := v.Component(c.Chain[:1], Expect{Role: RoleProxy}); refusalCode(err) != CodeUnknownAuthority {
		t.Errorf("without the intermediate: %v", err)
	}
	// The intermediate alone is anchor enough on ordinary links.
	v = a.Bundle().ComponentVerifier(func() time.Time { return epoch }, nil)
	if _, err := v.Component(c.Chain[:1], Expect{Role: RoleProxy}); err != nil {
		t.Error(err)
	}
}

// TestRevokedSeesIncarnation proves what the callback is told.
func TestRevokedSeesIncarnation(t *testing.T) {
	a := testAuthority(t)
	old, fresh := issueComponent(t, a, RoleGateway, "office", 2), issueComponent(t, a, RoleGateway, "office", 3)
	v := a.Bundle().ComponentVerifier(func() time.Time { return epoch }, func(c *x509.Certificate, id ID, incarnation uint64) bool {
		return id == testID(RoleGateway, "office") && incarnation <= 2 && Serial(c) != ""
	})
	if _, err := v.Component(old.Chain, Expect{Role: RoleGateway}); refusalCode(err) != CodeRevoked {
		t.Errorf("incarnation 2: %v", err)
	}
	if _, err := v.Component(fresh.Chain, Expect{Role: RoleGateway}); err != nil {
		t.Errorf("incarnation 3: %v", err)
	}
}

func TestCaller(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	template := func(mod func(c *x509.Certificate)) func(pub crypto.PublicKey) []*x509.Certificate {
		return func(pub crypto.PublicKey) []*x509.Certificate {
			p, err := a.prepareLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: pub, Client: true}, epoch)
			if err != nil {
				t.Fatal(err)
			}
			mod(p.template)
			return []*x509.Certificate{forge(t, a.callers.issuer, p.template, pub), a.callers.cert}
		}
	}
	for _, tc := range []struct {
		name, code string
		chain      func(pub crypto.PublicKey) []*x509.Certificate
	}{
		{"good", "", template(func(*x509.Certificate) {})},
		{"good, with another URI", "", template(func(c *x509.Certificate) { c.URIs = append(c.URIs, mustURL(t, "https://example.org/billing")) })},
		{"no identity", CodeNoIdentity, template(func(c *x509.Certificate) { c.URIs = nil })},
		{"a URI that is no identity", CodeNoIdentity, template(func(c *x509.Certificate) { c.URIs = []*url.URL{mustURL(t, "https://example.org/")} })},
		{"two identities", CodeManyIdentities, template(func(c *x509.Certificate) { c.URIs = append(c.URIs, testID(RoleClient, "x").URI()) })},
		{"a component's identity", CodeWrongRole, template(func(c *x509.Certificate) { c.URIs = []*url.URL{testID(RoleGateway, "x").URI()} })},
		{"a service", CodeWrongRole, template(func(c *x509.Certificate) { c.URIs = []*url.URL{testID(RoleService, "x").URI()} })},
		{"another trust domain", CodeWrongTrustDomain, template(func(c *x509.Certificate) { c.URIs = []*url.URL{mustURL(t, "spiffe://example.org/client/x")} })},
		{"server EKU only", CodeWrongUsage, template(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		{"no EKU", CodeWrongUsage, template(func(c *x509.Certificate) { c.ExtKeyUsage = nil })},
		{"key usage without signing", CodeWrongKeyUsage, template(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })},
		{"a CA", CodeCACertificate, template(func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign })},
		{"expired", CodeExpired, template(func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Second) })},
		{"a component", CodeUnknownAuthority, func(crypto.PublicKey) []*x509.Certificate { return issueComponent(t, a, RoleGateway, "x", 1).Chain }},
		{"another CA", CodeUnknownAuthority, func(pub crypto.PublicKey) []*x509.Certificate {
			i, err := other.IssueLeaf(LeafRequest{ID: ID{testDomain, RoleClient, "billing"}, PublicKey: pub, Client: true}, epoch)
			if err != nil {
				t.Fatal(err)
			}
			return i.Chain
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := a.Bundle().CallerVerifier(func() time.Time { return epoch }, nil)
			id, err := v.Caller(tc.chain(testKey(t).Public()))
			if tc.code == "" {
				if err != nil || id != testID(RoleClient, "billing") {
					t.Fatalf("%v, %v", id, err)
				}
				return
			}
			got := refusalCode(err)
			if tc.code == CodeUnknownAuthority && got == CodeWrongIssuer {
				got = tc.code // the family is guessed for the message
			}
			if got != tc.code {
				t.Fatalf("code %q, want %q: %v", got, tc.code, err)
			}
			if errors.Is(err, ErrNoIdentity) != (tc.code == CodeNoIdentity) {
				t.Errorf("errors.Is ErrNoIdentity: %v", err)
			}
		})
	}
	t.Run("revoked", func(t *testing.T) {
		v := a.Bundle().CallerVerifier(func() time.Time { return epoch }, func(*x509.Certificate, ID, uint64) bool { return true })
		if _, err := v.Caller(template(func(*x509.Certificate) {})(testKey(t).Public())); refusalCode(err) != CodeRevoked {
			t.Error(err)
		}
	})
	t.Run("anchored on the root, a component is no caller", func(t *testing.T) {
		v := a.Bundle().RootVerifier(func() time.Time { return epoch }, nil)
		c := componentTemplate(t, a, RoleGateway, "x", testKey(t).Public())
		c.URIs = []*url.URL{testID(RoleClient, "billing").URI()}
		key := testKey(t)
		if _, err := v.Caller([]*x509.Certificate{forge(t, a.components, c, key.Public()), a.components.cert}); refusalCode(err) != CodeWrongIssuer {
			t.Error(err)
		}
	})
}

// A name constraint that a foreign CA carries is obeyed too.
func TestCallerObeysIPConstraint(t *testing.T) {
	a := testAuthority(t)
	key := testKey(t)
	ca, err := authorityTemplate("Imported CA", testDomain, key.Public(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	ca.MaxPathLenZero = true
	ca.ExcludedDNSDomains = []string{"example.org"}
	_, network, _ := net.ParseCIDR("10.0.0.0/8")
	ca.PermittedIPRanges = []*net.IPNet{network}
	imported := issuer{forge(t, issuer{ca, key}, ca, key.Public()), key}
	p, err := a.prepareLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: testKey(t).Public(), Client: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	p.template.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)}
	v := &Verifier{TrustDomain: testDomain, Anchors: []*x509.Certificate{imported.cert}, Now: func() time.Time { return epoch }}
	if _, err := v.Caller([]*x509.Certificate{forge(t, imported, p.template, p.public)}); refusalCode(err) != CodeNameConstraint {
		t.Error(err)
	}
}
