package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync"
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

// keepSession keeps a control session with core until ctx ends.
func (g *gateway) keepSession(ctx context.Context) {
	n := 0
	link.Keep(ctx, g.log, "control session with core", func(ctx context.Context) error {
		conn, err := g.dialCore(ctx, link.ALPNControl, n)
		n++
		if err != nil {
			return err
		}
		defer conn.Close()
		defer g.links.bye()
		return g.end.Run(ctx, conn)
	})
}

// dialCore dials the n-th of core's addresses.
func (g *gateway) dialCore(ctx context.Context, alpn string, n int) (*link.Conn, error) {
	addresses := g.coreAddresses()
	address := addresses[n%len(addresses)]
	if address == "" {
		return nil, errors.New("core's address is not known: start with --core HOST:PORT")
	}
	dialler := &link.Dialler{Self: g.self, Log: g.log, Connect: connect}
	return dialler.Dial(ctx, address, alpn, pki.Expect{Role: pki.RoleCore})
}

// keepRelay keeps one link for calls until ctx ends. Links live in work: those
// that are open when ctx ends are drained by their owner.
func (g *gateway) keepRelay(ctx, work context.Context) {
	n := 0
	link.Keep(ctx, g.log, "relay link to core", func(ctx context.Context) error {
		if err := g.links.waitWelcome(ctx); err != nil {
			return err
		}
		conn, err := g.dialCore(ctx, link.ALPNRelay, n)
		n++
		if err != nil {
			return err
		}
		return g.relay(ctx, work, conn)
	})
}

// relay takes calls from one link until it is lost or wants replacing; in the
// latter case it goes on until the next one is there.
func (g *gateway) relay(ctx, work context.Context, nc *link.Conn) error {
	conn := relay.NewServer(nc, &relay.Options{Limits: relay.LinkLimits(), Metrics: g.frames, Log: g.log, Hop: g.hop, Remote: "link to core"}, relay.HandlerFunc(g.serve))
	ended := make(chan error, 1)
	g.goroutines.Go(func() {
		defer nc.Close()
		ended <- conn.Run(work)
	})
	select {
	case <-conn.Ready():
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	g.links.use(conn)
	g.tellReady()
	check := time.NewTicker(linkCheckEvery)
	defer check.Stop()
	began := time.Now()
	for {
		select {
		case err := <-ended:
			g.links.gone(conn)
			g.tellReady()
			return err
		case <-ctx.Done():
			return nil
		case now := <-check.C:
			if !conn.Accepting() {
				return errors.New("core takes it out of use")
			}
			if now.Sub(began) > linkMaxUse {
				return errors.New("it is due for replacement")
			}
		}
	}
}

// links are the relay links to core: the one that takes calls and those whose
// last calls are ending.
type links struct {
	mu       sync.Mutex // guards what follows
	current  *relay.Conn
	all      map[*relay.Conn]bool
	welcomed chan struct{} // closed while a control session is up
	session  bool
}

// welcome: core accepted a control session.
func (l *links) welcome() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.session {
		l.session = true
		close(l.gate())
	}
}

// bye: the control session has ended.
func (l *links) bye() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session {
		l.session, l.welcomed = false, nil
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

// use makes conn the one that takes calls and lets the former one end.
func (l *links) use(conn *relay.Conn) {
	l.mu.Lock()
	former := l.current
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
	l.mu.Unlock()
	if former != nil {
		former.Drain()
	}
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

// drain ends all links without losing a call; calls that are still open after
// the time given end with UNAVAILABLE.
func (l *links) drain(within time.Duration, log *slog.Logger) {
	l.mu.Lock()
	var open []*relay.Conn
	for c := range l.all {
		open = append(open, c)
	}
	l.mu.Unlock()
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
