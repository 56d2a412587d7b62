package demo

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T) EchoClient {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := NewServer("attic")
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	cc, err := grpc.NewClient("passthrough:///demo", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close(); server.Stop(); <-done })
	return NewEchoClient(cc)
}

func TestSayTellsWhatTheGatewayTold(t *testing.T) {
	c := client(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "sallyport-caller", "apikey:ci", "sallyport-request-id", "0123")
	out, err := c.Say(ctx, &SayRequest{Text: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	if out.Text != "hello" || out.Caller != "apikey:ci" || out.Gateway != "attic" || out.RequestId != "0123" {
		t.Errorf("got %v", out)
	}
}

func TestCountIsBounded(t *testing.T) {
	c := client(t)
	stream, err := c.Count(t.Context(), &CountRequest{To: 3, IntervalMillis: 1})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for {
		out, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, out.Text)
	}
	if got := strings.Join(texts, " "); got != "1 2 3" {
		t.Errorf("counted %q", got)
	}
	for _, in := range []*CountRequest{{To: 1001}, {To: 1, IntervalMillis: 10001}} {
		stream, err := c.Count(t.Context(), in)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v, want InvalidArgument", in, err)
		}
	}
}

func TestCountEndsWithItsCaller(t *testing.T) {
	c := client(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stream, err := c.Count(ctx, &CountRequest{To: 2, IntervalMillis: 10000})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
}

func TestGatherAndChat(t *testing.T) {
	c := client(t)
	gather, err := c.Gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a", "", "c"} {
		if err := gather.Send(&SayRequest{Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := gather.CloseAndRecv()
	if err != nil || out.Count != 3 || out.Text != "a  c" {
		t.Errorf("gathered %v, %v", out, err)
	}
	chat, err := c.Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"x", "y"} {
		if err := chat.Send(&SayRequest{Text: text}); err != nil {
			t.Fatal(err)
		}
		if out, err := chat.Recv(); err != nil || out.Text != text {
			t.Errorf("chat: %v, %v", out, err)
		}
	}
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := chat.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("chat ended with %v, want EOF", err)
	}
}

func TestGatherIsBounded(t *testing.T) {
	gather, err := client(t).Gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	chunk := strings.Repeat("x", 300<<10)
	for range 4 {
		if err := gather.Send(&SayRequest{Text: chunk}); err != nil {
			break
		}
	}
	if _, err := gather.CloseAndRecv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v, want ResourceExhausted", err)
	}
}
