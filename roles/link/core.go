package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// CoreEnd is core's end of all control sessions, and the registry of those
// that are live: at most one per identity. All callbacks but Opened may run
// for several sessions at a time; per session they come one after the other,
// on the goroutine that reads, so that a slow one slows its own component down.
type CoreEnd struct {
	Version string
	Log     *slog.Logger

	// Opened hears of a session that has said hello, before the welcome goes
	// out; former is the live one that it will supersede, or nil. A refusal
	// ends the new session and leaves the former. Opened may already Send. It
	// is never called twice at a time.
	Opened func(s, former *Session) *pki.Refusal
	// Closed hears why a session ended: once for each Opened that did not
	// refuse, and for a superseded one after the Opened of its successor.
	Closed func(s *Session, cause error)

	Announced    func(s *Session, a *control.Announcement)
	Denied       func(s *Session, r *control.DenialReport)
	Acknowledged func(s *Session, a *control.SnapshotAck)
	Beat         func(s *Session, state SessionState) // after each heartbeat

	// Reported, if set, hears which certificates a component uses beside its
	// identity, when they have changed since its hello or the last report.
	Reported func(s *Session, list []*control.Certificate)

	// Certificate answers a request for a certificate. At most two run at a
	// time per session, beside the other callbacks.
	Certificate func(ctx context.Context, s *Session, r *control.CertificateRequest) ([][]byte, *pki.Refusal)

	// Renew, if set, answers requests for the next certificate of a session's
	// own identity, as Registrar.Renew does.
	Renew func(ctx context.Context, a RenewAttempt) (*control.JoinGrant, *pki.Refusal)

	// Renewed, if set, hears that a component has its new identity in use. When
	// core dialled, the session is replaced by itself (KeepFresh); other links
	// to it may be as well (Conn.Replace).
	Renewed func(s *Session)

	// WantRevocations, if set, is asked before the welcome whether the signed
	// revocation list that a component holds is wanted; Revocations gets it, as
	// the first frame of the session, unverified.
	WantRevocations func(s *Session, held *control.RevocationListHead) bool
	Revocations     func(s *Session, list *control.RevocationList)

	// Alerted, if set, hears what a component wants its operator to know.
	Alerted func(s *Session, a *control.Alert)

	// Flapping is the alarm that two processes with one identity keep
	// superseding each other, at most once a minute for an identity.
	Flapping func(s, former *Session)

	opening sync.Mutex // serialises greetings: Opened, registration
	mu      sync.Mutex
	live    map[pki.ID]*Session
	flaps   map[pki.ID]*flaps
	issues  map[issueKey]*rate.Limiter
}

// issueKey tells renewals from other certificates: they are due as often as
// lifetimes are short, and must not wait because of the others.
type issueKey struct {
	id      pki.ID
	renewal bool
}

// mayIssue counts a certificate that is asked for.
func (e *CoreEnd) mayIssue(id pki.ID, renewal bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.issues == nil {
		e.issues = map[issueKey]*rate.Limiter{}
	}
	key, every := issueKey{id, renewal}, issueEvery
	if renewal {
		every = renewEvery
	}
	if e.issues[key] == nil {
		e.issues[key] = rate.NewLimiter(rate.Every(every), issueBurst)
	}
	return e.issues[key].Allow()
}

// flaps counts how often sessions of one identity changed from one process to
// another.
type flaps struct {
	at    []time.Time // in the last minute
	alarm time.Time
}

const (
	flapWindow = time.Minute
	flapMost   = 3
)

// Serve runs core's end of one session, on a connection of ALPNControl,
// whichever side dialled. It returns why the session ended.
func (e *CoreEnd) Serve(ctx context.Context, conn *Conn) error {
	s := newSession(ctx, e, conn)
	err := controlExchange.run(ctx, conn, func(st stream[control.Frame]) error {
		s.st = st
		return s.run()
	})
	if s.ctx.Err() != nil && ctx.Err() == nil {
		err = context.Cause(s.ctx)
	}
	s.end(err)
	s.wg.Wait() // no callback after Closed
	e.unregister(s, err)
	return err
}

// register makes s the live session of its identity, unless Opened refuses.
func (e *CoreEnd) register(s *Session) *pki.Refusal {
	e.opening.Lock()
	defer e.opening.Unlock()
	former := e.Session(s.Peer.ID)
	if e.Opened != nil {
		if r := e.Opened(s, former); r != nil {
			return r
		}
	}
	e.mu.Lock()
	if e.live == nil {
		e.live, e.flaps = map[pki.ID]*Session{}, map[pki.ID]*flaps{}
	}
	former = e.live[s.Peer.ID] // it may have ended meanwhile
	e.live[s.Peer.ID] = s
	s.registered = true
	alarm := former != nil && former.Instance != s.Instance && e.flapped(s.Peer.ID, time.Now())
	e.mu.Unlock()
	say := e.log().Info
	if former != nil && former.Instance == s.Instance {
		say = e.log().Debug // replaced, as at each renewal
	}
	say(fmt.Sprintf("%s %s connected", s.Peer.ID.Role, s.Peer.ID.Name), "from", sourceText(s.Peer.Remote), "version", s.Hello.GetVersion())
	if former != nil {
		former.supersede(s)
	}
	if alarm && e.Flapping != nil {
		e.Flapping(s, former)
	}
	return nil
}

// flapped counts one change of process and tells whether to raise the alarm.
func (e *CoreEnd) flapped(id pki.ID, now time.Time) bool {
	f := e.flaps[id]
	if f == nil {
		f = &flaps{}
		e.flaps[id] = f
	}
	recent := f.at[:0]
	for _, t := range f.at {
		if now.Sub(t) < flapWindow {
			recent = append(recent, t)
		}
	}
	f.at = append(recent, now)
	if len(f.at) <= flapMost || !f.alarm.IsZero() && now.Sub(f.alarm) < flapWindow {
		return false
	}
	f.at, f.alarm = f.at[len(f.at)-flapMost:], now
	return true
}

func (e *CoreEnd) unregister(s *Session, cause error) {
	e.mu.Lock()
	registered := s.registered
	if e.live[s.Peer.ID] == s {
		delete(e.live, s.Peer.ID)
	}
	e.mu.Unlock()
	if !registered {
		if !s.conn.Dialled {
			e.log().Warn(fmt.Sprintf("%s %s did not open its session", s.Peer.ID.Role, s.Peer.ID.Name), "from", sourceText(s.Peer.Remote), "cause", causeText(cause))
		}
		return
	}
	if !s.conn.Dialled { // when core dialled, the error of Serve is logged by who keeps the link
		say := e.log().Warn
		if c, told := errors.AsType[*closedBy](cause); told && c.refusal.Code == codeReplaced {
			say = e.log().Debug
		}
		say(fmt.Sprintf("%s %s disconnected", s.Peer.ID.Role, s.Peer.ID.Name), "from", sourceText(s.Peer.Remote), "cause", causeText(cause))
	}
	if e.Closed != nil {
		e.Closed(s, cause)
	}
}

func causeText(err error) string {
	switch {
	case err == nil:
		return "it ended"
	case errors.Is(err, context.Canceled):
		return "core is stopping"
	}
	return err.Error()
}

func (e *CoreEnd) log() *slog.Logger {
	if e.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return e.Log
}

// Session is the live session of an identity, or nil.
func (e *CoreEnd) Session(id pki.ID) *Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.live[id]
}

// Sessions are all live ones, in no order.
func (e *CoreEnd) Sessions() []*Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*Session, 0, len(e.live))
	for _, s := range e.live {
		list = append(list, s)
	}
	return list
}
