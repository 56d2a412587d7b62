package proxy

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"sallyport/roles/builtin"
)

// statusOf is what the health service says of a service now.
func (p *proxy) statusOf(service string) builtin.Status {
	ready := p.state.problem() == nil
	if service == "" || builtin.Own("/"+service+"/") {
		if ready {
			return builtin.Serving
		}
		return builtin.NotServing
	}
	v := p.view.Load()
	if v == nil {
		return builtin.Unknown
	}
	available, known := v.services[service]
	switch {
	case !known:
		return builtin.Unknown
	case available && ready:
		return builtin.Serving
	}
	return builtin.NotServing
}

// readiness knows why the proxy is not ready, and tells who waits for a change.
type readiness struct {
	find func() error    // looks for the first problem there is
	tell func(err error) // hears every change

	mu      sync.Mutex // guards what follows
	current error
	told    bool
	next    chan struct{} // closed at the next change
}

// changed looks again. It is called after every event that may matter.
func (r *readiness) changed() {
	err := r.find()
	r.mu.Lock()
	defer r.mu.Unlock()
	news := !r.told || (err == nil) != (r.current == nil) || err != nil && err.Error() != r.current.Error()
	r.current, r.told = err, true
	if news && r.tell != nil {
		r.tell(err) // in order, hence under the lock
	}
	if r.next != nil {
		close(r.next)
		r.next = nil
	}
}

// problem is why the proxy is not ready, nil if it is.
func (r *readiness) problem() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// wait returns a channel that is closed at the next change.
func (r *readiness) wait() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = make(chan struct{})
	}
	return r.next
}

// portHealth answers on ALPN h2 of the component port: whether the proxy is
// ready, and nothing about services.
type portHealth struct {
	healthpb.UnimplementedHealthServer
	proxy *proxy
}

// Check answers for the proxy as a whole.
func (h *portHealth) Check(_ context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if in.GetService() != "" {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return &healthpb.HealthCheckResponse{Status: h.proxy.statusOf("")}, nil
}

// List lists the proxy alone.
func (h *portHealth) List(context.Context, *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	return &healthpb.HealthListResponse{Statuses: map[string]*healthpb.HealthCheckResponse{"": {Status: h.proxy.statusOf("")}}}, nil
}

// Watch follows the proxy as a whole.
func (h *portHealth) Watch(in *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	if in.GetService() != "" {
		return status.Error(codes.NotFound, "unknown service")
	}
	return builtin.Watch(h.proxy.statusOf, h.proxy.state.wait, "", stream)
}
