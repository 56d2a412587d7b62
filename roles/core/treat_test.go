package core

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/roles/control"
	"sallyport/store"
)

// retryAfter is what the RetryInfo of an error says.
func retryAfter(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// TestLimits hold per caller, across proxies, and each has its own share.
func TestLimits(t *testing.T) {
	t.Parallel()
	s := settings(t)
	r := start(t, s)
	r.apply(`
[methods]
"/acme.v1.Orders/*" = ["public"]
[[limit]]
match = "/acme.v1.Orders/*"
per = "caller"
rate = "1/h"
burst = 3
[[limit]]
match = "/acme.v1.Orders/Chat"
per = "caller"
rate = "1000/s"
[[limit]]
match = "/acme.v1.Orders/Chat"
per = "caller"
count = "messages"
rate = "1/h"
burst = 4
`)
	keys := map[string][]string{}
	for _, name := range []string{"ci", "cd"} {
		key, err := r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = bearer(key.GetSecret())
	}
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	one, two := r.addProxy("dmz1"), r.addProxy("dmz2")
	r.service("acme.v1.Orders", "orders", "routed")

	for _, p := range []*proxy{one, two, one} {
		if _, err := p.call("/acme.v1.Orders/Get", keys["ci"]...); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []*proxy{one, two} {
		_, err := p.call("/acme.v1.Orders/List", keys["ci"]...)
		expectStatus(t, err, codes.ResourceExhausted, "1 call an hour per caller")
		if d := retryAfter(err); d < 50*time.Minute || d > time.Hour {
			t.Errorf("try again after %v", d)
		}
	}
	if _, err := one.call("/acme.v1.Orders/Get", keys["cd"]...); err != nil {
		t.Errorf("another caller: %v", err)
	}
	// Strangers share by where they come from.
	one.said("192.0.2.7")
	for range 3 {
		if _, err := one.call("/acme.v1.Orders/Get"); err != nil {
			t.Fatal(err)
		}
	}
	expectStatus(t, second(one.call("/acme.v1.Orders/Get")), codes.ResourceExhausted)
	one.said("192.0.2.8")
	if _, err := one.call("/acme.v1.Orders/Get"); err != nil {
		t.Errorf("a stranger from elsewhere: %v", err)
	}

	// Messages are counted over all of a caller's streams.
	chat := func() grpc.ClientStream {
		t.Helper()
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), keys["ci"]...), patience)
		t.Cleanup(cancel)
		stream, err := one.client.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/acme.v1.Orders/Chat")
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	streams := []grpc.ClientStream{chat(), chat()}
	for n := range 5 {
		stream := streams[n%2]
		_ = stream.SendMsg(&emptypb.Empty{})
		err := stream.RecvMsg(&emptypb.Empty{})
		if n < 4 && err != nil {
			t.Fatalf("message %d: %v", n, err)
		}
		if n == 4 {
			expectStatus(t, err, codes.ResourceExhausted, "1 message an hour per caller")
			if retryAfter(err) == 0 {
				t.Error("without RetryInfo")
			}
		}
	}
	r.end()
	db, err := store.OpenCore(s.DataDir + "/core.db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Denials(context.Background(), time.Now().Add(-time.Hour), 20)
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]uint64{}
	for _, row := range rows {
		if row.Reason == "limit" && row.Code == "RESOURCE_EXHAUSTED" {
			counted[row.Caller] += row.Count
		}
	}
	if counted["apikey:ci"] != 3 || counted["192.0.2.7"] != 1 {
		t.Errorf("kept %v", counted)
	}
}

// TestCaps: a message that is too large and a call that takes too long end.
func TestCaps(t *testing.T) {
	t.Parallel()
	r := start(t, settings(t))
	r.apply(`
[methods]
"/acme.v1.Orders/*" = ["public"]
[[method]]
match = "/acme.v1.Orders/Put"
max_message = "1KiB"
[[method]]
match = "/acme.v1.Orders/Watch"
max_deadline = "500ms"
`)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	put := func(method string, size int) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return p.client.Invoke(ctx, method, wrapperspb.Bytes(make([]byte, size)), &emptypb.Empty{})
	}
	if err := put("/acme.v1.Orders/Put", 1000); err != nil {
		t.Errorf("below the cap: %v", err)
	}
	expectStatus(t, put("/acme.v1.Orders/Put", 2000), codes.ResourceExhausted, "of 2003 bytes", "1024")
	if err := put("/acme.v1.Orders/Get", 2000); err != nil {
		t.Errorf("a method without a cap: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	stream, err := p.client.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/acme.v1.Orders/Watch")
	if err != nil {
		t.Fatal(err)
	}
	expectStatus(t, stream.RecvMsg(&emptypb.Empty{}), codes.DeadlineExceeded, "longer than this method may, 500ms")
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Error("it was the caller's own deadline")
	}
}
