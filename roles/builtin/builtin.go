// Package builtin is the services that we answer ourselves wherever callers come
// in: health and server reflection, at a proxy's public port, and at core for the
// apps beside gateways. Calls reach them as they reach any other service:
// authenticated, authorized, logged and counted, and then relayed over a
// connection, which here is a piece of memory.
//
// Reflection is answered from the descriptors that gateways announced, which are
// hostile input, and shows each caller what he may call and nothing else: what may
// not be called does not exist for him. Health says of a service whether some
// gateway can serve it now.
package builtin

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// ownBuffer is what the connection to the services holds each way.
const ownBuffer = 256 << 10

// Status is what health says of a service.
type Status = healthpb.HealthCheckResponse_ServingStatus

// What health says.
const (
	Serving    = healthpb.HealthCheckResponse_SERVING
	NotServing = healthpb.HealthCheckResponse_NOT_SERVING
	Unknown    = healthpb.HealthCheckResponse_SERVICE_UNKNOWN
)

// Services runs health and reflection on a grpc-go server in this process. The
// functions are those of the role: they are set before Run and may be called at
// any time, from any goroutine.
type Services struct {
	Log     *slog.Logger
	Hop     func() string         // who we are, as callers read it in errors
	Options func() *relay.Options // of the connection, but for Limits, Hop and Remote

	Look    func(policy.Caller) func() *Excerpt // returns what tells, at any time, what the caller may see
	Status  func(service string) Status         // of a service; "" is this entrance
	Changed func() <-chan struct{}              // is closed when Status may say something else

	links relay.Pool

	mu      sync.Mutex
	callers map[string]policy.Caller // guarded by mu: who is behind an id
}

// Own reports whether a method is one of ours.
func Own(path string) bool {
	return HealthMethod(path) || strings.HasPrefix(path, "/grpc.reflection.v1.ServerReflection/") || strings.HasPrefix(path, "/grpc.reflection.v1alpha.ServerReflection/")
}

// HealthMethod reports whether a method belongs to the health service.
func HealthMethod(path string) bool { return strings.HasPrefix(path, "/grpc.health.v1.Health/") }

// Run serves until ctx ends.
func (o *Services) Run(ctx context.Context) {
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
func (o *Services) carry(ctx context.Context, nc net.Conn) {
	options := o.Options()
	options.Limits, options.Hop, options.Remote = relay.UpstreamLimits(), o.Hop(), "its own services"
	conn := relay.NewClient(nc, options)
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
		o.Log.Error("the connection to the role's own services ended", "cause", err)
	}
}

// Serve takes a call that was let through. id, which the role has made and nobody
// else knows, stands for the call: Forget is owed for it when the call has ended,
// whatever Serve says. It is false when the services do not run yet: the call is
// still to be answered.
func (o *Services) Serve(c *relay.Call, caller policy.Caller, id string, back func([]relay.Field) []relay.Field) bool {
	conn := o.links.Pick()
	if conn == nil {
		return false
	}
	o.mu.Lock()
	if o.callers == nil {
		o.callers = make(map[string]policy.Caller)
	}
	o.callers[id] = caller
	o.mu.Unlock()
	header := make([]relay.Field, 0, 8)
	for _, f := range c.Header() {
		if f.Name != "authorization" && !relay.Reserved(f.Name) {
			header = append(header, f)
		}
	}
	header = append(header, relay.Field{Name: relay.HeaderRequestID, Value: id})
	return c.Forward(conn, header, relay.ForwardOptions{Authority: "sallyport", ResponseHeader: back}) == nil
}

// Forget drops what is known of a call that ended.
func (o *Services) Forget(id string) {
	o.mu.Lock()
	delete(o.callers, id)
	o.mu.Unlock()
}

// look is Look for the caller that a handler runs for.
func (o *Services) look(ctx context.Context) func() *Excerpt {
	var caller policy.Caller
	if ids := metadata.ValueFromIncomingContext(ctx, relay.HeaderRequestID); len(ids) == 1 {
		o.mu.Lock()
		caller = o.callers[ids[0]]
		o.mu.Unlock()
	}
	return o.Look(caller)
}

// health answers the standard health service. "" is this entrance itself, a
// service is available when that is and some gateway can serve it. List names only
// what the caller may call, as reflection does.
type health struct {
	healthpb.UnimplementedHealthServer
	own *Services
}

// Check answers once.
func (h *health) Check(_ context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	s := h.own.Status(in.GetService())
	if s == Unknown {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return &healthpb.HealthCheckResponse{Status: s}, nil
}

// List answers for the entrance and every service that the caller may call.
func (h *health) List(ctx context.Context, _ *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	out := &healthpb.HealthListResponse{Statuses: map[string]*healthpb.HealthCheckResponse{"": {Status: h.own.Status("")}}}
	for _, name := range h.own.look(ctx)().names() {
		if s := h.own.Status(name); s != Unknown {
			out.Statuses[name] = &healthpb.HealthCheckResponse{Status: s}
		}
	}
	return out, nil
}

// Watch answers now and whenever the answer changes.
func (h *health) Watch(in *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	return Watch(h.own.Status, h.own.Changed, in.GetService(), stream)
}

// Watch answers a watch of service by what says how it is and when that may be
// otherwise.
func Watch(of func(string) Status, changed func() <-chan struct{}, service string, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	last := Status(-1)
	for {
		next := changed()
		if s := of(service); s != last {
			last = s
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: s}); err != nil {
				return err
			}
		}
		select {
		case <-next:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}
