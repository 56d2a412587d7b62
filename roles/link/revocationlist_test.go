package link

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

func (c *ca) list(t *testing.T, epoch uint64, revoked ...*pki.Credentials) *control.RevocationList {
	t.Helper()
	l := &pki.RevocationList{TrustDomain: c.authority.TrustDomain(), Epoch: epoch}
	for _, cr := range revoked {
		l.Append(pki.RevocationEntry{Identity: cr.ID, Incarnation: cr.Incarnation(), At: time.Now().Truncate(time.Second)})
	}
	p, err := c.authority.SignRevocations(l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRevocationListIsKept: a component keeps the newest signed list, on disk
// too, when core has lost it, and what it says stays revoked.
func TestRevocationListIsKept(t *testing.T) {
	c := newCA(t)
	one, two, three := c.credentials(pki.RoleGateway, "one"), c.credentials(pki.RoleGateway, "two"), c.credentials(pki.RoleGateway, "three")
	short, long := c.list(t, 1, one), c.list(t, 1, one, two)
	d := &disk{}
	open := func() *Snapshots {
		return &Snapshots{Self: c.self(pki.RoleProxy, "edge"), Save: d.save, Load: d.load, Forget: d.forget,
			Prepare: func(*control.Snapshot) (func(), error) { return func() {}, nil }}
	}
	snapshot := func(epoch, n uint64, l *control.RevocationList) *control.Snapshot {
		return &control.Snapshot{Generation: &control.Generation{Epoch: epoch, Generation: n}, Bundle: c.authority.Bundle().Proto(), RevocationList: l}
	}
	revoked := func(s *Snapshots, cr *pki.Credentials) bool {
		return s.Self.Revoked(cr.Chain[0], cr.ID, cr.Incarnation())
	}

	s := open()
	if s.Self.RevocationsHead() != nil {
		t.Error("a head of nothing")
	}
	for i, l := range []*control.RevocationList{short, long, short, nil} {
		if err := s.Apply(snapshot(uint64(1+i/2), uint64(i), l)); err != nil {
			t.Fatal(i, err)
		}
		want := long
		if i == 0 {
			want = short
		}
		if !proto.Equal(s.Self.Revocations(), want) || !revoked(s, one) || revoked(s, two) != (i > 0) || revoked(s, three) {
			t.Fatalf("after snapshot %d: holds %v, revoked %v %v", i, s.Self.RevocationsHead(), revoked(s, one), revoked(s, two))
		}
	}
	s = open()
	if err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(s.Self.Revocations(), long) || !revoked(s, two) {
		t.Fatal("forgotten over a restart")
	}
	if h := s.Self.RevocationsHead(); h.GetSequence() != 2 || len(h.GetSha256()) != 32 {
		t.Errorf("head %v", h)
	}

	// What core merged after a restore has another order, and counts.
	merged := c.list(t, 2, three, two, one)
	if err := s.Apply(snapshot(3, 1, merged)); err != nil || !proto.Equal(s.Self.Revocations(), merged) || !revoked(s, three) {
		t.Fatal("the merged list is not taken", err)
	}

	// Compacted for a new epoch, it says the same in fewer words.
	twice := &pki.RevocationList{TrustDomain: c.authority.TrustDomain(), Epoch: 3}
	for n := range uint64(3) {
		twice.Append(pki.RevocationEntry{Identity: one.ID, Incarnation: n + 1, At: time.Unix(1, 0)})
	}
	if compact := twice.Compact(4); len(compact.Entries) != 1 || !covers(compact, twice) || covers(twice, &pki.RevocationList{TrustDomain: twice.TrustDomain, Entries: []pki.RevocationEntry{{Identity: two.ID, Incarnation: 1}}}) {
		t.Error("a compacted list does not count as newer")
	}

	// One that nobody of ours has signed is refused, and everything with it.
	forged := proto.CloneOf(newCA(t).list(t, 9, one))
	if err := s.Apply(snapshot(4, 1, forged)); err == nil {
		t.Error("a forged list is taken")
	}
	torn := proto.CloneOf(merged)
	torn.Payload = append(torn.Payload, 0)
	if err := s.Apply(snapshot(4, 1, torn)); err == nil {
		t.Error("a torn list is taken")
	}
	if !proto.Equal(s.Self.Revocations(), merged) || s.Held().GetEpoch() != 3 {
		t.Error("something of the refused snapshots is held")
	}
}

// TestRevocationListOverRotation: after a rotation the same list comes with
// another signature; and a list that core has lost, whose signer is retired, is
// kept over a restart.
func TestRevocationListOverRotation(t *testing.T) {
	for _, lost := range []bool{false, true} {
		c := newCA(t)
		one, two := c.credentials(pki.RoleGateway, "one"), c.credentials(pki.RoleGateway, "two")
		d := &disk{}
		self := c.self(pki.RoleProxy, "edge")
		open := func() *Snapshots {
			return &Snapshots{Self: self, Save: d.save, Load: d.load, Forget: d.forget, Prepare: func(*control.Snapshot) (func(), error) { return func() {}, nil }}
		}
		apply := func(n uint64, l *control.RevocationList) {
			t.Helper()
			if err := open().Apply(&control.Snapshot{Generation: &control.Generation{Epoch: 1, Generation: n}, Bundle: c.authority.Bundle().Proto(), RevocationList: l}); err != nil {
				t.Fatal(err)
			}
		}
		held := c.list(t, 1, one, two)
		apply(1, held)
		for _, step := range []func(*pki.Authority) (*pki.Authority, error){
			func(a *pki.Authority) (*pki.Authority, error) { return a.Publish(time.Now()) },
			func(a *pki.Authority) (*pki.Authority, error) { return a.Activate(time.Now()) },
			func(a *pki.Authority) (*pki.Authority, error) { return a.Retire(time.Now()) },
		} {
			next, err := step(c.authority)
			if err != nil {
				t.Fatal(err)
			}
			c.authority = next
		}
		again := c.list(t, 1, one, two)
		want := again
		if lost {
			again, want = c.list(t, 1, one), held
		}
		apply(2, again)
		if !proto.Equal(self.Revocations(), want) {
			t.Errorf("lost %v: not the list that was wanted is held", lost)
		}
		self = c.self(pki.RoleProxy, "edge")
		if s := open(); s.Restore() != nil || s.Held().GetGeneration() != 2 || !proto.Equal(self.Revocations(), want) || !self.Revoked(two.Chain[0], two.ID, 1) {
			t.Errorf("lost %v: after a restart: holds %v, list %v", lost, s.Held(), self.RevocationsHead())
		}
	}
}

// TestCoreAsksForTheList: at the hello core learns which list a component
// holds, and gets it first if it wants it.
func TestCoreAsksForTheList(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		for _, want := range []bool{true, false} {
			l := newLinked(t, role, false)
			held := l.c.list(t, 1, l.c.credentials(pki.RoleGateway, "gone"))
			self := l.c.self(role, "one")
			if err := self.Apply(&control.Snapshot{Bundle: l.c.authority.Bundle().Proto(), RevocationList: held}); err != nil {
				t.Fatal(err)
			}
			got := make(chan *control.RevocationList, 1)
			beat := make(chan struct{}, 10)
			l.core.WantRevocations = func(_ *Session, h *control.RevocationListHead) bool {
				if h.GetSequence() != 1 {
					t.Errorf("head %v", h)
				}
				return want
			}
			l.core.Revocations = func(_ *Session, list *control.RevocationList) { got <- list }
			l.core.Beat = func(*Session, SessionState) { beat <- struct{}{} }
			e := &ComponentEnd{Revocations: self.Revocations, Apply: self.Apply, Hello: func() *control.Hello {
				h := hello(1)()
				h.RevocationsHeld = self.RevocationsHead()
				return h
			}}
			ctx, cancel := context.WithCancel(testContext(t))
			done := l.run(t, ctx, e, self)
			<-beat // comes after the list
			select {
			case list := <-got:
				if !want || !proto.Equal(list, held) {
					t.Errorf("wanted %v, got %v", want, list)
				}
			default:
				if want {
					t.Error("the list did not come first")
				}
			}
			cancel()
			<-done
		}
	})
}

// TestRevokedByKey: a key is revoked with every certificate that it has.
func TestRevokedByKey(t *testing.T) {
	c := newCA(t)
	var log logged
	core := corePort(c, &log)
	addr := listen(t, core)
	cr := c.credentials(pki.RoleGateway, "one")
	again, err := c.authority.IssueComponent(pki.ComponentRequest{ID: cr.ID, Incarnation: 2, PublicKey: cr.Key.Public(), Lifetime: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	core.Self.SetRevocations(append(revocationByKey(cr), &control.Revocation{Key: []byte("short")}))
	for _, chain := range []*pki.Credentials{cr, {ID: cr.ID, Chain: again.Chain, Key: cr.Key}} {
		self := NewSelf()
		self.Set(chain, c.authority.Bundle())
		_, err := gatewayDial(t, self, addr, ALPNControl)
		wantRefusal(t, err, pki.CodeRevoked)
	}
	if _, err := gatewayDial(t, c.self(pki.RoleGateway, "one"), addr, ALPNControl); err != nil {
		t.Fatalf("another key of the same name: %v", err)
	}
}
