package core

import (
	"context"
	"errors"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// sessionWait is how long a relay link waits for the control session that it
// belongs to; a gateway may open both at once.
const sessionWait = 3 * time.Second

// serveJoin lets a gateway join.
func (c *core) serveJoin(ctx context.Context, conn *link.Conn) {
	_ = c.registrar.Serve(ctx, conn) // which logs why it failed
}

// serveControl runs core's end of a gateway's control session.
func (c *core) serveControl(ctx context.Context, conn *link.Conn) {
	if err := c.sessions.Serve(ctx, conn); err != nil && ctx.Err() == nil {
		c.log.Debug("control session ended", "gateway", conn.Peer.ID.Name, "cause", err)
	}
}

// serveRelay takes a relay link of a gateway: core opens the calls on it.
func (c *core) serveRelay(ctx context.Context, conn *link.Conn) {
	g := c.registry.get(key{pki.RoleGateway, conn.Peer.ID.Name})
	if !c.awaitSession(ctx, g) {
		c.log.Warn("relay link without a control session was closed", "gateway", g.name, "address", conn.Peer.Remote)
		return
	}
	l := relay.NewClient(conn.Conn, &relay.Options{Limits: relay.LinkLimits(), Metrics: c.relayed, Budget: c.budget, Log: c.log, Hop: "core", Remote: "link to gateway " + g.name})
	l.SetPeer(g)
	if !g.add(l, conn, &g.links) {
		c.log.Warn("relay link was closed: its control session ended, or the gateway has too many", "gateway", g.name, "address", conn.Peer.Remote, "links", g.links.Len())
		return
	}
	defer g.forget(l)
	if refusal, _ := c.peers.judge(g.key, conn.Peer.Remote.Addr(), "the identity"); refusal != nil {
		return // its addresses changed since the handshake, and who cut its links did not see this one
	}
	ended := make(chan struct{})
	defer close(ended)
	c.running.Go(func() { c.keepTenure(ctx, l, conn, nil, ended) })
	c.running.Go(func() {
		// Calls that wait for this gateway look again once the link carries them.
		select {
		case <-l.Ready():
		case <-l.Done():
		}
		c.registry.wake()
	})
	err := l.Run(ctx)
	if err != nil && !errors.Is(err, relay.ErrDrained) && ctx.Err() == nil {
		c.log.Info("link to gateway was lost", "gateway", g.name, "cause", err)
	}
}

// awaitSession waits until the component has a control session.
func (c *core) awaitSession(ctx context.Context, m *component) bool {
	timer := time.NewTimer(sessionWait)
	defer timer.Stop()
	for {
		changed := c.registry.waiter()
		if m.connected.Load() {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// keepTenure ends a link when its right to go on ends: its peer is revoked, or
// its certificate has ended and no newer one has taken over, or it was retired
// longer ago than a link may take to finish.
func (c *core) keepTenure(ctx context.Context, l *relay.Conn, conn *link.Conn, retired, ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan error, 1)
	go func() {
		over <- link.Tenure{Conn: conn, Self: c.self, Newer: c.sessions.Newer, Retired: retired, MaxAge: c.set.MaxLinkAge}.Wait(ctx)
	}()
	select {
	case <-ended:
		cancel()
		<-over
	case err := <-over:
		if err != nil {
			l.Close(err)
		}
	}
}
