package core

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// TestCallLinksAreCut: what the apps beside a gateway have open ends, and no
// other link comes, when the gateway's certificate is revoked and when it is at
// an address that is not its own any more. Who serves the calls stays.
func TestCallLinksAreCut(t *testing.T) {
	for what, c := range map[string]struct {
		cut   func(*running, *gateway) error
		words string
	}{
		"revoked": {func(r *running, g *gateway) error {
			_, err := r.admin.RevokeCertificate(context.Background(), &control.RevokeCertificateRequest{Serial: serial(g.self)})
			return err
		}, "was revoked"},
		"moved": {func(r *running, g *gateway) error {
			_, err := r.setPeers("gateway", g.name, "192.0.2.7")
			return err
		}, "no address of gateway shop any more"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := start(t, settings(t))
			r.apply(eastWestPolicy)
			attic, shop := r.addGateway("attic", "acme.*"), r.addGateway("shop")
			attic.connect()
			attic.announce(true, "acme.v1.Orders")
			shop.connect()
			r.service("acme.v1.Orders", "attic", "routed")
			eventually(t, "shop is connected", func() error {
				if m := r.component("gateway", "shop"); m.GetState() != "connected" {
					return errors.New(m.GetState())
				}
				return nil
			})
			app := shop.eastWest()
			app.say = func(h []relay.Field) []relay.Field {
				return append(append([]relay.Field{}, h...), relay.Field{Name: relay.HeaderListener})
			}
			const get = "/acme.v1.Orders/Get"
			eventually(t, "the app calls", func() error { return second(app.call(get)) })
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			stream, err := app.client.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, get)
			if err == nil {
				err = stream.SendMsg(&emptypb.Empty{})
			}
			if err == nil {
				err = stream.RecvMsg(&emptypb.Empty{})
			}
			if err != nil {
				t.Fatal(err)
			}
			since := time.Now()
			if err := c.cut(r, shop); err != nil {
				t.Fatal(err)
			}
			expectStatus(t, stream.RecvMsg(&emptypb.Empty{}), codes.Unavailable, c.words)
			t.Logf("ended after %v", time.Since(since))
			if conn, err := (&link.Dialler{Self: shop.self, Log: shop.log}).Dial(ctx, shop.core, link.ALPNCall, pki.Expect{Role: pki.RoleCore}); err == nil {
				conn.Close()
				t.Error("another call link came")
			}
			if m := r.component("gateway", "attic"); m.GetState() != "connected" {
				t.Errorf("attic is %s", m.GetState())
			}
		})
	}
}
