package link

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

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
		ends = append(ends, l.run(t, ctx, &ComponentEnd{Hello: hello(instance)}, self))
		for {
			if s := l.core.Session(l.c.id(pki.RoleGateway, "one")); s != nil && s.Instance[0] == instance && len(l.ev.all()) > 0 {
				break
			}
			<-l.ev.more
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
	l.run(t, testContext(t), e, l.c.self(pki.RoleGateway, "one"))
	l.ev.awaits(t, "opened")
	s := l.core.Session(l.c.id(pki.RoleGateway, "one"))
	for s == nil {
		s = l.core.Session(l.c.id(pki.RoleGateway, "one"))
	}
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
