package core

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/roles/control"
)

// TestAbsent names what there is not, as an operator mistypes it: the answer
// says so of that name, which one he meant, and where to look.
func TestAbsent(t *testing.T) {
	h := start(t, settings(t))
	ctx := context.Background()
	if _, err := h.admin.AddComponent(ctx, &control.AddComponentRequest{Role: "gateway", Name: "orders", Peers: []string{"any"}}); err != nil {
		t.Fatal(err)
	}
	for verb, c := range map[string]struct {
		ask  func() error
		says []string
	}{
		"gateway rm": {func() error {
			_, err := h.admin.RemoveComponent(ctx, &control.RemoveComponentRequest{Role: "gateway", Name: "order"})
			return err
		}, []string{"there is no gateway order", "did you mean orders?", "gateway ls"}},
		"gateway set": {func() error {
			_, err := h.admin.SetComponent(ctx, &control.SetComponentRequest{Role: "gateway", Name: "elsewhere", Peers: []string{"any"}})
			return err
		}, []string{"there is no gateway elsewhere", "gateway ls lists those there are: orders"}},
		"cert renew": {func() error {
			_, err := h.admin.RenewComponents(ctx, &control.RenewComponentsRequest{Components: []string{"proxy/x"}})
			return err
		}, []string{"there is no proxy x", "proxy ls"}},
		"service allow": {func() error {
			_, err := h.admin.AllowService(ctx, &control.AllowServiceRequest{Service: "a.B", Gateway: "oders"})
			return err
		}, []string{"there is no gateway oders", "did you mean orders?"}},
		"cert revoke": {func() error {
			_, err := h.admin.RevokeCertificate(ctx, &control.RevokeCertificateRequest{Serial: "123456"})
			return err
		}, []string{"no certificate with the serial number 123456", "cert ls --all"}},
		"apikey revoke": {func() error {
			_, err := h.admin.RevokeAPIKey(ctx, &control.RevokeAPIKeyRequest{Name: "x"})
			return err
		}, []string{"there is no API key x", "apikey ls"}},
		"policy show": {func() error {
			_, err := h.admin.ShowPolicy(ctx, &control.ShowPolicyRequest{Version: 99})
			return err
		}, []string{"there is no version 99", "audit ls"}},
	} {
		err := c.ask()
		s := status.Convert(err)
		text := s.Message()
		for _, d := range s.Details() {
			if r, ok := d.(*control.Refusal); ok {
				text += " | " + r.GetRemedy()
			}
		}
		for _, part := range append(c.says, verb) {
			if s.Code() != codes.NotFound || !strings.Contains(text, part) {
				t.Errorf("%s: %v %q does not say %q", verb, s.Code(), text, part)
			}
		}
	}
}
