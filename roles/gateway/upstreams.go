package gateway

import (
	"context"
	"net"

	"google.golang.org/grpc/test/bufconn"

	"sallyport/configs"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/relay"
)

// demoBuffer is what the connection to the built-in service holds each way.
const demoBuffer = 256 << 10

// makeUpstreams makes the upstreams of the settings, or the built-in one. It
// returns what stops them when nobody uses them any more.
func (g *gateway) makeUpstreams(work context.Context) (stop func(), err error) {
	for _, s := range g.settings.Upstreams {
		g.add(work, s, s.Address.String(), authority(s), dialer(s))
	}
	if !g.settings.Demo {
		return func() {}, nil
	}
	listener := bufconn.Listen(demoBuffer)
	server := demo.NewServer(g.name)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends by Stop
	}()
	g.add(work, configs.Upstream{Name: "demo"}, "in this process", "demo", func(ctx context.Context) (net.Conn, error) {
		return listener.DialContext(ctx)
	})
	return func() { server.Stop(); <-done }, nil
}

// add makes one upstream; nothing is dialled yet.
func (g *gateway) add(work context.Context, s configs.Upstream, address, authority string, dial func(context.Context) (net.Conn, error)) {
	u := &upstream{
		settings: s, address: address, authority: authority, dial: dial, again: make(chan struct{}, 1),
		log: g.log.With("upstream", s.Name),
		changed: func() {
			select {
			case g.changed <- struct{}{}:
			default:
			}
		},
	}
	limits := relay.UpstreamLimits()
	limits.Idle = idleConnAfter
	options := &relay.Options{Limits: limits, Metrics: g.frames, Budget: g.deps.Budget, Log: u.log, Hop: g.hop, Remote: "upstream " + s.Name}
	u.calls.spawn = g.goroutines.Go
	u.calls.unreachable = u.unreachable
	u.calls.dial = func(ctx context.Context) (*relay.Conn, error) { return u.open(ctx, work, options) }
	g.upstreams = append(g.upstreams, u)
}
