package link

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// CoreEnd is core's end of all control sessions, and the registry of those
// that are live: at most one per identity.
type CoreEnd struct {
	Version string
	Log     *slog.Logger

	// Opened hears of a session that has said hello, before the welcome goes
	// out; former is the one it supersedes, or nil. A refusal ends it.
	Opened func(s, former *Session) *pki.Refusal
	// Closed hears why a session ended. It comes once for each Opened that did not refuse.
	Closed func(s *Session, cause error)
	// The frames of a component. They are called one after the other per session.
	Announced    func(s *Session, a *control.Announcement)
	Denied       func(s *Session, r *control.DenialReport)
	Acknowledged func(s *Session, a *control.SnapshotAck)
	// Certificate answers a request for a certificate; at most two run at a time per session.
	Certificate func(ctx context.Context, s *Session, r *control.CertificateRequest) ([][]byte, *pki.Refusal)
	// Flapping is the alarm that two processes with one identity keep superseding each other.
	Flapping func(s, former *Session)
}

// Session is one live control session as core sees it.
type Session struct {
	Peer     Peer
	Hello    *control.Hello
	Started  time.Time
	Instance [16]byte
}

// SessionState is what the last frames of a session said.
type SessionState struct {
	LastSeen      time.Time
	RTT           time.Duration // 0: not measured yet
	ClockOffset   time.Duration // core's clock minus the component's
	CallsInFlight uint32
	Acknowledged  *control.Generation // the newest snapshot that is in force there
	AckError      string              // why the last one was refused there
}

// Serve runs core's end of one session, on a connection of ALPNControl, whichever side dialled.
func (e *CoreEnd) Serve(ctx context.Context, conn *Conn) error { return errors.ErrUnsupported }

// Session is the live session of an identity, or nil.
func (e *CoreEnd) Session(id pki.ID) *Session { return nil }

// Sessions are all live ones.
func (e *CoreEnd) Sessions() []*Session { return nil }

// Send queues a snapshot; one that is still waiting is replaced.
func (s *Session) Send(snapshot *control.Snapshot) {}

// State is what is known of the session now.
func (s *Session) State() SessionState { return SessionState{} }

// Close ends the session; the component is told why.
func (s *Session) Close(why *pki.Refusal) {}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return nil }

// Context ends when the session does.
func (s *Session) Context() context.Context { return nil }
