package gateway

import (
	"context"
	"sync/atomic"

	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// keepCalling keeps a link on which this gateway brings the calls of its apps to
// core, until ctx ends. As a relay link it is replaced before its certificate
// ends, by one that is up; links live in work, because calls outlive ctx.
func (g *gateway) keepCalling(ctx, work context.Context) {
	var n atomic.Uint32
	link.KeepFresh(ctx, g.log, "call link to core", func(ctx context.Context, t *link.Turn) error {
		if err := g.links.waitWelcome(ctx); err != nil {
			return err
		}
		conn, err := g.dialCore(ctx, link.ALPNCall, n.Add(1)-1)
		if err != nil {
			return err
		}
		return g.callOn(ctx, work, conn, t)
	})
}

// callOn opens calls on one link until it is lost, or a newer one is up.
func (g *gateway) callOn(ctx, work context.Context, nc *link.Conn, t *link.Turn) error {
	conn := relay.NewClient(nc, &relay.Options{Limits: relay.LinkLimits(), Metrics: g.frames, Budget: g.deps.Budget, Log: g.log, Hop: g.hop, Remote: "call link to core"})
	return g.hold(ctx, work, nc, t, conn, func() { g.calling.Add(conn) }, func() { g.calling.Remove(conn) })
}
