package link

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/acme/pki"
)

// TestKeepFresh: the next one is up before the former is retired; one that
// cannot be brought up leaves the former; one that is lost is brought up again.
func TestKeepFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ev := newEvents()
		var mu sync.Mutex
		conns := map[int]*Conn{}
		lose := map[int]chan struct{}{}
		get := func(n int) *Conn { mu.Lock(); defer mu.Unlock(); return conns[n] }
		n := 0
		var log logged
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			KeepFresh(ctx, log.logger(), "link", func(ctx context.Context, turn *Turn) error {
				mu.Lock()
				n++
				me, lost, conn := n, make(chan struct{}), &Conn{}
				conns[me], lose[me] = conn, lost
				mu.Unlock()
				name := string('0' + rune(me))
				if me == 2 || me == 3 {
					ev.add("failed " + name)
					return errors.New("nobody is there")
				}
				ev.add("dialled " + name)
				turn.Use(conn)
				time.Sleep(10 * time.Millisecond)
				conn.Up()
				ev.add("up " + name)
				retired := turn.Retired()
				for {
					select {
					case <-retired:
						ev.add("retired " + name)
						retired = nil
						time.Sleep(time.Minute) // finishes what is open
						ev.add("finished " + name)
						return nil
					case <-lost:
						ev.add("lost " + name)
						return errors.New("it was cut")
					case <-ctx.Done():
						ev.add("stopped " + name)
						return nil
					}
				}
			})
		}()
		time.Sleep(time.Hour)
		get(1).Replace()
		time.Sleep(10 * time.Second)
		want := []string{"dialled 1", "up 1", "failed 2", "failed 3", "dialled 4", "up 4", "retired 1"}
		if got := ev.all(); !slices.Equal(got, want) {
			t.Fatalf("%q", got)
		}
		mu.Lock()
		close(lose[4])
		mu.Unlock()
		time.Sleep(10 * time.Second)
		want = append(want, "lost 4", "dialled 5", "up 5")
		if got := ev.all(); !slices.Equal(got, want) {
			t.Fatalf("%q", got)
		}
		cancel()
		<-done // also for the one that is still finishing
		if got := ev.all(); !slices.Contains(got, "finished 1") && !slices.Contains(got, "stopped 1") || !slices.Contains(got, "stopped 5") {
			t.Fatalf("%q", got)
		}
		if s := log.text(); strings.Count(s, "nobody is there") != 1 || strings.Count(s, "it was cut") != 1 {
			t.Error(s)
		}
	})
}

// TestDue: by age, by a new identity, on demand.
func TestDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCA(t)
		self := c.self(pki.RoleGateway, "one")
		fresh := func(left time.Duration) *Conn {
			conn := &Conn{}
			conn.freshFor(self, self.state.Load(), time.Now().Add(left))
			return conn
		}
		conn := fresh(time.Hour)
		time.Sleep(39 * time.Minute)
		if conn.Due() {
			t.Error("due before two thirds are over")
		}
		if time.Sleep(time.Minute); !conn.Due() {
			t.Error("not due")
		}
		conn = fresh(time.Second)
		if time.Sleep(4 * time.Second); conn.Due() {
			t.Error("a peer that does not renew is dialled without end")
		}
		conn = fresh(time.Hour)
		self.Set(nil, c.authority.Bundle())
		if conn.Due() {
			t.Error("due for a new bundle")
		}
		self.Set(c.credentials(pki.RoleGateway, "one"), nil)
		if !conn.Due() {
			t.Error("not due for a new identity")
		}
		if conn = fresh(time.Hour); conn.Due() {
			t.Error("due at once")
		}
		conn.Replace()
		conn.Replace()
		if !conn.Due() {
			t.Error("not due on demand")
		}
	})
}

// TestTenure: how long a link may go on.
func TestTenure(t *testing.T) {
	c := newCA(t)
	peer := c.credentials(pki.RoleGateway, "one")
	for _, tc := range []struct {
		name   string
		newer  time.Duration // how long the session is on a newer certificate
		gap    time.Duration // for how long there is none in between, after two hours
		retire time.Duration // when the link is retired; 0: never
		revoke time.Duration // when the peer is; 0: never
		ends   time.Duration // about; 0: not within 20 days
		cause  error
	}{
		{name: "no session", ends: time.Hour + tenureGrace, cause: errExpired},
		{name: "its session is lost later", newer: 5 * time.Hour, ends: 5*time.Hour + tenureGrace, cause: errExpired},
		{name: "its session is replaced by another", newer: 5 * time.Hour, gap: tenureGrace - time.Second, ends: 5*time.Hour + tenureGrace, cause: errExpired},
		{name: "its session goes on", newer: 100 * day, ends: 7*day + time.Hour, cause: errTooOld},
		{name: "retired", newer: 100 * day, retire: 10 * time.Minute, ends: 7*day + 10*time.Minute, cause: errTooOld},
		{name: "revoked", newer: 100 * day, revoke: 2 * time.Hour, ends: 2 * time.Hour, cause: &pki.Refusal{Code: pki.CodeRevoked}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				self, retired := NewSelf(), make(chan struct{})
				conn := &Conn{Peer: Peer{ID: peer.ID, Incarnation: 1, Chain: peer.Chain}, expires: began.Add(time.Hour)}
				ten := Tenure{Conn: conn, Self: self, Retired: retired, Newer: func(*Conn) bool {
					d := time.Since(began)
					return d < tc.newer && (d < 2*time.Hour || d > 2*time.Hour+tc.gap)
				}}
				if tc.retire > 0 {
					time.AfterFunc(tc.retire, func() { close(retired) })
				}
				if tc.revoke > 0 {
					time.AfterFunc(tc.revoke, func() { self.SetRevocations(revocationOf(peer)) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*day)
				defer cancel()
				err := ten.Wait(ctx)
				if !errors.Is(err, tc.cause) {
					t.Errorf("ended by %v, want %v", err, tc.cause)
				}
				if d := time.Since(began); d < tc.ends || d > tc.ends+time.Second {
					t.Errorf("ended after %s, want %s", d, tc.ends)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		if err := (Tenure{Conn: &Conn{}, Self: NewSelf()}).Wait(ctx); err != nil {
			t.Error(err)
		}
	})
}

// TestNewer: both ends know whether the peer's session runs on a newer
// certificate than a link.
func TestNewer(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t, role, time.Hour)
			stop := l.run()
			defer stop()
			if !l.awaits(l.connected, 10*time.Second) {
				t.Fatal("not connected")
			}
			id := l.c.id(role, "one")
			at := l.core.Session(id).conn.Expires()
			same, older := &Conn{Peer: Peer{ID: id}, expires: at}, &Conn{Peer: Peer{ID: id}, expires: at.Add(-time.Second)}
			if l.core.Newer(same) || l.end.Newer(same) || !l.core.Newer(older) || !l.end.Newer(older) {
				t.Error(l.core.Newer(same), l.end.Newer(same), l.core.Newer(older), l.end.Newer(older))
			}
			if l.core.Newer(&Conn{Peer: Peer{ID: l.c.id(role, "two")}}) {
				t.Error("another identity's session counts")
			}
		})
	})
}

// TestClocksApart: both ends say when their clocks are more than ten minutes
// apart, once.
func TestClocksApart(t *testing.T) {
	var log logged
	var w clockWatch
	for _, d := range []time.Duration{0, 9 * time.Minute, 11 * time.Minute, 12 * time.Minute, -11 * time.Minute, time.Second, -20 * time.Minute} {
		w.look(log.logger(), "gateway one", d)
	}
	s := log.text()
	if strings.Count(s, "too far apart") != 2 || strings.Count(s, "agree again") != 1 || !strings.Contains(s, "ahead of this one") || !strings.Contains(s, "behind this one") {
		t.Error(s)
	}
}
