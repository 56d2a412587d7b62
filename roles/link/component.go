package link

import (
	"context"
	"errors"
	"log/slog"

	"sallyport/roles/control"
)

// ComponentEnd is a gateway's or proxy's end of control sessions. One value
// serves one process for its life, over many connections.
type ComponentEnd struct {
	// Hello is what this component says of itself: version, instance (16
	// random bytes, one per process start), the snapshot it holds.
	Hello func() *control.Hello
	// Apply persists and applies a snapshot; the acknowledgement goes out when
	// it returns. Never called twice at a time; a newer snapshot that arrives
	// meanwhile replaces those waiting.
	Apply func(*control.Snapshot) error
	// Welcomed, if set, hears that core accepted a session.
	Welcomed func(*Conn, *control.Welcome)
	// Denials, if set, is asked every 5 s for what to report; nil: nothing.
	Denials func() *control.DenialReport
	// CallsInFlight, if set, goes with each heartbeat.
	CallsInFlight func() uint32
	Log           *slog.Logger
}

// Run is the component's end of one session, on a connection of ALPNControl,
// whichever side dialled. It returns why the session ended; a *pki.Refusal when core refused.
func (e *ComponentEnd) Run(ctx context.Context, conn *Conn) error { return errors.ErrUnsupported }

// Announce replaces what core is told of services and upstreams; the newest
// goes out at once and again at the start of every session.
func (e *ComponentEnd) Announce(a *control.Announcement) {}

// Request asks core for a certificate that is not the component's identity. It
// waits for a session if there is none, and asks again if one is lost.
func (e *ComponentEnd) Request(ctx context.Context, csr []byte, purpose control.CertificateRequest_Purpose) ([][]byte, error) {
	return nil, errors.ErrUnsupported
}
