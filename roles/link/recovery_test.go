package link

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

const day = 24 * time.Hour

// awaits waits in a bubble until what is so.
func (l *life) awaits(what func() bool, within time.Duration) bool {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if synctest.Wait(); what() {
			return true
		}
	}
	return false
}

// TestRecoverExpired: a component that was off for ten days, and one that was
// off for too long.
func TestRecoverExpired(t *testing.T) {
	for _, tc := range []struct {
		days     time.Duration
		recovers bool
	}{{10, true}, {29, true}, {32, false}} {
		t.Run(strconv.Itoa(int(tc.days)), func(t *testing.T) {
			bothRoles(t, func(t *testing.T, role pki.Role) {
				synctest.Test(t, func(t *testing.T) {
					l := newLife(t, role, day)
					stop := l.run()
					if !l.awaits(l.connected, 10*time.Second) {
						t.Fatal("never connected", l.log.text())
					}
					stop()
					time.Sleep(tc.days * day)
					l.renewCore(day)
					l.open()
					stop = l.run()
					defer func() { stop() }()
					if got := l.awaits(l.connected, 20*time.Second); got != tc.recovers {
						t.Fatalf("connected %v, want %v\n%s", got, tc.recovers, l.log.text())
					}
					if !tc.recovers {
						if !strings.Contains(l.log.text(), "30 days") {
							t.Errorf("nobody says why: %s", l.log.text())
						}
						if role == pki.RoleGateway && l.renewer.Err() == nil {
							t.Error("it is ready")
						}
						return
					}
					if n, alarms := l.reg.stats(); n != 1 || len(alarms) > 0 {
						t.Errorf("%d certificates, alarms %q", n, alarms)
					}
					// And it lives on.
					renewals := l.renewed()
					time.Sleep(3 * day / 4)
					l.renewCore(day)
					if n := l.renewed(); n != renewals+1 || !l.connected() {
						t.Errorf("%d renewals a day later, connected %v", n-renewals, l.connected())
					}
				})
			})
		})
	}
}

// TestRecoverAfterRotation: the CA was rotated, and the old one retired, while
// the component was away. It knows the old root only.
func TestRecoverAfterRotation(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t, role, 20*day)
			a := l.reg.ca
			for _, step := range []func(time.Time) (*pki.Authority, error){
				func(now time.Time) (*pki.Authority, error) { return a.Publish(now) },
				func(now time.Time) (*pki.Authority, error) { return a.Activate(now) },
				func(now time.Time) (*pki.Authority, error) { return a.Retire(now) },
			} {
				time.Sleep(day)
				next, err := step(time.Now())
				if err != nil {
					t.Fatal(err)
				}
				a = next
			}
			l.reg.ca = a
			l.renewCore(20 * day)
			stop := l.run()
			defer func() { stop() }()
			if !l.awaits(l.connected, 20*time.Second) {
				t.Fatal("not connected\n", l.log.text())
			}
			if g := a.GenerationOf(l.self.Credentials().Chain[0]); g != a.Generation() || g == 0 {
				t.Errorf("its certificate is of generation %d", g)
			}
			if len(l.self.Bundle().Roots) != 1 || !l.self.Bundle().Equal(a.Bundle()) {
				t.Error("its trust bundle is not the new one")
			}
			// Durable: it starts again from disk.
			stop()
			l.open()
			stop = l.run()
			if n, _ := l.reg.stats(); !l.awaits(l.connected, 20*time.Second) || n != 1 {
				t.Error("not connected after a restart, or recovered again", n)
			}
		})
	})
}

// TestCompromisedIsNotRecovered: after ca rotate --compromised nothing leads
// from the old root to the new one.
func TestCompromisedIsNotRecovered(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t, role, 20*day)
			a, err := l.reg.ca.Compromised(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			l.reg.ca = a
			l.renewCore(20 * day)
			stop := l.run()
			defer stop()
			time.Sleep(time.Minute)
			if n, _ := l.reg.stats(); l.connected() || n > 0 {
				t.Fatalf("connected %v, issued %d", l.connected(), n)
			}
		})
	})
}

// TestRecoverRefuses: who may not recover.
func TestRecoverRefuses(t *testing.T) {
	c, other := newCA(t), newCA(t)
	reg := &registry{ca: c.authority, lifetime: time.Hour, keys: map[pki.ID]*keyRow{}}
	var log logged
	port := corePort(c, &log)
	registrar := &Registrar{Log: log.logger(), Renew: reg.renew, Verifier: func() *pki.Verifier {
		return c.authority.RecoveryVerifier(time.Now, port.Self.Revoked)
	}}
	port.Recover = registrar.ServeRecover
	addr := listen(t, port)
	revoked := c.credentials(pki.RoleGateway, "gone")
	byKey := c.credentials(pki.RoleGateway, "stolen")
	port.Self.SetRevocations(append(revocationOf(revoked), revocationByKey(byKey)...))

	for _, tc := range []struct {
		name string
		cr   *pki.Credentials
		code string
	}{
		{"good", c.credentials(pki.RoleGateway, "one"), ""},
		{"expired", c.credentialsAt(pki.RoleGateway, "two", time.Now().Add(-10*time.Hour)), ""},
		{"revoked", revoked, pki.CodeRevoked},
		{"revoked by key", byKey, pki.CodeRevoked},
		{"a proxy", c.credentials(pki.RoleProxy, "edge"), pki.CodeWrongRole},
		{"core itself", c.credentials(pki.RoleCore, "core"), pki.CodeWrongRole},
		{"a caller", c.leaf(pki.LeafRequest{ID: c.id(pki.RoleClient, "ann"), Client: true}), pki.CodeWrongIssuer},
		{"another CA", other.credentials(pki.RoleGateway, "one"), pki.CodeUnknownAuthority},
	} {
		t.Run(tc.name, func(t *testing.T) {
			self := NewSelf()
			self.Set(tc.cr, c.authority.Bundle())
			r := &Renewer{Self: self, Dial: func(ctx context.Context) (*Conn, error) {
				return (&Dialler{Self: self}).Dial(ctx, addr, ALPNRenew, pki.Expect{Role: pki.RoleCore})
			}}
			err := r.dialRecovery(testContext(t))
			if tc.code == "" {
				if err != nil || self.Credentials() == tc.cr {
					t.Fatalf("not recovered: %v", err)
				}
				return
			}
			wantRefusal(t, err, tc.code)
			if self.Credentials() != tc.cr {
				t.Fatal("it has another identity now")
			}
			log.awaits(t, "refused a connection", tc.code, ALPNRenew)
			if !isFinal(err) {
				t.Error("core's decision does not count as one")
			}
		})
	}

	// A newcomer's key recovers nothing.
	token := c.token(pki.RoleGateway, "new", time.Now().Add(time.Hour))
	conn, err := (&Dialler{Self: NewSelf(), Token: &token}).Dial(testContext(t), addr, ALPNRenew, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		t.Fatal(err)
	}
	self := NewSelf()
	self.Set(c.credentials(pki.RoleGateway, "one"), c.authority.Bundle())
	conn.own = self.Credentials().Chain[0] // as it would claim
	err = (&Renewer{Self: self, Dial: func(context.Context) (*Conn, error) { return conn, nil }}).dialRecovery(testContext(t))
	wantRefusal(t, err, "not_joined")
}

// TestRecoverOnlyForCore: at a proxy's port strangers get nothing: not even a
// certificate request.
func TestRecoverOnlyForCore(t *testing.T) {
	c, other := newCA(t), newCA(t)
	var log logged
	self := c.self(pki.RoleProxy, "one")
	asked := false
	r := &Renewer{Self: self, Log: log.logger(), step: func(string) error { asked = true; return nil }}
	port := proxyPort(self, nil, &log)
	port.Recover = r.ServeRecover
	addr := listen(t, port)
	for name, cr := range map[string]*pki.Credentials{
		"a gateway": c.credentials(pki.RoleGateway, "one"), "another core": other.credentials(pki.RoleCore, "core"),
		"a core that has expired": c.credentialsAt(pki.RoleCore, "core", time.Now().Add(-10*time.Hour)),
	} {
		t.Run(name, func(t *testing.T) {
			stranger := NewSelf()
			stranger.Set(cr, c.authority.Bundle())
			conn, err := (&Dialler{Self: stranger}).Dial(testContext(t), addr, ALPNRenew, pki.Expect{Role: pki.RoleProxy})
			if err != nil {
				t.Fatal(err)
			}
			reg := &registry{ca: c.authority, lifetime: time.Hour, keys: map[pki.ID]*keyRow{}}
			err = (&Registrar{Renew: reg.renew, Verifier: func() *pki.Verifier { return c.authority.RecoveryVerifier(time.Now, nil) }}).Recover(testContext(t), conn)
			if _, ok := pki.AsRefusal(err); !ok || asked || reg.issued > 0 {
				t.Fatalf("%v, asked %v, issued %d", err, asked, reg.issued)
			}
		})
	}
}

var errKilled = errors.New("killed")

// TestKilledWhileRenewing: wherever the component is killed, it starts with the
// old identity or the new one, connects, and ends with the newest; core issues
// one certificate, and nothing looks like a clone.
func TestKilledWhileRenewing(t *testing.T) {
	for _, step := range []string{"key saved", "request sent", "chain received", "stored", "answer lost"} {
		for _, recovering := range []bool{false, true} {
			name := step + ", renewing"
			if recovering {
				name = step + ", recovering"
			}
			if step == "request sent" && !recovering {
				continue // there it is one step with its answer
			}
			t.Run(name, func(t *testing.T) {
				bothRoles(t, func(t *testing.T, role pki.Role) {
					synctest.Test(t, func(t *testing.T) {
						l := newLife(t, role, 2*time.Hour)
						if step == "answer lost" {
							l.reg.lose = 1
						}
						if recovering {
							time.Sleep(3 * day)
							l.renewCore(2 * time.Hour)
						}
						l.killAt(t, step)
						l.open()
						stop := l.run()
						defer func() { stop() }()
						if !l.awaits(l.connected, 30*time.Second) {
							t.Fatal("does not connect\n", l.log.text())
						}
						time.Sleep(10 * time.Minute)
						if n, alarms := l.reg.stats(); n != 1 || len(alarms) > 0 {
							t.Errorf("core issued %d certificates, alarms %q", n, alarms)
						}
						if l.confirmed() != 1 || !l.connected() {
							t.Errorf("core saw %d new keys, connected %v", l.confirmed(), l.connected())
						}
						l.renewCore(2 * time.Hour)
						time.Sleep(90 * time.Minute)
						if _, alarms := l.reg.stats(); l.confirmed() != 2 || len(alarms) > 0 {
							t.Errorf("the next renewal: %d keys seen, alarms %q", l.confirmed(), alarms)
						}
					})
				})
			})
		}
	}
}

// killAt runs until the renewer comes to step, and stops everything there.
func (l *life) killAt(t *testing.T, step string) {
	at := make(chan struct{})
	var gone context.Context
	gone, kill := context.WithCancel(context.Background())
	l.renewer.step = func(s string) error {
		if s != step {
			return nil
		}
		select {
		case <-at:
		default:
			close(at)
		}
		<-gone.Done() // and comes back only when nothing runs any more
		return errKilled
	}
	stop := l.run()
	limit := time.After(20 * time.Hour)
	if step == "answer lost" {
		for n := 0; n == 0; n, _ = l.reg.stats() {
			time.Sleep(10 * time.Millisecond)
		}
	} else {
		select {
		case <-at:
		case <-limit:
			t.Fatal("never came to ", step, "\n", l.log.text())
		}
	}
	kill()
	stop()
}

// TestRecoveredBundleStays: a snapshot on disk from before a recovery does not
// bring the former trust bundle back; what core sends does.
func TestRecoveredBundleStays(t *testing.T) {
	c := newCA(t)
	old := c.authority
	next, err := old.Compromised(time.Now()) // or rotated: nothing of the old bundle is in the new
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{}
	self := c.self(pki.RoleGateway, "one")
	open := func() *Snapshots {
		return &Snapshots{Self: self, Save: d.save, Load: d.load, Forget: d.forget, Prepare: func(*control.Snapshot) (func(), error) { return func() {}, nil }}
	}
	snapshot := func(a *pki.Authority, n uint64) *control.Snapshot {
		return &control.Snapshot{Generation: &control.Generation{Epoch: 1, Generation: n}, Bundle: a.Bundle().Proto()}
	}
	if err := open().Apply(snapshot(old, 1)); err != nil {
		t.Fatal(err)
	}
	c.authority = next
	self = c.self(pki.RoleGateway, "one") // recovered, and started again
	s := open()
	if err := s.Restore(); err != nil || s.Held().GetGeneration() != 1 {
		t.Fatal(err, s.Held())
	}
	if !self.Bundle().Equal(next.Bundle()) {
		t.Fatal("the former trust bundle is back")
	}
	if err := s.Apply(snapshot(old, 2)); err != nil || !self.Bundle().Equal(old.Bundle()) {
		t.Fatal("what core sends does not count", err)
	}
}

// TestNeverItsOwnClone: while the session still runs on the former identity, no
// other key is asked for, neither there nor on a connection of its.
func TestNeverItsOwnClone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, pki.RoleGateway, day)
		stop := l.run()
		defer stop()
		if !l.awaits(l.connected, 10*time.Second) {
			t.Fatal("not connected")
		}
		conn, err := l.dial(t.Context(), ALPNRenew)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		next := l.issue(pki.RoleGateway, "one", day)
		l.self.Set(next, nil)
		if err := l.renewer.request(t.Context(), next.Chain[0]); !errors.Is(err, errOldSession) {
			t.Errorf("on the session: %v", err)
		}
		l.renewer.Dial = func(context.Context) (*Conn, error) { return conn, nil }
		if err := l.renewer.dialRecovery(t.Context()); !errors.Is(err, errOldSession) {
			t.Errorf("recovering: %v", err)
		}
		if n, alarms := l.reg.stats(); n > 0 || len(alarms) > 0 {
			t.Error(n, alarms)
		}
	})
}

// TestClockOnTheLink: both ends name a clock that is off, from what heartbeats
// measure.
func TestClockOnTheLink(t *testing.T) {
	var core, component logged
	conn := &Conn{Peer: Peer{ID: pki.ID{TrustDomain: "x", Role: pki.RoleGateway, Name: "one"}}}
	s := newSession(t.Context(), &CoreEnd{Log: core.logger()}, conn)
	s.heartbeat(&control.Heartbeat{Sequence: 1, ClockOffsetNano: int64(15 * time.Minute)})
	core.awaits(t, "clock of gateway one", "behind", "15m0s")

	e := &ComponentEnd{Log: component.logger()}
	cs := &componentSession{sessionConn: newSessionConn(t.Context(), conn), owner: e, sequence: 1, sent: time.Now()}
	cs.replied(&control.HeartbeatReply{Sequence: 1, UnixNano: time.Now().Add(15 * time.Minute).UnixNano()})
	component.awaits(t, "clock of core", "ahead of")
	if d := e.ClockOffset(); d < 14*time.Minute || d > 16*time.Minute {
		t.Error(d)
	}
}
