package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
)

func testCSR(t testing.TB, shape func(r *x509.CertificateRequest)) *x509.CertificateRequest {
	t.Helper()
	template := &x509.CertificateRequest{}
	shape(template)
	der, err := x509.CreateCertificateRequest(rand.Reader, template, testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func ekus(oids ...asn1.ObjectIdentifier) pkix.Extension {
	der, _ := asn1.Marshal(oids)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: der}
}

func TestSignCSR(t *testing.T) {
	a := testAuthority(t)
	csr := testCSR(t, func(r *x509.CertificateRequest) {
		r.Subject = pkix.Name{CommonName: "orders", Organization: []string{"Example"}}
		r.DNSNames = []string{"orders.example.org", "*.orders.example.org"}
		r.IPAddresses = []net.IP{net.ParseIP("192.0.2.7"), net.ParseIP("2001:db8::7")}
		r.URIs = []*url.URL{mustURL(t, "https://example.org/orders"), testID(RoleService, "orders").URI()}
	})
	out, err := a.SignCSR(SignRequest{CSR: csr, KeepNames: true, LeafRequest: LeafRequest{ID: testID(RoleService, "orders"), DNS: []string{"localhost"}}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	c := out.Chain[0]
	if strings.Join(c.DNSNames, " ") != "localhost orders.example.org *.orders.example.org" || len(c.IPAddresses) != 2 || len(c.URIs) != 2 ||
		c.Subject.String() != "CN=orders,O=Example" || !samePublicKey(c.PublicKey, csr.PublicKey) {
		t.Errorf("%s %v %v %v", c.Subject, c.DNSNames, c.IPAddresses, c.URIs)
	}
	if len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("a service without wishes: %v", c.ExtKeyUsage)
	}
	// Without KeepNames the key alone is used.
	out, err = a.SignCSR(SignRequest{CSR: csr, LeafRequest: LeafRequest{ID: testID(RoleClient, "billing")}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if c := out.Chain[0]; len(c.DNSNames)+len(c.IPAddresses) != 0 || len(c.URIs) != 1 || c.Subject.String() != "CN=billing" || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("%s %v %v", c.Subject, c.URIs, c.ExtKeyUsage)
	}
	// Policy is asked about each name.
	var asked []string
	_, err = a.SignCSR(SignRequest{CSR: csr, KeepNames: true, LeafRequest: LeafRequest{ID: testID(RoleService, "orders")}, Allow: func(name string) error {
		asked = append(asked, name)
		if name == "2001:db8::7" {
			return errors.New("not one of ours")
		}
		return nil
	}}, epoch)
	if err == nil || !strings.Contains(err.Error(), "2001:db8::7") || !strings.Contains(err.Error(), "not one of ours") || len(asked) != 4 {
		t.Errorf("%v after %q", err, asked)
	}
}

func TestSignCSRUses(t *testing.T) {
	a := testAuthority(t)
	server, client := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	for name, tc := range map[string]struct {
		uses   []asn1.ObjectIdentifier
		dns    []string
		given  LeafRequest
		want   int // bit 0 server, bit 1 client
		refuse string
	}{
		"nothing said, names":       {nil, []string{"x.org"}, LeafRequest{}, 3, ""},
		"nothing said, no names":    {nil, nil, LeafRequest{}, 2, ""},
		"server":                    {[]asn1.ObjectIdentifier{server}, []string{"x.org"}, LeafRequest{}, 1, ""},
		"client":                    {[]asn1.ObjectIdentifier{client}, []string{"x.org"}, LeafRequest{}, 2, ""},
		"both":                      {[]asn1.ObjectIdentifier{server, client}, []string{"x.org"}, LeafRequest{}, 3, ""},
		"the signer has the word":   {[]asn1.ObjectIdentifier{server}, []string{"x.org"}, LeafRequest{Client: true}, 2, ""},
		"code signing":              {[]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 3}}, []string{"x.org"}, LeafRequest{}, 0, "servers and clients"},
		"a server without any name": {[]asn1.ObjectIdentifier{server}, nil, LeafRequest{}, 0, "DNS names"},
	} {
		csr := testCSR(t, func(r *x509.CertificateRequest) {
			r.Subject.CommonName, r.DNSNames = "x", tc.dns
			if tc.uses != nil {
				r.ExtraExtensions = append(r.ExtraExtensions, ekus(tc.uses...))
			}
		})
		out, err := a.SignCSR(SignRequest{CSR: csr, KeepNames: true, LeafRequest: tc.given}, epoch)
		if tc.refuse != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refuse) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := 0
		for _, u := range out.Chain[0].ExtKeyUsage {
			got |= map[x509.ExtKeyUsage]int{x509.ExtKeyUsageServerAuth: 1, x509.ExtKeyUsageClientAuth: 2}[u]
		}
		if got != tc.want {
			t.Errorf("%s: uses %b, want %b", name, got, tc.want)
		}
	}
}

func TestSignCSRRefuses(t *testing.T) {
	a := testAuthority(t)
	uri := func(s string) func(r *x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) {
			r.DNSNames = []string{"x.org"}
			der, err := asn1.Marshal([]asn1.RawValue{generalName(2, "x.org"), generalName(6, s)})
			if err != nil {
				t.Fatal(err)
			}
			r.DNSNames = nil
			r.ExtraExtensions = []pkix.Extension{{Id: oidSubjectAltName, Value: der}}
		}
	}
	for name, tc := range map[string]struct {
		shape func(r *x509.CertificateRequest)
		id    ID
		want  string
	}{
		"to be core":                         {uri("spiffe://sallyport.internal/core/core"), ID{}, "components are not made by signing"},
		"to be a gateway, by a client's ID":  {uri("spiffe://sallyport.internal/gateway/office"), testID(RoleClient, "office"), "sallyport gateway add"},
		"to be core, in capitals":            {uri("SPIFFE://sallyport.internal/core/core"), ID{}, "an identity is given by who signs"},
		"to be core of another trust domain": {uri("spiffe://example.org/core/core"), ID{}, "components are not made"},
		"to be a client that was not given":  {uri("spiffe://sallyport.internal/client/admin"), ID{}, "an identity is given by who signs"},
		"to be another client":               {uri("spiffe://sallyport.internal/client/admin"), testID(RoleClient, "billing"), "an identity is given by who signs"},
		"a mail address":                     {func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"x@example.org"} }, ID{}, "kind 1"},
		"a wildcard for a TLD":               {func(r *x509.CertificateRequest) { r.DNSNames = []string{"*.org"} }, ID{}, "wildcard"},
		"an escape in its subject": {func(r *x509.CertificateRequest) {
			r.Subject.CommonName = "\x1b[2J"
			r.DNSNames = []string{"x.org"}
		}, ID{}, "printable"},
		"an unknown attribute": {func(r *x509.CertificateRequest) {
			r.DNSNames = []string{"x.org"}
			r.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, Value: "root"}}
		}, ID{}, "0.9.2342"},
		"two common names": {func(r *x509.CertificateRequest) {
			r.DNSNames = []string{"x.org"}
			r.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "a"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "b"}}
		}, ID{}, "several common names"},
	} {
		if out, err := a.SignCSR(SignRequest{CSR: testCSR(t, tc.shape), KeepNames: true, LeafRequest: LeafRequest{ID: tc.id}}, epoch); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v %v", name, out, err)
		}
	}
	if _, err := a.SignCSR(SignRequest{}, epoch); err == nil {
		t.Error("nothing was signed")
	}
	forged := *testCSR(t, func(r *x509.CertificateRequest) { r.DNSNames = []string{"x.org"} })
	forged.PublicKey = testKey(t).Public()
	if _, err := a.SignCSR(SignRequest{CSR: &forged, KeepNames: true}, epoch); refusalCode(err) != CodeKeyMismatch {
		t.Errorf("a request that another key signed: %v", err)
	}
}

// FuzzSignCSR: whatever a CSR says, no identity comes of it, and what comes
// passes the self-check. The body is the fuzzer's, the signature is made anew,
// or nothing would get in.
func FuzzSignCSR(f *testing.F) {
	a := testAuthority(f)
	key := testKey(f)
	for _, shape := range []func(r *x509.CertificateRequest){
		func(r *x509.CertificateRequest) { r.DNSNames = []string{"x.org"} },
		func(r *x509.CertificateRequest) { r.URIs = []*url.URL{testID(RoleCore, "core").URI()} },
		func(r *x509.CertificateRequest) { r.Subject.CommonName = "x"; r.IPAddresses = []net.IP{{192, 0, 2, 1}} },
	} {
		template := &x509.CertificateRequest{}
		shape(template)
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			f.Fatal(err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(csr.RawTBSCertificateRequest)
	}
	algorithm, _ := asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}})
	f.Fuzz(func(t *testing.T, tbs []byte) {
		digest := sha256.Sum256(tbs)
		signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		der, err := asn1.Marshal([]asn1.RawValue{{FullBytes: tbs}, {FullBytes: algorithm}, {Tag: asn1.TagBitString, Bytes: append([]byte{0}, signature...)}})
		if err != nil {
			return
		}
		csr, err := ParseCSR(der)
		if err != nil {
			return
		}
		out, err := a.SignCSR(SignRequest{CSR: csr, KeepNames: true}, epoch)
		if err != nil {
			if strings.Contains(err.Error(), "report this") {
				t.Errorf("the profile lets through what the self-check refuses: %v", err)
			}
			return
		}
		if id, err := CertificateID(out.Chain[0]); err == nil {
			t.Errorf("it got the identity %s", id)
		}
	})
}
