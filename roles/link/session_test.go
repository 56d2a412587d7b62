package link

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// events collects what callbacks say.
type events struct {
	mu   sync.Mutex
	list []string
	more chan struct{}
}

func newEvents() *events { return &events{more: make(chan struct{}, 1000)} }

func (e *events) add(s string) {
	e.mu.Lock()
	e.list = append(e.list, s)
	e.mu.Unlock()
	e.more <- struct{}{}
}

func (e *events) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.list)
}

// awaits waits until an event starts with prefix.
func (e *events) awaits(t *testing.T, prefix string) string {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		for _, s := range e.all() {
			if strings.HasPrefix(s, prefix) {
				return s
			}
		}
		select {
		case <-e.more:
		case <-limit:
			t.Fatalf("no event %q among %q", prefix, e.all())
		}
	}
}

func hello(instance byte) func() *control.Hello {
	return func() *control.Hello {
		return &control.Hello{Version: "1.2.3", Instance: append([]byte{instance}, make([]byte, 15)...)}
	}
}

func snapshot(epoch, number uint64) *control.Snapshot {
	return &control.Snapshot{Generation: &control.Generation{Epoch: epoch, Generation: number}}
}

// coreEnd says everything that happens as events.
func coreEnd(ev *events, log *logged) *CoreEnd {
	return &CoreEnd{
		Version: "9.9", Log: log.logger(),
		Opened: func(s, former *Session) *pki.Refusal {
			ev.add("opened " + s.Peer.ID.Name)
			return nil
		},
		Closed:       func(s *Session, cause error) { ev.add("closed " + s.Peer.ID.Name + ": " + cause.Error()) },
		Announced:    func(s *Session, a *control.Announcement) { ev.add("announced " + a.GetServices()[0].GetName()) },
		Denied:       func(s *Session, r *control.DenialReport) { ev.add("denied " + r.GetDenials()[0].GetMethod()) },
		Acknowledged: func(s *Session, a *control.SnapshotAck) { ev.add("acknowledged " + ackText(a)) },
		Certificate: func(ctx context.Context, s *Session, r *control.CertificateRequest) ([][]byte, *pki.Refusal) {
			if string(r.GetCsr()) == "bad" {
				return nil, refuseUnreadableCSR(errors.New("bad"))
			}
			return [][]byte{append([]byte("for "), r.GetCsr()...)}, nil
		},
		Flapping: func(s, former *Session) { ev.add("flapping " + s.Peer.ID.Name) },
	}
}

func ackText(a *control.SnapshotAck) string {
	if a.GetError() != "" {
		return "error " + a.GetError()
	}
	return string('0'+rune(a.GetGeneration().GetEpoch())) + "." + string('0'+rune(a.GetGeneration().GetGeneration()))
}

// linked is core and one component, whoever dials.
type linked struct {
	c        *ca
	role     pki.Role
	log      logged
	core     *CoreEnd
	ev       *events
	connect  func(context.Context, string, string) (net.Conn, error)
	coreSelf *Self
	addr     string
	incoming chan *Conn // at a proxy
}

// newLinked opens the port of core (for a gateway) or of the proxy; in a
// bubble over memory, else over loopback.
func newLinked(t *testing.T, role pki.Role, bubble bool) *linked {
	l := &linked{c: newCA(t), role: role, ev: newEvents(), incoming: make(chan *Conn)}
	l.core = coreEnd(l.ev, &l.log)
	l.coreSelf = l.c.self(pki.RoleCore, "core")
	port := corePort(l.c, &l.log)
	port.Self = l.coreSelf
	port.Handlers[ALPNControl] = func(ctx context.Context, conn *Conn) { l.core.Serve(ctx, conn) }
	if role == pki.RoleProxy {
		port = proxyPort(l.c.self(role, "one"), nil, &l.log)
		port.Handlers[ALPNControl] = func(ctx context.Context, conn *Conn) {
			select {
			case l.incoming <- conn:
				<-ctx.Done()
			case <-ctx.Done():
			}
		}
	}
	if !bubble {
		l.addr = listen(t, port)
		return l
	}
	buf := bufconn.Listen(64 << 10)
	l.addr = "bufconn:1"
	l.connect = func(ctx context.Context, _, _ string) (net.Conn, error) { return buf.DialContext(ctx) }
	serve(t, port, buf)
	return l
}

// run connects a component's end and runs both ends until ctx ends.
func (l *linked) run(t *testing.T, ctx context.Context, e *ComponentEnd, self *Self) (component <-chan error) {
	t.Helper()
	done := make(chan error, 1)
	if l.role == pki.RoleGateway {
		conn, err := (&Dialler{Self: self, Connect: l.connect}).Dial(ctx, l.addr, ALPNControl, pki.Expect{Role: pki.RoleCore})
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- e.Run(ctx, conn) }()
		return done
	}
	conn, err := (&Dialler{Self: l.coreSelf, Connect: l.connect}).Dial(ctx, l.addr, ALPNControl, pki.Expect{Role: pki.RoleProxy})
	if err != nil {
		t.Fatal(err)
	}
	go l.core.Serve(ctx, conn)
	incoming := <-l.incoming
	go func() { done <- e.Run(ctx, incoming) }()
	return done
}

func TestSession(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		l := newLinked(t, role, false)
		applied := newEvents()
		first := &control.DenialReport{Denials: []*control.Denial{{Method: "/a.B/C"}}}
		e := &ComponentEnd{
			Hello: hello(1),
			Apply: func(s *control.Snapshot) error {
				if s.GetGeneration().GetGeneration() == 3 {
					return errors.New("cannot be used")
				}
				applied.add(ackText(&control.SnapshotAck{Generation: s.GetGeneration()}))
				return nil
			},
			Welcomed:      func(_ *Conn, w *control.Welcome) { applied.add("welcome " + w.GetVersion()) },
			Denials:       func() *control.DenialReport { d := first; first = nil; return d },
			CallsInFlight: func() uint32 { return 7 },
		}
		if role == pki.RoleGateway {
			e.Announce(&control.Announcement{Services: []*control.AnnouncedService{{Name: "acme.A"}}})
		}
		ctx, cancel := context.WithCancel(testContext(t))
		id := l.c.id(role, "one")
		done := l.run(t, ctx, e, l.c.self(role, "one"))

		applied.awaits(t, "welcome 9.9")
		l.ev.awaits(t, "opened one")
		l.ev.awaits(t, "denied /a.B/C")
		if role == pki.RoleGateway {
			l.ev.awaits(t, "announced acme.A")
			if err := e.Announce(&control.Announcement{Services: []*control.AnnouncedService{{Name: "acme.B"}}}); err != nil {
				t.Fatal(err)
			}
			l.ev.awaits(t, "announced acme.B")
		}
		s := l.core.Session(id)
		if s == nil || len(l.core.Sessions()) != 1 {
			t.Fatal("the session is not registered")
		}
		if err := s.Send(snapshot(1, 2)); err != nil {
			t.Fatal(err)
		}
		l.ev.awaits(t, "acknowledged 1.2")
		if got := applied.all(); !slices.Contains(got, "1.2") {
			t.Fatalf("acknowledged before it was applied: %q", got)
		}
		s.Send(snapshot(1, 3))
		l.ev.awaits(t, "acknowledged error cannot be used")
		s.mu.Lock()
		s.newest = generation{} // as a core that has lost its state
		s.mu.Unlock()
		s.Send(snapshot(1, 1))
		l.ev.awaits(t, "acknowledged error it is older")
		s.Send(snapshot(2, 1))
		l.ev.awaits(t, "acknowledged 2.1")
		if st := s.State(); st.CallsInFlight != 7 || st.LastSeen.IsZero() || generationOf(st.Acknowledged) != (generation{2, 1}) || st.AckError != "" {
			t.Fatalf("state %+v", st)
		}

		chain, err := e.Request(ctx, []byte("csr"), control.CertificateRequest_PURPOSE_PUBLIC_PORT)
		if err != nil || len(chain) != 1 || string(chain[0]) != "for csr" {
			t.Fatalf("%q, %v", chain, err)
		}
		_, err = e.Request(ctx, []byte("bad"), control.CertificateRequest_PURPOSE_PUBLIC_PORT)
		wantRefusal(t, err, "csr_bad")

		s.Close(&pki.Refusal{Code: "removed", Cause: "gateway one was removed", Remedy: "add it again"})
		wantRefusal(t, <-done, "removed")
		l.ev.awaits(t, "closed one: gateway one was removed")
		if l.core.Session(id) != nil || e.Connected() {
			t.Fatal("the session is still registered")
		}
		cancel()
	})
}

// TestSessionRefused: core's Opened refuses; both sides know why.
func TestSessionRefused(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		l := newLinked(t, role, false)
		l.core.Opened = func(s, former *Session) *pki.Refusal {
			return &pki.Refusal{Code: "version_too_old", Cause: "version 1.2.3 is too old", Remedy: "update it"}
		}
		done := l.run(t, testContext(t), &ComponentEnd{Hello: hello(1)}, l.c.self(role, "one"))
		wantRefusal(t, <-done, "version_too_old")
		if l.core.Session(l.c.id(role, "one")) != nil {
			t.Fatal("registered")
		}
		if role == pki.RoleGateway {
			l.log.awaits(t, "did not open its session", "version 1.2.3 is too old")
		}
	})
}

// TestHostileHello: first words that are none.
func TestHostileHello(t *testing.T) {
	for name, h := range map[string]*control.Hello{"no instance": {}, "long instance": {Instance: make([]byte, 17)}} {
		t.Run(name, func(t *testing.T) {
			l := newLinked(t, pki.RoleGateway, false)
			done := l.run(t, testContext(t), &ComponentEnd{Hello: func() *control.Hello { return h }}, l.c.self(pki.RoleGateway, "one"))
			wantRefusal(t, <-done, "protocol_violation")
		})
	}
}

// TestProxyAnnounces: a proxy has no say about services.
func TestProxyAnnounces(t *testing.T) {
	l := newLinked(t, pki.RoleProxy, false)
	e := &ComponentEnd{Hello: hello(1)}
	e.Announce(&control.Announcement{Services: []*control.AnnouncedService{{Name: "acme.A"}}})
	wantRefusal(t, <-l.run(t, testContext(t), e, l.c.self(pki.RoleProxy, "one")), "protocol_violation")
	l.ev.awaits(t, "closed one: the peer broke the protocol: only gateways announce services")
}

// TestSupersede: a second process with the identity takes over; four of them in
// a minute raise the alarm, once. The same process may reconnect as it likes.
func TestSupersede(t *testing.T) {
	l := newLinked(t, pki.RoleGateway, false)
	ctx := testContext(t)
	self := l.c.self(pki.RoleGateway, "one")
	var ends []<-chan error
	open := func(instance byte) {
		welcomed := make(chan struct{})
		ends = append(ends, l.run(t, ctx, &ComponentEnd{Hello: hello(instance), Welcomed: func(*Conn, *control.Welcome) { close(welcomed) }}, self))
		<-welcomed
		if s := l.core.Session(l.c.id(pki.RoleGateway, "one")); s == nil || s.Instance[0] != instance {
			t.Fatalf("welcomed and not registered: %v", s)
		}
	}
	for i := byte(1); i <= 4; i++ {
		open(i)
	}
	for _, end := range ends[:3] {
		r := wantRefusal(t, <-end, "superseded")
		if !strings.Contains(r.Cause, "127.0.0.1:") {
			t.Fatalf("the other address is not named: %s", r.Cause)
		}
	}
	if slices.Contains(l.ev.all(), "flapping one") {
		t.Fatal("alarm after three changes")
	}
	open(5)
	l.ev.awaits(t, "flapping one")
	open(6)
	open(6)
	wantRefusal(t, <-ends[5], "replaced")
	n := 0
	for _, s := range l.ev.all() {
		if s == "flapping one" {
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d alarms", n)
	}
	if len(l.core.Sessions()) != 1 {
		t.Fatal("more than one session is registered")
	}
}

// TestComponentSupersedes: a proxy that is dialled anew drops the former session.
func TestComponentSupersedes(t *testing.T) {
	l := newLinked(t, pki.RoleProxy, false)
	e := &ComponentEnd{Hello: hello(1)}
	first := l.run(t, testContext(t), e, nil)
	l.ev.awaits(t, "opened one")
	second := l.run(t, testContext(t), e, nil)
	if err := <-first; err == nil {
		t.Fatal("no cause")
	}
	select {
	case err := <-second:
		t.Fatalf("the second ended too: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if !e.Connected() {
		t.Fatal("not connected")
	}
}

// TestLatestWins: of snapshots that come faster than they are applied, the
// newest is, and only it is acknowledged last.
func TestLatestWins(t *testing.T) {
	l := newLinked(t, pki.RoleGateway, false)
	hold := make(chan struct{})
	applied := newEvents()
	e := &ComponentEnd{Hello: hello(1), Apply: func(s *control.Snapshot) error {
		applied.add(ackText(&control.SnapshotAck{Generation: s.GetGeneration()}))
		<-hold
		return nil
	}}
	welcomed := make(chan struct{})
	e.Welcomed = func(*Conn, *control.Welcome) { close(welcomed) }
	l.run(t, testContext(t), e, l.c.self(pki.RoleGateway, "one"))
	<-welcomed
	s := l.core.Session(l.c.id(pki.RoleGateway, "one"))
	s.Send(snapshot(1, 1))
	applied.awaits(t, "1.1")
	for i := uint64(2); i <= 9; i++ {
		s.Send(snapshot(1, i))
	}
	close(hold)
	l.ev.awaits(t, "acknowledged 1.9")
	if n := len(applied.all()); n >= 9 {
		t.Fatalf("%d snapshots were applied; those in between should have been skipped", n)
	}
}

// TestNewestIsSent: a snapshot that is given to Send after a newer one, by
// somebody who read it before, does not take the newer one's place.
func TestNewestIsSent(t *testing.T) {
	l := newLinked(t, pki.RoleGateway, false)
	applied := newEvents()
	hold, welcomed := make(chan struct{}), make(chan struct{})
	e := &ComponentEnd{Hello: hello(1), Welcomed: func(*Conn, *control.Welcome) { close(welcomed) }, Apply: func(s *control.Snapshot) error {
		applied.add(ackText(&control.SnapshotAck{Generation: s.GetGeneration()}))
		<-hold
		return nil
	}}
	l.run(t, testContext(t), e, l.c.self(pki.RoleGateway, "one"))
	<-welcomed
	s := l.core.Session(l.c.id(pki.RoleGateway, "one"))
	s.Send(snapshot(1, 1))
	applied.awaits(t, "1.1")
	s.Send(snapshot(1, 5))
	s.Send(snapshot(1, 3))
	s.Send(snapshot(1, 6))
	s.Send(snapshot(1, 4))
	close(hold)
	l.ev.awaits(t, "acknowledged 1.6")
	if got := l.ev.all(); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "acknowledged error") }) {
		t.Fatalf("an older snapshot was sent: %q", got)
	}
}

// TestRequestSurvivesLoss: a certificate request that lost its session is
// asked again on the next.
func TestRequestSurvivesLoss(t *testing.T) {
	l := newLinked(t, pki.RoleGateway, false)
	lost := make(chan struct{}, 1)
	lost <- struct{}{}
	answer := l.core.Certificate
	l.core.Certificate = func(ctx context.Context, s *Session, r *control.CertificateRequest) ([][]byte, *pki.Refusal) {
		select {
		case <-lost:
			s.conn.NetConn().Close()
		default:
		}
		return answer(ctx, s, r)
	}
	e := &ComponentEnd{Hello: hello(1)}
	ctx := testContext(t)
	got := make(chan error, 1)
	go func() {
		chain, err := e.Request(ctx, []byte("x"), control.CertificateRequest_PURPOSE_PUBLIC_PORT)
		if err == nil && string(chain[0]) != "for x" {
			err = errors.New("wrong answer")
		}
		got <- err
	}()
	self := l.c.self(pki.RoleGateway, "one")
	if err := <-l.run(t, ctx, e, self); err == nil {
		t.Fatal("no cause")
	}
	l.run(t, ctx, e, self)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// TestHeartbeats: RTT and offset are measured; a peer that falls silent is lost
// after three missed heartbeats; a session ends with its certificate.
func TestHeartbeats(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		synctest.Test(t, func(t *testing.T) {
			l := newLinked(t, role, true)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			start := time.Now()
			done := l.run(t, ctx, &ComponentEnd{Hello: hello(1)}, l.c.self(role, "one"))
			time.Sleep(21 * time.Second)
			s := l.core.Session(l.c.id(role, "one"))
			if s == nil {
				t.Fatalf("no session: %q\n%s", l.ev.all(), l.log.text())
			}
			if st := s.State(); time.Since(st.LastSeen) != time.Second || st.ClockOffset != 0 {
				t.Fatalf("last seen %v ago, offset %v", time.Since(st.LastSeen), st.ClockOffset)
			}
			select {
			case err := <-done:
				t.Fatalf("ended after %v: %v", time.Since(start), err)
			default:
			}
			// An hour later the certificates have expired, and with them the session.
			err := <-done
			if lived := time.Since(start); err == nil || lived < 59*time.Minute || lived > 61*time.Minute {
				t.Fatalf("ended after %v: %v", lived, err)
			}
			t.Log(err)
		})
	})
}

// gate is a connection that can be frozen: nothing arrives any more, as from
// a host that lost its power.
type gate struct {
	net.Conn
	frozen atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (g *gate) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if g.frozen.Load() {
		<-g.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (g *gate) Write(b []byte) (int, error) {
	if g.frozen.Load() {
		return len(b), nil
	}
	return g.Conn.Write(b)
}

func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Conn.Close()
}

// TestLost: a peer that falls silent is lost after three missed heartbeats, on
// both ends.
func TestLost(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		synctest.Test(t, func(t *testing.T) {
			l := newLinked(t, role, true)
			inner := l.connect
			var g *gate
			l.connect = func(ctx context.Context, n, a string) (net.Conn, error) {
				nc, err := inner(ctx, n, a)
				g = &gate{Conn: nc, closed: make(chan struct{})}
				return g, err
			}
			done := l.run(t, t.Context(), &ComponentEnd{Hello: hello(1)}, l.c.self(role, "one"))
			time.Sleep(7 * time.Second)
			g.frozen.Store(true)
			start := time.Now()
			err := <-done
			if d := time.Since(start); d < 13*time.Second || d > 16*time.Second || !errors.Is(err, errLost) {
				t.Fatalf("the component noticed after %v: %v", d, err)
			}
			time.Sleep(2 * time.Second)
			if s := l.core.Session(l.c.id(role, "one")); s != nil {
				t.Fatal("core did not notice")
			}
		})
	})
}

// TestMuted: bytes alone do not keep a session: after two minutes without a
// heartbeat it is lost, however busy the line.
func TestMuted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinked(t, pki.RoleGateway, true)
		start := time.Now()
		s := hostile(t, l)
		for {
			if err := s.Send(&control.Frame{Frame: &control.Frame_Ack{Ack: &control.SnapshotAck{}}}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if d := time.Since(start); d < 115*time.Second || d > 130*time.Second {
			t.Fatalf("ended after %v: %q", d, l.ev.all())
		}
	})
}

// TestRates: a component that floods core is slowed down, and reads its frames
// are still answered.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinked(t, pki.RoleGateway, true)
		s := hostile(t, l)
		start := time.Now()
		for i := range framesBurst + 10*framesPerSecond {
			if err := s.Send(&control.Frame{Frame: &control.Frame_Heartbeat{Heartbeat: &control.Heartbeat{Sequence: uint64(i)}}}); err != nil {
				t.Fatal(err)
			}
		}
		for {
			f, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if f.GetHeartbeatReply().GetSequence() == framesBurst+10*framesPerSecond-1 {
				break
			}
		}
		if d := time.Since(start); d < 9*time.Second {
			t.Fatalf("core took all frames in %v", d)
		}
	})
}

// TestReportRates: what makes core write and tell others is slowed down more.
func TestReportRates(t *testing.T) {
	for name, f := range map[string]*control.Frame{
		"announcements": {Frame: &control.Frame_Announcement{Announcement: &control.Announcement{}}},
		"denials":       {Frame: &control.Frame_Denials{Denials: &control.DenialReport{}}},
		"refusals":      {Frame: &control.Frame_Ack{Ack: &control.SnapshotAck{Error: "no"}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLinked(t, pki.RoleGateway, true)
				const n = reportsBurst + 10*reportsPerSecond
				taken := make(chan struct{}, n)
				l.core.Announced = func(*Session, *control.Announcement) { taken <- struct{}{} }
				l.core.Denied = func(*Session, *control.DenialReport) { taken <- struct{}{} }
				l.core.Acknowledged = func(*Session, *control.SnapshotAck) { taken <- struct{}{} }
				s := hostile(t, l)
				start := time.Now()
				for range n {
					if err := s.Send(f); err != nil {
						t.Fatal(err)
					}
				}
				for range n {
					<-taken
				}
				if d := time.Since(start); d < 9*time.Second {
					t.Fatalf("core took all of them in %v", d)
				}
			})
		})
	}
}

// TestCertificatesPerIdentity: certificates are counted for an identity, not
// for one of its sessions, so that core's disk does not depend on how often it
// connects.
func TestCertificatesPerIdentity(t *testing.T) {
	l := newLinked(t, pki.RoleGateway, false)
	granted := 0
	for range 3 {
		s := hostile(t, l)
		for i := range issueBurst {
			if err := s.Send(&control.Frame{Frame: &control.Frame_CertificateRequest{CertificateRequest: &control.CertificateRequest{Id: uint64(i + 1), Csr: []byte("key")}}}); err != nil {
				t.Fatal(err)
			}
			f, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if f.GetCertificateResponse().GetRefusal() == nil {
				granted++
			}
		}
	}
	if granted == 0 || granted > issueBurst {
		t.Fatalf("%d certificates, %d are allowed", granted, issueBurst)
	}
}

// hostile opens a session by hand, as a gateway that keeps no rule may.
func hostile(t *testing.T, l *linked) stream[control.Frame] {
	t.Helper()
	conn, err := (&Dialler{Self: l.c.self(pki.RoleGateway, "one"), Connect: l.connect}).Dial(t.Context(), l.addr, ALPNControl, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		t.Fatal(err)
	}
	cc, err := ClientOver(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	s, err := control.NewControlClient(cc).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Send(&control.Frame{Frame: &control.Frame_Hello{Hello: hello(1)()}})
	if f, err := s.Recv(); err != nil || f.GetWelcome() == nil {
		t.Fatal(f, err)
	}
	return s
}

// TestHostileFrames: what breaks the protocol ends the session with a refusal.
func TestHostileFrames(t *testing.T) {
	for name, f := range map[string]*control.Frame{
		"second hello": {Frame: &control.Frame_Hello{Hello: hello(1)()}},
		"denials":      {Frame: &control.Frame_Denials{Denials: &control.DenialReport{Denials: slices.Repeat([]*control.Denial{{}}, denialsPerFrame+1)}}},
		"fields":       {Frame: &control.Frame_Announcement{Announcement: &control.Announcement{Services: slices.Repeat([]*control.AnnouncedService{{}}, maxFields)}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits 2 s for the hostile end to go
			l := newLinked(t, pki.RoleGateway, false)
			s := hostile(t, l)
			if err := s.Send(f); err != nil {
				t.Fatal(err)
			}
			for {
				if _, err := s.Recv(); err != nil {
					break
				}
			}
			t.Log(l.ev.awaits(t, "closed one: "))
			if slices.ContainsFunc(l.ev.all(), func(s string) bool { return strings.HasPrefix(s, "announced") }) {
				t.Fatal("the frame was acted upon")
			}
		})
	}
}

// TestTooLarge: what no frame can carry is an error at its source.
func TestTooLarge(t *testing.T) {
	e := &ComponentEnd{}
	if err := e.Announce(&control.Announcement{Descriptors: [][]byte{make([]byte, maxPayload)}}); err == nil {
		t.Error("announced")
	}
	s := &Session{sessionConn: newSessionConn(t.Context(), &Conn{})}
	if err := s.Send(&control.Snapshot{Part: &control.Snapshot_Proxy{Proxy: &control.ProxyPart{Descriptors: [][]byte{make([]byte, maxPayload)}}}}); err == nil {
		t.Error("sent")
	}
}

// TestLargeSnapshot: 15 MiB and thousands of fields arrive.
func TestLargeSnapshot(t *testing.T) {
	l := newLinked(t, pki.RoleProxy, false)
	part := &control.ProxyPart{Descriptors: [][]byte{make([]byte, 15<<20)}}
	for range 5000 {
		part.Services = append(part.Services, &control.Service{Name: "acme.orders.v1.Orders", Available: true})
	}
	e := &ComponentEnd{Hello: hello(1), Apply: func(s *control.Snapshot) error {
		if len(s.GetProxy().GetDescriptors()[0]) != 15<<20 || len(s.GetProxy().GetServices()) != 5000 {
			return errors.New("it changed on the way")
		}
		return nil
	}}
	l.core.Opened = func(s, _ *Session) *pki.Refusal {
		s.Send(&control.Snapshot{Generation: &control.Generation{Epoch: 1, Generation: 1}, Part: &control.Snapshot_Proxy{Proxy: part}})
		return nil
	}
	l.run(t, testContext(t), e, nil)
	l.ev.awaits(t, "acknowledged 1.1")
}

// FuzzFrame: whatever a component sends, core's end survives it and does not
// build more than it may.
func FuzzFrame(f *testing.F) {
	for _, frame := range []*control.Frame{
		{Frame: &control.Frame_Hello{Hello: hello(1)()}},
		{Frame: &control.Frame_Heartbeat{Heartbeat: &control.Heartbeat{Sequence: 1, LastRttNano: -1, ClockOffsetNano: -1 << 63}}},
		{Frame: &control.Frame_Ack{Ack: &control.SnapshotAck{Error: "x"}}},
		{Frame: &control.Frame_Announcement{Announcement: &control.Announcement{Services: []*control.AnnouncedService{{Name: "a"}}}}},
		{Frame: &control.Frame_Denials{Denials: &control.DenialReport{Denials: []*control.Denial{{Caller: "\x1b[2J"}}}}},
		{Frame: &control.Frame_CertificateRequest{CertificateRequest: &control.CertificateRequest{Id: 1}}},
		{Frame: &control.Frame_Refusal{Refusal: &control.Refusal{Code: "x"}}},
		{},
	} {
		b, err := proto.Marshal(frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame := &control.Frame{}
		if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, frame); err != nil {
			return
		}
		e := &CoreEnd{Denied: func(_ *Session, r *control.DenialReport) {
			for _, d := range r.GetDenials() {
				if strings.ContainsFunc(d.GetCaller()+d.GetMethod(), func(r rune) bool { return r < ' ' }) {
					t.Fatalf("%q", d)
				}
			}
		}}
		s := newSession(t.Context(), e, &Conn{Peer: Peer{ID: pki.ID{TrustDomain: "t", Role: pki.RoleGateway, Name: "g"}}})
		s.hello(frame.GetHello())
		s.frame(frame)
		if st := s.State(); st.RTT < 0 || st.RTT > 1000*time.Hour || st.ClockOffset < -1000*time.Hour {
			t.Fatalf("%+v", st)
		}
		s.end(nil)
		s.wg.Wait()
		readAttempt(&control.JoinRequest{Csr: b, Version: string(b)}, &Conn{Peer: Peer{BootstrapKey: make([]byte, 32)}})
	})
}
