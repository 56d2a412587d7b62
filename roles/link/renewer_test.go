package link

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// TestShortLives: a component lives on certificates of one minute, and so does
// core. Its session is never away, and core sees each new key.
func TestShortLives(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t, role, time.Minute)
			stop := l.run()
			defer stop()
			time.Sleep(time.Second)
			away, core := 0, time.Now()
			for range 20 * 60 * 2 { // 20 minutes
				time.Sleep(500 * time.Millisecond)
				synctest.Wait()
				if !l.connected() {
					away++
				}
				if time.Since(core) > 38*time.Second {
					l.renewCore(time.Minute)
					core = time.Now()
				}
			}
			l.mu.Lock()
			renewals, sessions := l.renewals, l.sessions
			l.mu.Unlock()
			if renewals < 30 || renewals > 35 {
				t.Errorf("%d renewals in 20 minutes of certificates that live one", renewals)
			}
			if n := l.confirmed(); n < renewals-1 {
				t.Errorf("core saw %d of %d new keys", n, renewals)
			}
			if away > 0 {
				t.Errorf("no session at %d of 2400 looks\n%s", away, l.log.text())
			}
			if sessions > 4*renewals {
				t.Errorf("%d sessions for %d renewals", sessions, renewals)
			}
			if r := l.readiness(); len(r) > 0 {
				t.Errorf("readiness: %q", r)
			}
			for line := range strings.Lines(l.log.text()) {
				if strings.Contains(line, "level=WARN") {
					t.Errorf("logged: %s", line)
				}
			}
		})
	})
}

// TestWhenToRenew: at 0.60 to 0.66 of the life, or as long before its end as
// was asked, and early when core's settings or its issuer have changed.
func TestWhenToRenew(t *testing.T) {
	c := newCA(t)
	now := time.Now().Truncate(time.Second)
	state := func(lifetime time.Duration) *selfState {
		key, _ := pki.NewKey("p256")
		issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: c.id(pki.RoleGateway, "one"), Incarnation: 1, PublicKey: key.Public(), Lifetime: lifetime}, now)
		if err != nil {
			t.Fatal(err)
		}
		return &selfState{credentials: &pki.Credentials{Chain: issued.Chain, Key: key}}
	}
	const day = 24 * time.Hour
	other, same := make([]byte, 32), pki.SPKI(state(day).credentials.Chain[1])
	for _, tc := range []struct {
		name               string
		life, before, want time.Duration
		issuer             []byte
		from, to           time.Duration // after now
	}{
		{"a day", day, 0, 0, nil, 14*time.Hour + 23*time.Minute, 15*time.Hour + 51*time.Minute},
		{"a minute", time.Minute, 0, 0, nil, 35 * time.Second, 40 * time.Second},
		{"90 days", 90 * day, 0, 0, nil, 53 * day, 60 * day},
		{"as asked", 30 * day, 7 * day, 0, nil, 30*day - 7*day - 11*time.Hour, 23 * day},
		{"asked for too much", day, 2 * day, 0, nil, 6 * time.Hour, 6*time.Hour + time.Second},
		{"lifetimes were shortened", 90 * day, 0, day, nil, 14 * time.Hour, 16 * time.Hour},
		{"lifetimes were lengthened", day, 0, 90 * day, nil, 14 * time.Hour, 16 * time.Hour},
		{"another issuer", day, 0, 0, other, 0, time.Minute},
		{"its own issuer", day, 0, 0, same[:], 14 * time.Hour, 16 * time.Hour},
	} {
		st := state(tc.life)
		st.lifetime, st.issuer = tc.want, tc.issuer
		seen := map[time.Duration]bool{}
		for range 20 {
			var p renewalPlan
			p.look(st, tc.before, (&Renewer{}).log())
			first := p.at
			if p.look(st, tc.before, (&Renewer{}).log()); !p.at.Equal(first) {
				t.Errorf("%s: the time moves", tc.name)
			}
			in := p.at.Sub(now)
			seen[in] = true
			if in < tc.from || in > tc.to+2*time.Second {
				t.Errorf("%s: renews in %s, want %s to %s", tc.name, in, tc.from, tc.to)
			}
		}
		if tc.name == "a day" && len(seen) < 10 {
			t.Errorf("no jitter: %v", seen)
		}
	}
}

// TestIssuerMoves: when core issues from a new intermediate, components renew
// soon, once.
func TestIssuerMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, pki.RoleGateway, 24*time.Hour)
		stop := l.run()
		defer stop()
		time.Sleep(5 * time.Second)
		published, err := l.reg.ca.Publish(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		activated, err := published.Activate(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		send := func(a *pki.Authority, n uint64) {
			l.reg.mu.Lock()
			l.reg.ca = a
			l.reg.mu.Unlock()
			b := a.Bundle()
			probe := l.issue(pki.RoleGateway, "probe", time.Hour)
			issuer := pki.SPKI(probe.Chain[1])
			l.coreSelf.Set(nil, b)
			l.core.Session(l.c.id(l.role, "one")).Send(&control.Snapshot{Generation: &control.Generation{Epoch: 1, Generation: n}, Bundle: b.Proto(), ComponentIssuer: issuer[:]})
			time.Sleep(3 * time.Minute)
		}
		send(published, 1)
		if n := l.renewed(); n != 0 {
			t.Fatalf("%d renewals when the new CA was published only", n)
		}
		send(activated, 2)
		if n := l.renewed(); n != 1 || !l.connected() {
			t.Fatalf("%d renewals after the activation, connected %v", n, l.connected())
		}
		if g := activated.GenerationOf(l.self.Credentials().Chain[0]); g != activated.Generation() {
			t.Fatalf("the certificate is of generation %d, core issues from %d", g, activated.Generation())
		}
		if l.confirmed() != 1 {
			t.Fatal("core has not seen the new key")
		}
	})
}

// TestReadiness: bad when core says no, or when little time is left; not while
// core is away for a while.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, pki.RoleGateway, 24*time.Hour)
		l.renewCore(90 * 24 * time.Hour)
		stop := l.run()
		defer func() { stop() }()
		l.reg.answer(&pki.Refusal{Code: "core_error", Cause: "the disk is full", Remedy: "wait"})
		time.Sleep(17 * time.Hour) // due since an hour at least, more than a quarter is left
		if err := l.renewer.Err(); err != nil || len(l.readiness()) > 0 {
			t.Fatalf("not ready though core only has troubles of its own: %v %q", err, l.readiness())
		}
		time.Sleep(2 * time.Hour)
		if err := l.renewer.Err(); err == nil || !strings.Contains(err.Error(), "disk is full") {
			t.Fatalf("a quarter of the life is left, core gives nothing: %v", err)
		}
		l.reg.answer(nil)
		time.Sleep(5 * time.Minute)
		if r := l.readiness(); len(r) != 2 || r[1] != "ready" || l.renewer.Err() != nil {
			t.Fatalf("readiness %q", r)
		}
		// It says no: at once.
		l.reg.answer(&pki.Refusal{Code: "key_superseded", Cause: "a newer key was seen", Remedy: "add it again"})
		time.Sleep(16 * time.Hour)
		if err := l.renewer.Err(); err == nil || !strings.Contains(err.Error(), "newer key") || !strings.Contains(err.Error(), "ends at") {
			t.Fatalf("core said no: %v", err)
		}
		if _, ok := pki.AsRefusal(l.renewer.Err()); !ok {
			t.Fatal("cause and remedy are lost")
		}
		if n := strings.Count(l.log.text(), "was not renewed"); n > 4 {
			t.Errorf("said %d times", n)
		}
	})
}

// TestClockWrong: a component whose clock is far ahead renews by core's.
func TestClockWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, pki.RoleGateway, 24*time.Hour)
		l.self.now = func() time.Time { return time.Now().Add(20 * time.Hour) }
		l.end.offset.Store(int64(-20 * time.Hour)) // as its heartbeats measure
		var p renewalPlan
		p.look(l.self.state.Load(), 0, l.renewer.log())
		if l.renewer.due(&p) {
			t.Error("renews a new certificate at once")
		}
		time.Sleep(16 * time.Hour)
		if !l.renewer.due(&p) {
			t.Error("not due")
		}
	})
}

// TestCoreSeesTheNewKeySoon: also where core dials, and has to be told.
func TestCoreSeesTheNewKeySoon(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t, role, 90*day)
			stop := l.run()
			defer stop()
			if !l.awaits(l.connected, 10*time.Second) {
				t.Fatal("not connected")
			}
			if err := l.renewer.request(t.Context(), l.self.Credentials().Chain[0]); err != nil {
				t.Fatal(err)
			}
			if !l.awaits(func() bool { return l.confirmed() == 1 }, 3*time.Second) || !l.connected() {
				t.Errorf("seen %d, connected %v", l.confirmed(), l.connected())
			}
		})
	})
}

// TestDiskFails: what cannot be stored is not used, is told at once, and costs
// no second certificate.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, pki.RoleGateway, day)
		l.renewCore(90 * day)
		former := l.self.Credentials()
		identity := filepath.Join(l.dir, "identity.pem")
		text, err := os.ReadFile(identity)
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(identity)
		os.MkdirAll(filepath.Join(identity, "in the way"), 0o700)
		stop := l.run()
		defer func() { stop() }()
		time.Sleep(16 * time.Hour)
		if err := l.renewer.Err(); err == nil || !strings.Contains(err.Error(), "store the renewed identity") {
			t.Fatalf("it is ready: %v", err)
		}
		if l.self.Credentials() != former || l.renewed() != 0 {
			t.Fatal("what is not on disk is in use")
		}
		os.RemoveAll(identity)
		os.WriteFile(identity, text, 0o600)
		time.Sleep(10 * time.Minute)
		if n, alarms := l.reg.stats(); l.renewer.Err() != nil || l.renewed() != 1 || n != 1 || len(alarms) > 0 {
			t.Errorf("after the disk is well: %v, renewals %d, issued %d, %q", l.renewer.Err(), l.renewed(), n, alarms)
		}
	})
}

// TestMemoryOnly: a component without a disk renews too.
func TestMemoryOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, pki.RoleProxy, time.Hour)
		l.renewCore(90 * day)
		l.renewer.Dir = ""
		l.reg.lose = 3
		stop := l.run()
		defer stop()
		time.Sleep(100 * time.Minute) // 60 + 40
		if n, alarms := l.reg.stats(); n != 2 || l.confirmed() != 2 || len(alarms) > 0 {
			t.Errorf("issued %d, seen %d, alarms %q", n, l.confirmed(), alarms)
		}
		if c, _, err := pki.LoadCredentials(l.dir); err != nil || c.Chain[0].Equal(l.self.Credentials().Chain[0]) {
			t.Error("it was written to disk", err)
		}
	})
}

// TestJoinsLater: a renewer that runs before the component has joined takes
// care of even the shortest life.
func TestJoinsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, pki.RoleGateway, time.Minute)
		joined, bundle := l.self.Credentials(), l.self.Bundle()
		l.self.state.Store(&selfState{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		attempts := 0
		l.renewer.End, l.renewer.Dial = nil, func(context.Context) (*Conn, error) { attempts++; return nil, errKilled }
		go func() { defer close(done); l.renewer.Run(ctx) }()
		time.Sleep(59 * time.Second)
		l.self.Set(joined, bundle)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if attempts == 0 {
			t.Error("it has expired, and nobody has tried to recover it")
		}
		if n := attempts; n > 10 {
			t.Errorf("%d attempts in 5 s", n)
		}
		cancel()
		<-done
	})
}

// TestKeepSaysOnce: a cause that differs in the time it tells is the same.
func TestKeepSaysOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logged
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		Keep(ctx, log.logger(), "link", func(context.Context) error {
			return &pki.Refusal{Code: pki.CodeExpired, Cause: "expired, the clock says " + time.Now().String(), Remedy: "renew"}
		})
		if n := strings.Count(log.text(), "trying again"); n != 1 {
			t.Errorf("said %d times", n)
		}
	})
}
