package link

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// testTLS is how a stranger who knows the CA sees the port: his own names do
// not matter here.
func testTLS(*ca) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
}

func gatewayDial(t *testing.T, s *Self, addr, alpn string) (*Conn, error) {
	t.Helper()
	conn, err := (&Dialler{Self: s}).Dial(testContext(t), addr, alpn, pki.Expect{Role: pki.RoleCore})
	if err == nil {
		t.Cleanup(func() { conn.NetConn().Close() })
	}
	return conn, err
}

// TestNewestCounts: a handshake reads what is in force when it happens.
func TestNewestCounts(t *testing.T) {
	c := newCA(t)
	var log logged
	core := corePort(c, &log)
	addr := listen(t, core)
	gateway := c.self(pki.RoleGateway, "one")
	first, err := gatewayDial(t, gateway, addr, ALPNControl)
	if err != nil {
		t.Fatal(err)
	}
	was := core.Self.Credentials()
	core.Self.Set(c.credentials(pki.RoleCore, "core"), nil)
	second, err := gatewayDial(t, gateway, addr, ALPNControl)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Peer.Chain[0].Equal(was.Chain[0]) || !second.Peer.Chain[0].Equal(core.Self.Credentials().Chain[0]) {
		t.Fatal("core did not present its newest certificate")
	}

	core.Self.SetRevocations([]*control.Revocation{{Serial: "00" + strings.ToUpper(pki.Serial(gateway.Credentials().Chain[0]))}})
	_, err = gatewayDial(t, gateway, addr, ALPNControl)
	wantRefusal(t, err, pki.CodeRevoked)
	gateway.Set(c.credentials(pki.RoleGateway, "one"), nil)
	if _, err := gatewayDial(t, gateway, addr, ALPNControl); err != nil {
		t.Fatalf("its next certificate: %v", err)
	}
	core.Self.SetRevocations([]*control.Revocation{{Identity: c.id(pki.RoleGateway, "one").String(), Incarnation: 1}})
	_, err = gatewayDial(t, gateway, addr, ALPNRelay)
	wantRefusal(t, err, pki.CodeRevoked)

	// The other direction: the dialler's newest revocations count too.
	gateway.SetRevocations([]*control.Revocation{{Identity: c.id(pki.RoleCore, "core").String(), Incarnation: 1}})
	_, err = gatewayDial(t, gateway, addr, ALPNRelay)
	wantRefusal(t, err, pki.CodeRevoked)
}

func TestRevocations(t *testing.T) {
	c := newCA(t)
	cert, id := c.credentials(pki.RoleGateway, "one").Chain[0], c.id(pki.RoleGateway, "one")
	r := newRevocations([]*control.Revocation{{Identity: id.String(), Incarnation: 3}, {Identity: id.String(), Incarnation: 2}, {}})
	for incarnation, want := range map[uint64]bool{1: true, 3: true, 4: false} {
		if got := r.covers(cert, id, incarnation); got != want {
			t.Errorf("incarnation %d: %v", incarnation, got)
		}
	}
	if r.covers(cert, c.id(pki.RoleGateway, "two"), 1) || newRevocations(nil).covers(cert, id, 1) {
		t.Error("what is not revoked is covered")
	}
}

// TestApply: a snapshot's bundle and revocations; never those of another trust domain.
func TestApply(t *testing.T) {
	c := newCA(t)
	s := c.self(pki.RoleGateway, "one")
	if err := s.Apply(&control.Snapshot{Bundle: c.authority.Bundle().Proto(), Revocations: []*control.Revocation{{Serial: "ab"}}}); err != nil {
		t.Fatal(err)
	}
	other := c.authority.Bundle().Proto()
	other.TrustDomain = "elsewhere.internal"
	for name, b := range map[string]*control.TrustBundle{"other domain": other, "none": nil} {
		if err := s.Apply(&control.Snapshot{Bundle: b}); err == nil {
			t.Errorf("%s was applied", name)
		}
	}
	if !s.state.Load().revoked.serial["ab"] {
		t.Error("a refused snapshot changed the revocations")
	}
}

func TestHandshakeLimits(t *testing.T) {
	c := newCA(t)
	var log logged
	p := corePort(c, &log)
	p.HandshakeTimeout, p.Handshakes = 300*time.Millisecond, 4
	addr := listen(t, p)
	var silent []net.Conn
	for range 3 { // half of 4 may be in their handshake from one address
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		silent = append(silent, nc)
	}
	log.awaits(t, "refused a connection", "code=too_many_handshakes", "remedy=")
	for _, nc := range silent {
		nc.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := nc.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Fatalf("a silent connection is still open: %v", err)
		}
	}
	if _, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), addr, ALPNControl); err != nil {
		t.Fatalf("after the silent ones: %v", err)
	}
	// One that stops in the middle of the handshake.
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.Write([]byte{0x16, 3, 1, 0x40, 0})
	nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := nc.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Fatalf("a stalled handshake is still open: %v", err)
	}
}

// TestSilenceIsDisplaced: strangers from several addresses who connect and say
// nothing do not keep a component out, nor make it wait for their end.
func TestSilenceIsDisplaced(t *testing.T) {
	c := newCA(t)
	var log logged
	p := corePort(c, &log)
	p.HandshakeTimeout, p.Handshakes = time.Minute, 8
	addr := listen(t, p)
	var silent []net.Conn
	for i := range 12 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i/3+1))}}
		nc, err := d.Dial("tcp", addr)
		if err != nil {
			t.Skipf("this host has one loopback address: %v", err)
		}
		defer nc.Close()
		silent = append(silent, nc)
	}
	began := time.Now()
	for range 3 {
		if _, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), addr, ALPNControl); err != nil {
			t.Fatalf("strangers keep a component out: %v", err)
		}
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Fatalf("the component waited %v", d)
	}
	log.awaits(t, "refused a connection", "code=too_many_handshakes", "remedy=")
	open := 0
	for _, nc := range silent {
		nc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := nc.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), "timeout") {
			open++
		}
	}
	if open == 0 || open > p.Handshakes {
		t.Fatalf("%d silent connections are open, %d may be", open, p.Handshakes)
	}
}

// TestReconnectingIsBounded: a component that connects again and again is held
// up, others are not.
func TestReconnectingIsBounded(t *testing.T) {
	c := newCA(t)
	var log logged
	p := corePort(c, &log)
	opened := 0
	for range 2 * opensBurst {
		release, r := reserveOne(p, ALPNRelay, c.id(pki.RoleGateway, "one"), "10.0.0.1:1")
		if r == nil {
			release()
			opened++
		}
	}
	if opened < opensBurst || opened > opensBurst+opensBurst/2 {
		t.Fatalf("%d connections were accepted", opened)
	}
	if _, r := reserveOne(p, ALPNRelay, c.id(pki.RoleGateway, "two"), "10.0.0.1:1"); r != nil {
		t.Fatal("one identity keeps another out")
	}
	sessions := 0
	for range 2 * maxSessions {
		if _, r := reserveOne(p, ALPNControl, c.id(pki.RoleGateway, "one"), "10.0.0.1:1"); r == nil {
			sessions++
		}
	}
	if sessions != maxSessions {
		t.Fatalf("%d control connections at a time", sessions)
	}
}

// TestWhyIsAskedOnce: verdicts cost a verification, so a connection gets a few.
func TestWhyIsAskedOnce(t *testing.T) {
	c := newCA(t)
	var log logged
	conn, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), listen(t, corePort(c, &log)), ALPNRenew)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := ClientOver(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for i := range 2 * whyMost {
		_, err := control.NewRenewClient(cc).Why(testContext(t), &control.WhyRequest{Alpn: ALPNControl})
		if want := i >= whyMost; (err != nil) != want {
			t.Fatalf("question %d: %v", i+1, err)
		}
	}
}

// TestStrangersWhoLeave: anybody can connect to join and leave. That does not
// fill the log.
func TestStrangersWhoLeave(t *testing.T) {
	c := newCA(t)
	var log logged
	addr := listen(t, corePort(c, &log))
	token := newCA(t).token(pki.RoleGateway, "stranger", time.Now().Add(time.Hour))
	pair, err := token.BootstrapCertificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		tc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNJoin}, Certificates: []tls.Certificate{pair}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tc.Read(make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		tc.Close()
	}
	log.awaits(t, "refused a connection", "code=join_interrupted", "remedy=")
	if n := strings.Count(log.text(), "join_interrupted"); n > 2 {
		t.Fatalf("%d lines:\n%s", n, log.text())
	}
}

func TestConnectionLimits(t *testing.T) {
	c := newCA(t)
	var log logged
	p := corePort(c, &log)
	open := 0
	for {
		release, r := reserveOne(p, ALPNRelay, c.id(pki.RoleGateway, "one"), "10.0.0.1:1")
		if r != nil {
			break
		}
		defer release()
		open++
	}
	if open != maxOfIdentity {
		t.Fatalf("%d connections of one identity", open)
	}
	if _, r := reserveOne(p, ALPNRelay, c.id(pki.RoleGateway, "two"), "10.0.0.1:1"); r != nil {
		t.Fatal("one identity keeps another out")
	}
	strangers := 0
	for i := range 200 {
		source := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i / 8)}), 1).String()
		if _, r := reserveOne(p, ALPNHealth, pki.ID{}, source); r == nil {
			strangers++
		}
	}
	if strangers != maxStrangers {
		t.Fatalf("%d strangers", strangers)
	}
	if _, r := reserveOne(p, ALPNRenew, pki.ID{}, "10.0.0.1:1"); r != nil {
		t.Fatal("probes keep those out who ask why")
	}
}

func reserveOne(p *Port, alpn string, id pki.ID, remote string) (func(), *pki.Refusal) {
	p.init()
	return p.reserve(&Conn{ALPN: alpn, Peer: Peer{ID: id, Remote: netip.MustParseAddrPort(remote)}})
}

func TestAdmit(t *testing.T) {
	c := newCA(t)
	var log logged
	var admit atomic.Bool
	p := corePort(c, &log)
	p.Admit = func(a netip.AddrPort) *pki.Refusal {
		if a.Addr().IsLoopback() && admit.Load() {
			return nil
		}
		return &pki.Refusal{Code: CodeAddress, Cause: a.Addr().String() + " is no peer", Remedy: "add it"}
	}
	addr := listen(t, p)
	_, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), addr, ALPNControl)
	if r, ok := pki.AsRefusal(err); !ok || r.Code != CodeAddress || !strings.Contains(r.Cause, "127.0.0.1") || !strings.Contains(r.Remedy, "gateway set NAME --ip") {
		t.Fatalf("the refused dialler hears %v", err)
	}
	log.awaits(t, "refused a connection", "code=address_not_a_peer", "127.0.0.1 is no peer", "remedy=")
	if n := p.RefusedByAddress(); n != 1 {
		t.Fatalf("%d connections counted as refused by address", n)
	}
	admit.Store(true)
	if _, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), addr, ALPNControl); err != nil {
		t.Fatal(err)
	}
}

// TestRecheck: what is open when its address stops being a peer's is closed,
// in every state: before the first byte, without an identity, and with one.
func TestRecheck(t *testing.T) {
	c := newCA(t)
	var log logged
	var closed atomic.Bool
	p := corePort(c, &log)
	p.Admit = func(netip.AddrPort) *pki.Refusal {
		if closed.Load() {
			return &pki.Refusal{Code: CodeAddress, Cause: "it left", Remedy: "none"}
		}
		return nil
	}
	addr := listen(t, p)
	silent, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	conns := []net.Conn{silent}
	for _, alpn := range []string{ALPNControl, ALPNRenew} {
		conn, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), addr, alpn)
		if err != nil {
			t.Fatal(alpn, err)
		}
		conns = append(conns, conn.NetConn())
	}
	for p.Recheck(); len(p.watched()) < len(conns); time.Sleep(time.Millisecond) { // the silent one may still be in the queue
	}
	if n := p.Recheck(); n != 0 {
		t.Fatalf("%d closed while all are peers", n)
	}
	closed.Store(true)
	if n := p.Recheck(); n != len(conns) {
		t.Fatalf("%d of %d closed", n, len(conns))
	}
	for i, nc := range conns {
		nc.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d is open still", i)
		}
	}
	for start := time.Now(); len(p.watched()) > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("closed connections are kept")
		}
	}
}

// TestCheckNeedsTheKey: Check, which may raise alarms, does not hear of a
// certificate whose key the dialler does not hold.
func TestCheckNeedsTheKey(t *testing.T) {
	c := newCA(t)
	var log logged
	var checks atomic.Int32
	p := corePort(c, &log)
	p.Check = func(string, Peer) *pki.Refusal { checks.Add(1); return nil }
	addr := listen(t, p)
	stolen := c.credentials(pki.RoleGateway, "one").TLS()
	stolen.PrivateKey = c.credentials(pki.RoleGateway, "thief").Key
	tc, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNControl}, Certificates: []tls.Certificate{stolen}})
	if err == nil {
		_, err = tc.Read(make([]byte, 1))
		tc.Close()
	}
	if err == nil {
		t.Fatal("accepted")
	}
	log.awaits(t, "refused a connection")
	if checks.Load() != 0 {
		t.Fatal("Check was asked about an unproven certificate")
	}
	if _, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), addr, ALPNControl); err != nil || checks.Load() != 1 {
		t.Fatal(err, checks.Load())
	}
}

// TestRefusalLogIsBounded: strangers cannot fill the log.
func TestRefusalLogIsBounded(t *testing.T) {
	var log logged
	l := newRefusalLog(log.logger())
	r := refuseNoALPN()
	for i := range 100_000 {
		l.note(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1), "", r)
	}
	if lines := strings.Count(log.text(), "\n"); lines < 50 || lines > 200 {
		t.Fatalf("%d lines", lines)
	}
	if len(l.seen) > refusalKeys {
		t.Fatalf("%d keys are kept", len(l.seen))
	}
	if sourcePrefix(netip.MustParseAddr("2001:db8::1")) != sourcePrefix(netip.MustParseAddr("2001:db8::2")) {
		t.Error("one /64 is more than one source")
	}
}

// TestPortStops: handlers hear that the port stops, and Serve waits for them.
func TestPortStops(t *testing.T) {
	c := newCA(t)
	var log logged
	p := corePort(c, &log)
	in, out := make(chan struct{}), false
	p.Handlers[ALPNControl] = func(ctx context.Context, conn *Conn) {
		close(in)
		<-ctx.Done()
		out = true
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	if _, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), l.Addr().String(), ALPNControl); err != nil {
		t.Fatal(err)
	}
	<-in
	cancel()
	if err := <-done; err != nil || !out {
		t.Fatal(err, out)
	}
}

// TestPreface: a dialler takes nothing but acceptance.
func TestPreface(t *testing.T) {
	c := newCA(t)
	cert := c.credentials(pki.RoleCore, "core").TLS()
	for name, said := range map[string]string{"an identity that is not expected": "\x00\x05hello", "half": "\x00", "nothing": ""} {
		t.Run(name, func(t *testing.T) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{ALPNControl}, ClientAuth: tls.RequireAnyClientCert})
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
					nc.Write([]byte(said))
					nc.Close()
				}
			}()
			_, err = gatewayDial(t, c.self(pki.RoleGateway, "one"), l.Addr().String(), ALPNControl)
			if r, ok := pki.AsRefusal(err); !ok || r.Remedy == "" {
				t.Fatal(err)
			}
			l.Close()
			<-done
		})
	}
}
