package core

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/policy"
	"sallyport/store"
)

func TestAChangeDecidesWhenItsVerbReturns(t *testing.T) {
	r := start(t, settings(t))
	r.addGateway("orders").connect()
	c := r.info.admin.(*admin).core
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			key, err := r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: fmt.Sprintf("key-%d", i)})
			if err != nil {
				t.Error(err)
				return
			}
			header := "Bearer " + key.GetSecret()
			if caller, refusal := c.router.ruling.Load().keys.Lookup(header, time.Now()); refusal != nil || caller.Kind != policy.APIKey {
				t.Errorf("key %d does not count yet: %v", i, refusal)
			}
			if _, err := r.admin.RevokeAPIKey(context.Background(), &control.RevokeAPIKeyRequest{Name: fmt.Sprintf("key-%d", i)}); err != nil {
				t.Error(err)
			}
			if _, refusal := c.router.ruling.Load().keys.Lookup(header, time.Now()); refusal == nil {
				t.Errorf("key %d still counts", i)
			}
		})
	}
	all.Wait()
}

func TestAFailedPublicationIsMadeGood(t *testing.T) {
	r := start(t, settings(t))
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	r.service("acme.v1.Orders", "orders", "routed")
	p := r.addProxy("dmz1")
	c := r.info.admin.(*admin).core

	// The store takes the change and then nothing more for a while.
	if _, err := c.db.ApplyPolicy(context.Background(), actorCore, []byte("[methods]\n\"/acme.v1.Orders/Put\" = [\"public\"]\n")); err != nil {
		t.Fatal(err)
	}
	before := c.router.ruling.Load()
	former := c.publisher.db
	broken, err := store.OpenMemoryCore()
	if err != nil {
		t.Fatal(err)
	}
	broken.Close()
	c.publisher.mu.Lock()
	c.publisher.db = broken
	c.publisher.mu.Unlock()
	if err := c.publisher.publish(context.Background()); err == nil {
		t.Fatal("the store cannot be read and nobody noticed")
	}
	if c.router.ruling.Load() != before {
		t.Error("half a publication is in force")
	}
	if _, err := p.call("/acme.v1.Orders/Get"); err != nil {
		t.Errorf("calls stopped: %v", err)
	}
	c.publisher.mu.Lock()
	c.publisher.db = former
	c.publisher.mu.Unlock()
	c.publisher.retry(context.Background())
	if c.router.ruling.Load() == before {
		t.Error("it was not made good")
	}
	eventually(t, "the new policy decides", func() error {
		if _, err := p.call("/acme.v1.Orders/Put"); err != nil {
			return err
		}
		if _, err := p.call("/acme.v1.Orders/Get"); err == nil {
			return errors.New("the old one still does")
		}
		return nil
	})
}

// TestSnapshotsNameEachIssuer: a component renews when the one that it is told of
// did not make its certificate, so a wrong one has everybody renew every minute.
func TestSnapshotsNameEachIssuer(t *testing.T) {
	t.Parallel()
	r := start(t, settings(t))
	g := r.addGateway("orders")
	g.connect()
	for _, m := range []*member{g.member, r.addProxy("dmz").member} {
		eventually(t, "a snapshot came", func() error {
			if s, _ := m.last(); s == nil {
				return errors.New("none")
			}
			return nil
		})
		s, _ := m.last()
		made := pki.SPKI(m.self.Credentials().Chain[1])
		if string(s.GetComponentIssuer()) != string(made[:]) {
			t.Errorf("%s is told of another issuer than the one that made its certificate a moment ago", m.self.Credentials().Chain[0].URIs)
		}
		callers := pki.SPKI(issuerOf(r.info.admin.(*admin).core.ca.get(), "callers' issuer"))
		if string(s.GetCallerIssuer()) != string(callers[:]) {
			t.Error("the callers' issuer is another one")
		}
	}
}
