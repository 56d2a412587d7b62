package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

func TestCovers(t *testing.T) {
	for _, test := range []struct {
		pattern, service string
		want             bool
	}{
		{"acme.orders.Orders", "acme.orders.Orders", true},
		{"acme.orders.Orders", "acme.orders.Orders2", false},
		{"acme.orders.*", "acme.orders.Orders", true},
		{"acme.orders.*", "acme.orders.v1.Orders", true},
		{"acme.orders.*", "acme.ordersx.Orders", false},
		{"acme.orders.*", "acme.orders", false},
		{"acme.*", "acme.orders.*", true},
		{"acme.orders.*", "acme.*", false},
		{"*", "acme.orders.*", true},
		{"acme.orders.*", "*", false},
		{"", "acme", false},
	} {
		if got := Covers(test.pattern, test.service); got != test.want {
			t.Errorf("Covers(%q, %q) = %v", test.pattern, test.service, got)
		}
	}
}

// story runs one line after another and compares who is routed:
//
//	add GATEWAY [SERVE…]    set GATEWAY [SERVE…]    rm GATEWAY
//	say GATEWAY SERVICE = STATE [HOLDER]
//	allow SERVICE GATEWAY
//	now SERVICE GATEWAY = STATE [HOLDER]
func story(t *testing.T, c *Core, text string) {
	t.Helper()
	ctx := t.Context()
	n := 0
	for line := range strings.Lines(text) {
		verb, want, _ := strings.Cut(strings.TrimSpace(line), " = ")
		f := strings.Fields(verb)
		if len(f) == 0 {
			continue
		}
		n++
		var err error
		var got ServiceRecord
		switch f[0] {
		case "add":
			r := ComponentRecord{Role: pki.RoleGateway, Name: f[1], Serve: f[2:], Reusable: strings.HasPrefix(f[1], "many")}
			if add(t, c, r, tokenFor(fmt.Sprint(n))); !r.Reusable {
				adopt(t, c, tokenFor(fmt.Sprint(n)), fmt.Sprint(n))
				continue
			}
			for _, instance := range []string{"aaaaaa", "bbbbbb"} {
				key := hash(instance)
				_, err = c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: tokenFor(fmt.Sprint(n)).PublicKey, SPKI: key, Instance: instance, Issue: issue(key)}, noon)
			}
		case "set":
			_, err = c.SetComponent(ctx, operator, pki.RoleGateway, f[1], func(r *ComponentRecord) error { r.Serve = f[2:]; return nil })
		case "rm":
			_, err = c.RemoveComponent(ctx, operator, pki.RoleGateway, f[1])
		case "allow":
			_, err = c.AllowService(ctx, operator, f[1], f[2])
		case "say":
			if got, err = c.ObserveService(ctx, f[1], f[2], []string{"Get", "Put"}); err == nil && (got.Gateway != f[1] || len(got.Methods) != 2 || got.FirstSeen != noon) {
				t.Errorf("line %d %q: %+v", n, line, got)
			}
		case "now":
			var list []ServiceRecord
			list, err = c.Services(ctx)
			for _, r := range list {
				if r.Service == f[1] && r.Gateway == f[2] {
					got = r
				}
			}
		default:
			t.Fatalf("what is %q?", line)
		}
		if err != nil {
			t.Errorf("line %d %q: %v", n, line, err)
		}
		if s := strings.TrimSpace(got.State + " " + got.Holder); s != want {
			t.Errorf("line %d %q: it is %q", n, line, s)
		}
	}
}

func TestWhoServesWhat(t *testing.T) {
	for name, text := range map[string]string{
		"first come": `
			add a
			add b
			say a s.Orders = routed
			say b s.Orders = waiting a
			say b s.Stock = routed
			say a s.Stock = waiting b
			say a s.Orders = routed
			now s.Orders b = waiting a`,
		"allow": `
			add a
			add b
			say a s.Orders = routed
			say b s.Orders = waiting a
			allow s.Orders b
			now s.Orders b = routed
			say b s.Orders = routed
			say a s.Orders = routed`,
		"allow before": `
			add a
			add b
			say a s.Orders = routed
			allow s.* b
			say b s.Orders = routed`,
		"nobody inherits": `
			add a
			add b
			say a s.Orders = routed
			say b s.Orders = waiting a
			rm a
			now s.Orders b = waiting
			say b s.Orders = waiting
			add a
			say a s.Orders = routed
			say b s.Orders = waiting a
			allow s.Orders b
			now s.Orders b = routed`,
		"a permit does not outlive its gateway": `
			add a
			add b
			say a s.Orders = routed
			allow s.Orders b
			rm b
			add b
			say b s.Orders = waiting a`,
		"serve": `
			add a
			add b s.Orders t.*
			say a s.Orders = routed
			say b s.Orders = routed
			say b t.u.X = routed
			say b s.Stock = refused
			say a t.u.X = waiting b
			set b s.Stock
			now s.Stock b = routed
			now s.Orders b = refused
			now t.u.X b = refused
			set b
			now s.Stock b = routed
			now s.Orders b = waiting a
			now t.u.X b = routed`,
		"patterns overlap": `
			add a
			add b
			say a s.Orders = routed
			say b s.* = waiting a
			say b t.* = routed
			say a t.Deep = waiting b
			say a t.deep.* = waiting b
			say a tt.Other = routed`,
		"instances hold together": `
			add many
			add b
			say many-aaaaaa s.Orders = routed
			say many-bbbbbb s.Orders = routed
			say b s.Orders = waiting many
			say b s.Stock = routed
			say many-aaaaaa s.Stock = waiting b
			allow s.Stock many-bbbbbb
			now s.Stock many-aaaaaa = routed
			say many-bbbbbb s.Stock = routed
			rm many
			say b s.Orders = waiting`,
	} {
		t.Run(name, func(t *testing.T) {
			eachCore(t, func(t *testing.T, c *Core) { story(t, c, text); verify(t, c) })
		})
	}
}

func TestAnnouncementsAreBounded(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})
		many := func(prefix string, n int) (list []Announced) {
			for i := range n {
				list = append(list, Announced{Service: fmt.Sprintf("%s.S%d", prefix, i)})
			}
			return list
		}
		if _, err := c.ObserveServices(ctx, "a", many("x", MaxServices+1)); !errors.Is(err, ErrTooMany) {
			t.Errorf("too many at once: %v", err)
		}
		if rows, err := c.ObserveServices(ctx, "a", many("x", MaxServices)); err != nil || len(rows) != MaxServices {
			t.Fatal(len(rows), err)
		}
		if _, err := c.ObserveServices(ctx, "a", many("y", 1)); !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), "gateway rm a") {
			t.Errorf("too many one after another: %v", err)
		}
		for _, name := range []string{"", "*", ".*", "a/b", "a b", "a\nb", "a.*.b", strings.Repeat("a", 256)} {
			if _, err := c.ObserveService(ctx, "a", name, nil); err == nil {
				t.Errorf("%q is a service name", name)
			}
		}
		if _, err := c.ObserveService(ctx, "a", "x.S1", slices.Repeat([]string{"Method"}, 10_000)); !errors.Is(err, ErrTooMany) {
			t.Errorf("too many methods: %v", err)
		}
		if _, err := c.ObserveService(ctx, "nobody", "x.S", nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("of nobody: %v", err)
		}
		if list, err := c.Services(ctx); err != nil || len(list) != MaxServices {
			t.Errorf("%d services, %v", len(list), err)
		}
	})
}

// TestHolders: the holder that is found by names is the one that looking at all
// of them finds.
func TestHolders(t *testing.T) {
	names := []string{"a.A", "a.*", "a.b.B", "a.b.*", "a.b.c.C", "ab.A", "ab.*", "b.B", "b.*", "A"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		h := &holds{at: map[string][]int{}}
		for i := range random.IntN(8) {
			one := hold{names[random.IntN(len(names))], string(rune('p' + random.IntN(3)))}
			h.list = append(h.list, one)
			h.at[one.service] = append(h.at[one.service], i)
		}
		service, want := names[random.IntN(len(names))], ""
		for _, one := range h.list {
			if one.owner != "p" && (Covers(one.service, service) || Covers(service, one.service)) {
				want = one.owner
				break
			}
		}
		if got := h.of(service, "p"); got != want {
			t.Fatalf("%s among %v is held by %q, found %q", service, h.list, want, got)
		}
	}
}

// TestManyServicesWait: one gateway announces all that another one holds. Every
// publication reads that, and revocations wait for publications.
func TestManyServicesWait(t *testing.T) {
	c := openCore(t, filepath.Join(t.TempDir(), "core.db"))
	for i, name := range []string{"first", "second"} {
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: name}, tokenFor(fmt.Sprint(i)))
		var all []Announced
		for n := range MaxServices {
			all = append(all, Announced{Service: fmt.Sprintf("acme.v1.S%d", n)})
		}
		if _, err := c.ObserveServices(t.Context(), name, all); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	rows, err := c.Services(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waiting := 0
	for _, r := range rows {
		if r.State == ServiceWaiting && r.Holder == "first" {
			waiting++
		}
	}
	if d := time.Since(began); waiting != MaxServices || d > 1500*time.Millisecond {
		t.Errorf("%d wait, and to find that took %v", waiting, d)
	}
}

func TestAnnouncingTheSameWritesNothing(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})
		observe := func(methods ...string) int64 {
			t.Helper()
			before, err := one(t.Context(), c.db.writer, value[int64], "SELECT total_changes()")
			if err != nil {
				t.Fatal(err)
			}
			c.Now = func() time.Time { return noon.Add(time.Duration(before)) }
			if _, err := c.ObserveService(t.Context(), "a", "s.Orders", methods); err != nil {
				t.Fatal(err)
			}
			after, err := one(t.Context(), c.db.writer, value[int64], "SELECT total_changes()")
			if err != nil {
				t.Fatal(err)
			}
			return after - before
		}
		if n := observe("Get"); n != 1 {
			t.Errorf("first: %d changes", n)
		}
		first, _ := c.Services(t.Context())
		if n := observe("Get"); n != 0 {
			t.Errorf("again: %d changes", n)
		}
		if n := observe("Get", "Put"); n != 1 {
			t.Errorf("with another method: %d changes", n)
		}
		if now, _ := c.Services(t.Context()); now[0].FirstSeen != first[0].FirstSeen || len(now[0].Methods) != 2 {
			t.Errorf("%+v", now)
		}
	})
}

func TestAllowService(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a", Serve: []string{"s.*"}})
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "b"})
		if _, err := c.AllowService(ctx, operator, "t.Orders", "a"); err == nil || !strings.Contains(err.Error(), "sallyport gateway set a --serve s.* --serve t.Orders") {
			t.Errorf("outside --serve: %v", err)
		}
		if _, err := c.AllowService(ctx, operator, "t.Orders", "nobody"); !errors.Is(err, ErrNotFound) {
			t.Errorf("of nobody: %v", err)
		}
		n := len(actions(t, c))
		for range 2 {
			if r, err := c.AllowService(ctx, operator, "t.Orders", "b"); err != nil || r.State != ServiceRouted {
				t.Errorf("%+v, %v", r, err)
			}
		}
		if got := actions(t, c)[n:]; len(got) != 1 || got[0] != "service.allow service/t.Orders" {
			t.Errorf("audited %v", got)
		}
	})
}
