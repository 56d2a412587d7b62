package e2e

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// counted is an interop server that counts its unary calls and can be stopped
// and started on the same address.
type counted struct {
	testgrpc.TestServiceServer
	addr  string
	calls chan struct{}
	s     *grpc.Server
}

func (c *counted) EmptyCall(ctx context.Context, in *testgrpc.Empty) (*testgrpc.Empty, error) {
	select {
	case c.calls <- struct{}{}:
	default:
	}
	return c.TestServiceServer.EmptyCall(ctx, in)
}

func (c *counted) start(t *testing.T) {
	t.Helper()
	addr := c.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.addr = l.Addr().String()
	c.s = grpc.NewServer()
	testgrpc.RegisterTestServiceServer(c.s, c)
	reflection.Register(c.s)
	go c.s.Serve(l)
	t.Cleanup(c.s.Stop)
}

func (c *counted) drain() (n int) {
	for {
		select {
		case <-c.calls:
			n++
		default:
			return n
		}
	}
}

func newCounted(t *testing.T) *counted {
	c := &counted{TestServiceServer: interop.NewTestServer(), calls: make(chan struct{}, 100000)}
	c.start(t)
	return c
}

const testService = "grpc.testing.TestService"

// TestAnnouncementsAreGuarded: a second gateway that announces a served
// service gets no call of it until the operator allows it.
func TestAnnouncementsAreGuarded(t *testing.T) {
	t.Parallel()
	first, second := newCounted(t), newCounted(t)
	d := deploy(t, interopPolicy)
	d.addGateway("first", nil, "SALLYPORT_UPSTREAM=a="+first.addr)
	d.waitRouted(testService, "first")
	d.addGateway("second", nil, "SALLYPORT_UPSTREAM=b="+second.addr)
	d.waitService(testService, "second", "waiting")

	// One that was bounded by --serve cannot announce anything else.
	third := newCounted(t)
	d.addGateway("third", []string{"--serve", "acme.other.v1.*"}, "SALLYPORT_UPSTREAM=c="+third.addr)
	d.waitService(testService, "third", "refused")

	client := testgrpc.NewTestServiceClient(d.dial())
	for range 200 {
		if _, err := client.EmptyCall(t.Context(), &testgrpc.Empty{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := second.drain() + third.drain(); n != 0 {
		t.Fatalf("%d calls reached gateways that may not serve", n)
	}
	remedy := "sallyport service allow " + testService + " second"
	if !strings.Contains(d.core.log.String(), remedy) {
		t.Errorf("core's log does not name the remedy %q", remedy)
	}
	if out := run(t, d.coreEnv, "service", "ls"); !strings.Contains(out, "second") || !strings.Contains(out, "service allow") {
		t.Errorf("service ls does not tell how to allow it:\n%s", out)
	}

	run(t, d.coreEnv, "service", "allow", testService, "second")
	d.waitRouted(testService, "second")
	eventually(t, 10*time.Second, "calls reach the second gateway", func() error {
		for range 50 {
			if _, err := client.EmptyCall(t.Context(), &testgrpc.Empty{}); err != nil {
				return err
			}
		}
		if second.drain() == 0 {
			return context.DeadlineExceeded
		}
		return nil
	})
	if n := third.drain(); n != 0 {
		t.Errorf("%d calls reached the gateway whose --serve forbids it", n)
	}
}

// TestDeadUpstreamIsNotTheLeastBusy: two gateways serve, the upstream of one
// dies: after the first failures no call goes there, and it comes back.
func TestDeadUpstreamIsNotTheLeastBusy(t *testing.T) {
	t.Parallel()
	a, b := newCounted(t), newCounted(t)
	d := deploy(t, interopPolicy)
	d.addGateway("a", []string{"--serve", testService}, "SALLYPORT_UPSTREAM=a="+a.addr)
	d.addGateway("b", []string{"--serve", testService}, "SALLYPORT_UPSTREAM=b="+b.addr)
	d.waitRouted(testService, "a")
	d.waitRouted(testService, "b")
	client := testgrpc.NewTestServiceClient(d.dial())
	calls := func(n int) (failed int) {
		for range n {
			_, err := client.EmptyCall(t.Context(), &testgrpc.Empty{})
			if err != nil {
				if status.Code(err) != codes.Unavailable {
					t.Fatalf("another status: %v", err)
				}
				failed++
			}
		}
		return failed
	}
	if f := calls(200); f != 0 {
		t.Fatalf("%d failed with both up", f)
	}
	if a.drain() == 0 || b.drain() == 0 {
		t.Fatal("calls were not spread over both gateways")
	}
	b.s.Stop()
	if f := calls(300); f > 10 {
		t.Errorf("%d of 300 calls failed after one upstream died", f)
	}
	d.waitService(testService, "b", "down")
	if f := calls(300); f != 0 {
		t.Errorf("%d calls failed after the dead upstream was withdrawn", f)
	}
	b.start(t)
	b.drain()
	d.waitRouted(testService, "b")
	eventually(t, 10*time.Second, "it is called again", func() error {
		calls(50)
		if b.drain() == 0 {
			return context.DeadlineExceeded
		}
		return nil
	})
}
