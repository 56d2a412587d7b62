package link

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/health"

	"sallyport/acme/pki"
)

// corePort is core's port as a test needs it.
func corePort(c *ca, log *logged) *Port {
	reg := c.registrar(log.logger())
	return &Port{
		Self: c.self(pki.RoleCore, "core"), Log: log.logger(), Expect: pki.RoleGateway,
		JoinKey: c.joinKey(pki.RoleGateway), Health: health.NewServer(),
		Handlers: map[string]Handler{ALPNControl: hold, ALPNRelay: hold, ALPNCall: hold,
			ALPNJoin: func(ctx context.Context, conn *Conn) { reg.Serve(ctx, conn) }},
	}
}

func proxyPort(self *Self, token *pki.Token, log *logged) *Port {
	return &Port{Self: self, Log: log.logger(), Expect: pki.RoleCore, Token: func() *pki.Token { return token },
		Handlers: map[string]Handler{ALPNControl: hold, ALPNRelay: hold, ALPNJoin: hold}}
}

// TestRefusedIdentities: every certificate that must not pass, refused with
// cause and remedy in the log of the port, and with the same words through Why
// at the dialler.
func TestRefusedIdentities(t *testing.T) {
	c, other := newCA(t), newCA(t)
	with := func(cr *pki.Credentials) *Self {
		s := NewSelf()
		s.Set(cr, c.authority.Bundle())
		return s
	}
	revoked := c.credentials(pki.RoleGateway, "gone")

	var coreLog, proxyLog logged
	core := corePort(c, &coreLog)
	core.Self.SetRevocations(revocationOf(revoked))
	core.Check = func(alpn string, p Peer) *pki.Refusal {
		if p.ID.Name == "stranger" {
			return &pki.Refusal{Code: "not_a_component", Cause: "no such gateway", Remedy: "add it"}
		}
		return nil
	}
	coreAddr := listen(t, core)
	proxyAddr := listen(t, proxyPort(c.self(pki.RoleProxy, "dmz"), nil, &proxyLog))

	for _, tc := range []struct {
		name string
		self *Self
		to   string
		want pki.Expect
		log  *logged
		code string
	}{
		{"gateway as core", c.self(pki.RoleGateway, "orders"), proxyAddr, pki.Expect{Role: pki.RoleProxy, Name: "dmz"}, &proxyLog, pki.CodeWrongRole},
		{"proxy as gateway", c.self(pki.RoleProxy, "dmz"), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeWrongRole},
		{"core as gateway", c.self(pki.RoleCore, "core"), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeWrongRole},
		{"another CA", with(other.credentials(pki.RoleGateway, "orders")), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeUnknownAuthority},
		{"expired", with(c.credentialsAt(pki.RoleGateway, "late", time.Now().Add(-2*time.Hour))), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeExpired},
		{"not yet valid", with(c.credentialsAt(pki.RoleGateway, "early", time.Now().Add(2*time.Hour))), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeNotYetValid},
		{"callers' intermediate", with(c.leaf(pki.LeafRequest{ID: c.id(pki.RoleClient, "billing"), Client: true})), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeWrongIssuer},
		{"no identity", with(c.leaf(pki.LeafRequest{DNS: []string{"host.example"}, Client: true, Server: true})), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeWrongIssuer},
		{"revoked", with(revoked), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, pki.CodeRevoked},
		{"not registered", c.self(pki.RoleGateway, "stranger"), coreAddr, pki.Expect{Role: pki.RoleCore}, &coreLog, "not_a_component"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := &Dialler{Self: tc.self}
			for _, alpn := range []string{ALPNControl, ALPNRelay} {
				_, err := d.Dial(testContext(t), tc.to, alpn, tc.want)
				r, ok := pki.AsRefusal(err)
				if !ok || r.Code == pki.CodeRefusedByPeer || r.Cause == "" || r.Remedy == "" {
					t.Fatalf("%s: the dialler learned no reason: %v", alpn, err)
				}
				if r.Code != tc.code {
					t.Fatalf("%s: refused as %s (%v), want %s", alpn, r.Code, r, tc.code)
				}
				tc.log.awaits(t, "refused a connection", "code="+r.Code, "remedy=", "protocol="+alpn)
				t.Log(r)
			}
		})
	}

	t.Run("no client certificate", func(t *testing.T) {
		tc, err := tls.Dial("tcp", coreAddr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNControl}})
		if err == nil {
			_, err = tc.Read(make([]byte, 1))
			tc.Close()
		}
		if err == nil {
			t.Fatal("accepted")
		}
		coreLog.awaits(t, "refused a connection", "code="+pki.CodeCertificateRequired, "remedy=")
	})
	t.Run("accepted", func(t *testing.T) {
		conn, err := (&Dialler{Self: c.self(pki.RoleGateway, "orders")}).Dial(testContext(t), coreAddr, ALPNControl, pki.Expect{Role: pki.RoleCore})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if conn.Peer.ID != c.id(pki.RoleCore, "core") || conn.Peer.Incarnation != 1 || conn.Expires().IsZero() || !conn.Dialled {
			t.Fatalf("peer %+v, expires %v", conn.Peer, conn.Expires())
		}
	})
}

// TestDiallerRefuses: what answers at the address is not who was expected.
func TestDiallerRefuses(t *testing.T) {
	c, other := newCA(t), newCA(t)
	var log logged
	serveAs := func(s *Self) string {
		p := corePort(c, &log)
		p.Self = s
		return listen(t, p)
	}
	gateway := &Dialler{Self: c.self(pki.RoleGateway, "orders")}
	for _, tc := range []struct {
		name string
		addr string
		want pki.Expect
		code string
	}{
		{"a gateway serves as core", serveAs(c.self(pki.RoleGateway, "evil")), pki.Expect{Role: pki.RoleCore}, pki.CodeWrongRole},
		{"a proxy serves as core", serveAs(c.self(pki.RoleProxy, "evil")), pki.Expect{Role: pki.RoleCore}, pki.CodeWrongRole},
		{"a core of another CA", serveAs(other.self(pki.RoleCore, "core")), pki.Expect{Role: pki.RoleCore}, pki.CodeUnknownAuthority},
		{"another proxy", serveAs(c.self(pki.RoleProxy, "dmz2")), pki.Expect{Role: pki.RoleProxy, Name: "dmz1"}, pki.CodeWrongName},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := gateway.Dial(testContext(t), tc.addr, ALPNControl, tc.want)
			r, ok := pki.AsRefusal(err)
			if !ok || r.Remedy == "" || r.Code != tc.code {
				t.Fatalf("got %v, want %s", err, tc.code)
			}
			t.Log(err)
			log.awaits(t, "refused a connection", "code="+pki.CodeRefusedByPeer)
		})
	}
}

func TestForeignProtocols(t *testing.T) {
	c := newCA(t)
	var log logged
	addr := listen(t, corePort(c, &log))
	for _, tc := range []struct {
		name   string
		protos []string
		code   string
	}{
		{"empty", nil, "alpn_missing"},
		{"foreign", []string{"http/1.1", "acme-tls/1"}, "alpn_foreign"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: tc.protos})
			if err == nil || err.Error() != "remote error: tls: no application protocol" {
				t.Fatalf("got %v", err)
			}
			log.awaits(t, "refused a connection", "code="+tc.code, "remedy=")
		})
	}
	t.Run("dialler", func(t *testing.T) {
		_, err := (&Dialler{Self: c.self(pki.RoleGateway, "g")}).Dial(testContext(t), addr, "sallyport-later/9", pki.Expect{Role: pki.RoleCore})
		wantRefusal(t, err, "alpn_foreign")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		_, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNControl}, MaxVersion: tls.VersionTLS12})
		if err == nil {
			t.Fatal("TLS 1.2 was accepted")
		}
		log.awaits(t, "refused a connection", "code="+pki.CodeNoCommonVersion)
	})
	t.Run("not a component's port", func(t *testing.T) {
		cert := c.credentials(pki.RoleCore, "core").TLS()
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				nc.(*tls.Conn).Handshake()
				nc.Close()
			}
		}()
		_, err = (&Dialler{Self: c.self(pki.RoleGateway, "g")}).Dial(testContext(t), l.Addr().String(), ALPNControl, pki.Expect{Role: pki.RoleCore})
		wantRefusal(t, err, pki.CodeNoCommonProtocol)
	})
	t.Run("plaintext server", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				nc.Read(make([]byte, 4096))
				nc.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				nc.Close()
			}
		}()
		_, err = (&Dialler{Self: c.self(pki.RoleGateway, "g")}).Dial(testContext(t), l.Addr().String(), ALPNControl, pki.Expect{Role: pki.RoleCore})
		wantRefusal(t, err, pki.CodePlaintext)
	})
	t.Run("nobody listens", func(t *testing.T) {
		l, _ := net.Listen("tcp", "127.0.0.1:0")
		l.Close()
		_, err := (&Dialler{Self: c.self(pki.RoleGateway, "g")}).Dial(testContext(t), l.Addr().String(), ALPNControl, pki.Expect{Role: pki.RoleCore})
		wantRefusal(t, err, pki.CodeConnectionRefused)
	})
	t.Run("silent listener", func(t *testing.T) {
		l, _ := net.Listen("tcp", "127.0.0.1:0")
		defer l.Close()
		d := &Dialler{Self: c.self(pki.RoleGateway, "g"), Timeout: 50 * time.Millisecond}
		_, err := d.Dial(testContext(t), l.Addr().String(), ALPNControl, pki.Expect{Role: pki.RoleCore})
		wantRefusal(t, err, pki.CodeNoAnswer)
	})
}

func TestNotJoined(t *testing.T) {
	c := newCA(t)
	var log logged
	token := c.token(pki.RoleProxy, "dmz", time.Now().Add(time.Hour))
	addr := listen(t, proxyPort(NewSelf(), &token, &log))
	_, err := (&Dialler{Self: c.self(pki.RoleCore, "core")}).Dial(testContext(t), addr, ALPNControl, pki.Expect{Role: pki.RoleProxy, Name: "dmz"})
	if _, ok := pki.AsRefusal(err); !ok {
		t.Fatalf("got %v", err)
	}
	log.awaits(t, "refused a connection", "code=not_joined", "remedy=")
	_, err = (&Dialler{Self: NewSelf()}).Dial(testContext(t), addr, ALPNControl, pki.Expect{Role: pki.RoleProxy})
	if err == nil {
		t.Fatal("a dialler without identity got through")
	}

	// One that has joined is asked to join.
	addr = listen(t, proxyPort(c.self(pki.RoleProxy, "dmz"), nil, &log))
	d := &Dialler{Self: c.self(pki.RoleCore, "core"), BootstrapKey: token.PublicKey()}
	_, err = d.Dial(testContext(t), addr, ALPNJoin, pki.Expect{Role: pki.RoleProxy, Name: "dmz"})
	wantRefusal(t, err, "join_not_expected")
	log.awaits(t, "refused a connection", "code=join_not_expected", "remedy=")
}
