package proxy

import (
	"context"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/test/bufconn"

	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// ownBuffer is what the connection to the proxy's own services holds each way.
const ownBuffer = 256 << 10

// ownServices runs the proxy's own services, health and reflection, on a
// grpc-go server in the same process. Calls reach them as they reach any
// other service: authenticated, authorized, logged and counted, and then
// relayed over a connection, which here is a piece of memory.
type ownServices struct {
	proxy *proxy
	links relay.Pool

	mu      sync.Mutex
	callers map[string]policy.Caller // guarded by mu: who is behind a request id
}

// ownService reports whether a method belongs to the proxy itself.
func ownService(path string) bool {
	return healthMethod(path) || strings.HasPrefix(path, "/grpc.reflection.v1.ServerReflection/") || strings.HasPrefix(path, "/grpc.reflection.v1alpha.ServerReflection/")
}

// healthMethod reports whether a method belongs to the health service.
func healthMethod(path string) bool { return strings.HasPrefix(path, "/grpc.health.v1.Health/") }

// run serves until ctx ends.
func (o *ownServices) run(ctx context.Context) {
	listener := bufconn.Listen(ownBuffer)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64<<10), grpc.MaxHeaderListSize(128<<10), grpc.WaitForHandlers(true))
	healthpb.RegisterHealthServer(server, &health{own: o})
	r := &reflector{look: o.look}
	reflectionpb.RegisterServerReflectionServer(server, r)
	alphapb.RegisterServerReflectionServer(server, &alphaReflector{reflector: r})
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = server.Serve(listener) }) // ends by Stop
	defer server.Stop()
	for ctx.Err() == nil {
		nc, err := listener.DialContext(ctx)
		if err != nil {
			return
		}
		o.carry(ctx, nc)
	}
}

// carry brings calls to the server over one connection until it ends.
func (o *ownServices) carry(ctx context.Context, nc net.Conn) {
	p := o.proxy
	conn := relay.NewClient(nc, &relay.Options{Limits: relay.UpstreamLimits(), Metrics: p.frames, Budget: p.deps.Budget, Log: p.log, Hop: p.hop(), Remote: "its own services"})
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		select {
		case <-conn.Ready():
			o.links.Add(conn)
		case <-conn.Done():
		}
	}()
	err := conn.Run(ctx)
	<-ready
	if ctx.Err() == nil {
		p.log.Error("the connection to the proxy's own services ended", "cause", err)
	}
}

// serve takes a call that was let through.
func (o *ownServices) serve(c *relay.Call, caller policy.Caller, id string, back func([]relay.Field) []relay.Field, refuse func(*refused)) {
	conn := o.links.Pick()
	if conn == nil {
		refuse(&refused{codes.Unavailable, "starting", o.proxy.hop() + " is starting"})
		return
	}
	o.mu.Lock()
	if o.callers == nil {
		o.callers = make(map[string]policy.Caller)
	}
	o.callers[id] = caller
	o.mu.Unlock()
	header := make([]relay.Field, 0, 8)
	for _, f := range c.Header() {
		if f.Name != "authorization" {
			header = append(header, f)
		}
	}
	header = append(header, relay.Field{Name: relay.HeaderRequestID, Value: id})
	if err := c.Forward(conn, header, relay.ForwardOptions{Authority: "sallyport", ResponseHeader: back}); err != nil {
		refuse(&refused{codes.Unavailable, "starting", o.proxy.hop() + " is starting"})
	}
}

// forget drops what is known of a call that ended.
func (o *ownServices) forget(id string) {
	o.mu.Lock()
	delete(o.callers, id)
	o.mu.Unlock()
}

// caller is who made the call that a handler runs for.
func (o *ownServices) caller(ctx context.Context) policy.Caller {
	if ids := metadata.ValueFromIncomingContext(ctx, relay.HeaderRequestID); len(ids) == 1 {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.callers[ids[0]]
	}
	return policy.Caller{}
}

// look returns what tells what the caller of ctx may see by the policy in
// force then; between changes of the policy it is worked out once.
func (o *ownServices) look(ctx context.Context) func() *excerpt {
	caller := o.caller(ctx)
	var last *view
	e := &excerpt{catalog: &catalog{}}
	return func() *excerpt {
		if v := o.proxy.view.Load(); v != last {
			last, e = v, v.excerpt(caller)
		}
		return e
	}
}
