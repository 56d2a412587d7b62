package gateway

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
)

// counting counts the connections that were accepted.
type counting struct {
	net.Listener
	n atomic.Int64
}

func (c *counting) Accept() (net.Conn, error) {
	nc, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return nc, err
}

// held answers when it is told to.
type held struct {
	demo.UnimplementedEchoServer
	came chan struct{}
	go_  chan struct{}
}

func (h held) Say(ctx context.Context, in *demo.SayRequest) (*demo.SayResponse, error) {
	h.came <- struct{}{}
	select {
	case <-h.go_:
		return &demo.SayResponse{Text: in.Text}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestManyFirstCallsShareOneConnection(t *testing.T) {
	const calls = 50
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := &counting{Listener: l}
	up := held{came: make(chan struct{}, calls), go_: make(chan struct{})}
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, up)
	reflection.Register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }()
	defer func() { s.Stop(); <-done }()

	core := newFakeCore(t)
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{Join: core.token(), Upstreams: []configs.Upstream{plain("orders", l.Addr().String())}})
	g.until(true)
	core.announcement("the upstream", serves(echoName))
	if n := listener.n.Load(); n != 1 {
		t.Errorf("%d connections before the first call, want the one that watches", n)
	}
	client := demo.NewEchoClient(core.client())
	var callers sync.WaitGroup
	for range calls {
		callers.Go(func() {
			if _, err := client.Say(t.Context(), &demo.SayRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	for range calls {
		<-up.came
	}
	close(up.go_)
	callers.Wait()
	if n := listener.n.Load(); n != 2 {
		t.Errorf("%d connections for %d calls, want one beside the one that watches", n, calls)
	}
}

// An upstream that dies with calls open: those end with UNAVAILABLE that names
// it, and with nothing else.
func TestUpstreamDiesWithCallsOpen(t *testing.T) {
	up := held{came: make(chan struct{}, 10), go_: make(chan struct{})}
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, up)
	reflection.Register(s)
	address, stop := serveOn(t, s, "127.0.0.1:0")
	core := newFakeCore(t)
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{Join: core.token(), Upstreams: []configs.Upstream{plain("orders", address)}})
	g.until(true)
	core.announcement("the upstream", serves(echoName))
	client := demo.NewEchoClient(core.client())
	ended := make(chan error, 1)
	go func() {
		_, err := client.Say(t.Context(), &demo.SayRequest{})
		ended <- err
	}()
	<-up.came
	stop()
	err := <-ended
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "gateway attic: upstream orders") {
		t.Errorf("%v, want Unavailable", err)
	}
	core.announcement("the upstream as down", func(a *control.Announcement) bool { return !a.Upstreams[0].Up })
}
