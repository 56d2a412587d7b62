package core

import (
	"context"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"sallyport/roles/relay"
)

// BenchmarkCall is a call through core with everything that core does about it:
// real links on both sides, a gateway that answers at once. Client and links
// are in the same process; profile it with -cpuprofile and focus on router.
func BenchmarkCall(b *testing.B) {
	s := settings(b)
	s.AccessLog = "failures"
	r := start(b, s)
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.refuse = func(c *relay.Call) bool {
		c.Reject(codes.OK, "")
		return true
	}
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			stream, err := p.client.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/acme.v1.Orders/Get")
			if err == nil {
				err = stream.SendMsg(&emptypb.Empty{})
			}
			if err == nil || err == io.EOF {
				stream.CloseSend()
				err = stream.RecvMsg(&emptypb.Empty{})
			}
			if err != io.EOF {
				b.Error(err)
				return
			}
		}
	})
}
