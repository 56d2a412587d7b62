package gateway

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"sallyport/configs"
	"sallyport/roles/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logTo sends log lines to the test.
func logTo(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// serveOn runs s at address and returns the address and what stops it.
func serveOn(t *testing.T, s *grpc.Server, address string) (string, func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			s.Stop()
			<-done
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// freeAddress is a loopback address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// watched is an upstream under observation.
type watched struct {
	*upstream
	gateway *gateway
}

// watchUpstream runs the watching of one upstream until the test ends.
func watchUpstream(t *testing.T, s configs.Upstream) watched {
	t.Helper()
	g := &gateway{log: logTo(t), hop: "gateway test", changed: make(chan struct{}, 1), frames: new(relay.Metrics)}
	ctx, cancel := context.WithCancel(context.Background())
	g.add(ctx, s, s.Address.String(), authority(s), dialer(s))
	g.goroutines.Go(func() { g.upstreams[0].run(ctx) })
	t.Cleanup(func() { cancel(); g.goroutines.Wait() })
	return watched{g.upstreams[0], g}
}

// until waits for a state, at most 10 seconds.
func (w watched) until(t *testing.T, what string, is func(upstreamState) bool) upstreamState {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		s := w.current()
		if is(s) {
			return s
		}
		select {
		case <-w.gateway.changed:
		case <-limit:
			t.Fatalf("waited for %s; the state is %+v", what, s)
		}
	}
}

func plain(name, target string, services ...string) configs.Upstream {
	return configs.Upstream{Name: name, Address: configs.UpstreamAddress{Scheme: configs.SchemePlain, Target: target}, Services: services}
}
