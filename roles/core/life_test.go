package core

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// rig is a core with a gateway and a proxy through which calls go.
func rig(t *testing.T, lifetime time.Duration) (*running, *gateway, *proxy) {
	s := settings(t)
	s.CertLifetime = lifetime
	r := start(t, s)
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	eventually(t, "a first call", func() error { return second(p.call("/acme.v1.Orders/Get")) })
	return r, g, p
}

// load calls without pause until the returned function is called, which says
// how many calls there were and which failed.
func load(p *proxy, callers int) (stop func() (int64, []error)) {
	var calls atomic.Int64
	var mu sync.Mutex
	var failed []error
	done := make(chan struct{})
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(2 * time.Millisecond):
				}
				calls.Add(1)
				if _, err := p.call("/acme.v1.Orders/Get"); err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	return func() (int64, []error) {
		close(done)
		all.Wait()
		return calls.Load(), failed
	}
}

func serial(s *link.Self) string { return pki.Serial(s.Credentials().Chain[0]) }

// TestEverybodyRenewsAndNoCallFails has certificates of some seconds, so that
// core's, the gateway's and the proxy's are renewed, each more than once, while
// calls go through.
func TestEverybodyRenewsAndNoCallFails(t *testing.T) {
	r, g, p := rig(t, 10*time.Second)
	stop := load(p, 4)
	seen := map[string]map[string]bool{"gateway": {}, "proxy": {}}
	own := func() int { return strings.Count(r.log.String(), "core has a new certificate of its own") }
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) && (len(seen["gateway"]) < 3 || len(seen["proxy"]) < 3 || own() < 3) {
		seen["gateway"][serial(g.self)] = true
		seen["proxy"][serial(p.self)] = true
		time.Sleep(50 * time.Millisecond)
	}
	calls, failed := stop()
	if len(failed) > 0 || calls < 100 {
		t.Errorf("%d of %d calls failed, first: %v", len(failed), calls, errors.Join(failed[:min(1, len(failed))]...))
	}
	for who, serials := range seen {
		if len(serials) < 3 {
			t.Errorf("the %s had %d certificates", who, len(serials))
		}
	}
	if n := own(); n < 3 {
		t.Errorf("core had %d certificates", n)
	}
	for _, word := range []string{"ALARM", "ALERT"} {
		if strings.Contains(r.log.String(), word) {
			t.Errorf("a healthy renewal raised an %s", word)
		}
	}
}

// rotate asks for a step of the rotation.
func (r *running) rotate(in *control.RotateCARequest) *control.RotateCAResponse {
	r.t.Helper()
	out, err := r.admin.RotateCA(context.Background(), in)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *running) phase(want string) {
	r.t.Helper()
	eventually(r.t, "the CA is "+want, func() error {
		out := r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_STATUS})
		if out.GetPhase() != want {
			return errors.New(out.String())
		}
		return nil
	})
}

// roots are the roots that a component believes.
func roots(s *link.Self) (out []string) {
	for _, pin := range s.Bundle().Pins() {
		out = append(out, fmt.Sprintf("%x", pin[:4]))
	}
	return out
}

// TestRotationGoesThroughByItself rotates the CA under load: nobody is away, so
// that nothing blocks.
func TestRotationGoesThroughByItself(t *testing.T) {
	r, g, p := rig(t, 30*time.Second)
	before := roots(g.self)
	stop := load(p, 4)
	r.rotate(&control.RotateCARequest{})
	eventually(t, "the rotation is over", func() error {
		out := r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_STATUS})
		if out.GetPhase() != "steady" || roots(g.self)[0] == before[0] {
			return errors.New(out.String())
		}
		return nil
	})
	calls, failed := stop()
	if len(failed) > 0 || calls < 20 {
		t.Errorf("%d of %d calls failed, first: %v", len(failed), calls, errors.Join(failed[:min(1, len(failed))]...))
	}
	for _, s := range []*link.Self{g.self, p.self} {
		eventually(t, "only the new root is believed", func() error {
			if now := roots(s); len(now) != 1 || slices.Equal(now, before) {
				return fmt.Errorf("roots %v, before %v", now, before)
			}
			return nil
		})
	}
	// Who joins afterwards is one of them.
	r.addGateway("late").connect()
	eventually(t, "a newcomer connects", func() error {
		if m := r.component("gateway", "late"); m.GetState() != "connected" {
			return errors.New(m.String())
		}
		return nil
	})
}

// TestAnAbsenteeBlocksIsSkippedAndLedOver stops a gateway before the rotation:
// it blocks, by name, until it is skipped, and comes back after the retirement
// of the only root it knows.
func TestAnAbsenteeBlocksIsSkippedAndLedOver(t *testing.T) {
	r, _, p := rig(t, 30*time.Second)
	sleeper := r.addGateway("sleeper")
	away := sleeper.connect()
	eventually(t, "sleeper connects", func() error {
		if m := r.component("gateway", "sleeper"); m.GetState() != "connected" || m.GetAcknowledgedGeneration() == 0 {
			return errors.New(m.String())
		}
		return nil
	})
	away()
	eventually(t, "sleeper is gone", func() error {
		if m := r.component("gateway", "sleeper"); m.GetState() != "lost" {
			return errors.New(m.String())
		}
		return nil
	})
	stop := load(p, 2)
	r.rotate(&control.RotateCARequest{})
	out := r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_STATUS})
	eventually(t, "only sleeper blocks", func() error {
		out = r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_STATUS})
		if len(out.GetBlockers()) != 1 || !strings.HasPrefix(out.GetBlockers()[0], "gateway/sleeper: is not connected") || out.GetPhase() != "published" || out.GetDeadlineUnix() == 0 {
			return errors.New(out.String())
		}
		return nil
	})
	former := roots(sleeper.self)
	r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_SKIP, Skip: "gateway/sleeper"})
	r.phase("steady")
	if calls, failed := stop(); len(failed) > 0 {
		t.Errorf("%d of %d calls failed: %v", len(failed), calls, failed[0])
	}
	sleeper.connect()
	eventually(t, "sleeper is led over", func() error {
		if m := r.component("gateway", "sleeper"); m.GetState() != "connected" || roots(sleeper.self)[0] == former[0] {
			return errors.New(m.String())
		}
		return nil
	})
}

// TestRollbackFromEachPhase returns to where it began.
func TestRollbackFromEachPhase(t *testing.T) {
	r, g, p := rig(t, 30*time.Second)
	before := roots(g.self)
	sleeper := r.addGateway("sleeper") // has joined and never connected: it blocks
	stop := load(p, 2)
	if out := r.rotate(&control.RotateCARequest{}); out.GetPhase() != "published" {
		t.Fatal(out)
	}
	if out := r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_ROLLBACK}); out.GetPhase() != "steady" {
		t.Fatal(out)
	}
	// And from the next phase: sleeper comes for the bundle, and goes again.
	r.rotate(&control.RotateCARequest{})
	away := sleeper.connect()
	sleeper.renewer.End = nil // it gets no certificate of the new root
	r.phase("activated")
	eventually(t, "the gateway has renewed", func() error {
		if pki.SPKI(g.self.Credentials().Chain[1]) != pki.SPKI(g.self.Bundle().ComponentIntermediates[0]) {
			return errors.New("not yet")
		}
		return nil
	})
	away()
	r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_ROLLBACK})
	r.phase("steady")
	if calls, failed := stop(); len(failed) > 0 {
		t.Errorf("%d of %d calls failed: %v", len(failed), calls, failed[0])
	}
	eventually(t, "the old root alone is believed", func() error {
		if now := roots(g.self); len(now) != 1 || now[0] != before[0] {
			return fmt.Errorf("roots %v, before %v", now, before)
		}
		return nil
	})
}

// TestCompromisedLeavesNothing of what trusts the old root.
func TestCompromisedLeavesNothing(t *testing.T) {
	r, g, p := rig(t, time.Hour)
	own := g.self.Credentials()
	peer := link.Peer{ID: own.ID, Incarnation: 1, Chain: own.Chain, Remote: netip.MustParseAddrPort("127.0.0.1:1")}
	if refusal := r.admin.(*admin).core.check(link.ALPNControl, peer); refusal != nil {
		t.Fatal(refusal)
	}
	r.invite("invited")
	out := r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_COMPROMISED})
	if out.GetPhase() != "steady" || len(out.GetWarnings()) != 3 {
		t.Fatal(out)
	}
	// That is said until it is done.
	rejoin := func(want ...string) {
		t.Helper()
		status := must(r.admin.Status(t.Context(), &control.StatusRequest{})).GetWarnings()
		for _, said := range [][]string{status, r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_STATUS}).GetWarnings()} {
			var who []string
			for _, w := range said {
				if name, _, ok := strings.Cut(w, " has to join again: sallyport "); ok {
					who = append(who, name)
				}
			}
			if fmt.Sprint(who) != fmt.Sprint(want) {
				t.Errorf("%v have to join again, want %v: %v", who, want, said)
			}
		}
	}
	rejoin("gateway/invited", "gateway/orders", "proxy/dmz1")
	must(r.admin.RemoveComponent(t.Context(), &control.RemoveComponentRequest{Role: "gateway", Name: "invited"}))
	r.invite("invited")
	r.addGateway("new")
	rejoin("gateway/orders", "proxy/dmz1")
	eventually(t, "everybody is cut off", func() error {
		for _, m := range []*control.Component{r.component("gateway", "orders"), r.component("proxy", "dmz1")} {
			if m.GetState() != "lost" {
				return errors.New(m.String())
			}
		}
		return nil
	})
	expectStatus(t, second(p.call("/acme.v1.Orders/Get")), codes.Unavailable)
	// Whose handshake was verified just before is refused all the same.
	if refusal := r.admin.(*admin).core.check(link.ALPNControl, peer); refusal == nil || refusal.Code != pki.CodeUnknownAuthority {
		t.Errorf("a session that the old CA let in: %v", refusal)
	}
	if _, refusal := r.admin.(*admin).core.renew(t.Context(), link.RenewAttempt{ID: own.ID, Incarnation: 1, Holder: own.Chain[0]}); refusal == nil || refusal.Code != pki.CodeUnknownAuthority {
		t.Errorf("a renewal on such a session: %v", refusal)
	}
	_, err := (&link.Dialler{Self: g.self, Log: g.log}).Dial(context.Background(), g.core, link.ALPNControl, pki.Expect{Role: pki.RoleCore})
	if err == nil {
		t.Error("a component that anchors on the old root still takes core for core")
	}
}
