package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"sallyport/roles/control"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
	"sallyport/store"
)

const openPolicy = `
[methods]
"/acme.v1.Orders/*" = ["public"]
"/acme.v1.Other/Get" = ["public"]
`

func TestACallGoesThroughCore(t *testing.T) {
	r := start(t, settings(t))
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	by, err := p.call("/acme.v1.Orders/Get")
	if err != nil || by != "orders" {
		t.Fatalf("served by %q, %v", by, err)
	}
	expectStatus(t, second(p.call("/acme.v1.Secret/Get")), codes.Unauthenticated)
	expectStatus(t, second(p.call("/acme.v1.Other/Get")), codes.Unimplemented, "acme.v1.Other")
	if m := r.component("gateway", "orders"); m.GetState() != "connected" || m.GetAcknowledgedGeneration() != m.GetGeneration() || m.GetGeneration() == 0 {
		t.Errorf("gateway is %v", m)
	}
	if m := r.component("proxy", "dmz1"); m.GetState() != "connected" {
		t.Errorf("proxy is %v", m)
	}
}

func second[A any](_ A, err error) error { return err }

func TestHeadersAreWrittenAnew(t *testing.T) {
	r := start(t, settings(t))
	key, err := r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	r.apply(`
[methods]
"/acme.v1.Orders/Get" = ["orders:read"]
"/acme.v1.Orders/Put" = ["orders:read"]
[[method]]
match = "/acme.v1.Orders/Put"
forward_authorization = true
[[grant]]
apikey = "ci"
permissions = ["orders:read"]
[[grant]]
caller = "spiffe://test.internal/client/billing"
permissions = ["orders:read"]
via_proxy = ["dmz1"]
[[grant]]
caller = "spiffe://test.internal/client/elsewhere"
permissions = ["orders:read"]
via_proxy = ["dmz2"]
`)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	var extra []relay.Field
	p.say = func(h []relay.Field) []relay.Field { return append(append([]relay.Field{}, h...), extra...) }
	get := func(f []relay.Field, name string) (values []string) {
		for _, f := range f {
			if f.Name == name {
				values = append(values, f.Value)
			}
		}
		return values
	}
	call := func(method string, fields ...relay.Field) ([]relay.Field, error) {
		t.Helper()
		extra = fields
		if _, err := p.call(method); err != nil {
			return nil, err
		}
		return <-g.seen, nil
	}

	bearer := relay.Field{Name: "authorization", Value: "Bearer " + key.GetSecret(), Sensitive: true}
	forged := []relay.Field{{Name: "sallyport-caller", Value: "spiffe://test.internal/client/root"}, {Name: "sallyport-permissions", Value: "admin"},
		{Name: "sallyport-request-id", Value: "abc-1"}, {Name: "sallyport-source", Value: "192.0.2.1"}, {Name: "traceparent", Value: "forged"}, {Name: "x-own", Value: "stays"}}
	seen, err := call("/acme.v1.Orders/Get", append(forged, bearer)...)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"sallyport-caller": "apikey:ci", "sallyport-permissions": "orders:read", "sallyport-request-id": "abc-1", "x-own": "stays",
		"authorization": "", "traceparent": "", "sallyport-source": "192.0.2.1/32", "sallyport-client-cert": ""} {
		if got := strings.Join(get(seen, name), "|"); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if seen, err = call("/acme.v1.Orders/Put", bearer); err != nil {
		t.Fatal(err)
	}
	if got := get(seen, "authorization"); len(got) != 1 || got[0] != bearer.Value {
		t.Errorf("authorization of a row that forwards it is %q", got)
	}

	// A proxy's word about a certificate counts where the grant names it.
	claim := func(id string) relay.Field {
		return relay.Field{Name: relay.HeaderClientCert, Value: policy.EncodeClaim(policy.Claim{ID: id})}
	}
	if seen, err = call("/acme.v1.Orders/Get", claim("spiffe://test.internal/client/billing")); err != nil {
		t.Fatal(err)
	}
	if got := get(seen, "sallyport-caller"); len(got) != 1 || got[0] != "spiffe://test.internal/client/billing" {
		t.Errorf("caller is %q", got)
	}
	_, err = call("/acme.v1.Orders/Get", claim("spiffe://test.internal/client/elsewhere"))
	expectStatus(t, err, codes.PermissionDenied)
	_, err = call("/acme.v1.Orders/Get", relay.Field{Name: relay.HeaderClientCert, Value: "nonsense\"%"})
	expectStatus(t, err, codes.Unauthenticated)
	_, err = call("/acme.v1.Orders/Get", relay.Field{Name: "authorization", Value: "Bearer spk_wrong", Sensitive: true})
	expectStatus(t, err, codes.Unauthenticated)

	// A revoked key is refused at once, whatever the proxy thinks of it.
	if _, err := r.admin.RevokeAPIKey(context.Background(), &control.RevokeAPIKeyRequest{Name: "ci"}); err != nil {
		t.Fatal(err)
	}
	_, err = call("/acme.v1.Orders/Get", bearer)
	expectStatus(t, err, codes.Unauthenticated)
}

func TestCallsGoToTheGatewayThatServes(t *testing.T) {
	r := start(t, settings(t))
	r.apply(openPolicy)
	a, b := r.addGateway("a"), r.addGateway("b")
	a.connect()
	a.announce(true, "acme.v1.Orders")
	r.service("acme.v1.Orders", "a", "routed")
	stopB := b.connect()
	b.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")

	// Another gateway's announcement takes no calls away until it is allowed.
	row := r.service("acme.v1.Orders", "b", "waiting")
	if !strings.Contains(row.GetDetail(), "sallyport service allow acme.v1.Orders b") {
		t.Errorf("the operator reads %q", row.GetDetail())
	}
	for range 10 {
		if by, err := p.call("/acme.v1.Orders/Get"); by != "a" || err != nil {
			t.Fatalf("served by %q, %v", by, err)
		}
	}
	eventually(t, "the operator is told", func() error {
		if n := strings.Count(r.log.String(), "announced a service that is not routed to it"); n != 1 {
			return fmt.Errorf("told %d times", n)
		}
		return nil
	})
	if _, err := r.admin.AllowService(context.Background(), &control.AllowServiceRequest{Service: "acme.v1.Orders", Gateway: "b"}); err != nil {
		t.Fatal(err)
	}
	both := map[string]int{}
	eventually(t, "both serve", func() error {
		by, err := p.call("/acme.v1.Orders/Get")
		if both[by]++; err != nil || both["a"] < 5 || both["b"] < 5 {
			return fmt.Errorf("%v %v", both, err)
		}
		return nil
	})

	// One whose upstream is down gets none, also before it says so.
	refused := make(chan struct{}, 100)
	b.refuse = func(c *relay.Call) bool {
		c.Refuse("upstream up refused the connection")
		refused <- struct{}{}
		return true
	}
	for range 10 {
		if by, err := p.call("/acme.v1.Orders/Get"); by != "a" || err != nil {
			t.Fatalf("served by %q, %v", by, err)
		}
	}
	if len(refused) == 0 {
		t.Fatal("b was never tried: the test tells nothing")
	}
	b.announce(false, "acme.v1.Orders")
	r.service("acme.v1.Orders", "b", "down")
	eventually(t, "a gateway that said its upstream is down gets no calls", func() error {
		tried := len(refused)
		for range 10 {
			if by, err := p.call("/acme.v1.Orders/Get"); by != "a" || err != nil {
				return fmt.Errorf("served by %q, %v", by, err)
			}
		}
		if len(refused) != tried {
			return errors.New("it was tried")
		}
		return nil
	})
	a.announce(false, "acme.v1.Orders")
	r.service("acme.v1.Orders", "a", "down")
	expectStatus(t, second(p.call("/acme.v1.Orders/Get")), codes.Unavailable, "gateway a", "upstream up", "connection refused")

	// Its gateways are away: the message names them.
	stopB()
	a.announce(true)
	eventually(t, "b is away", func() error {
		if m := r.component("gateway", "b"); m.GetState() != "lost" {
			return errors.New(m.GetState())
		}
		return nil
	})
	expectStatus(t, second(p.call("/acme.v1.Orders/Get")), codes.Unavailable, "gateway b is not connected")
}

func TestACallWaitsForTheAcknowledgement(t *testing.T) {
	r := start(t, settings(t))
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.hold = make(chan struct{})
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")

	began := time.Now()
	expectStatus(t, second(p.call("/acme.v1.Orders/Get")), codes.Unavailable, "gateway orders", "acknowledged")
	if d := time.Since(began); d < routeWait/2 || d > 3*routeWait {
		t.Errorf("the call waited %v", d)
	}
	done := make(chan error, 1)
	go func() { done <- second(p.call("/acme.v1.Orders/Get")) }()
	select {
	case err := <-done:
		t.Fatalf("the call did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(g.hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestGenerationsMoveOnlyWithContent(t *testing.T) {
	s := settings(t)
	s.Advertise = "core.test:50055" // what gateways are told does not depend on the port of this run
	r := start(t, s)
	r.apply(openPolicy)
	g := r.addGateway("orders")
	stop := g.connect()
	g.announce(true, "acme.v1.Orders")
	r.service("acme.v1.Orders", "orders", "routed")
	settled := func() uint64 {
		t.Helper()
		var n uint64
		eventually(t, "acknowledged", func() error {
			m := r.component("gateway", "orders")
			if n = m.GetGeneration(); n == 0 || m.GetAcknowledgedGeneration() != n {
				return errors.New(m.String())
			}
			return nil
		})
		return n
	}
	first := settled()
	r.apply(openPolicy + "\"/acme.v1.Elsewhere/Get\" = [\"public\"]\n")
	if n := settled(); n != first {
		t.Errorf("a row about another gateway's service moved the generation from %d to %d", first, n)
	}
	r.apply("[methods]\n\"/acme.v1.Orders/Get\" = [\"public\"]\n")
	next := settled()
	if next <= first {
		t.Errorf("a row about its own service left the generation at %d", next)
	}
	stop()
	r.end()

	r = start(t, s)
	g.core = r.info.GRPCAddress
	g.connect()
	if n := settled(); n != next {
		t.Errorf("a restart of core moved the generation from %d to %d", next, n)
	}
}

func TestARemovedComponentIsCutOff(t *testing.T) {
	r := start(t, settings(t))
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	streams := make([]grpc.ClientStream, 20)
	for i := range streams {
		var err error
		if streams[i], err = p.client.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/acme.v1.Orders/Watch"); err != nil {
			t.Fatal(err)
		}
		if err := streams[i].SendMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		if err := streams[i].RecvMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.component("gateway", "orders").GetCallsInFlight(); n != 20 {
		t.Errorf("%d calls in flight, want 20", n)
	}
	began := time.Now()
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "orders"}); err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		err := s.RecvMsg(&emptypb.Empty{})
		if err == nil || errors.Is(err, io.EOF) {
			t.Fatalf("a stream of a removed gateway ended with %v", err)
		}
		expectStatus(t, err, codes.Unavailable, "gateway orders", "removed")
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("cutting took %v", d)
	}
	eventually(t, "the removed gateway reads why", func() error {
		if s := r.log.String(); !strings.Contains(s, "peer=orders") || !strings.Contains(s, "code=revoked") && !strings.Contains(s, "code=removed") {
			return errors.New("it is not told")
		}
		return nil
	})
	expectStatus(t, second(p.call("/acme.v1.Orders/Get")), codes.Unimplemented)

	// The name can be added again, as another incarnation.
	again, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "orders", Peers: []string{"127.0.0.1"}})
	if err != nil || again.GetComponent().GetIncarnation() != 2 {
		t.Errorf("added again: %v %v", again.GetComponent(), err)
	}
}

func TestARemovedProxyIsCutOff(t *testing.T) {
	r := start(t, settings(t))
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	stream, err := p.client.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/acme.v1.Orders/Watch")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "proxy", Name: "dmz1"}); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, stream.RecvMsg(&emptypb.Empty{}), codes.Unavailable)
	if d := time.Since(began); d > time.Second {
		t.Errorf("cutting took %v", d)
	}
	eventually(t, "nothing is left of it", func() error {
		if r.component("proxy", "dmz1") != nil || p.links.Len() != 0 {
			return fmt.Errorf("%v, %d links", r.component("proxy", "dmz1"), p.links.Len())
		}
		return nil
	})
	eventually(t, "the call ended at the gateway", func() error {
		if n := r.component("gateway", "orders").GetCallsInFlight(); n != 0 {
			return fmt.Errorf("%d calls in flight", n)
		}
		return nil
	})
}

func TestDenialsAreKept(t *testing.T) {
	s := settings(t)
	r := start(t, s)
	r.apply(openPolicy)
	p := r.addProxy("dmz1")
	p.say = func(h []relay.Field) []relay.Field {
		return append(append([]relay.Field{}, h...), relay.Field{Name: relay.HeaderSource, Value: "192.0.2.77"})
	}
	for range 5 {
		expectStatus(t, second(p.call("/acme.v1.Secret/Get")), codes.Unauthenticated)
	}
	r.end()
	db, err := store.OpenCore(filepath.Join(s.DataDir, "core.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Denials(context.Background(), time.Now().Add(-time.Hour), 10)
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	for _, row := range rows {
		n += row.Count
		if row.Caller != "192.0.2.0/24" || row.Method != "/acme.v1.Secret/Get" || row.Code != "UNAUTHENTICATED" || row.Reason == "" {
			t.Errorf("kept %+v", row)
		}
	}
	if n != 5 {
		t.Errorf("%d denials kept, want 5: %+v", n, rows)
	}
}

func TestDrainLetsCallsFinish(t *testing.T) {
	s := settings(t)
	s.DrainTimeout = 500 * time.Millisecond
	r := start(t, s)
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	open := func() grpc.ClientStream {
		stream, err := p.client.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/acme.v1.Orders/Watch")
		if err == nil {
			err = stream.SendMsg(&emptypb.Empty{})
		}
		if err == nil {
			err = stream.RecvMsg(&emptypb.Empty{})
		}
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	short, long := open(), open()
	r.stop()
	if err := short.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := short.RecvMsg(&emptypb.Empty{}); err != nil {
		t.Fatalf("a call in flight was not let finish: %v", err)
	}
	short.CloseSend()
	if err := short.RecvMsg(&emptypb.Empty{}); err != io.EOF {
		t.Fatalf("a call in flight ended with %v", err)
	}
	err := long.RecvMsg(&emptypb.Empty{})
	expectStatus(t, err, codes.Unavailable, "core is shutting down")
	r.end()
}
