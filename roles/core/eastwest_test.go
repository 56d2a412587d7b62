package core

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// eastWest opens a call link of a gateway, with an entrance in front of it.
func (g *gateway) eastWest() *proxy {
	g.t.Helper()
	conn, err := (&link.Dialler{Self: g.self, Log: g.log}).Dial(g.ctx, g.core, link.ALPNCall, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		g.t.Fatal(err)
	}
	p := &proxy{member: g.member}
	l := relay.NewClient(conn.Conn, &relay.Options{Limits: relay.LinkLimits(), Hop: "gateway " + g.name, Remote: "call link to core"})
	g.running.Go(func() {
		defer conn.Close()
		l.Run(g.ctx)
	})
	p.links.Add(l)
	select {
	case <-l.Ready():
	case <-time.After(patience):
		g.t.Fatal("the call link is not up")
	}
	p.entrance()
	return p
}

const eastWestPolicy = `
[methods]
"/acme.v1.Orders/Get" = ["orders:read"]
"/acme.v1.Orders/Put" = ["orders:write"]
[[grant]]
caller = "spiffe://test.internal/gateway/shop"
permissions = ["orders:read"]
[[grant]]
caller = "spiffe://test.internal/gateway/shop"
listener = "batch"
permissions = ["orders:write"]
[[grant]]
caller = "spiffe://test.internal/client/billing"
permissions = ["orders:read"]
via_gateway = ["shop"]
[[grant]]
caller = "spiffe://test.internal/client/elsewhere"
permissions = ["orders:read"]
via_gateway = ["attic"]
via_proxy = ["dmz1", "shop"]
[[limit]]
match = "/acme.v1.Orders/Put"
per = "source"
rate = "1/h"
burst = 2
`

// TestEastWest: what a gateway brings is judged as its own, or as whose
// certificate it says that it saw; the same words of a proxy mean what a proxy
// may say. Calls go to another gateway while there is one.
func TestEastWest(t *testing.T) {
	r := start(t, settings(t))
	r.apply(eastWestPolicy)
	shop, attic := r.addGateway("shop", "acme.*"), r.addGateway("attic", "acme.*")
	shop.connect()
	leave := attic.connect()
	for _, g := range []*gateway{shop, attic} {
		g.announce(true, "acme.v1.Orders")
		r.service("acme.v1.Orders", g.name, "routed")
	}
	var app *proxy
	eventually(t, "a call link is up", func() error {
		if m := r.component("gateway", "shop"); m.GetState() != "connected" {
			return errors.New(m.GetState())
		}
		return nil
	})
	app = shop.eastWest()
	edge := r.addProxy("dmz1")

	own := func(label string) relay.Field { return relay.Field{Name: relay.HeaderListener, Value: label} }
	claim := func(name string) relay.Field {
		return relay.Field{Name: relay.HeaderClientCert, Value: policy.EncodeClaim(policy.Claim{ID: "spiffe://test.internal/client/" + name})}
	}
	const get, put = "/acme.v1.Orders/Get", "/acme.v1.Orders/Put"
	for _, c := range []struct {
		what   string
		by     *proxy
		method string
		say    []relay.Field
		code   codes.Code
		caller string // as the upstream reads it
	}{
		{"the gateway", app, get, []relay.Field{own("")}, codes.OK, "spiffe://test.internal/gateway/shop"},
		{"the gateway by a listener", app, get, []relay.Field{own("batch")}, codes.OK, "spiffe://test.internal/gateway/shop;listener=batch"},
		{"by a listener that may", app, put, []relay.Field{own("batch")}, codes.OK, "spiffe://test.internal/gateway/shop;listener=batch"},
		{"by one that may not", app, put, []relay.Field{own("other")}, codes.PermissionDenied, ""},
		{"too often, as a source", app, put, []relay.Field{own("batch")}, codes.ResourceExhausted, ""},
		{"by a label that is none", app, get, []relay.Field{own("A B")}, codes.Unauthenticated, ""},
		{"nobody", app, get, nil, codes.Unauthenticated, ""},
		{"a certificate", app, get, []relay.Field{claim("billing")}, codes.OK, "spiffe://test.internal/client/billing"},
		{"a certificate and the gateway", app, get, []relay.Field{own(""), claim("nobody")}, codes.PermissionDenied, ""},
		{"a certificate that another is believed about", app, get, []relay.Field{claim("elsewhere")}, codes.PermissionDenied, ""},
		{"a bad token, by a gateway that may", app, get, []relay.Field{own(""), {Name: "authorization", Value: "Bearer spk_no"}}, codes.Unauthenticated, ""},
		{"a proxy that says it is the gateway", edge, get, []relay.Field{own("")}, codes.Unauthenticated, ""},
		{"a certificate on a proxy's word", edge, get, []relay.Field{claim("billing")}, codes.PermissionDenied, ""},
		{"one on this proxy's word", edge, get, []relay.Field{claim("elsewhere")}, codes.OK, "spiffe://test.internal/client/elsewhere"},
		{"health", app, "/grpc.health.v1.Health/Check", []relay.Field{own("")}, codes.OK, ""},
		{"health by a proxy that passes it on", edge, "/grpc.health.v1.Health/Check", nil, codes.Unimplemented, ""},
	} {
		c.by.say = func(h []relay.Field) []relay.Field { return append(append([]relay.Field{}, h...), c.say...) }
		for len(attic.seen)+len(shop.seen) > 0 {
			select {
			case <-attic.seen:
			case <-shop.seen:
			}
		}
		var err error
		eventually(t, c.what, func() error {
			_, err = c.by.call(c.method)
			if s := status.Code(err); s == codes.Unavailable {
				return err
			}
			return nil
		})
		if status.Code(err) != c.code {
			t.Errorf("%s: %v, want %v", c.what, err, c.code)
			continue
		}
		if c.caller == "" {
			continue
		}
		var seen []relay.Field
		select {
		case seen = <-attic.seen:
		case seen = <-shop.seen:
			if c.by == app {
				t.Errorf("%s: the call went back to the gateway that it came from", c.what)
			}
		}
		for _, f := range seen {
			if f.Name == relay.HeaderCaller && f.Value != c.caller || f.Name == relay.HeaderListener {
				t.Errorf("%s: %s is %q, want %q", c.what, f.Name, f.Value, c.caller)
			}
		}
	}

	// The other one goes: the gateway's own service is as good as any.
	app.say = func(h []relay.Field) []relay.Field { return append(append([]relay.Field{}, h...), own("")) }
	for range 20 {
		if by, err := app.call(get); err != nil || by != "attic" {
			t.Fatalf("served by %q, %v", by, err)
		}
	}
	leave()
	eventually(t, "the gateway itself serves", func() error {
		by, err := app.call(get)
		if err == nil && by != "shop" {
			err = errors.New(by)
		}
		return err
	})
	if log := r.log.String(); !strings.Contains(log, "source=\"gateway shop\"") {
		t.Error("the access log does not say where these calls came from")
	}

	// A removal cuts the link and what is open on it.
	stream, err := app.client.NewStream(context.Background(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, get)
	if err == nil {
		err = stream.SendMsg(&emptypb.Empty{})
	}
	if err == nil {
		err = stream.RecvMsg(&emptypb.Empty{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, stream.RecvMsg(&emptypb.Empty{}), codes.Unavailable, "gateway shop was removed")
	if _, err := app.call(get); status.Code(err) != codes.Unavailable {
		t.Errorf("after the removal: %v", err)
	}
}

// TestInstancesCallAsTheirGateway: grants name a reusable gateway, whose instances
// have names that nobody can foresee.
func TestInstancesCallAsTheirGateway(t *testing.T) {
	r := start(t, settings(t))
	r.apply(eastWestPolicy)
	attic := r.addGateway("attic", "acme.*")
	attic.connect()
	attic.announce(true, "acme.v1.Orders")
	r.service("acme.v1.Orders", "attic", "routed")
	added, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "shop", Peers: []string{"127.0.0.1"}, Reusable: true, TtlSeconds: 3600, Uses: 3})
	if err != nil {
		t.Fatal(err)
	}
	instance := &gateway{member: newMember(t, pki.RoleGateway, "shop", r.log), core: r.info.GRPCAddress, upstream: attic.upstream, seen: make(chan []relay.Field, 10)}
	instance.renewer.Dial = instance.dialRenew
	if err := instance.join(added.GetToken()); err != nil {
		t.Fatal(err)
	}
	if name := instance.self.Credentials().ID.Name; !strings.HasPrefix(name, "shop-") {
		t.Fatalf("the instance is called %q", name)
	}
	instance.connect()
	app := instance.eastWest()
	app.say = func(h []relay.Field) []relay.Field {
		return append(append([]relay.Field{}, h...), relay.Field{Name: relay.HeaderListener})
	}
	eventually(t, "the instance's app calls", func() error { _, err := app.call("/acme.v1.Orders/Get"); return err })
	for _, f := range <-attic.seen {
		if f.Name == relay.HeaderCaller && f.Value != "spiffe://test.internal/gateway/shop" {
			t.Errorf("the upstream reads %q", f.Value)
		}
	}
	if !strings.Contains(r.log.String(), "source=\"gateway "+instance.self.Credentials().ID.Name+"\"") {
		t.Error("the access log does not name the instance")
	}
}
