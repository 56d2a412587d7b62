package relay

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// TestInterop runs the official interoperability cases through one hop and
// through three with reversed links.
func TestInterop(t *testing.T) {
	address, _ := backend(t, func(s *grpc.Server) { testgrpc.RegisterTestServiceServer(s, interop.NewTestServer()) })
	for _, setup := range []struct {
		name string
		hops int
		cfg  hopConfig
	}{
		{"one hop", 1, hopConfig{}},
		{"three hops", 3, hopConfig{tls: true}},
		{"three hops, any net.Conn", 3, hopConfig{tls: true, plain: true}},
	} {
		t.Run(setup.name, func(t *testing.T) {
			entrance, hops := chain(t, setup.hops, address, setup.cfg)
			cc := dial(t, entrance, setup.cfg.tls)
			client := testgrpc.NewTestServiceClient(cc)
			ctx := within(t, 30*time.Second)
			interop.DoEmptyUnaryCall(ctx, client)
			interop.DoLargeUnaryCall(ctx, client)
			interop.DoClientStreaming(ctx, client)
			interop.DoServerStreaming(ctx, client)
			interop.DoPingPong(ctx, client)
			interop.DoEmptyStream(ctx, client)
			interop.DoTimeoutOnSleepingServer(ctx, client)
			interop.DoCancelAfterBegin(ctx, client)
			interop.DoCancelAfterFirstResponse(ctx, client)
			interop.DoCustomMetadata(ctx, client)
			interop.DoStatusCodeAndMessage(ctx, client)
			interop.DoSpecialStatusMessage(ctx, client)
			interop.DoUnimplementedMethod(ctx, cc)
			interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc))
			for _, h := range hops {
				eventually(t, "all calls end: "+describe(h), func() bool { return h.m.CallsOpen.Load() == 0 && h.m.Buffered.Load() == 0 })
			}
		})
	}
}
