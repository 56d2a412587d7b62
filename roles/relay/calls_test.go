package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// service is a test service of which each call does what the test wants.
type service struct {
	testgrpc.UnimplementedTestServiceServer
	unary  func(context.Context, *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error)
	stream func(testgrpc.TestService_FullDuplexCallServer) error
}

func (s *service) UnaryCall(ctx context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	if s.unary != nil {
		return s.unary(ctx, r)
	}
	return &testgrpc.SimpleResponse{Payload: r.Payload}, nil
}

func (s *service) FullDuplexCall(st testgrpc.TestService_FullDuplexCallServer) error {
	if s.stream != nil {
		return s.stream(st)
	}
	for {
		r, err := st.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := st.Send(&testgrpc.StreamingOutputCallResponse{Payload: r.Payload}); err != nil {
			return err
		}
	}
}

func serviceChain(t testing.TB, hops int, s *service, cfg hopConfig, o ...grpc.ServerOption) (testgrpc.TestServiceClient, []*hop, *grpc.ClientConn) {
	o = append(o, grpc.MaxRecvMsgSize(64<<20))
	address, _ := backend(t, func(g *grpc.Server) { testgrpc.RegisterTestServiceServer(g, s) }, o...)
	entrance, all := chain(t, hops, address, cfg)
	cc := dial(t, entrance, cfg.tls, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	return testgrpc.NewTestServiceClient(cc), all, cc
}

func settled(t testing.TB, all []*hop) {
	t.Helper()
	for _, h := range all {
		eventually(t, "every call of "+h.name+" ends", func() bool { return h.m.CallsOpen.Load() == 0 && h.m.Buffered.Load() == 0 })
	}
}

func payload(n int) *testgrpc.Payload {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return &testgrpc.Payload{Body: b}
}

func TestMetadata(t *testing.T) {
	binary := string([]byte{0, 1, 0xff, 0x80, '\n'})
	var seen metadata.MD
	s := &service{unary: func(ctx context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
		seen, _ = metadata.FromIncomingContext(ctx)
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-head", "1", "x-head", "2", "x-head-bin", binary, "sallyport-caller", "forged"))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-tail", "3", "x-tail-bin", binary, "sallyport-request-id", "forged", "sallyport_x", "forged"))
		return nil, status.Error(codes.FailedPrecondition, "ünïcode\nand a line %41")
	}}
	client, all, _ := serviceChain(t, 3, s, hopConfig{tls: true})
	ctx := metadata.AppendToOutgoingContext(within(t, 5*time.Second), "x-a", "1", "x-a", "2", "x-a-bin", binary, "authorization", "Bearer x",
		"sallyport-caller", "forged", "sallyport_caller", "forged", "x-forwarded-for", "forged", "forwarded", "forged", "x-real-ip", "forged", "cookie", "a=1", "cookie", "b=2")
	var head, tail metadata.MD
	_, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{Payload: payload(10)}, grpc.Header(&head), grpc.Trailer(&tail))
	if st := status.Convert(err); st.Code() != codes.FailedPrecondition || st.Message() != "ünïcode\nand a line %41" {
		t.Errorf("status %v %q", st.Code(), st.Message())
	}
	want := func(md metadata.MD, key string, values ...string) {
		t.Helper()
		if fmt.Sprint(md[key]) != fmt.Sprint(values) {
			t.Errorf("%s: %q, want %q", key, md[key], values)
		}
	}
	want(seen, "x-a", "1", "2")
	want(seen, "x-a-bin", binary)
	want(seen, "authorization", "Bearer x")
	want(seen, "cookie", "a=1", "b=2")
	for k := range seen {
		if Reserved(k) {
			t.Errorf("%s reached the service", k)
		}
	}
	// An error without a message is a response of trailers only: grpc-go then
	// gives all of them as trailers.
	both := metadata.Join(head, tail)
	want(both, "x-head", "1", "2")
	want(both, "x-head-bin", binary)
	want(both, "x-tail", "3")
	want(both, "x-tail-bin", binary)
	for k := range both {
		if Reserved(k) {
			t.Errorf("%s reached the caller", k)
		}
	}
	settled(t, all)
}

func TestLargeMessages(t *testing.T) {
	client, all, _ := serviceChain(t, 3, &service{}, hopConfig{tls: true})
	ctx := within(t, 30*time.Second)
	for _, size := range []int{0, 1, 16384, 65535, 65536, 1 << 20, 9 << 20} {
		r, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{Payload: payload(size)})
		if err != nil || !bytes.Equal(r.Payload.Body, payload(size).Body) {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
	settled(t, all)
}

func TestManyCalls(t *testing.T) {
	client, all, _ := serviceChain(t, 3, &service{}, hopConfig{tls: true, conns: 2})
	ctx := within(t, 30*time.Second)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			st, err := client.FullDuplexCall(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			for j := range 30 {
				size := (i*131 + j*977) % 5000
				if r, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{Payload: payload(size)}); err != nil || len(r.Payload.Body) != size {
					t.Error(err)
					return
				}
				if err := st.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(size)}); err != nil {
					t.Error(err)
					return
				}
				if r, err := st.Recv(); err != nil || len(r.Payload.Body) != size {
					t.Error(err)
					return
				}
			}
			if err := st.CloseSend(); err != nil {
				t.Error(err)
			}
			if _, err := st.Recv(); err != io.EOF {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	settled(t, all)
	if n := all[2].m.Calls.Load(); n != 64*31 {
		t.Errorf("%d calls", n)
	}
}

// TestSlowReader has one caller that does not read its stream while others
// call over the same links; then it reads, and misses nothing.
func TestSlowReader(t *testing.T) {
	const messages, size = 200, 100_000
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		for i := range messages {
			p := payload(size)
			p.Body[0] = byte(i)
			if err := st.Send(&testgrpc.StreamingOutputCallResponse{Payload: p}); err != nil {
				return err
			}
		}
		return nil
	}}
	client, all, _ := serviceChain(t, 3, s, hopConfig{tls: true})
	ctx := within(t, 60*time.Second)
	slow, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream's window is full at the edge", func() bool { return all[0].m.Buffered.Load() > 0 })
	for range 300 {
		if _, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{Payload: payload(20_000)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range all {
		if n := h.m.Buffered.Load(); n > 300<<10 {
			t.Errorf("%s holds %d bytes", h.name, n)
		}
	}
	for i := range messages {
		r, err := slow.Recv()
		if err != nil {
			t.Fatal(i, err)
		}
		if len(r.Payload.Body) != size || r.Payload.Body[0] != byte(i) {
			t.Fatal("wrong message", i)
		}
	}
	if _, err := slow.Recv(); err != io.EOF {
		t.Error(err)
	}
	settled(t, all)
}

// TestSlowService is the same in the other direction.
func TestSlowService(t *testing.T) {
	release := make(chan struct{})
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		<-release
		n := 0
		for {
			r, err := st.Recv()
			if err == io.EOF {
				return st.Send(&testgrpc.StreamingOutputCallResponse{Payload: &testgrpc.Payload{Body: []byte(fmt.Sprint(n))}})
			}
			if err != nil {
				return err
			}
			n += len(r.Payload.Body)
		}
	}}
	client, all, _ := serviceChain(t, 3, s, hopConfig{tls: true})
	ctx := within(t, 60*time.Second)
	st, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		for range 100 {
			if err := st.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(50_000)}); err != nil {
				sent <- err
				return
			}
		}
		sent <- st.CloseSend()
	}()
	eventually(t, "the request waits at the gateway", func() bool { return all[2].m.Buffered.Load() > 0 })
	for range 100 {
		if _, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{Payload: payload(20_000)}); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	r, err := st.Recv()
	if err != nil || string(r.Payload.Body) != fmt.Sprint(100*50_000) {
		t.Fatal(r, err)
	}
	settled(t, all)
}

func TestCancelByCaller(t *testing.T) {
	ended := make(chan error, 1)
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		_ = st.Send(&testgrpc.StreamingOutputCallResponse{})
		<-st.Context().Done()
		ended <- st.Context().Err()
		return nil
	}}
	outcome := make(chan Outcome, 1)
	cfg := hopConfig{tls: true, handler: func(c *Call, h *hop) {
		c.OnDone(func(o Outcome) { outcome <- o })
		h.forward(c)
	}}
	client, all, _ := serviceChain(t, 3, s, cfg)
	ctx, cancel := context.WithCancel(within(t, 10*time.Second))
	st, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Error(err)
	}
	if o := <-outcome; o.Code != codes.Canceled || o.Reason != "canceled" {
		t.Errorf("%+v", o)
	}
	settled(t, all)
}

// TestCallerGone closes the caller's connection under an open call.
func TestCallerGone(t *testing.T) {
	ended := make(chan struct{})
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		_ = st.Send(&testgrpc.StreamingOutputCallResponse{})
		<-st.Context().Done()
		close(ended)
		return nil
	}}
	client, all, cc := serviceChain(t, 3, s, hopConfig{tls: true})
	st, err := client.FullDuplexCall(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	_ = cc.Close()
	<-ended
	settled(t, all)
}

// TestEarlyAnswer has a service that answers while its caller still sends.
func TestEarlyAnswer(t *testing.T) {
	s := &service{stream: func(testgrpc.TestService_FullDuplexCallServer) error {
		return status.Error(codes.AlreadyExists, "enough")
	}}
	client, all, _ := serviceChain(t, 3, s, hopConfig{tls: true})
	st, err := client.FullDuplexCall(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		err = st.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(1000)})
	}
	if _, err = st.Recv(); status.Code(err) != codes.AlreadyExists {
		t.Error(err)
	}
	settled(t, all)
}

// TestLinkLost closes each link in turn under an open stream and under a call
// that nothing has answered yet.
func TestLinkLost(t *testing.T) {
	for broken, names := range []string{"edge: link to core was lost", "core: link to gateway g1 was lost", "gateway g1: upstream test was lost"} {
		t.Run(names, func(t *testing.T) {
			started := make(chan struct{}, 1)
			s := &service{
				stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
					_ = st.SendHeader(metadata.Pairs("x", "y"))
					_ = st.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(100)})
					<-st.Context().Done()
					return nil
				},
				unary: func(ctx context.Context, _ *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
					started <- struct{}{}
					<-ctx.Done()
					return nil, nil
				},
			}
			client, all, _ := serviceChain(t, 3, s, hopConfig{tls: true})
			ctx := within(t, 10*time.Second)
			st, err := client.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Recv(); err != nil {
				t.Fatal(err)
			}
			unary := make(chan error, 1)
			go func() {
				_, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{})
				unary <- err
			}()
			<-started
			for _, c := range all[broken].out.all() {
				_ = c.bottom.Close()
			}
			_, err = st.Recv()
			for _, err := range []error{err, <-unary} {
				if st := status.Convert(err); st.Code() != codes.Unavailable || !strings.HasPrefix(st.Message(), names) {
					t.Errorf("%v", err)
				}
			}
			settled(t, all)
			// Nothing is left to forward to.
			_, err = client.UnaryCall(ctx, &testgrpc.SimpleRequest{})
			if st := status.Convert(err); st.Code() != codes.Unavailable || !strings.Contains(st.Message(), "nothing to forward to") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestReject ends a call in the middle from another goroutine.
func TestReject(t *testing.T) {
	ended := make(chan struct{})
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		_ = st.Send(&testgrpc.StreamingOutputCallResponse{})
		<-st.Context().Done()
		close(ended)
		return nil
	}}
	calls := make(chan *Call, 1)
	outcome := make(chan Outcome, 2)
	cfg := hopConfig{tls: true, handler: func(c *Call, h *hop) {
		c.OnDone(func(o Outcome) { outcome <- o })
		h.forward(c)
		calls <- c
	}}
	client, all, _ := serviceChain(t, 3, s, cfg)
	st, err := client.FullDuplexCall(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	c := <-calls
	c.Reject(codes.PermissionDenied, "no longer allowed", Field{Name: "sallyport-request-id", Value: "r1"})
	c.Reject(codes.Internal, "a second time")
	if _, err := st.Recv(); status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "no longer allowed" {
		t.Error(err)
	}
	if v := st.Trailer()["sallyport-request-id"]; len(v) != 1 || v[0] != "r1" {
		t.Error(v)
	}
	<-ended
	if o := <-outcome; o.Code != codes.PermissionDenied || !o.OriginHop || o.Reason != "rejected" {
		t.Errorf("%+v", o)
	}
	settled(t, all)
	if len(outcome) != 0 {
		t.Error("a second outcome")
	}
}

// TestLateForward holds a call while its body arrives, then forwards it from
// another goroutine.
func TestLateForward(t *testing.T) {
	calls := make(chan *Call, 1)
	var h0 *hop
	cfg := hopConfig{handler: func(c *Call, h *hop) { h0 = h; calls <- c }}
	client, all, _ := serviceChain(t, 1, &service{}, cfg)
	got := make(chan error, 1)
	go func() {
		r, err := client.UnaryCall(within(t, 10*time.Second), &testgrpc.SimpleRequest{Payload: payload(1 << 20)})
		if err == nil && !bytes.Equal(r.Payload.Body, payload(1<<20).Body) {
			err = errors.New("another body came back")
		}
		got <- err
	}()
	c := <-calls
	eventually(t, "the window is used up", func() bool { return c.up.Load() >= 256<<10 })
	h0.forward(c)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	settled(t, all)
}

func TestHalfOpen(t *testing.T) {
	cfg := hopConfig{limits: Limits{HalfOpen: 100 * time.Millisecond}, handler: func(*Call, *hop) {}}
	client, all, _ := serviceChain(t, 1, &service{}, cfg)
	if _, err := client.UnaryCall(within(t, 10*time.Second), &testgrpc.SimpleRequest{}); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	settled(t, all)
}

// TestMaxStreams sends more calls than the service takes at once.
func TestMaxStreams(t *testing.T) {
	var mu sync.Mutex
	open, most := 0, 0
	s := &service{unary: func(_ context.Context, r *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
		mu.Lock()
		open++
		most = max(most, open)
		mu.Unlock()
		time.Sleep(2 * time.Millisecond)
		mu.Lock()
		open--
		mu.Unlock()
		return &testgrpc.SimpleResponse{Payload: r.Payload}, nil
	}}
	client, all, _ := serviceChain(t, 1, s, hopConfig{}, grpc.MaxConcurrentStreams(3))
	ctx := within(t, 20*time.Second)
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			if _, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{Payload: payload(3000)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most > 3 {
		t.Errorf("%d calls at once", most)
	}
	settled(t, all)
}

// TestQueueWait has no place for a second call in time.
func TestQueueWait(t *testing.T) {
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		_ = st.Send(&testgrpc.StreamingOutputCallResponse{})
		<-st.Context().Done()
		return nil
	}}
	cfg := hopConfig{linkLim: Limits{QueueWait: 100 * time.Millisecond}}
	cfg.handler = func(c *Call, h *hop) {
		if err := c.Forward(h.out.Pick(), c.Header(), ForwardOptions{}); err != nil {
			t.Error(err)
		}
	}
	client, all, _ := serviceChain(t, 1, s, cfg, grpc.MaxConcurrentStreams(1))
	ctx, cancel := context.WithCancel(within(t, 10*time.Second))
	st, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err = client.UnaryCall(ctx, &testgrpc.SimpleRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no place") {
		t.Error(err)
	}
	cancel()
	settled(t, all)
}

// TestBudget has a caller that reads nothing of more than may be held for it.
func TestBudget(t *testing.T) {
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		for {
			if err := st.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(30_000)}); err != nil {
				return err
			}
		}
	}}
	client, all, _ := serviceChain(t, 1, s, hopConfig{limits: Limits{ConnBuffer: 100 << 10}})
	ctx := within(t, 10*time.Second)
	st, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the call is over budget", func() bool { return all[0].m.Overflows.Load() == 1 })
	for err == nil {
		_, err = st.Recv()
	}
	// What was held is dropped, in the middle of a message as it happens.
	if c := status.Code(err); c != codes.ResourceExhausted && c != codes.Internal {
		t.Error(err)
	}
	if _, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{Payload: payload(1000)}); err != nil {
		t.Error(err)
	}
	settled(t, all)
}
