package proxy

import (
	"context"
	"sync"

	"sallyport/acme/pki"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// component is the port where core comes: it joins this proxy there, and then
// keeps the control session and the links for calls.
type component struct {
	proxy *proxy
	port  *link.Port

	joining sync.Mutex // one join at a time
}

func newComponent(p *proxy) *component {
	c := &component{proxy: p}
	c.port = &link.Port{
		Self: p.self, Log: p.log, Expect: pki.RoleCore, Token: p.token.Load, Health: &portHealth{proxy: p},
		Handlers: map[string]link.Handler{link.ALPNJoin: c.join, link.ALPNControl: c.control, link.ALPNRelay: c.relay},
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
	p.log.Info("joined", "identity", grant.Credentials.ID.String())
	p.state.changed()
}

// control is one control session.
func (c *component) control(ctx context.Context, conn *link.Conn) {
	p := c.proxy
	p.log.Info("core is connected", "peer", conn.Peer.String())
	err := p.end.Run(ctx, conn)
	if ctx.Err() == nil {
		p.log.Warn("the control session with core ended, waiting for core to come back", "cause", text(err))
	}
}

// relay is one link for calls: core dialled, so this is the end that opens
// streams.
func (c *component) relay(ctx context.Context, nc *link.Conn) {
	p := c.proxy
	conn := relay.NewClient(nc, &relay.Options{Limits: relay.LinkLimits(), Metrics: p.frames, Log: p.log, Hop: p.hop(), Remote: "link to core"})
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() {
		select {
		case <-conn.Ready():
			p.links.Add(conn)
			p.state.changed()
		case <-conn.Done():
		}
	})
	err := conn.Run(ctx)
	if ctx.Err() == nil {
		p.log.Warn("a link to core ended", "cause", text(err))
	}
	p.links.Remove(conn)
	p.state.changed()
}

func text(err error) string {
	if err == nil {
		return "it was closed"
	}
	return err.Error()
}
