package firewall

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func must(t testing.TB, list ...string) Peers {
	t.Helper()
	p, err := ParsePeers(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// TestSetOwners: the set of a port is what all owners have together, and each
// owner has his own.
func TestSetOwners(t *testing.T) {
	var s Set
	if s.View().Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Fatal("an empty set allows somebody")
	}
	first := s.View()
	s.Put(map[string]Peers{"a": must(t, "10.0.0.1", "10.0.1.0/24"), "b": must(t, "10.0.0.2", "fe80::/10"), "c": must(t, "10.0.1.7")})
	select {
	case <-first.Replaced():
	default:
		t.Fatal("the change was not told")
	}
	v := s.View()
	for _, c := range []struct {
		addr  string
		any   bool
		ownsA bool
		who   string
	}{
		{"10.0.0.1", true, true, "a"},
		{"::ffff:10.0.0.1", true, true, "a"},
		{"10.0.0.2", true, false, "b"},
		{"10.0.1.7", true, true, "a c"},
		{"fe80::1%eth0", true, false, "b"},
		{"10.0.0.3", false, false, ""},
		{"::1", false, false, ""},
	} {
		a := netip.MustParseAddr(c.addr)
		if v.Contains(a) != c.any || v.Owns("a", a) != c.ownsA || strings.Join(v.OwnersOf(a), " ") != c.who {
			t.Errorf("%s: contained %v, a's %v, of %v", c.addr, v.Contains(a), v.Owns("a", a), v.OwnersOf(a))
		}
	}
	if v.Owns("nobody", netip.MustParseAddr("10.0.0.1")) || v.Contains(netip.Addr{}) {
		t.Error("an owner that is not there, or no address, is allowed")
	}
	s.Put(map[string]Peers{"c": must(t, "10.0.1.7"), "b": must(t, "10.0.0.2", "fe80::/10"), "a": must(t, "10.0.1.0/24", "10.0.0.1")})
	if s.View() != v {
		t.Error("the same set is another view")
	}
	s.Put(map[string]Peers{"b": must(t, "10.0.0.2"), "x": must(t, "any")})
	v = s.View()
	if !v.Contains(netip.MustParseAddr("192.0.2.1")) || v.Owns("b", netip.MustParseAddr("192.0.2.1")) || !v.Owns("x", netip.MustParseAddr("192.0.2.1")) {
		t.Error("any of one owner opens the port, and nobody else's identity")
	}
	if who := v.OwnersOf(netip.MustParseAddr("10.0.0.2")); !slices.Equal(who, []string{"b"}) {
		t.Errorf("of %v", who)
	}
}

// TestSetNames: names are looked up at once, again every 30 s, and keep their
// last good answer while they cannot be.
func TestSetNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		answer, fail := map[string][]netip.Addr{"a.example": addrs("10.0.0.1", "::ffff:10.0.0.2", "0.0.0.0", "ff02::1")}, error(nil)
		asked := 0
		var log bytes.Buffer
		s := &Set{Log: slog.New(slog.NewTextHandler(&log, nil)), Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return answer[name], fail
		}}
		set := func(err error, name string, list ...string) {
			mu.Lock()
			defer mu.Unlock()
			fail, answer[name] = err, addrs(list...)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		s.Put(map[string]Peers{"gateway a": must(t, "a.example", "192.0.2.1")})
		if v := s.View(); !v.Contains(netip.MustParseAddr("192.0.2.1")) {
			t.Error("an address waits for a name")
		}
		synctest.Wait()
		v := s.View()
		if got := v.Union().Strings(); !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2", "192.0.2.1"}) || len(v.Unresolved("gateway a")) != 0 {
			t.Fatalf("resolved to %v, unresolved %v", got, v.Unresolved("gateway a"))
		}
		// A server that fails, says nothing, or says nonsense changes nothing, and is told once.
		set(errors.New("SERVFAIL"), "a.example")
		time.Sleep(2 * resolveEvery)
		set(nil, "a.example", "0.0.0.0")
		time.Sleep(resolveEvery)
		synctest.Wait()
		if s.View() != v {
			t.Errorf("a failure changed the set to %v", s.View().Union().Strings())
		}
		if n := strings.Count(log.String(), "cannot be resolved"); n != 1 || !strings.Contains(log.String(), "SERVFAIL") {
			t.Errorf("the failure was said %d times: %s", n, log.String())
		}
		// Another answer takes its place and is told.
		set(nil, "a.example", "10.0.0.9")
		time.Sleep(resolveEvery)
		synctest.Wait()
		select {
		case <-v.Replaced():
		default:
			t.Error("the change was not told")
		}
		if got := s.View().Union().Strings(); !slices.Equal(got, []string{"10.0.0.9", "192.0.2.1"}) {
			t.Errorf("after the change %v", got)
		}
		if !strings.Contains(log.String(), "can be resolved again") || !strings.Contains(log.String(), "has other addresses") {
			t.Errorf("not said: %s", log.String())
		}
		// A name that never had an address is tried more often, and belongs to nobody.
		s.Put(map[string]Peers{"gateway b": must(t, "b.example")})
		synctest.Wait()
		if v := s.View(); !slices.Equal(v.Unresolved("gateway b"), []string{"b.example"}) || v.Contains(netip.MustParseAddr("10.0.0.9")) {
			t.Errorf("unresolved %v, union %v", v.Unresolved("gateway b"), v.Union().Strings())
		}
		set(nil, "b.example", "10.0.0.3")
		time.Sleep(resolveRetry)
		synctest.Wait()
		if !s.View().Owns("gateway b", netip.MustParseAddr("10.0.0.3")) {
			t.Error("the name was not tried again")
		}
		mu.Lock()
		before := asked
		mu.Unlock()
		time.Sleep(10*resolveEvery - time.Second)
		synctest.Wait()
		mu.Lock()
		if n := asked - before; n < 9 || n > 10 {
			t.Errorf("one name was asked for %d times in five minutes", n)
		}
		mu.Unlock()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSetBounds: names that do not answer hold up neither others nor the end,
// and no more of them are asked for at once than there are places.
func TestSetBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		var said bytes.Buffer
		s := &Set{Log: slog.New(slog.NewTextHandler(&said, nil)), Lookup: func(ctx context.Context, name string) ([]netip.Addr, error) {
			if name == "good.example" {
				var many []netip.Addr
				for i := range 1000 {
					many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
				}
				return many, nil
			}
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		names := []string{"good.example"}
		for i := range 4 * resolveAtOnce {
			names = append(names, "dead"+string(rune('a'+i%26))+string(rune('a'+i/26))+".example")
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		s.Put(map[string]Peers{"x": must(t, names...)})
		time.Sleep(4*resolveTimeout + time.Second)
		synctest.Wait()
		n := 0
		for _, p := range s.View().Union().Prefixes() {
			n += 1 << (32 - p.Bits())
		}
		if n != maxAddresses {
			t.Errorf("%d addresses of one name", n)
		}
		if m := most.Load(); m > resolveAtOnce {
			t.Errorf("%d lookups at once", m)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !strings.Contains(said.String(), "name=good.example left_out=744") {
			t.Errorf("it was not said that addresses are left out:\n%s", said.String())
		}
	})
}

// TestSetLocalhost: the system's resolver knows localhost, and finds loopback.
func TestSetLocalhost(t *testing.T) {
	var s Set
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go s.Run(ctx)
	s.Put(map[string]Peers{"x": must(t, "localhost")})
	for start := time.Now(); !s.View().Contains(netip.MustParseAddr("127.0.0.1")); {
		v := s.View()
		select {
		case <-v.Replaced():
		case <-time.After(10 * time.Second):
		}
		if time.Since(start) > 20*time.Second {
			t.Fatalf("localhost is %v", s.View().Union().Strings())
		}
	}
}
