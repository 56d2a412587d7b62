package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// Session is one live control session as core sees it.
type Session struct {
	Peer     Peer
	Hello    *control.Hello
	Started  time.Time
	Instance [16]byte

	*sessionConn
	owner      *CoreEnd
	st         stream[control.Frame]
	registered bool // guarded by owner.mu

	mu       sync.Mutex
	state    SessionState
	snapshot *control.Snapshot // newest not yet sent
	newest   generation        // of the snapshots given to Send
	frames   []*control.Frame  // replies and responses not yet sent
	clock    clockWatch

	issuing  chan struct{}
	frameRt  *rate.Limiter
	reportRt *rate.Limiter
	byteRt   *rate.Limiter
}

// SessionState is what the last frames of a session said.
type SessionState struct {
	LastSeen      time.Time     // the last heartbeat, or the hello
	RTT           time.Duration // 0: not measured yet
	ClockOffset   time.Duration // core's clock minus the component's
	CallsInFlight uint32
	Acknowledged  *control.Generation // the newest snapshot in force there
	AckError      string              // why a newer one was refused there
}

// What a component may send. Beyond these rates its frames wait, and with them
// its heartbeats; it harms itself alone.
const (
	framesPerSecond = 50
	framesBurst     = 200
	bytesPerSecond  = 2 << 20
	bytesBurst      = 2 * maxMessage
	denialsPerFrame = 4096
	maxReplies      = 64

	// Announcements, reports and alerts make core write to its disk and tell
	// others, refused snapshots to its log.
	reportsPerSecond = 4
	reportsBurst     = 40

	// Each certificate is a row that is kept. An identity has these, however
	// often it connects.
	issueEvery = time.Minute
	renewEvery = 5 * time.Second // a lifetime may be a minute, and the first answer be lost
	issueBurst = 10
)

func newSession(ctx context.Context, e *CoreEnd, conn *Conn) *Session {
	return &Session{
		Peer: conn.Peer, Started: time.Now(), owner: e, sessionConn: newSessionConn(ctx, conn),
		issuing:  make(chan struct{}, 2),
		frameRt:  rate.NewLimiter(framesPerSecond, framesBurst),
		reportRt: rate.NewLimiter(reportsPerSecond, reportsBurst),
		byteRt:   rate.NewLimiter(bytesPerSecond, bytesBurst),
	}
}

// closedBy is an end that the component is told.
type closedBy struct{ refusal *pki.Refusal }

func (c *closedBy) Error() string { return c.refusal.Error() }
func (c *closedBy) Unwrap() error { return c.refusal }

func (s *Session) run() error {
	stop := s.greet()
	defer stop()
	f, err := s.st.Recv()
	if err != nil {
		return endOf(s.ctx, err)
	}
	refusal := s.hello(f.GetHello())
	if refusal == nil {
		refusal = s.owner.register(s)
	}
	if refusal != nil {
		s.st.Send(refusalFrame(refusal))
		s.drain(s.st)
		return refusal
	}
	w := &control.Welcome{Version: s.owner.Version, UnixNano: time.Now().UnixNano()}
	if held := s.Hello.GetRevocationsHeld(); held != nil && s.owner.WantRevocations != nil {
		w.WantRevocationList = s.owner.WantRevocations(s, held)
	}
	if err := s.st.Send(&control.Frame{Frame: &control.Frame_Welcome{Welcome: w}}); err != nil {
		return recvEnd(s.ctx, s.st, err)
	}
	stop()
	s.conn.Up()
	s.beat.Store(monotonic())
	s.startReader(s.reader)
	s.start(s.writer)
	s.start(s.watch)
	return s.wait(func(cause error) bool {
		_, told := errors.AsType[*closedBy](cause)
		return told
	})
}

// RenewNow asks the component to renew its identity now. One of an older version
// does not know how to.
func (s *Session) RenewNow() {
	s.mu.Lock()
	s.frames = append(s.frames, &control.Frame{Frame: &control.Frame_RenewNow{RenewNow: &control.RenewNow{}}})
	s.mu.Unlock()
	s.kick()
}

func refusalFrame(r *pki.Refusal) *control.Frame {
	return &control.Frame{Frame: &control.Frame_Refusal{Refusal: protoOf(r)}}
}

// hello takes a component's first word.
func (s *Session) hello(h *control.Hello) *pki.Refusal {
	switch {
	case h == nil:
		return refuseProtocol("its first word is not hello")
	case len(h.GetInstance()) != len(s.Instance):
		return refuseProtocol("its hello has no instance of 16 bytes")
	}
	copy(s.Instance[:], h.GetInstance())
	h.Version = printable(h.GetVersion(), 64)
	h.Certificates = cleanCertificates(h.GetCertificates())
	cleanPort(h.GetPort())
	s.Hello = h
	s.state.LastSeen = s.Started
	if h.GetHeld().GetEpoch() != 0 {
		s.state.Acknowledged = h.GetHeld()
	}
	return nil
}

func (s *Session) reader() error {
	for {
		f, err := s.st.Recv()
		if err != nil {
			return endOf(s.ctx, err)
		}
		if err := s.frameRt.Wait(s.ctx); err != nil {
			return context.Cause(s.ctx)
		}
		if err := s.byteRt.WaitN(s.ctx, min(proto.Size(f), bytesBurst)); err != nil {
			return context.Cause(s.ctx)
		}
		if f.GetAnnouncement() != nil || f.GetDenials() != nil || f.GetAlert() != nil || f.GetAck().GetError() != "" || len(f.GetHeartbeat().GetCertificates()) > 0 {
			if err := s.reportRt.Wait(s.ctx); err != nil {
				return context.Cause(s.ctx)
			}
		}
		if r := s.frame(f); r != nil {
			s.Close(r)
			s.drain(s.st)
			return nil
		}
	}
}

// frame acts upon one frame; a refusal ends the session.
func (s *Session) frame(f *control.Frame) *pki.Refusal {
	e := s.owner
	switch f := f.Frame.(type) {
	case *control.Frame_Heartbeat:
		state := s.heartbeat(f.Heartbeat)
		if list := cleanCertificates(f.Heartbeat.GetCertificates()); len(list) > 0 && e.Reported != nil {
			e.Reported(s, list)
		}
		if e.Beat != nil {
			e.Beat(s, state)
		}
	case *control.Frame_Ack:
		f.Ack.Error = printable(f.Ack.GetError(), 1024)
		s.acknowledged(f.Ack)
		if e.Acknowledged != nil {
			e.Acknowledged(s, f.Ack)
		}
	case *control.Frame_Announcement:
		if s.Peer.ID.Role != pki.RoleGateway {
			return refuseProtocol("only gateways announce services")
		}
		if e.Announced != nil {
			e.Announced(s, f.Announcement)
		}
	case *control.Frame_Denials:
		if len(f.Denials.GetDenials()) > denialsPerFrame {
			return refuseProtocol("a denial report has too many rows")
		}
		for _, d := range f.Denials.GetDenials() {
			d.Caller, d.Method = printable(d.GetCaller(), 256), printable(d.GetMethod(), 256)
			d.Reason, d.Code = printable(d.GetReason(), 64), printable(d.GetCode(), 32)
		}
		if e.Denied != nil {
			e.Denied(s, f.Denials)
		}
	case *control.Frame_CertificateRequest:
		s.certificate(f.CertificateRequest)
	case *control.Frame_Renewed:
		if s.conn.Dialled {
			s.conn.Replace()
		}
		if e.Renewed != nil {
			e.Renewed(s)
		}
	case *control.Frame_RevocationList:
		if e.Revocations != nil {
			e.Revocations(s, f.RevocationList)
		}
	case *control.Frame_Alert:
		a := f.Alert
		a.Code, a.Text, a.Remedy = printable(a.GetCode(), 64), printable(a.GetText(), 1024), printable(a.GetRemedy(), 1024)
		if e.Alerted != nil {
			e.Alerted(s, a)
		}
	case *control.Frame_Hello:
		return refuseProtocol("it said hello twice")
	case *control.Frame_Refusal:
		if r := pki.RefusalFromProto(f.Refusal); r != nil {
			return r
		}
	}
	// Frames that a newer component may send are not ours to understand.
	return nil
}

// cleanPort makes of what a proxy says of its port something fit to be shown.
func cleanPort(p *control.PortReport) {
	if p == nil {
		return
	}
	if a, err := netip.ParseAddr(p.GetObservedAddress()); err != nil || a.Zone() != "" {
		p.ObservedAddress = ""
	} else {
		p.ObservedAddress = a.Unmap().String()
	}
	p.CoreIps = p.GetCoreIps()[:min(len(p.GetCoreIps()), maxReported)]
	for i, s := range p.CoreIps {
		p.CoreIps[i] = printable(s, 256)
	}
}

// maxReported bounds the certificates that one component reports.
const maxReported = 64

// cleanCertificates makes of what a component reports something fit to be
// stored and shown.
func cleanCertificates(list []*control.Certificate) []*control.Certificate {
	list = list[:min(len(list), maxReported)]
	for _, c := range list {
		c.What, c.Subject = printable(c.GetWhat(), 128), printable(c.GetSubject(), 256)
		c.Serial, c.Error = printable(c.GetSerial(), 64), printable(c.GetError(), 1024)
	}
	return list
}

func (s *Session) heartbeat(h *control.Heartbeat) SessionState {
	now := time.Now()
	s.beat.Store(monotonic())
	const most = int64(1000 * time.Hour)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.LastSeen = now
	s.state.RTT = time.Duration(min(max(h.GetLastRttNano(), 0), most))
	s.state.ClockOffset = time.Duration(min(max(h.GetClockOffsetNano(), -most), most))
	s.state.CallsInFlight = h.GetCallsInFlight()
	s.clock.look(s.owner.log(), string(s.Peer.ID.Role)+" "+s.Peer.ID.Name, -s.state.ClockOffset)
	s.queueLocked(&control.Frame{Frame: &control.Frame_HeartbeatReply{
		HeartbeatReply: &control.HeartbeatReply{Sequence: h.GetSequence(), UnixNano: now.UnixNano()}}})
	return s.state
}

// queueLocked queues a reply. A component that sends and does not read gets no
// more than maxReplies.
func (s *Session) queueLocked(f *control.Frame) {
	if len(s.frames) < maxReplies {
		s.frames = append(s.frames, f)
	}
	s.kick()
}

func (s *Session) acknowledged(a *control.SnapshotAck) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.AckError = a.GetError()
	if a.GetError() == "" {
		s.state.Acknowledged = a.GetGeneration()
	}
}

// certificate answers a request beside the reader.
func (s *Session) certificate(q *control.CertificateRequest) {
	answer := func(chain [][]byte, r *pki.Refusal) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.queueLocked(&control.Frame{Frame: &control.Frame_CertificateResponse{
			CertificateResponse: &control.CertificateResponse{Id: q.GetId(), Chain: chain, Refusal: protoOf(r)}}})
	}
	decide := func() ([][]byte, *pki.Refusal) { return s.owner.Certificate(s.ctx, s, q) }
	own := q.GetPurpose() == control.CertificateRequest_PURPOSE_IDENTITY && s.owner.Renew != nil
	if own {
		decide = func() ([][]byte, *pki.Refusal) { return s.renewIdentity(s.ctx, q) }
	}
	if s.owner.Certificate == nil && !own {
		answer(nil, refuseProtocol("this core issues no such certificates"))
		return
	}
	busy := &pki.Refusal{Code: "too_many_requests", Cause: "this component asks for certificates too often", Remedy: "it tries again by itself; if it persists, look at its log"}
	if !s.owner.mayIssue(s.Peer.ID, own) {
		answer(nil, busy)
		return
	}
	select {
	case s.issuing <- struct{}{}:
	default:
		answer(nil, busy)
		return
	}
	s.wg.Go(func() {
		defer func() { <-s.issuing }()
		answer(decide())
	})
}

func (s *Session) writer() error {
	for {
		if err := s.sendQueued(); err != nil {
			return err
		}
		select {
		case <-s.ctx.Done():
			if c, told := errors.AsType[*closedBy](context.Cause(s.ctx)); told {
				s.st.Send(refusalFrame(c.refusal))
			}
			return nil
		case <-s.wake:
		}
	}
}

func (s *Session) sendQueued() error {
	for {
		s.mu.Lock()
		frames, snapshot := s.frames, s.snapshot
		s.frames = nil
		if len(frames) == 0 {
			s.snapshot = nil
		}
		s.mu.Unlock()
		switch {
		case len(frames) > 0: // small ones first
		case snapshot != nil:
			frames = []*control.Frame{{Frame: &control.Frame_Snapshot{Snapshot: snapshot}}}
		default:
			return nil
		}
		for _, f := range frames {
			if err := s.sendEnd(s.st.Send(f)); err != nil {
				return err
			}
		}
	}
}

// Send queues a snapshot; one that is still waiting is replaced by a newer one,
// and one that comes after a newer one is left out, so that callers need not
// agree about their order. The caller does not change it afterwards. One that
// no frame can carry is an error, and the component keeps the former.
func (s *Session) Send(snapshot *control.Snapshot) error {
	if err := sendable(snapshot); err != nil {
		return fmt.Errorf("snapshot for %s %s: %w: shorten the policy or announce fewer descriptors", s.Peer.ID.Role, s.Peer.ID.Name, err)
	}
	g := generationOf(snapshot.GetGeneration())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest.after(g) {
		return nil
	}
	s.newest, s.snapshot = g, snapshot
	s.kick()
	return nil
}

// State is what is known of the session now.
func (s *Session) State() SessionState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Close ends the session and tells the component why, if it still listens.
func (s *Session) Close(why *pki.Refusal) { s.end(&closedBy{why}) }

// Done is closed when the session is ending.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Context ends with the session; its cause is why.
func (s *Session) Context() context.Context { return s.ctx }

const codeReplaced = "replaced"

// supersede ends s because next took its place.
func (s *Session) supersede(next *Session) {
	if next.Instance == s.Instance {
		s.Close(&pki.Refusal{Code: codeReplaced, Cause: "replaced by a newer session of the same process", Remedy: "none needed"})
		return
	}
	s.Close(&pki.Refusal{Code: "superseded",
		Cause:  fmt.Sprintf("superseded by another process with the same identity, from %s", orUnknown(sourceText(next.Peer.Remote))),
		Remedy: "nothing, if this process is being restarted or moved; if two run at the same time, stop one: remove the component on core and add each under its own name"})
}
