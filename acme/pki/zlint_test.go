package pki

import (
	"crypto/x509"
	"encoding/asn1"
	"net"
	"net/netip"
	"net/url"
	"testing"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// TestZlint has zlint's RFC 5280 lints judge one certificate of every profile,
// and the revocation lists. Warnings count.
func TestZlint(t *testing.T) {
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280}})
	if err != nil {
		t.Fatal(err)
	}
	run := 0
	judge := func(name string, results *zlint.ResultSet) {
		t.Helper()
		for lintName, r := range results.Results {
			switch r.Status {
			case lint.Pass:
				run++
			case lint.Warn, lint.Error, lint.Fatal:
				t.Errorf("%s: %s: %s %s", name, lintName, r.Status, r.Details)
			}
		}
	}
	certificate := func(name string, c *x509.Certificate) {
		t.Helper()
		z, err := zx509.ParseCertificate(c.Raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		judge(name, zlint.LintCertificateEx(z, registry))
	}
	list := func(name string, der []byte) {
		t.Helper()
		z, err := zx509.ParseRevocationList(der)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		judge(name, zlint.LintRevocationListEx(z, registry))
	}

	a := walk(t, testAuthority(t), epoch, stepPublish)
	for _, c := range a.Certificates() {
		certificate(c.What, c.Cert)
	}
	certificate("cross-certificate", a.state.cross[0])
	for _, role := range []Role{RoleCore, RoleProxy, RoleGateway} {
		certificate(string(role), issueComponent(t, a, role, "office", 1).Chain[0])
	}
	issued := func(name string, a *Authority, r LeafRequest) {
		t.Helper()
		if r.PublicKey == nil {
			r.PublicKey = testKey(t).Public()
		}
		out, err := a.IssueLeaf(r, epoch)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		certificate(name, out.Chain[0])
	}
	for _, kind := range KeyKinds {
		issued("service "+kind, a, LeafRequest{ID: testID(RoleService, "orders"), PublicKey: keyOf(t, kind).Public(), Server: true, Client: true,
			DNS: []string{"orders.example.org", "*.orders.example.org"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
			URIs: []string{"https://example.org/orders"}})
	}
	issued("client", a, LeafRequest{ID: testID(RoleClient, "billing"), Client: true})
	issued("public port", a, LeafRequest{Server: true, DNS: []string{"localhost"}, IPs: []netip.Addr{netip.IPv6Loopback()}})
	out, err := a.SignCSR(SignRequest{KeepNames: true, CSR: testCSR(t, func(r *x509.CertificateRequest) {
		r.Subject.CommonName, r.Subject.Organization, r.Subject.Country = "orders", []string{"Example"}, []string{"NL"}
		r.DNSNames, r.IPAddresses, r.URIs = []string{"orders.example.org"}, []net.IP{{192, 0, 2, 7}}, []*url.URL{mustURL(t, "https://example.org/")}
		r.ExtraExtensions = append(r.ExtraExtensions, ekus(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}))
	})}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	certificate("signed", out.Chain[0])
	imported, _ := importCA(t, testAuthority(t), foreignCA(t, "example", nil, nil))
	certificate("callers' issuer under an imported CA", imported.callers.cert)
	issued("client of an imported CA", imported, LeafRequest{ID: testID(RoleClient, "billing"), Client: true})

	ders, err := a.CRLs([]CRLEntry{CRLEntryOf(out.Chain[0], epoch, "key-compromise"), {Serial: "abc", Revoked: epoch}}, 0, epoch)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := a.CRLs(nil, 0, epoch)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range append(ders, empty...) {
		list("revocation list", der)
	}
	if run < 500 {
		t.Errorf("only %d lints looked at something", run)
	}
	// The lints find what is wrong, or the test would be worth nothing.
	bad, err := zx509.ParseCertificate(forge(t, a.callers.issuer, func() *x509.Certificate {
		c := componentTemplate(t, a, RoleCore, "core", testKey(t).Public())
		c.KeyUsage |= x509.KeyUsageCertSign
		return c
	}(), testKey(t).Public()).Raw)
	if err != nil {
		t.Fatal(err)
	}
	if !zlint.LintCertificateEx(bad, registry).ErrorsPresent {
		t.Error("an end entity that may sign certificates passed")
	}
}
