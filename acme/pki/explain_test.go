package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/roles/control"
)

// handshake runs a real one over a pipe and returns both ends' errors.
func handshake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	near, far := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	near.SetDeadline(deadline)
	far.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		c := tls.Server(far, server)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte{1})
		}
		done <- err
		far.Close()
	}()
	c := tls.Client(near, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1)) // the server's verdict comes after
	}
	near.Close()
	return clientErr, <-done
}

// TestExplainHandshakes makes each failure with crypto/tls itself, on whatever
// texts and types this version of Go has for it.
func TestExplainHandshakes(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	leaf := func(a *Authority, r LeafRequest) tls.Certificate {
		key := testKey(t)
		r.PublicKey = key.Public()
		out, err := a.IssueLeaf(r, epoch)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: out.DER(), PrivateKey: key}
	}
	serverCert := leaf(a, LeafRequest{Server: true, DNS: []string{"orders.example.org"}})
	clientOnly := leaf(a, LeafRequest{ID: testID(RoleClient, "x"), Client: true, DNS: []string{"orders.example.org"}})
	alone := serverCert
	alone.Certificate = alone.Certificate[:1]
	// What the openssl commands of many guides make: a name in the subject only.
	commonName := func() tls.Certificate {
		key := testKey(t)
		p, err := a.prepareLeaf(LeafRequest{PublicKey: key.Public(), Server: true, DNS: []string{"x"}, Subject: &pkix.Name{CommonName: "orders.example.org"}}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		p.template.DNSNames = nil
		return tls.Certificate{Certificate: [][]byte{forge(t, a.callers.issuer, p.template, key.Public()).Raw, a.callers.cert.Raw}, PrivateKey: key}
	}()
	public := func() tls.Certificate { // as a public CA makes it, without its intermediate
		key := testKey(t)
		p, err := a.prepareLeaf(LeafRequest{PublicKey: key.Public(), Server: true, DNS: []string{"orders.example.org"}}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		p.template.IssuingCertificateURL = []string{"http://ca.example.org/ca.crt"}
		return tls.Certificate{Certificate: [][]byte{forge(t, a.callers.issuer, p.template, key.Public()).Raw}, PrivateKey: key}
	}()
	selfSigned := func() tls.Certificate {
		key := testKey(t)
		p, err := a.prepareLeaf(LeafRequest{PublicKey: key.Public(), Server: true, DNS: []string{"orders.example.org"}}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{forge(t, issuer{p.template, key}, p.template, key.Public()).Raw}, PrivateKey: key}
	}()

	type mod func(client, server *tls.Config)
	for _, tc := range []struct {
		name, client, server string // codes; "" is no error looked at
		do                   mod
	}{
		{"unknown authority", CodeUnknownAuthority, CodeRefusedByPeer, func(c, s *tls.Config) { c.RootCAs = other.Bundle().RootPool() }},
		{"only the leaf is sent", CodeUnknownAuthority, "", func(c, s *tls.Config) { s.Certificates = []tls.Certificate{alone} }},
		{"intermediate missing", CodeIntermediateMissing, "", func(c, s *tls.Config) { s.Certificates = []tls.Certificate{public} }},
		{"self-signed", CodeUnknownAuthority, "", func(c, s *tls.Config) { s.Certificates = []tls.Certificate{selfSigned} }},
		{"expired", CodeExpired, "", func(c, s *tls.Config) { c.Time = func() time.Time { return epoch.AddDate(1, 0, 0) } }},
		{"not yet valid", CodeNotYetValid, "", func(c, s *tls.Config) { c.Time = func() time.Time { return epoch.AddDate(-40, 0, 0) } }},
		{"name mismatch", CodeNameMismatch, "", func(c, s *tls.Config) { c.ServerName = "stock.example.org" }},
		{"common name only", CodeCommonNameOnly, "", func(c, s *tls.Config) { s.Certificates = []tls.Certificate{commonName} }},
		{"wrong usage", CodeWrongUsage, "", func(c, s *tls.Config) { s.Certificates = []tls.Certificate{clientOnly} }},
		{"client certificate missing", CodeCertificateRequired, CodeCertificateRequired, func(c, s *tls.Config) { s.ClientAuth = tls.RequireAnyClientCert }},
		{"client certificate of another CA", CodeUnknownAuthority, CodeUnknownAuthority, func(c, s *tls.Config) {
			s.ClientAuth, s.ClientCAs = tls.RequireAndVerifyClientCert, other.Bundle().RootPool()
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &clientOnly, nil }
		}},
		{"client certificate expired", CodeExpired, CodeExpired, func(c, s *tls.Config) {
			s.ClientAuth, s.ClientCAs = tls.RequireAndVerifyClientCert, a.Bundle().RootPool()
			s.Time = func() time.Time { return epoch.AddDate(1, 0, 0) }
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &clientOnly, nil }
		}},
		{"no common version", CodeNoCommonVersion, CodeNoCommonVersion, func(c, s *tls.Config) { c.MaxVersion = tls.VersionTLS12; s.MinVersion = tls.VersionTLS13 }},
		{"no common version, older server", CodeNoCommonVersion, CodeNoCommonVersion, func(c, s *tls.Config) { c.MinVersion = tls.VersionTLS13; s.MaxVersion = tls.VersionTLS12 }},
		{"no common cipher", CodeRefusedByPeer, CodeNoCommonCipher, func(c, s *tls.Config) {
			c.MaxVersion = tls.VersionTLS12
			c.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
			s.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
		}},
		{"no common protocol", CodeNoCommonProtocol, CodeNoCommonProtocol, func(c, s *tls.Config) { c.NextProtos = []string{"h2"}; s.NextProtos = []string{"sallyport-control/1"} }},
		{"a refusal of our own", CodeWrongRole, CodeRefusedByPeer, func(c, s *tls.Config) {
			c.VerifyConnection = func(tls.ConnectionState) error { return refuse(CodeWrongRole, "cause", "remedy") }
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := func() time.Time { return epoch }
			c := &tls.Config{Time: now, RootCAs: a.Bundle().RootPool(), ServerName: "orders.example.org"}
			s := &tls.Config{Time: now, Certificates: []tls.Certificate{serverCert}}
			tc.do(c, s)
			clientErr, serverErr := handshake(t, c, s)
			check := func(side, want string, err error) {
				if want == "" {
					return
				}
				r := Explain(err)
				if r.Code != want || r.Cause == "" || r.Remedy == "" {
					t.Errorf("%s: %+v, want code %q, from %v", side, r, want, err)
				}
			}
			check("client", tc.client, clientErr)
			check("server", tc.server, serverErr)
		})
	}
}

func TestExplainPlaintext(t *testing.T) {
	for start, want := range map[string]string{
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                 "HTTP/2 without TLS",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                "HTTP without TLS",
		"HTTP/1.1 400 Bad Request\r\n\r\n":                 "HTTP without TLS",
		"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x00\x00": "HTTP/2 frames",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n":           "PROXY protocol",
		"SSH-2.0-OpenSSH_9.6\r\n":                          "SSH server",
		"220 mail.example.org ESMTP\r\n":                   "does not speak TLS",
	} {
		near, far := net.Pipe()
		go func() {
			io.WriteString(near, start)
			io.Copy(io.Discard, near)
		}()
		err := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{{}}}).Handshake()
		near.Close()
		far.Close()
		r := Explain(err)
		if r.Code != CodePlaintext && r.Code != CodeNotTLS || !strings.Contains(r.Cause, want) || r.Remedy == "" {
			t.Errorf("%q: %+v, from %v", start, r, err)
		}
	}
}

func TestExplainNetwork(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	_, refused := net.Dial("tcp", address)
	expired, cancel := context.WithDeadline(context.Background(), time.Unix(1, 0))
	defer cancel()
	_, late := (&net.Dialer{}).DialContext(expired, "tcp", address)
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"refused":     {refused, CodeConnectionRefused},
		"late":        {late, CodeNoAnswer},
		"deadline":    {fmt.Errorf("dial: %w", context.DeadlineExceeded), CodeNoAnswer},
		"closed":      {fmt.Errorf("handshake: %w", io.EOF), CodeConnectionClosed},
		"reset":       {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, CodeConnectionClosed},
		"unreachable": {&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, CodeNoRoute},
		"no name":     {&net.DNSError{Err: "no such host", Name: "core.example.org", IsNotFound: true}, CodeNameUnknown},
		"other":       {errors.New("the cat sat on the router"), CodeOther},
		"ours":        {fmt.Errorf("join: %w", refuse(CodePinMismatch, "cause", "remedy")), CodePinMismatch},
	} {
		if r := Explain(tc.err); r.Code != tc.want || r.Cause == "" {
			t.Errorf("%s: %+v, want %s", name, r, tc.want)
		}
	}
	if r := Explain(nil); r != (Refusal{}) {
		t.Errorf("no error: %+v", r)
	}
	if r := Explain(errors.New("bad\x1b[2J\ntext")); strings.ContainsAny(r.Cause, "\x1b\n") {
		t.Errorf("a terminal would obey %q", r.Cause)
	}
}

func TestExplainKeyPair(t *testing.T) {
	a := testAuthority(t)
	c := issueComponent(t, a, RoleGateway, "office", 1)
	key, err := MarshalKeyPEM(testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tls.X509KeyPair(MarshalCertificatesPEM(c.Chain), key)
	if r := Explain(err); r.Code != CodeKeyMismatch {
		t.Errorf("%+v, from %v", r, err)
	}
	other, err := NewKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	key, err = MarshalKeyPEM(other)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tls.X509KeyPair(MarshalCertificatesPEM(c.Chain), key)
	if r := Explain(err); r.Code != CodeKeyMismatch {
		t.Errorf("%+v, from %v", r, err)
	}
}

func TestExplainVerify(t *testing.T) {
	a := testAuthority(t)
	pub := testKey(t).Public()
	leaf := componentTemplate(t, a, RoleGateway, "office", pub)
	gateway := issueComponent(t, a, RoleGateway, "depot", 1)
	byLeaf := forge(t, issuer{gateway.Chain[0], gateway.Key}, leaf, pub)
	_, err := byLeaf.Verify(x509.VerifyOptions{Roots: a.Bundle().RootPool(), Intermediates: func() *x509.CertPool {
		p := x509.NewCertPool()
		p.AddCert(gateway.Chain[0])
		p.AddCert(a.components.cert)
		return p
	}(), CurrentTime: epoch})
	if r := Explain(err); r.Code != CodeUnknownAuthority && r.Code != CodeCACertificate {
		t.Errorf("signed by a leaf: %+v, from %v", r, err)
	}
	err = byLeaf.CheckSignatureFrom(gateway.Chain[0])
	if r := Explain(err); r.Code != CodeCACertificate {
		t.Errorf("signed by a leaf: %+v, from %v", r, err)
	}
}

func TestRefusalProto(t *testing.T) {
	r := refuse(CodeWrongRole, "cause", "remedy")
	if got := RefusalFromProto(r.Proto()); *got != *r {
		t.Errorf("%+v", got)
	}
	var none *Refusal
	if none.Proto() != nil || RefusalFromProto(nil) != nil {
		t.Error("nothing became something")
	}
	hostile := RefusalFromProto(&control.Refusal{Code: "x\n", Cause: "\x1b[31m" + strings.Repeat("é", 5000), Remedy: "run\r\nthis \u202e"})
	if hostile.Code != CodeOther || len(hostile.Cause) > 1100 || strings.ContainsAny(hostile.Error(), "\x1b\r\n\u202e") {
		t.Errorf("%q", hostile.Error())
	}
	if !errors.Is(fmt.Errorf("x: %w", r), &Refusal{Code: CodeWrongRole}) || errors.Is(r, ErrNoIdentity) {
		t.Error("errors.Is does not compare codes")
	}
}
