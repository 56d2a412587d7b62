package gateway

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
)

// TestTheGatewayHoldsToThePolicyItself: caps of a method, and open calls of one
// that is closed, whatever core does about them.
func TestTheGatewayHoldsToThePolicyItself(t *testing.T) {
	core := newFakeCore(t)
	say, chat := "/"+echoName+"/Say", "/"+echoName+"/Chat"
	part := func(allowChat bool) *control.GatewayPart {
		return &control.GatewayPart{Services: demoPart().Services, Methods: []*control.MethodRule{
			{Match: say, Allow: true, MaxMessageBytes: 100}, {Match: chat, Allow: allowChat},
			{Match: "/" + echoName + "/Count", Allow: true, MaxDeadlineNano: int64(300 * time.Millisecond)}, {Match: "/" + echoName + "/Gather", Allow: true},
		}}
	}
	core.part = part(true)
	g := runGateway(t, configs.Gateway{Join: core.token(), Demo: true})
	g.until(true)
	core.announcement("the demo", serves(echoName))
	client := demo.NewEchoClient(core.client())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	if _, err := client.Say(ctx, &demo.SayRequest{Text: "short"}); err != nil {
		t.Error(err)
	}
	if _, err := client.Say(ctx, &demo.SayRequest{Text: strings.Repeat("long", 100)}); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "may have 100") {
		t.Errorf("a large message: %v", err)
	}
	slow, err := client.Count(ctx, &demo.CountRequest{To: 1000, IntervalMillis: 100})
	for err == nil {
		_, err = slow.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "longer than this method may") {
		t.Errorf("a call that takes too long: %v", err)
	}

	var open []grpc.BidiStreamingClient[demo.SayRequest, demo.SayResponse]
	for range 50 {
		stream, err := client.Chat(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&demo.SayRequest{Text: "a"})
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		open = append(open, stream)
	}
	gather, err := client.Gather(ctx)
	if err != nil {
		t.Fatal(err)
	}
	core.rule(part(false))
	for _, stream := range open {
		if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "the policy has changed") {
			t.Fatalf("a stream of a method that was closed: %v", err)
		}
	}
	_ = gather.Send(&demo.SayRequest{Text: "b"})
	if _, err := gather.CloseAndRecv(); err != nil {
		t.Errorf("a stream of another method: %v", err)
	}
}
