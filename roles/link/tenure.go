package link

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// Tenure is the right of a link to go on. It ends when the peer is revoked.
// When a certificate ends on which the link was made, the link may go on,
// while the control session of the same identity runs on a newer one, to
// finish what is open: for MaxAge at most, and the same counts from its
// retirement. A session that is just being replaced, or that was lost, has some
// seconds to come back.
type Tenure struct {
	Conn *Conn
	Self *Self

	// Newer reports whether the peer's control session runs, on a certificate
	// that ends after that of Conn: (*CoreEnd).Newer, (*ComponentEnd).Newer.
	Newer func(*Conn) bool

	// Retired, if set, is closed when the link takes no new work any more.
	Retired <-chan struct{}

	// MaxAge is for how long a retired or expired link may finish; 7 days if zero.
	MaxAge time.Duration
}

// DefaultMaxLinkAge is how long a link may take to finish what is open.
const DefaultMaxLinkAge = 7 * 24 * time.Hour

var errTooOld = errors.New("it was to be replaced long ago, and what was open on it has not ended")

const (
	tenureEvery = 500 * time.Millisecond
	tenureGrace = 15 * time.Second // without a control session: several attempts at a new one
)

// Wait blocks until the link has to end, and says why; nil when ctx ended first.
func (t Tenure) Wait(ctx context.Context) error {
	most := t.MaxAge
	if most <= 0 {
		most = DefaultMaxLinkAge
	}
	tick := time.NewTicker(tenureEvery)
	defer tick.Stop()
	retired := t.Retired
	var since time.Time // of its retirement
	var alone time.Time // without a newer session since then
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retired:
			since, retired = time.Now(), nil
		case <-tick.C:
		}
		now := t.Self.now()
		if r := t.Self.revokedPeer(&t.Conn.Peer); r != nil {
			return r
		}
		if !since.IsZero() && time.Since(since) >= most {
			return errTooOld
		}
		expires := t.Conn.Expires()
		if expires.IsZero() || now.Before(expires) {
			continue
		}
		switch {
		case t.Newer == nil:
			return errExpired
		case t.Newer(t.Conn):
			alone = time.Time{}
		case alone.IsZero():
			alone = time.Now()
		case time.Since(alone) >= tenureGrace:
			return errExpired
		}
		if now.Sub(expires) >= most {
			return errTooOld
		}
	}
}

// revokedPeer says whether a peer that was accepted has been revoked since.
func (s *Self) revokedPeer(p *Peer) *pki.Refusal {
	if p.ID.IsZero() || len(p.Chain) == 0 || !s.Revoked(p.Chain[0], p.ID, p.Incarnation) {
		return nil
	}
	return &pki.Refusal{Code: pki.CodeRevoked, Cause: fmt.Sprintf("the certificate of %s %s is revoked", p.ID.Role, p.ID.Name),
		Remedy: "remove the component and add it again, and start it with the new token, if it is still to be one"}
}

// Newer reports whether the peer of conn has a control session on a
// certificate that ends after conn's.
func (e *CoreEnd) Newer(conn *Conn) bool {
	s := e.Session(conn.Peer.ID)
	return s != nil && s.ctx.Err() == nil && outlives(s.conn, conn)
}

// Newer is the component's end of [CoreEnd.Newer].
func (e *ComponentEnd) Newer(conn *Conn) bool {
	e.mu.Lock()
	s := e.current
	e.mu.Unlock()
	return s != nil && s.ctx.Err() == nil && outlives(s.conn, conn)
}

func outlives(a, b *Conn) bool { return a.Expires().After(b.Expires()) }
