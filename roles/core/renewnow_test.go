package core

import (
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// TestComponentsRenewWhenAsked long before they would, on both kinds of link,
// and calls go on.
func TestComponentsRenewWhenAsked(t *testing.T) {
	r, g, p := rig(t, 90*24*time.Hour)
	r.addGateway("away")
	serials := map[string]string{}
	for _, m := range []*member{g.member, p.member} {
		serials[string(m.role)+"/"+m.name] = pki.Serial(m.self.Credentials().Chain[0])
	}
	for round := range 2 { // the second at once: nothing holds it back
		out, err := r.admin.RenewComponents(t.Context(), &control.RenewComponentsRequest{All: true})
		if err != nil || len(out.GetComponents()) != 2 {
			t.Fatal(out, err)
		}
		for _, c := range out.GetComponents() {
			if c.GetError() != "" || c.GetFormerSerial() != serials[c.GetComponent()] || c.GetSerial() == "" || c.GetSerial() == c.GetFormerSerial() || c.GetNotAfterUnix() < c.GetFormerNotAfterUnix() {
				t.Fatalf("round %d: %v\n%s", round, c, r.log)
			}
			serials[c.GetComponent()] = c.GetSerial()
		}
	}
	if err := second(p.call("/acme.v1.Orders/Get")); err != nil {
		t.Error(err)
	}
	out, err := r.admin.RenewComponents(t.Context(), &control.RenewComponentsRequest{Components: []string{"gateway/orders", "gateway/away"}})
	if err != nil || out.GetComponents()[0].GetSerial() == "" || !strings.Contains(out.GetComponents()[1].GetError(), "not connected") {
		t.Errorf("%v, %v", out, err)
	}
	for _, bad := range []*control.RenewComponentsRequest{{}, {All: true, Components: []string{"gateway/orders"}}, {Components: []string{"orders"}},
		{Components: []string{"gateway/none"}}, {All: true, WaitSeconds: -1}} {
		if out, err := r.admin.RenewComponents(t.Context(), bad); err == nil {
			t.Errorf("%v: %v", bad, out)
		}
	}
}
