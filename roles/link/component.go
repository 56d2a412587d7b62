package link

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/configs/fault"
	"sallyport/roles/control"
)

// ComponentEnd is a gateway's or proxy's end of control sessions. One value
// serves one process for its life, over many connections; when a new one is
// welcomed while another runs, the other ends.
type ComponentEnd struct {
	// Hello is what this component says of itself: version, instance (16
	// random bytes, one per process start), the snapshot it holds.
	Hello func() *control.Hello
	// Apply persists and applies a snapshot; the acknowledgement goes out when
	// it returns. It is never called twice at a time; a newer snapshot that
	// arrives meanwhile replaces the one waiting. Its error is told to core,
	// and the former snapshot stays in force.
	Apply func(*control.Snapshot) error
	// Welcomed, if set, hears that core accepted a session, before any snapshot.
	Welcomed func(*Conn, *control.Welcome)
	// Denials, if set, is asked every 5 s for what to report; nil: nothing.
	Denials func() *control.DenialReport
	// Revocations, if set, is the signed revocation list to send when core asks
	// for it: (*Self).Revocations, of which Hello names the head.
	Revocations func() *control.RevocationList
	// Certificates, if set, are those in use beside the identity, in a fixed
	// order: they go with the hello, and with a heartbeat when they have changed.
	Certificates func() []*control.Certificate
	// CallsInFlight, if set, goes with each heartbeat.
	CallsInFlight func() uint32
	Log           *slog.Logger

	mu           sync.Mutex
	current      *componentSession
	welcome      chan struct{} // closed when there is a current session
	announcement *control.Announcement
	requests     uint64
	renewer      *Renewer // that keeps this component's identity, while it runs

	offset atomic.Int64 // core's clock minus ours, as measured last

	applying sync.Mutex // guards held and calls of Apply
	held     generation
}

// componentSession is one session of a component.
type componentSession struct {
	*sessionConn
	owner *ComponentEnd
	st    stream[control.Frame]

	mu        sync.Mutex
	snapshot  *control.Snapshot    // newest not yet applied
	ack       *control.SnapshotAck // newest not yet sent
	announced bool                 // the newest announcement has been sent
	frames    []*control.Frame     // certificate requests not yet sent
	reported  [sha256.Size]byte    // of the certificates that core was told; the writer's, after hello
	pending   map[uint64]chan *control.CertificateResponse
	arrived   chan struct{} // wakes the applier

	sequence uint64
	sent     time.Time // of heartbeat sequence
	rtt      time.Duration
	offset   time.Duration
	clock    clockWatch
}

// Run is the component's end of one session, on a connection of ALPNControl,
// whichever side dialled. It returns why the session ended; a *pki.Refusal
// when core refused or ended it.
func (e *ComponentEnd) Run(ctx context.Context, conn *Conn) error {
	s := &componentSession{sessionConn: newSessionConn(ctx, conn), owner: e,
		pending: map[uint64]chan *control.CertificateResponse{}, arrived: make(chan struct{}, 1)}
	defer s.wg.Wait()
	defer s.end(errSuperseded) // whatever ended it came first
	err := controlExchange.run(ctx, conn, func(st stream[control.Frame]) error {
		s.st = st
		return s.run()
	})
	e.retire(s)
	if s.ctx.Err() != nil && ctx.Err() == nil {
		return context.Cause(s.ctx)
	}
	return err
}

func (s *componentSession) run() error {
	stop := s.greet()
	defer stop()
	hello := s.owner.Hello()
	if hello.Port != nil {
		hello.Port.ObservedAddress = s.conn.Peer.Remote.Addr().String()
	}
	if s.owner.Certificates != nil {
		hello.Certificates = s.owner.Certificates()
		s.reported = sumOf(hello.Certificates)
	}
	if err := s.st.Send(&control.Frame{Frame: &control.Frame_Hello{Hello: hello}}); err != nil {
		return recvEnd(s.ctx, s.st, err)
	}
	f, err := s.st.Recv()
	if err != nil {
		return endOf(s.ctx, err)
	}
	if r := pki.RefusalFromProto(f.GetRefusal()); r != nil {
		return r
	}
	w := f.GetWelcome()
	if w == nil {
		return refuseProtocol("core answered hello with neither a welcome nor a refusal")
	}
	stop()

	e := s.owner
	e.applying.Lock()
	if g := generationOf(hello.GetHeld()); g.after(e.held) {
		e.held = g
	}
	e.applying.Unlock()
	if e.Welcomed != nil {
		e.Welcomed(s.conn, w)
	}
	if w.GetWantRevocationList() && e.Revocations != nil {
		if list := e.Revocations(); list != nil {
			s.frames = append(s.frames, &control.Frame{Frame: &control.Frame_RevocationList{RevocationList: list}})
		}
	}
	e.install(s)
	s.conn.Up()
	s.startReader(s.reader)
	s.start(s.writer)
	s.start(s.applier)
	s.start(s.watch)
	return s.wait(func(error) bool { return false })
}

// install makes s the session that requests use; a former one ends.
func (e *ComponentEnd) install(s *componentSession) {
	e.mu.Lock()
	former := e.current
	e.current = s
	if e.welcome != nil {
		close(e.welcome)
		e.welcome = nil
	}
	e.mu.Unlock()
	if former != nil {
		former.end(errSuperseded)
		former.conn.NetConn().Close()
	}
}

func (e *ComponentEnd) retire(s *componentSession) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current == s {
		e.current = nil
	}
}

func (s *componentSession) reader() error {
	for {
		f, err := s.st.Recv()
		if err != nil {
			return endOf(s.ctx, err)
		}
		switch f := f.Frame.(type) {
		case *control.Frame_HeartbeatReply:
			s.replied(f.HeartbeatReply)
		case *control.Frame_Snapshot:
			s.mu.Lock()
			s.snapshot = f.Snapshot
			s.mu.Unlock()
			select {
			case s.arrived <- struct{}{}:
			default:
			}
		case *control.Frame_CertificateResponse:
			s.mu.Lock()
			c := s.pending[f.CertificateResponse.GetId()]
			delete(s.pending, f.CertificateResponse.GetId())
			s.mu.Unlock()
			if c != nil {
				c <- f.CertificateResponse
			}
		case *control.Frame_RenewNow:
			s.owner.mu.Lock()
			r := s.owner.renewer
			s.owner.mu.Unlock()
			if r != nil {
				r.Now()
			}
		case *control.Frame_Refusal:
			if r := pki.RefusalFromProto(f.Refusal); r != nil {
				return r
			}
		}
		// Frames that a newer core may send are not ours to understand.
	}
}

// replied measures: the reply carries core's clock at about half of the way.
func (s *componentSession) replied(r *control.HeartbeatReply) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat.Store(monotonic())
	if r.GetSequence() != s.sequence || s.sent.IsZero() {
		return // late: it says that core lives, and nothing about time
	}
	s.rtt = now.Sub(s.sent)
	s.offset = time.Unix(0, r.GetUnixNano()).Sub(s.sent.Add(s.rtt / 2).Round(0))
	s.owner.offset.Store(int64(s.offset))
	if s.owner.Log != nil {
		s.clock.look(s.owner.Log, "core", s.offset)
	}
}

// ClockOffset is core's clock minus this component's, as measured last; 0 if
// it never was.
func (e *ComponentEnd) ClockOffset() time.Duration { return time.Duration(e.offset.Load()) }

// renewed tells core that a new identity is in use, if it is core that dials.
func (e *ComponentEnd) renewed() {
	e.mu.Lock()
	s := e.current
	e.mu.Unlock()
	if s == nil || s.conn.Dialled {
		return
	}
	s.mu.Lock()
	s.frames = append(s.frames, &control.Frame{Frame: &control.Frame_Renewed{Renewed: &control.Renewed{}}})
	s.mu.Unlock()
	s.kick()
}

// runsOn reports whether the session was opened with a certificate.
func (e *ComponentEnd) runsOn(leaf *x509.Certificate) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.current != nil && e.current.conn.own.Equal(leaf)
}

// Alert tells the operator something, by way of core; false if there is no
// session.
func (e *ComponentEnd) Alert(a *control.Alert) bool {
	e.mu.Lock()
	s := e.current
	e.mu.Unlock()
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames = append(s.frames, &control.Frame{Frame: &control.Frame_Alert{Alert: a}})
	s.kick()
	return true
}

func (s *componentSession) applier() error {
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case <-s.arrived:
		}
		s.mu.Lock()
		snapshot := s.snapshot
		s.snapshot = nil
		s.mu.Unlock()
		if snapshot == nil {
			continue
		}
		ack := s.owner.apply(snapshot)
		s.mu.Lock()
		s.ack = ack
		s.mu.Unlock()
		s.kick()
	}
}

// apply takes a snapshot that is newer than the one held. The same one again
// is acknowledged, an older one is not taken: it may lack revocations.
func (e *ComponentEnd) apply(snapshot *control.Snapshot) *control.SnapshotAck {
	e.applying.Lock()
	defer e.applying.Unlock()
	g := generationOf(snapshot.GetGeneration())
	ack := &control.SnapshotAck{Generation: snapshot.GetGeneration()}
	switch {
	case e.held.after(g):
		ack.Error = fmt.Sprintf("it is older (epoch %d, generation %d) than the one held (epoch %d, generation %d): core has lost state; restore it with 'sallyport restore', which opens a new epoch",
			g.epoch, g.number, e.held.epoch, e.held.number)
	case g == e.held:
		return ack
	default:
		if err := e.Apply(snapshot); err != nil {
			ack.Error = printable(err.Error(), 1024)
			break
		}
		e.held = g
		return ack
	}
	if e.Log != nil {
		e.Log.Error("a snapshot from core was not applied; the former one stays in force", "cause", ack.Error, "epoch", g.epoch, "generation", g.number)
	}
	return ack
}

func (s *componentSession) writer() error {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	if err := s.sendQueued(); err != nil {
		return err
	}
	if err := s.sendHeartbeat(); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-s.ctx.Done():
			return nil
		case <-s.wake:
			err = s.sendQueued()
		case <-tick.C:
			err = s.sendHeartbeat()
		}
		if err != nil {
			return err
		}
	}
}

func (s *componentSession) send(f *control.Frame) error {
	return s.sendEnd(s.st.Send(f))
}

func (s *componentSession) sendHeartbeat() error {
	e := s.owner
	s.mu.Lock()
	s.sequence++
	s.sent = time.Now()
	h := &control.Heartbeat{Sequence: s.sequence, UnixNano: s.sent.UnixNano(), LastRttNano: int64(s.rtt), ClockOffsetNano: int64(s.offset)}
	s.mu.Unlock()
	if e.CallsInFlight != nil {
		h.CallsInFlight = e.CallsInFlight()
	}
	if e.Certificates != nil {
		list := e.Certificates()
		if sum := sumOf(list); sum != s.reported {
			h.Certificates, s.reported = list, sum
		}
	}
	if err := s.send(&control.Frame{Frame: &control.Frame_Heartbeat{Heartbeat: h}}); err != nil {
		return err
	}
	if e.Denials != nil {
		if d := e.Denials(); d != nil {
			return s.send(&control.Frame{Frame: &control.Frame_Denials{Denials: d}})
		}
	}
	return nil
}

// sumOf tells one list of certificates from another.
func sumOf(list []*control.Certificate) [sha256.Size]byte {
	text, _ := proto.MarshalOptions{Deterministic: true}.Marshal(&control.Heartbeat{Certificates: list})
	return sha256.Sum256(text)
}

func (s *componentSession) sendQueued() error {
	s.owner.mu.Lock()
	announcement := s.owner.announcement
	s.owner.mu.Unlock()
	s.mu.Lock()
	ack, frames := s.ack, s.frames
	s.ack, s.frames = nil, nil
	if s.announced {
		announcement = nil
	}
	s.announced = true
	s.mu.Unlock()
	if announcement != nil {
		frames = append(frames, &control.Frame{Frame: &control.Frame_Announcement{Announcement: announcement}})
	}
	if ack != nil {
		frames = append(frames, &control.Frame{Frame: &control.Frame_Ack{Ack: ack}})
	}
	for _, f := range frames {
		if err := s.send(f); err != nil {
			return err
		}
	}
	return nil
}

// Announce replaces what core is told of services and upstreams; the newest
// goes out at once, and again at the start of every session. The caller does
// not change it afterwards. One that no frame can carry is an error, and the
// former one stays.
func (e *ComponentEnd) Announce(a *control.Announcement) error {
	if err := sendable(a); err != nil {
		return fmt.Errorf("announce services: %w: list the services by hand, or divide them among gateways", err)
	}
	e.mu.Lock()
	e.announcement = a
	s := e.current
	e.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		s.announced = false
		s.mu.Unlock()
		s.kick()
	}
	return nil
}

// Connected reports whether a session is up.
func (e *ComponentEnd) Connected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.current != nil
}

// Request asks core for a certificate that is not the component's identity. It
// waits for a session if there is none, and asks again if one is lost. Core's
// refusal is the error.
func (e *ComponentEnd) Request(ctx context.Context, csr []byte, purpose control.CertificateRequest_Purpose) ([][]byte, error) {
	for {
		e.mu.Lock()
		s := e.current
		if s == nil {
			if e.welcome == nil {
				e.welcome = make(chan struct{})
			}
			welcome := e.welcome
			e.mu.Unlock()
			select {
			case <-ctx.Done():
				return nil, fmt.Errorf("request a certificate from core: no session with core: %w", ctx.Err())
			case <-welcome:
			}
			continue
		}
		e.requests++
		id := e.requests
		e.mu.Unlock()

		answer := make(chan *control.CertificateResponse, 1)
		s.mu.Lock()
		s.pending[id] = answer
		s.frames = append(s.frames, &control.Frame{Frame: &control.Frame_CertificateRequest{
			CertificateRequest: &control.CertificateRequest{Id: id, Csr: csr, Purpose: purpose}}})
		s.mu.Unlock()
		s.kick()
		fault.Point("renewal", "requested")
		select {
		case r := <-answer:
			if refusal := pki.RefusalFromProto(r.GetRefusal()); refusal != nil {
				return nil, fmt.Errorf("request a certificate from core: %w", refusal)
			}
			return r.GetChain(), nil
		case <-s.ctx.Done():
			e.retire(s)
		case <-ctx.Done():
			s.mu.Lock()
			delete(s.pending, id)
			s.mu.Unlock()
			return nil, fmt.Errorf("request a certificate from core: %w", ctx.Err())
		}
	}
}
