package store

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

func TestComponentRoundTrip(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		want := ComponentRecord{Role: pki.RoleProxy, Name: "dmz1", Peers: []string{"192.0.2.0/24", "core.example"}, Address: "192.0.2.7:50051", ServerName: "edge.example"}
		got := add(t, c, want, tokenFor("dmz1"))
		want.Incarnation, want.State, want.Added = 1, StateInvited, noon
		if !reflect.DeepEqual(got, want) {
			t.Errorf("added %+v", got)
		}
		if got, err := c.Component(t.Context(), pki.RoleProxy, "dmz1"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, %v", got, err)
		}
		if _, err := c.Component(t.Context(), pki.RoleGateway, "dmz1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("as a gateway: %v", err)
		}
		if err := c.SawComponent(t.Context(), pki.RoleProxy, "dmz1", Sighting{At: noon.Add(time.Hour), Version: "v2"}); err != nil {
			t.Fatal(err)
		}
		if err := c.SawComponent(t.Context(), pki.RoleProxy, "dmz1", Sighting{At: noon, Observed: "192.0.2.7:1"}); err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Component(t.Context(), pki.RoleProxy, "dmz1"); got.LastSeen != noon.Add(time.Hour) || got.Version != "v2" || got.Observed != "192.0.2.7:1" {
			t.Errorf("seen: %+v", got)
		}
		if err := c.SawComponent(t.Context(), pki.RoleProxy, "dmz2", Sighting{At: noon}); !errors.Is(err, ErrNotFound) {
			t.Errorf("one that is not there was seen: %v", err)
		}
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "b"})
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})
		for role, want := range map[pki.Role]string{"": "gateway/a gateway/b proxy/dmz1", pki.RoleGateway: "gateway/a gateway/b", pki.RoleProxy: "proxy/dmz1", pki.RoleCore: ""} {
			list, err := c.Components(t.Context(), role)
			var labels []string
			for _, r := range list {
				labels = append(labels, r.Label())
			}
			if got := strings.Join(labels, " "); got != want || err != nil {
				t.Errorf("components of role %q: %s, %v", role, got, err)
			}
		}
	})
}

func TestAddComponentRefuses(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		for name, test := range map[string]struct {
			r     ComponentRecord
			token TokenRecord
		}{
			"a core":            {ComponentRecord{Role: pki.RoleCore, Name: "a"}, tokenFor("a")},
			"a client":          {ComponentRecord{Role: pki.RoleClient, Name: "a"}, tokenFor("a")},
			"no name":           {ComponentRecord{Role: pki.RoleGateway}, tokenFor("a")},
			"a bad name":        {ComponentRecord{Role: pki.RoleGateway, Name: "a/b"}, tokenFor("a")},
			"no room for -xxx":  {ComponentRecord{Role: pki.RoleGateway, Name: strings.Repeat("a", 57), Reusable: true}, tokenFor("a")},
			"names of a proxy":  {ComponentRecord{Role: pki.RoleProxy, Name: "a", CertNames: []string{"a.example"}}, tokenFor("a")},
			"port of a gateway": {ComponentRecord{Role: pki.RoleGateway, Name: "a", GRPCTLS: "files"}, tokenFor("a")},
			"unknown mode":      {ComponentRecord{Role: pki.RoleProxy, Name: "a", GRPCTLS: "none"}, tokenFor("a")},
			"no token":          {ComponentRecord{Role: pki.RoleGateway, Name: "a"}, TokenRecord{Expires: noon}},
			"endless token":     {ComponentRecord{Role: pki.RoleGateway, Name: "a"}, TokenRecord{PublicKey: hash("a")}},
		} {
			if _, err := c.AddComponent(t.Context(), operator, test.r, test.token); err == nil {
				t.Errorf("%s was added", name)
			}
		}
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"}, tokenFor("a"))
		if _, err := c.AddComponent(t.Context(), operator, ComponentRecord{Role: pki.RoleGateway, Name: "b"}, tokenFor("a")); !errors.Is(err, ErrExists) {
			t.Errorf("the token of another one: %v", err)
		}
		if got := actions(t, c); len(got) != 1 {
			t.Errorf("audited %v", got)
		}
	})
}

func TestNextIncarnation(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		orders := ComponentRecord{Role: pki.RoleGateway, Name: "orders"}
		first := join(t, c, orders)
		if _, err := c.AddComponent(ctx, operator, orders, tokenFor("2")); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "sallyport gateway rm orders") {
			t.Fatalf("added twice: %v", err)
		}
		removed, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, "orders")
		if err != nil || removed.State != StateRemoved || removed.Incarnation != 1 {
			t.Fatalf("%+v, %v", removed, err)
		}
		if _, err := c.Component(ctx, pki.RoleGateway, "orders"); !errors.Is(err, ErrNotFound) {
			t.Errorf("still there: %v", err)
		}
		if _, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, "orders"); !errors.Is(err, ErrNotFound) {
			t.Errorf("removed twice: %v", err)
		}
		if _, err := c.TokenOf(ctx, pki.RoleGateway, "orders"); !errors.Is(err, ErrNotFound) {
			t.Errorf("its token is open: %v", err)
		}
		want := []Revocation{{Role: pki.RoleGateway, Name: "orders", Incarnation: 1, Reason: "removed", At: noon}}
		if got, err := c.Revocations(ctx); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("revocations %+v, %v", got, err)
		}

		second := join(t, c, orders)
		if second.Component.Incarnation != 2 || second.Serial == first.Serial {
			t.Errorf("second life: %+v", second.Component)
		}
		list, err := c.Certificates(ctx, true, noon)
		if err != nil || len(list) != 2 || list[0].Revoked != noon || !list[1].Revoked.IsZero() || list[1].Incarnation != 2 {
			t.Errorf("certificates %+v, %v", list, err)
		}
		if got, _ := c.Revocations(ctx); len(got) != 1 {
			t.Errorf("the second life is revoked: %+v", got)
		}
		if _, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, "orders"); err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Revocations(ctx); len(got) != 1 || got[0].Incarnation != 2 {
			t.Errorf("one revocation covers both lives: %+v", got)
		}
		verify(t, c)
	})
}

// TestInvitedAnew: a token that ran out before use does not block its name,
// one that is open does.
func TestInvitedAnew(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		orders := ComponentRecord{Role: pki.RoleGateway, Name: "orders"}
		add(t, c, orders, tokenFor("1"))
		if _, err := c.AddComponent(t.Context(), operator, orders, tokenFor("2")); !errors.Is(err, ErrExists) {
			t.Fatalf("while the token is open: %v", err)
		}
		c.Now = func() time.Time { return noon.Add(ttl) }
		late := tokenFor("2")
		late.Expires = noon.Add(2 * ttl)
		if r := add(t, c, orders, late); r.Incarnation != 1 {
			t.Errorf("%+v", r)
		}
		if got, err := c.TokenOf(t.Context(), pki.RoleGateway, "orders"); err != nil || string(got.PublicKey) != string(late.PublicKey) {
			t.Errorf("its token: %+v, %v", got, err)
		}
		if _, err := c.Adopt(t.Context(), "newcomer", Adoption{TokenPublicKey: tokenFor("1").PublicKey, SPKI: hash("k"), Issue: issue(hash("k"))}, noon); !errors.Is(err, ErrTokenClosed) {
			t.Errorf("the former token: %v", err)
		}
		adopt(t, c, late, "k")
	})
}

func TestSetComponent(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		joined := join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "orders", Peers: []string{"192.0.2.1"}}).Component
		got, err := c.SetComponent(ctx, operator, pki.RoleGateway, "orders", func(r *ComponentRecord) error {
			r.Peers[0] = "192.0.2.2"
			r.Name, r.Incarnation, r.SPKI, r.State = "other", 9, nil, StateInvited // not an operator's to change
			return nil
		})
		want := joined
		want.Peers = []string{"192.0.2.2"}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("set to %+v, %v", got, err)
		}
		if got, err := c.Component(ctx, pki.RoleGateway, "orders"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, %v", got, err)
		}
		rows, _ := c.AuditRows(ctx, 0, 1)
		if rows[0].Action != "component.set" || rows[0].Detail != "peers 192.0.2.1 → peers 192.0.2.2" || rows[0].Actor != operator {
			t.Errorf("audited %+v", rows[0])
		}
		n := len(actions(t, c))
		if _, err := c.SetComponent(ctx, operator, pki.RoleGateway, "orders", func(r *ComponentRecord) error { return nil }); err != nil || len(actions(t, c)) != n {
			t.Errorf("nothing changed, but it was audited, or %v", err)
		}
		no := errors.New("no")
		if _, err := c.SetComponent(ctx, operator, pki.RoleGateway, "orders", func(r *ComponentRecord) error { r.Peers = nil; return no }); !errors.Is(err, no) {
			t.Error(err)
		}
		if got, _ := c.Component(ctx, pki.RoleGateway, "orders"); !reflect.DeepEqual(got, want) {
			t.Errorf("after a refused change: %+v", got)
		}
		if _, err := c.SetComponent(ctx, operator, pki.RoleGateway, "nobody", func(r *ComponentRecord) error { return nil }); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestCertificateSettings(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		add(t, c, ComponentRecord{Role: pki.RoleProxy, Name: "p", GRPCTLS: "files", ServerName: "p.example"}, tokenFor("p"))
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "g", CertNames: []string{"a.example"}}, tokenFor("g"))
		set := func(role pki.Role, name string, change func(*ComponentRecord)) error {
			_, err := c.SetComponent(ctx, operator, role, name, func(r *ComponentRecord) error { change(r); return nil })
			return err
		}
		if r, err := c.Component(ctx, pki.RoleProxy, "p"); err != nil || r.GRPCTLS != "files" {
			t.Errorf("%+v, %v", r, err)
		}
		if err := errors.Join(
			set(pki.RoleProxy, "p", func(r *ComponentRecord) { r.GRPCTLS = "internal" }),
			set(pki.RoleGateway, "g", func(r *ComponentRecord) { r.CertNames = []string{"b.example", "10.0.0.1"} }),
		); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Component(ctx, pki.RoleProxy, "p"); err != nil || r.GRPCTLS != "internal" || r.ServerName != "p.example" {
			t.Errorf("%+v, %v", r, err)
		}
		if r, err := c.Component(ctx, pki.RoleGateway, "g"); err != nil || !reflect.DeepEqual(r.CertNames, []string{"b.example", "10.0.0.1"}) {
			t.Errorf("%+v, %v", r, err)
		}
		rows, err := c.AuditRows(ctx, 0, 2)
		if err != nil || !strings.Contains(rows[0].Detail, "a.example") || !strings.Contains(rows[0].Detail, "b.example 10.0.0.1") || !strings.Contains(rows[1].Detail, "files") {
			t.Errorf("audited %+v, %v", rows, err)
		}
		for name, err := range map[string]error{
			"names of a proxy":  set(pki.RoleProxy, "p", func(r *ComponentRecord) { r.CertNames = []string{"x.example"} }),
			"port of a gateway": set(pki.RoleGateway, "g", func(r *ComponentRecord) { r.GRPCTLS = "files" }),
			"unknown mode":      set(pki.RoleProxy, "p", func(r *ComponentRecord) { r.GRPCTLS = "off" }),
		} {
			if err == nil {
				t.Errorf("%s: was set", name)
			}
		}
	})
}
