package link

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// world is a CA that is not ours: a root, an intermediate, leaves.
type world struct {
	t                *testing.T
	root, mid        *x509.Certificate
	rootKey, midKey  *ecdsa.PrivateKey
	rootPEM, midPEM_ []byte
}

func newWorld(t *testing.T) *world {
	w := &world{t: t}
	w.root, w.rootKey = w.make(&x509.Certificate{Subject: pkix.Name{CommonName: "World Root"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	w.mid, w.midKey = w.intermediate("World R1")
	w.rootPEM, w.midPEM_ = pki.MarshalCertificatesPEM([]*x509.Certificate{w.root}), pki.MarshalCertificatesPEM([]*x509.Certificate{w.mid})
	return w
}

func (w *world) intermediate(name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	return w.make(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, w.root, w.rootKey)
}

func (w *world) make(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.BasicConstraintsValid = true
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return c, key
}

// leaf is what the files of a port hold: leaf and intermediate.
func (w *world) leaf(names ...string) *tls.Certificate {
	c, key := w.make(&x509.Certificate{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names}, w.mid, w.midKey)
	return &tls.Certificate{Certificate: [][]byte{c.Raw, w.mid.Raw}, PrivateKey: key, Leaf: c}
}

// write puts a pair where a port reads it.
func (w *world) write(dir string, c *tls.Certificate) (cert, key string) {
	w.t.Helper()
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	var text []byte
	for _, der := range c.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	keyText, err := pki.MarshalKeyPEM(c.PrivateKey.(crypto.Signer))
	if err != nil {
		w.t.Fatal(err)
	}
	for name, b := range map[string][]byte{cert: text, key: keyText} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	return cert, key
}

func fixed(c *tls.Certificate) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return c, nil }
}

// anchorsOf is a CA file with certificates, on a machine whose system trusts
// nobody.
func anchorsOf(t *testing.T, text []byte) *Anchors {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := openAnchors(file, nil, func() (*x509.CertPool, error) { return x509.NewCertPool(), nil })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestFilesMode: a port that shows the world's certificate proves its identity
// beneath, on every protocol; and so both ways round.
func TestFilesMode(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		c, w := newCA(t), newWorld(t)
		var log logged
		var port *Port
		var d *Dialler
		listener, dialler := pki.RoleCore, role
		if role == pki.RoleGateway {
			port, d = corePort(c, &log), &Dialler{Self: c.self(role, "one")}
		} else {
			port, d = proxyPort(c.self(role, "one"), nil, &log), &Dialler{Self: c.self(pki.RoleCore, "core")}
			listener, dialler = role, pki.RoleCore
		}
		port.Outside = fixed(w.leaf("port.example"))
		got := make(chan Peer, 10)
		port.Handlers[ALPNControl] = func(ctx context.Context, conn *Conn) { got <- conn.Peer; hold(ctx, conn) }
		addr := listen(t, port)
		good := &Outside{Roots: anchorsOf(t, w.rootPEM).Pool, ServerName: "port.example"}
		dial := func(o *Outside, alpn string) (*Conn, error) {
			t.Helper()
			x := *d
			x.Outside = o
			conn, err := x.Dial(testContext(t), addr, alpn, pki.Expect{Role: listener})
			if err == nil {
				t.Cleanup(func() { conn.NetConn().Close() })
			}
			return conn, err
		}
		for _, alpn := range []string{ALPNControl, ALPNRelay, ALPNRenew} {
			conn, err := dial(good, alpn)
			if err != nil {
				t.Fatal(alpn, err)
			}
			if conn.Peer.ID != port.Self.Credentials().ID || !conn.Peer.Chain[0].Equal(port.Self.Credentials().Chain[0]) {
				t.Errorf("%s: the peer is %v", alpn, conn.Peer.ID)
			}
			if conn.Peer.Outside == nil || conn.Peer.Outside.Subject.CommonName != "port.example" {
				t.Errorf("%s: outside %v", alpn, conn.Peer.Outside)
			}
			if alpn != ALPNRenew && !conn.Expires().Equal(expiryOf(port.Self.Credentials().Chain[0], d.Self.Credentials().Chain[0])) {
				t.Errorf("%s: the link ends with something else than the identities", alpn)
			}
		}
		if p := <-got; p.ID.Role != dialler {
			t.Errorf("the port saw %v", p.ID)
		}

		// Health has no preface, and the same certificate.
		if role == pki.RoleGateway {
			nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: good.Roots(), ServerName: "port.example", NextProtos: []string{ALPNHealth}})
			if err != nil {
				t.Fatal(err)
			}
			nc.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
			head := make([]byte, 9)
			if _, err := io.ReadFull(nc, head); err != nil || head[3] != 4 {
				t.Errorf("not HTTP/2 settings first: %x %v", head, err)
			}
			nc.Close()
		}

		// The name that was dialled counts when no other is expected.
		_, err := dial(&Outside{Roots: good.Roots}, ALPNControl)
		wantRefusal(t, err, pki.CodeNameMismatch)
		_, err = dial(&Outside{Roots: good.Roots, ServerName: "other.example"}, ALPNControl)
		if r := wantRefusal(t, err, pki.CodeNameMismatch); !strings.Contains(r.Remedy, "--grpc-server-name") {
			t.Error(r)
		}
		_, err = dial(&Outside{Roots: anchorsOf(t, newWorld(t).rootPEM).Pool, ServerName: "port.example"}, ALPNControl)
		wantRefusal(t, err, pki.CodeUnknownAuthority)
		// An intermediate alone is an anchor.
		if _, err := dial(&Outside{Roots: anchorsOf(t, w.midPEM_).Pool, ServerName: "port.example"}, ALPNControl); err != nil {
			t.Error("with chain.pem:", err)
		}
		// Nobody guesses.
		_, err = dial(nil, ALPNControl)
		if r := wantRefusal(t, err, pki.CodeUnknownAuthority); !strings.Contains(r.Remedy, "mode files") {
			t.Error(r)
		}
		// Revocation looks at the identity, and the port's refusals are asked for.
		d.Self.SetRevocations(revocationOf(port.Self.Credentials()))
		_, err = dial(good, ALPNControl)
		wantRefusal(t, err, pki.CodeRevoked)
		d.Self.SetRevocations(nil)
		port.Self.SetRevocations(revocationOf(d.Self.Credentials()))
		_, err = dial(good, ALPNControl)
		if r := wantRefusal(t, err, pki.CodeRevoked); !strings.Contains(err.Error(), "refused this component") {
			t.Error(r)
		}
	})
}

// TestInternalWhereFilesWereExpected: an identity that a CA file vouches for is
// still no preface.
func TestInternalWhereFilesWereExpected(t *testing.T) {
	c := newCA(t)
	var log logged
	core := corePort(c, &log)
	key, _ := pki.NewKey("p256")
	issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: c.id(pki.RoleCore, "core"), Incarnation: 1, PublicKey: key.Public(), DNS: []string{"core.example"}, Lifetime: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	core.Self.Set(&pki.Credentials{ID: c.id(pki.RoleCore, "core"), Chain: issued.Chain, Key: key}, nil)
	addr := listen(t, core)
	d := &Dialler{Self: c.self(pki.RoleGateway, "one"), Outside: &Outside{Roots: c.authority.Bundle().RootPool, ServerName: "core.example"}}
	_, err = d.Dial(testContext(t), addr, ALPNControl, pki.Expect{Role: pki.RoleCore})
	wantRefusal(t, err, "listener_mode")
}

// thief answers with a stolen outside certificate and whatever preface.
func thief(t *testing.T, outside *tls.Certificate, preface func(cs tls.ConnectionState, alpn string) []byte) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.SetDeadline(time.Now().Add(10 * time.Second))
			tc := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{*outside}, ClientAuth: tls.RequireAnyClientCert,
				NextProtos: []string{ALPNControl, ALPNJoin, ALPNRenew}})
			if tc.Handshake() == nil {
				tc.Write(preface(tc.ConnectionState(), tc.ConnectionState().NegotiatedProtocol))
				tc.Read(make([]byte, 1))
			}
			nc.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// TestStolenOutsideCertificate: it is worth nothing without the identity.
func TestStolenOutsideCertificate(t *testing.T) {
	c, w := newCA(t), newWorld(t)
	outside := w.leaf("core.example")
	core := c.credentials(pki.RoleCore, "core")
	gateway := c.self(pki.RoleGateway, "one")
	tlsOf := func(cr *pki.Credentials) *tls.Certificate { x := cr.TLS(); return &x }
	coreTLS := tlsOf(core)

	// A preface that core itself made, for another connection.
	var replay []byte
	var log logged
	real := corePort(c, &log)
	real.Self.Set(core, nil)
	real.Outside = fixed(outside)
	o := &Outside{Roots: anchorsOf(t, w.rootPEM).Pool, ServerName: "core.example"}
	{
		nc, err := tls.Dial("tcp", listen(t, real), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNControl},
			Certificates: []tls.Certificate{*tlsOf(gateway.Credentials())}})
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 2)
		if _, err := nc.Read(head); err != nil {
			t.Fatal(err)
		}
		replay = append(head, make([]byte, binary.BigEndian.Uint16(head))...)
		for n := 2; n < len(replay); {
			m, err := nc.Read(replay[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		nc.Close()
	}
	make1 := func(cs tls.ConnectionState, alpn string, role pki.Role, shown []byte, identity *tls.Certificate) []byte {
		b, err := makePreface(&cs, alpn, role, shown, identity)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	proxy := tlsOf(c.credentials(pki.RoleProxy, "edge"))
	strangers := tlsOf(newCA(t).credentials(pki.RoleCore, "core"))
	expired := tlsOf(c.credentialsAt(pki.RoleCore, "core", time.Now().Add(-3*time.Hour)))
	token := c.token(pki.RoleGateway, "new", time.Now().Add(time.Hour))
	bootstrap, err := token.BootstrapCertificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		code    string
		preface func(cs tls.ConnectionState, alpn string) []byte
	}{
		{"the right one", "", func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleCore, outside.Certificate[0], coreTLS)
		}},
		{"none", "listener_mode", func(tls.ConnectionState, string) []byte { return acceptPreface }},
		{"of another connection", "preface_signature", func(tls.ConnectionState, string) []byte { return replay }},
		{"for another protocol", "preface_signature", func(cs tls.ConnectionState, _ string) []byte {
			return make1(cs, ALPNRelay, pki.RoleCore, outside.Certificate[0], coreTLS)
		}},
		{"for another role", "preface_signature", func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleProxy, outside.Certificate[0], coreTLS)
		}},
		{"for another outside certificate", "preface_signature", func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleCore, w.leaf("core.example").Certificate[0], coreTLS)
		}},
		{"signed by another key", "preface_signature", func(cs tls.ConnectionState, alpn string) []byte {
			x := *coreTLS
			x.PrivateKey = proxy.PrivateKey
			return make1(cs, alpn, pki.RoleCore, outside.Certificate[0], &x)
		}},
		{"of a proxy", pki.CodeWrongRole, func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleCore, outside.Certificate[0], proxy)
		}},
		{"of another core", pki.CodeUnknownAuthority, func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleCore, outside.Certificate[0], strangers)
		}},
		{"expired", pki.CodeExpired, func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleCore, outside.Certificate[0], expired)
		}},
		{"of a token", "", func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleCore, outside.Certificate[0], &bootstrap)
		}},
		{"of the outside certificate", pki.CodeUnknownAuthority, func(cs tls.ConnectionState, alpn string) []byte {
			return make1(cs, alpn, pki.RoleCore, outside.Certificate[0], outside)
		}},
		{"endless", "protocol_violation", func(tls.ConnectionState, string) []byte { return append([]byte{0xff, 0xff}, make([]byte, 0xffff)...) }},
		{"rubbish", "protocol_violation", func(tls.ConnectionState, string) []byte { return []byte{0, 3, 1, 0, 9} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := thief(t, outside, tc.preface)
			conn, err := (&Dialler{Self: gateway, Outside: o}).Dial(testContext(t), addr, ALPNControl, pki.Expect{Role: pki.RoleCore})
			if tc.name == "the right one" {
				if err != nil {
					t.Fatal(err)
				}
				conn.NetConn().Close()
				return
			}
			if tc.code == "" {
				if _, ok := pki.AsRefusal(err); !ok {
					t.Fatalf("got %v", err)
				}
				return
			}
			wantRefusal(t, err, tc.code)
		})
	}
}

// TestJoinInFilesMode: a newcomer joins through, and as, a port that shows the
// world's certificate.
func TestJoinInFilesMode(t *testing.T) {
	t.Run("gateway", func(t *testing.T) {
		c, w := newCA(t), newWorld(t)
		var log logged
		core := corePort(c, &log)
		core.Outside = fixed(w.leaf("core.example"))
		addr := listen(t, core)
		token := c.token(pki.RoleGateway, "one", time.Now().Add(time.Hour))
		d := &Dialler{Self: NewSelf(), Token: &token, Outside: &Outside{Roots: anchorsOf(t, w.midPEM_).Pool, ServerName: "core.example"}}
		conn, err := d.Dial(testContext(t), addr, ALPNJoin, pki.Expect{Role: pki.RoleCore})
		if err != nil {
			t.Fatal(err)
		}
		grant, err := (&Newcomer{Token: token, Role: pki.RoleGateway, Dir: t.TempDir()}).Join(testContext(t), conn)
		if err != nil || grant.Name != "one" {
			t.Fatal(grant, err)
		}
		// A core of somebody else, behind the same outside certificate.
		other := newCA(t)
		fake := corePort(other, &log)
		fake.Outside = core.Outside
		_, err = d.Dial(testContext(t), listen(t, fake), ALPNJoin, pki.Expect{Role: pki.RoleCore})
		wantRefusal(t, err, pki.CodePinMismatch)
	})
	t.Run("proxy", func(t *testing.T) {
		c, w := newCA(t), newWorld(t)
		var log logged
		token := c.token(pki.RoleProxy, "one", time.Now().Add(time.Hour))
		joined := make(chan *Grant, 1)
		port := proxyPort(NewSelf(), &token, &log)
		port.Outside = fixed(w.leaf("edge.example"))
		port.Handlers[ALPNJoin] = func(ctx context.Context, conn *Conn) {
			g, _ := (&Newcomer{Token: token, Role: pki.RoleProxy}).Join(ctx, conn)
			select {
			case joined <- g: // the first; others come with a wrong key and leave
			default:
			}
		}
		addr := listen(t, port)
		d := &Dialler{Self: c.self(pki.RoleCore, "core"), BootstrapKey: token.PublicKey(), Outside: &Outside{Roots: anchorsOf(t, w.rootPEM).Pool, ServerName: "edge.example"}}
		conn, err := d.Dial(testContext(t), addr, ALPNJoin, pki.Expect{Role: pki.RoleProxy, Name: "one"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.registrar(log.logger()).Serve(testContext(t), conn); err != nil {
			t.Fatal(err)
		}
		if g := <-joined; g == nil || g.Name != "one" {
			t.Fatal(g)
		}
		wrong := *d
		wrong.BootstrapKey = c.token(pki.RoleProxy, "two", time.Now().Add(time.Hour)).PublicKey()
		_, err = wrong.Dial(testContext(t), addr, ALPNJoin, pki.Expect{Role: pki.RoleProxy, Name: "two"})
		wantRefusal(t, err, "bootstrap_key_other")
	})
}

func TestOutsideFor(t *testing.T) {
	a := &Anchors{}
	a.pool.Store(x509.NewCertPool())
	for _, tc := range []struct {
		mode, name string
		anchors    *Anchors
		override   string
		outside    bool
		want       string
		fails      bool
	}{
		{"", "", nil, "", false, "", false},
		{"internal", "", nil, "", false, "", false},
		{"internal", "", a, "", false, "", true},
		{"files", "core.example", a, "", true, "core.example", false},
		{"files", "core.example", a, "other.example", true, "other.example", false},
		{"acme", "", a, "", true, "", false},
		{"files", "core.example", nil, "", false, "", true},
		{"something", "", a, "", false, "", true},
	} {
		o, err := OutsideFor(tc.mode, tc.name, tc.anchors, tc.override, "--grpc-ca")
		if (err != nil) != tc.fails || (o != nil) != tc.outside || o != nil && o.ServerName != tc.want {
			t.Errorf("%+v: %v %v", tc, o, err)
		}
		if err != nil {
			wantRefusal(t, err, "listener_mode")
		}
	}
}

// FuzzPreface: whatever comes is refused, or reads as what it was made of.
func FuzzPreface(f *testing.F) {
	w := &world{t: &testing.T{}}
	root, _ := w.make(&x509.Certificate{Subject: pkix.Name{CommonName: "x"}}, nil, nil)
	one, err := encodePreface([][]byte{root.Raw, root.Raw}, []byte("signature"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(one[2:])
	f.Add([]byte{1, 0, 1, 2, 0, 1, 3})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePreface(b)
		if err != nil {
			return
		}
		var ders [][]byte
		for _, c := range p.chain {
			ders = append(ders, c.Raw)
		}
		again, err := encodePreface(ders, p.signature)
		if err != nil {
			t.Fatal(err)
		}
		if string(again[2:]) != string(b) {
			t.Fatal("not the same again")
		}
	})
}

func TestPrefaceHasRoom(t *testing.T) {
	if _, err := encodePreface(make([][]byte, maxPrefaceChain+1), nil); err == nil {
		t.Error("too many certificates")
	}
	if _, err := encodePreface([][]byte{make([]byte, maxPreface)}, []byte{1}); err == nil {
		t.Error("too many bytes")
	}
	for _, bad := range [][]byte{{}, {0}, {1}, {1, 0}, {1, 0, 0}, {1, 0, 2, 1}, make([]byte, maxPreface+1)} {
		if _, err := parsePreface(bad); err == nil {
			t.Errorf("%x is read", bad)
		}
	}
	if !errors.Is(&prefaceError{os.ErrDeadlineExceeded}, os.ErrDeadlineExceeded) {
		t.Error("the cause is lost")
	}
}
