package gateway

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

const (
	healthPollEvery  = 5 * time.Second // where an upstream has Check and no Watch
	maxHealthWatches = 100             // services followed one by one
)

// checkHealth is the first call to an upstream: it shows that gRPC is spoken
// there, whether it has the health service and whether it says SERVING.
// An upstream without an opinion is serving.
func checkHealth(ctx context.Context, cc *grpc.ClientConn) (has, serving bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
	switch status.Code(err) {
	case codes.OK:
		return true, answer.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING, nil
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return false, false, fmt.Errorf("it does not answer as a gRPC server: %s", status.Convert(err).Message())
	case codes.NotFound: // it has the service, and no status for the whole
		return true, true, nil
	}
	return false, true, nil
}

// followHealth keeps the state's notServing until ctx ends: of the whole and,
// where there are not too many, of each service.
func (u *upstream) followHealth(ctx context.Context, cc *grpc.ClientConn, o *offer) {
	var watches sync.WaitGroup
	defer watches.Wait()
	watches.Go(func() { u.followService(ctx, cc, "") })
	if len(o.services) > maxHealthWatches {
		return
	}
	for _, s := range o.services {
		if s.methods != nil { // a pattern is no name to ask for
			watches.Go(func() { u.followService(ctx, cc, s.name) })
		}
	}
}

// followService follows one service by Watch; by repeated Check where Watch is
// not implemented.
func (u *upstream) followService(ctx context.Context, cc *grpc.ClientConn, service string) {
	client := healthpb.NewHealthClient(cc)
	in := &healthpb.HealthCheckRequest{Service: service}
	for ctx.Err() == nil {
		stream, err := client.Watch(ctx, in)
		for err == nil {
			var answer *healthpb.HealthCheckResponse
			if answer, err = stream.Recv(); err == nil {
				u.heard(service, answer.GetStatus())
			}
		}
		if status.Code(err) == codes.Unimplemented {
			answer, err := client.Check(ctx, in)
			switch status.Code(err) {
			case codes.OK:
				u.heard(service, answer.GetStatus())
			case codes.Unimplemented, codes.NotFound:
				return
			}
		}
		select {
		case <-time.After(healthPollEvery):
		case <-ctx.Done():
		}
	}
}

// heard records what the health service said of service.
func (u *upstream) heard(service string, s healthpb.HealthCheckResponse_ServingStatus) {
	not := s == healthpb.HealthCheckResponse_NOT_SERVING
	u.update(func(state *upstreamState) bool {
		if !state.up || state.notServing[service] == not {
			return false
		}
		what := service
		if what == "" {
			what = "the whole server"
		}
		if not {
			u.log.Warn("upstream reports NOT_SERVING", "of", what)
		} else {
			u.log.Info("upstream reports SERVING again", "of", what)
		}
		next := make(map[string]bool, len(state.notServing)+1)
		for k, v := range state.notServing {
			next[k] = v
		}
		next[service] = not
		state.notServing = next
		return true
	})
}
