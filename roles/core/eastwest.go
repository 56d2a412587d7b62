package core

import (
	"context"
	"errors"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// East-west: apps beside a gateway call services behind other gateways. Their
// gateway dials core once more, on sallyport-call/1, and there core is the HTTP/2
// server. What comes is decided, limited, routed and audited as what comes from
// a proxy; the difference is who is believed about whom, see judge.

// serveCalls takes a link on which a gateway brings the calls of its apps.
func (c *core) serveCalls(ctx context.Context, conn *link.Conn) {
	g := c.registry.get(key{pki.RoleGateway, conn.Peer.ID.Name})
	if !c.awaitSession(ctx, g) {
		c.log.Warn("call link without a control session was closed", "gateway", g.name, "address", conn.Peer.Remote)
		return
	}
	from, err := c.caller(ctx, conn)
	if err != nil {
		c.log.Error("call link was closed: core cannot read its registry", "gateway", g.name, "cause", err)
		return
	}
	l := relay.NewServer(conn.Conn, &relay.Options{Limits: relay.LinkLimits(), Metrics: c.relayed, Budget: c.budget, Log: c.log, Hop: "core", Remote: "call link of gateway " + g.name}, c.router)
	l.SetPeer(from)
	if !g.add(l, conn, &g.calling) {
		c.log.Warn("call link was closed: its control session ended, or the gateway has too many", "gateway", g.name, "address", conn.Peer.Remote, "links", g.calling.Len())
		return
	}
	defer g.forget(l)
	if refusal, _ := c.peers.judge(g.key, conn.Peer.Remote.Addr(), "the identity"); refusal != nil {
		return // as in serveRelay
	}
	ended := make(chan struct{})
	defer close(ended)
	c.running.Go(func() { c.keepTenure(ctx, l, conn, nil, ended) })
	if c.draining.Load() {
		l.Drain() // all others were told a moment ago
	}
	err = l.Run(ctx)
	if err != nil && !errors.Is(err, relay.ErrDrained) && ctx.Err() == nil {
		c.log.Info("call link of a gateway was lost", "gateway", g.name, "cause", err)
	}
}

// caller is the gateway at the other end of a call link, as the policy knows it:
// instances of a reusable gateway have names of their own that no grant can
// foresee, and call as the gateway that was added.
func (c *core) caller(ctx context.Context, conn *link.Conn) (*neighbour, error) {
	id := conn.Peer.ID
	n := &neighbour{role: id.Role, link: id.Name}
	r, err := c.db.Component(ctx, id.Role, id.Name)
	if err != nil {
		return nil, err
	}
	if r.Parent != "" {
		id.Name = r.Parent
	}
	n.name, n.id = id.Name, id.String()
	return n, nil
}

const (
	maxEntrances = 32  // of a gateway, as status shows them
	maxEntrance  = 200 // bytes
)

// entrancesOf is where a gateway says that apps come in.
func entrancesOf(h *control.Hello) []string {
	var list []string
	for _, e := range h.GetEntrances() {
		text := clean(e.GetAddress())
		if e.GetLabel() != "" {
			text = clean(e.GetLabel()) + "=" + text
		}
		if len(list) == maxEntrances || len(text) > maxEntrance {
			break
		}
		list = append(list, text)
	}
	return list
}

// sourced ends a call of a gateway's apps that call too often: to limits per
// source they are one, whoever they say they are. What comes from proxies was
// counted there. It says whether the call goes on.
func (p *passage) sourced() bool {
	l := p.router.ruling.Load().policy.Limits(p.call.Path())
	if l == nil {
		return true
	}
	now := p.router.now()
	who := p.from.stranger("")
	if wait, ok := p.router.used.Allow(l.CallsPerSource, who, now); !ok {
		p.call.RejectBy(p.tooOften(l.CallsPerSource, who, wait, now))
		return false
	}
	return true
}
