package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// component is the port where core comes: it joins this proxy there, and then
// keeps the control session and the links for calls.
type component struct {
	proxy *proxy
	port  *link.Port

	joining sync.Mutex    // one join at a time
	joined  chan struct{} // closed once there is an identity
}

func newComponent(p *proxy) *component {
	c := &component{proxy: p, joined: make(chan struct{})}
	if p.self.Credentials() != nil {
		close(c.joined)
	}
	c.port = &link.Port{
		Self: p.self, Log: p.log, Expect: pki.RoleCore, Token: p.token.Load, Admit: p.peers.admit, Health: &portHealth{proxy: p}, Recover: p.renewer.ServeRecover,
		Handlers: map[string]link.Handler{link.ALPNJoin: c.join, link.ALPNControl: c.control, link.ALPNRelay: c.relay},
	}
	switch {
	case p.outside != nil:
		c.port.Outside = p.outside.Certificate
	case p.settings.GRPCTLS == link.ModeACME:
		c.port.Outside = p.ordered.grpcCertificate
	}
	return c
}

// join makes this proxy a component when core comes with the key of its token.
func (c *component) join(ctx context.Context, conn *link.Conn) {
	c.joining.Lock()
	defer c.joining.Unlock()
	p := c.proxy
	token := p.token.Load()
	if token == nil {
		return // joined a moment ago
	}
	newcomer := &link.Newcomer{Token: *token, Role: pki.RoleProxy, Dir: p.dir(), Version: p.deps.Version}
	grant, err := newcomer.Join(ctx, conn)
	if err != nil {
		p.log.Warn("core came to join this proxy and it failed, waiting for the next time", "from", conn.Peer.String(), "cause", err.Error())
		return
	}
	p.self.Set(grant.Credentials, grant.Bundle)
	p.token.Store(nil) // the seed is not needed any more, and not kept
	close(c.joined)
	p.log.Info("joined", "identity", grant.Credentials.ID.String())
	p.state.changed()
}

// keepIdentity renews the identity, once there is one, until ctx ends.
func (c *component) keepIdentity(ctx context.Context) {
	select {
	case <-c.joined:
		_ = c.proxy.renewer.Run(ctx) // nil: ctx has ended
	case <-ctx.Done():
	}
}

// control is one control session. When core replaces it by a newer one, this
// one ends.
func (c *component) control(ctx context.Context, conn *link.Conn) {
	p := c.proxy
	p.log.Info("core is connected", "peer", conn.Peer.String())
	err := p.end.Run(ctx, conn)
	p.renewer.Trouble(err)
	if ctx.Err() == nil && !p.end.Connected() {
		p.log.Warn("the control session with core ended, waiting for core to come back", "cause", text(err))
	}
}

// relay is one link for calls: core dialled, so this is the end that opens
// streams. A link that core has replaced takes no more calls and goes on until
// its last one has ended, also beyond its certificate, see supervise.
func (c *component) relay(ctx context.Context, nc *link.Conn) {
	p := c.proxy
	conn := relay.NewClient(nc, &relay.Options{Limits: relay.LinkLimits(), Metrics: p.frames, Budget: p.deps.Budget, Log: p.log, Hop: p.hop(), Remote: "link to core"})
	// It is in the pool before it is ready: core drains the former link once
	// this one answers, and then it has to take the calls.
	p.links.Add(conn)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() {
		select {
		case <-conn.Ready():
			p.state.changed()
		case <-conn.Done():
		}
	})
	open, closed := context.WithCancel(ctx)
	retired := make(chan struct{})
	waiting.Go(func() { untilRetired(open, conn, retired) })
	waiting.Go(func() { c.supervise(open, nc, conn, retired) })
	err := conn.Run(ctx)
	closed()
	select {
	case <-retired: // as core wanted
		p.log.Debug("a link to core that was replaced has ended", "cause", text(err))
	default:
		if ctx.Err() == nil {
			p.log.Warn("a link to core ended", "cause", text(err))
		}
	}
	p.links.Remove(conn)
	p.state.changed()
}

const linkCheckEvery = time.Second

// untilRetired closes retired when the link takes no more calls.
func untilRetired(open context.Context, conn *relay.Conn, retired chan<- struct{}) {
	select {
	case <-conn.Ready():
	case <-open.Done():
		return
	}
	tick := time.NewTicker(linkCheckEvery)
	defer tick.Stop()
	for conn.Accepting() {
		select {
		case <-tick.C:
		case <-open.Done():
			return
		}
	}
	close(retired)
}

// supervise ends the link when it has no right to go on: core's certificate is
// revoked, it has expired without a newer session, it drains for too long.
func (c *component) supervise(open context.Context, nc *link.Conn, conn *relay.Conn, retired <-chan struct{}) {
	p := c.proxy
	tenure := link.Tenure{Conn: nc, Self: p.self, Newer: p.end.Newer, Retired: retired, MaxAge: p.settings.MaxLinkAge}
	if err := tenure.Wait(open); err != nil {
		if n := conn.InFlight(); n > 0 {
			p.log.Warn("a link to core is closed with its calls", "calls", n, "cause", err.Error())
		}
		conn.Close(fmt.Errorf("%s: link to core was closed: %w", p.hop(), err))
	}
}

func text(err error) string {
	if err == nil {
		return "it was closed"
	}
	return err.Error()
}
