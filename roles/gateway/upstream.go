package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"sallyport/configs"
)

// How often an upstream is looked at.
const (
	rediscoverEvery = time.Minute
	askTimeout      = 10 * time.Second // one discovery
	retryFirst      = 100 * time.Millisecond
	retryLast       = 3 * time.Second
)

// upstream is one gRPC server behind this gateway: whether it is up, what it
// offers, and the connections that carry calls to it.
//
// It is watched over a connection of its own (run), which learns the services
// by reflection and follows the health service where there is one. Calls go
// over other connections (connections.go), dialled when the first call comes.
type upstream struct {
	settings  configs.Upstream
	address   string // as people read it
	authority string
	dial      func(ctx context.Context) (net.Conn, error)
	log       *slog.Logger
	changed   func() // the state is another; must not block

	calls connections

	mu    sync.Mutex
	state upstreamState // guarded by mu
	again chan struct{} // a call found it unreachable: look at once
}

// upstreamState is what is known of an upstream now.
type upstreamState struct {
	up         bool
	problem    string          // why not
	offer      *offer          // last known, kept while it is down; nil before the first time
	notServing map[string]bool // by service, "" for the whole: what its health service says
}

// serving reports whether calls of service may go there.
func (s upstreamState) serving(service string) bool {
	return s.up && !s.notServing[""] && !s.notServing[service]
}

// name is how the upstream is called in logs and answers.
func (u *upstream) name() string { return u.settings.Name }

// current returns the state.
func (u *upstream) current() upstreamState {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

// update changes the state by f, which reports whether anything changed.
func (u *upstream) update(f func(*upstreamState) bool) {
	u.mu.Lock()
	changed := f(&u.state)
	u.mu.Unlock()
	if changed {
		u.changed()
	}
}

// down records why the upstream cannot be used.
func (u *upstream) down(err error) {
	problem := err.Error()
	u.update(func(s *upstreamState) bool {
		if !s.up && s.problem == problem {
			return false
		}
		if s.up || s.problem == "" || s.problem != problem {
			u.log.Warn("upstream is down", "cause", problem)
		}
		s.up, s.problem, s.notServing = false, problem, nil
		return true
	})
}

// unreachable is called when a call could not be brought to the upstream.
func (u *upstream) unreachable(err error) {
	u.down(err)
	select {
	case u.again <- struct{}{}:
	default:
	}
}

// run watches the upstream until ctx ends. A connection that ends is replaced
// at once; only when that fails is the upstream down.
func (u *upstream) run(ctx context.Context) {
	if len(u.settings.Services) > 0 {
		u.update(func(s *upstreamState) bool { s.offer = listedOffer(u.settings.Services); return true })
	}
	wait := retryFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := u.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if lost := (*lostError)(nil); errors.As(err, &lost) {
			// It was up: not down before the next attempt has failed.
			if time.Since(began) > retryLast {
				wait = retryFirst
				continue
			}
		} else {
			u.down(err)
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
			wait = min(2*wait, retryLast)
		case <-ctx.Done():
		}
	}
}

// lostError means that the upstream was up and its connection ended.
type lostError struct{ cause string }

func (e *lostError) Error() string { return e.cause }

// watch connects, learns what the upstream offers and follows it until the
// connection is lost or a call finds the upstream unreachable.
func (u *upstream) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	conn, err := u.dial(ctx)
	if err != nil {
		cancel()
		return err
	}
	select {
	case <-u.again: // about the time before this connection
	default:
	}
	ears := &listening{Conn: conn}
	cc, err := overOne(ears, u.authority)
	if err != nil {
		cancel()
		conn.Close()
		return err
	}
	var watchers sync.WaitGroup
	defer func() {
		cancel()
		cc.Close()
		conn.Close()
		watchers.Wait()
	}()
	hasHealth, serving, err := checkHealth(ctx, cc)
	if err != nil {
		return u.whySilent(err, ears)
	}
	offer, err := u.learn(ctx, cc)
	if err != nil && len(u.settings.Services) > 0 {
		u.log.Info("upstream does not answer reflection; what the settings list is announced", "cause", err.Error())
		offer, err = listedOffer(u.settings.Services), nil
	}
	if err != nil {
		return err
	}
	u.calls.forgive()
	u.update(func(s *upstreamState) bool {
		if !s.up {
			u.log.Info("upstream is up", "services", len(offer.services))
		}
		s.up, s.problem, s.offer = true, "", offer
		s.notServing = map[string]bool{"": !serving}
		return true
	})
	if hasHealth {
		watchers.Go(func() { u.followHealth(ctx, cc, offer) })
	}
	lost := make(chan struct{})
	watchers.Go(func() {
		defer close(lost)
		for state := cc.GetState(); state == connectivity.Ready; state = cc.GetState() {
			if !cc.WaitForStateChange(ctx, state) {
				return
			}
		}
	})
	tick := time.NewTicker(rediscoverEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lost:
			return &lostError{"the connection was closed by the upstream"}
		case <-u.again:
			return &lostError{u.current().problem}
		case <-tick.C:
			again, err := u.learn(ctx, cc)
			if err != nil && len(u.settings.Services) > 0 {
				continue
			}
			if err != nil {
				return &lostError{err.Error()}
			}
			if !again.equal(offer) {
				// Health is followed per service: begin anew with the new ones.
				return &lostError{"its services changed"}
			}
		}
	}
}

// learn asks what the upstream offers; the list in the settings stands in for
// reflection where there is none. With a list the answer is a bonus, and an
// upstream that keeps its reflection to itself is not waited for so long.
func (u *upstream) learn(ctx context.Context, cc *grpc.ClientConn) (*offer, error) {
	timeout := askTimeout
	if len(u.settings.Services) > 0 {
		timeout = askTimeout / 5
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	o, err := discover(ctx, cc, u.settings.Services)
	switch {
	case errors.Is(err, errNoReflection) && len(u.settings.Services) > 0:
		return listedOffer(u.settings.Services), nil
	case errors.Is(err, errNoReflection):
		return nil, fmt.Errorf("it has no server reflection and no services are listed: enable reflection on it, or list its services, as in --upstream '%s=%s=acme.orders.v1.Orders'",
			u.settings.Name, u.address)
	case err != nil:
		return nil, fmt.Errorf("ask for its services: %w", err)
	case len(o.services) == 0:
		return nil, errors.New("server reflection names no service to announce: register its services, or list them with --upstream")
	}
	return o, nil
}

// overOne makes a grpc-go client of one finished connection. It does not
// reconnect: its owner wants to know.
func overOne(conn net.Conn, authority string) (*grpc.ClientConn, error) {
	once := make(chan net.Conn, 1)
	once <- conn
	return grpc.NewClient("passthrough:///upstream",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS, where asked for, is done already
		grpc.WithAuthority(authority),
		grpc.WithIdleTimeout(0),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("the connection was closed")
			}
		}))
}
