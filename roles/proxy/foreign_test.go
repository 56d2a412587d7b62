package proxy

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// partner is a CA that knows nothing of us, as the openssl commands of guides
// make it: RSA, no path length, leaves without extended key usages.
type partner struct {
	t    *testing.T
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

func newPartner(t *testing.T) *partner {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "example.local"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &partner{t, cert, key}
}

func (c *partner) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

func (c *partner) issue(change func(*x509.Certificate)) *pki.Credentials {
	c.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		c.t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return &pki.Credentials{Chain: []*x509.Certificate{leaf}, Key: key}
}

func named(cn string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: cn} }
}

func uri(t *testing.T, ids ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, id := range ids {
			u, err := url.Parse(id)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

const partnerGrants = `
[[grant]]
caller = "cn:grpc-client"
client_ca = "partner"
permissions = ["echo"]
via_proxy = ["dmz1"]

[[grant]]
caller = "spiffe://partner.example/app"
client_ca = "partner"
permissions = ["echo"]
via_proxy = ["dmz1"]
`

func TestForeignClientCA(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.part.Policy = []byte(testPolicy + partnerGrants)
	ca, other := newPartner(t), newPartner(t)
	file := filepath.Join(t.TempDir(), "partner.pem")
	write(t, file, ca.pem())
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), ClientCAs: []configs.ClientCA{{Name: "partner", File: file}}})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	try := func(c *pki.Credentials) error {
		cc := r.dial(c)
		defer cc.Close()
		return say(t.Context(), cc)
	}
	for _, c := range []struct {
		what  string
		cert  *pki.Credentials
		want  codes.Code
		about string
		claim policy.Claim
	}{
		{"common name alone, no usages", ca.issue(named("grpc-client")), codes.OK, "", policy.Claim{ID: "cn:grpc-client", ClientCA: "partner"}},
		{"key encipherment alone", ca.issue(func(c *x509.Certificate) {
			named("grpc-client")(c)
			c.KeyUsage = x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
		}), codes.OK, "", policy.Claim{ID: "cn:grpc-client", ClientCA: "partner"}},
		{"SPIFFE before common name", ca.issue(func(c *x509.Certificate) {
			named("grpc-client")(c)
			uri(t, "spiffe://partner.example/app")(c)
		}), codes.OK, "", policy.Claim{ID: "spiffe://partner.example/app", ClientCA: "partner"}},
		{"nobody we know", ca.issue(named("somebody")), codes.PermissionDenied, "", policy.Claim{}},
		{"a name of ours", ca.issue(uri(t, "spiffe://test.internal/client/billing")), codes.Unauthenticated, "our trust domain", policy.Claim{}},
		{"two identities", ca.issue(uri(t, "spiffe://partner.example/app", "spiffe://partner.example/b")), codes.Unauthenticated, "more than one", policy.Claim{}},
		{"a URI that is no SPIFFE ID", ca.issue(uri(t, "spiffe:x")), codes.Unauthenticated, "form spiffe://", policy.Claim{}},
		{"our trust domain with a port", ca.issue(uri(t, "spiffe://test.internal:443/client/billing")), codes.Unauthenticated, "client certificate", policy.Claim{}},
		{"no name", ca.issue(func(c *x509.Certificate) { c.Subject = pkix.Name{OrganizationalUnit: []string{"client"}} }), codes.Unauthenticated, "no identity", policy.Claim{}},
		{"the CA itself", &pki.Credentials{Chain: []*x509.Certificate{ca.cert}, Key: ca.key}, codes.Unauthenticated, "CA", policy.Claim{}},
		{"for servers only", ca.issue(func(c *x509.Certificate) {
			named("grpc-client")(c)
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), codes.Unauthenticated, "client certificate", policy.Claim{}},
		{"expired", ca.issue(func(c *x509.Certificate) { named("grpc-client")(c); c.NotAfter = time.Now().Add(-time.Second) }), codes.Unauthenticated, "expired", policy.Claim{}},
		{"another CA of the same name", other.issue(named("grpc-client")), codes.Unauthenticated, "client certificate", policy.Claim{}},
	} {
		err := try(c.cert)
		if status.Code(err) != c.want || !strings.Contains(status.Convert(err).Message(), c.about) {
			t.Errorf("%s: %v, want %s about %q", c.what, err, c.want, c.about)
		}
		if c.want != codes.OK || err != nil {
			continue
		}
		if claim, err := policy.ParseClaim(get(<-core.calls, relay.HeaderClientCert)); err != nil || claim != c.claim {
			t.Errorf("%s: core is told %+v, %v", c.what, claim, err)
		}
	}

	// The file is another: the new CA's are let in, the former's are not, and
	// what they have open ends.
	cc := r.dial(ca.issue(named("grpc-client")))
	chat, err := demo.NewEchoClient(cc).Chat(t.Context())
	if err == nil {
		err = errors.Join(chat.Send(&demo.SayRequest{Text: "x"}))
		_, recv := chat.Recv()
		err = errors.Join(err, recv)
	}
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, other.pem())
	if _, err := chat.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the open call: %v", err)
	}
	if err := try(other.issue(named("grpc-client"))); err != nil {
		t.Errorf("the new CA: %v", err)
	}
}

// TestRevokedCallersCallsEnd: whoever is revoked, by certificate or key, loses
// his open calls within a second; others keep theirs.
func TestRevokedCallersCallsEnd(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := joined(t, core)
	billing, nobody := core.clientCertificate("billing", time.Hour), core.clientCertificate("nobody", time.Hour)
	open := func(what string, cc *grpc.ClientConn, secret string) grpc.BidiStreamingClient[demo.SayRequest, demo.SayResponse] {
		t.Helper()
		ctx := t.Context()
		if secret != "" {
			ctx = withKey(ctx, secret)
		}
		chat, err := demo.NewEchoClient(cc).Chat(ctx)
		if err == nil {
			err = chat.Send(&demo.SayRequest{Text: "x"})
		}
		if err == nil {
			_, err = chat.Recv()
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return chat
	}
	byCertificate, byKey := open("certificate", r.dial(billing), ""), open("key", r.dial(nil), key)
	other, stranger := open("other", r.dial(nobody), ""), open("stranger", r.dial(nil), "")
	began := time.Now()
	core.change(func(p *control.ProxyPart) {
		p.ApiKeys = nil
		core.revoked = []*control.Revocation{{Serial: pki.Serial(billing.Chain[0])}}
	})
	for what, chat := range map[string]grpc.BidiStreamingClient[demo.SayRequest, demo.SayResponse]{"certificate": byCertificate, "key": byKey} {
		if _, err := chat.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", what, err)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s", took)
	}
	for what, chat := range map[string]grpc.BidiStreamingClient[demo.SayRequest, demo.SayResponse]{"other": other, "stranger": stranger} {
		err := chat.Send(&demo.SayRequest{Text: "y"})
		if err == nil {
			_, err = chat.Recv()
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		_ = chat.CloseSend()
	}
}
