package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

const (
	linkCheckEvery = time.Second
	cutTimeout     = time.Second    // telling core that calls were cut
	linkMaxUse     = 12 * time.Hour // a link is replaced after this, long before it runs out of stream ids
)

// keepSession keeps a control session with core until ctx ends. It is replaced
// by one with the newer certificate before its own ends.
func (g *gateway) keepSession(ctx context.Context) {
	var n atomic.Uint32
	link.KeepFresh(ctx, g.log, "control session with core", func(ctx context.Context, t *link.Turn) error {
		conn, err := g.dialCore(ctx, link.ALPNControl, n.Add(1)-1)
		if err != nil {
			g.renewer.Trouble(err)
			return err
		}
		defer conn.Close()
		t.Use(conn)
		defer g.links.bye(conn)
		err = g.end.Run(ctx, conn)
		g.renewer.Trouble(err)
		return err
	})
}

// dialCore dials the n-th of core's addresses.
func (g *gateway) dialCore(ctx context.Context, alpn string, n uint32) (*link.Conn, error) {
	addresses := g.coreAddresses()
	address := addresses[int(n)%len(addresses)]
	if address == "" {
		return nil, errors.New("core's address is not known: start with --core HOST:PORT")
	}
	outside, err := g.outside()
	if err != nil {
		return nil, err
	}
	dialler := &link.Dialler{Self: g.self, Log: g.log, Connect: connectOut, Outside: outside}
	return dialler.Dial(ctx, address, alpn, pki.Expect{Role: pki.RoleCore})
}

// keepRelay keeps a link for calls until ctx ends. A link is replaced before
// its certificate ends; the former one goes on until its last call has ended.
// Links live in work: those that are open when ctx ends are drained by their
// owner.
func (g *gateway) keepRelay(ctx, work context.Context) {
	var n atomic.Uint32
	link.KeepFresh(ctx, g.log, "relay link to core", func(ctx context.Context, t *link.Turn) error {
		if err := g.links.waitWelcome(ctx); err != nil {
			return err
		}
		conn, err := g.dialCore(ctx, link.ALPNRelay, n.Add(1)-1)
		if err != nil {
			return err
		}
		return g.relay(ctx, work, conn, t)
	})
}

// relay takes calls from one link until it is lost, or a newer one is up and
// the calls that it has taken have ended.
func (g *gateway) relay(ctx, work context.Context, nc *link.Conn, t *link.Turn) error {
	conn := relay.NewServer(nc, &relay.Options{Limits: relay.LinkLimits(), Metrics: g.frames, Budget: g.deps.Budget, Log: g.log, Hop: g.hop, Remote: "link to core"}, relay.HandlerFunc(g.serve))
	return g.hold(ctx, work, nc, t, conn, func() { g.links.use(conn) }, func() { g.links.gone(conn) })
}

// hold keeps one link to core, for calls in either direction, in use from up to
// down.
func (g *gateway) hold(ctx, work context.Context, nc *link.Conn, t *link.Turn, conn *relay.Conn, up, down func()) error {
	open, closed := context.WithCancel(work)
	ended := make(chan error, 1)
	g.goroutines.Go(func() {
		defer nc.Close()
		defer closed()
		ended <- conn.Run(work)
	})
	g.goroutines.Go(func() { g.supervise(open, nc, conn, t.Retired()) })
	t.Use(nc)
	select {
	case <-conn.Ready():
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	up()
	if _, err := conn.Ping(ctx); err == nil { // core's end answers: calls come, or are taken, from now on
		nc.Up()
	}
	g.tellReady()
	check := time.NewTicker(linkCheckEvery)
	defer check.Stop()
	began, retired := time.Now(), t.Retired()
	for {
		select {
		case err := <-ended:
			down()
			g.tellReady()
			return err
		case <-ctx.Done():
			return nil
		case <-retired:
			retired = nil
			conn.Drain()
		case now := <-check.C:
			if !conn.Accepting() || now.Sub(began) > linkMaxUse {
				nc.Replace() // core takes it out of use, or it is old
			}
		}
	}
}

// supervise ends the link when it has no right to go on: core's certificate is
// revoked, it has expired without a newer session, it drains for too long.
func (g *gateway) supervise(open context.Context, nc *link.Conn, conn *relay.Conn, retired <-chan struct{}) {
	tenure := link.Tenure{Conn: nc, Self: g.self, Newer: g.end.Newer, Retired: retired, MaxAge: g.settings.MaxLinkAge}
	if err := tenure.Wait(open); err != nil {
		if n := conn.InFlight(); n > 0 {
			g.log.Warn("a link to core is closed with its calls", "calls", n, "cause", err.Error())
		}
		conn.Close(fmt.Errorf("%s: link to core was closed: %w", g.hop, err))
	}
}

// links are the relay links to core: the one that takes calls and those whose
// last calls are ending.
type links struct {
	mu       sync.Mutex // guards what follows
	current  *relay.Conn
	all      map[*relay.Conn]bool
	sessions map[*link.Conn]bool // control sessions that core accepted: two while one replaces the other
	welcomed chan struct{}       // closed while there is one
}

// welcome: core accepted a control session.
func (l *links) welcome(conn *link.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions == nil {
		l.sessions = make(map[*link.Conn]bool)
	}
	if len(l.sessions) == 0 {
		close(l.gate())
	}
	l.sessions[conn] = true
}

// bye: a control session has ended, if it ever was accepted.
func (l *links) bye(conn *link.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.sessions[conn] {
		return
	}
	if delete(l.sessions, conn); len(l.sessions) == 0 {
		l.welcomed = nil
	}
}

func (l *links) gate() chan struct{} {
	if l.welcomed == nil {
		l.welcomed = make(chan struct{})
	}
	return l.welcomed
}

// waitWelcome waits for a control session: a relay link belongs to one.
func (l *links) waitWelcome(ctx context.Context) error {
	l.mu.Lock()
	gate := l.gate()
	l.mu.Unlock()
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// use makes conn the one that takes calls. The former one is drained by the
// turn that it belongs to.
func (l *links) use(conn *relay.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = conn
	if l.all == nil {
		l.all = make(map[*relay.Conn]bool)
	}
	for c := range l.all {
		select {
		case <-c.Done():
			delete(l.all, c)
		default:
		}
	}
	l.all[conn] = true
}

// up reports whether there is a link that takes calls.
func (l *links) up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current != nil
}

// gone: the link has ended.
func (l *links) gone(conn *relay.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, conn)
	if l.current == conn {
		l.current = nil
	}
}

// open are the links that may have calls.
func (l *links) open() []*relay.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	open := make([]*relay.Conn, 0, len(l.all))
	for c := range l.all {
		open = append(open, c)
	}
	return open
}

// drain ends all links without losing a call; calls that are still open after
// the time given end with UNAVAILABLE.
func (l *links) drain(within time.Duration, log *slog.Logger) {
	drainConns(l.open(), within, log)
}

// drainConns ends connections on which calls come, without losing one; calls that
// are still open after the time given end with UNAVAILABLE.
func drainConns(open []*relay.Conn, within time.Duration, log *slog.Logger) {
	for _, c := range open {
		c.Drain()
	}
	limit := time.NewTimer(within)
	defer limit.Stop()
	for i, c := range open {
		select {
		case <-c.Done():
		case <-limit.C:
			for _, c := range open[i:] {
				if n := c.InFlight(); n > 0 {
					log.Warn("drain time is over, calls are cut", "calls", n)
				}
				c.Close(errors.New("the gateway is shutting down"))
			}
			limit.Reset(cutTimeout)
			for _, c := range open[i:] {
				select {
				case <-c.Done(): // core has been told
				case <-limit.C:
					return
				}
			}
			return
		}
	}
}
