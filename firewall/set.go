package firewall

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Set is the peers of a port as they are now: what was written for each owner
// (a gateway; core, at a proxy), with the DNS names in it resolved and resolved
// again. A name that cannot be resolved keeps the addresses it had; one that
// never could allows nobody. Contains and the other questions are answered from
// an immutable View without a lock, since every connection asks.
//
// Set the exported fields before the first use; Run has to run for names to be
// resolved.
type Set struct {
	Log *slog.Logger // names that change or fail, once each; nil: nowhere

	// Lookup finds the addresses of a name. Nil is the system's resolver.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)

	once sync.Once
	view atomic.Pointer[View]
	wake chan struct{}

	mu     sync.Mutex // guards what follows
	owners map[string]Peers
	names  map[string]*resolution
}

// resolution is one name of the set.
type resolution struct {
	addrs  []netip.Addr // the last good answer, sorted
	failed string       // why the last attempt failed; empty: it did not
	asking bool
	tried  bool
	due    time.Time // of the next attempt
}

const (
	resolveEvery   = 30 * time.Second
	resolveRetry   = 5 * time.Second // while a name has no address at all
	resolveTimeout = 5 * time.Second
	resolveAtOnce  = 16
	maxAddresses   = 256 // of one name
)

// View is a Set at one moment. It is immutable.
type View struct {
	union      Peers
	owners     map[string]Peers
	unresolved map[string][]string // owner → names without an address
	untried    bool
	replaced   chan struct{}
}

// Owns reports whether addr is one of the owner's. An owner that the set does
// not know has none.
func (v *View) Owns(owner string, addr netip.Addr) bool { return v.owners[owner].Allows(addr) }

// Contains reports whether addr is anybody's.
func (v *View) Contains(addr netip.Addr) bool { return v.union.Allows(addr) }

// Union is what all owners have together, names resolved.
func (v *View) Union() Peers { return v.union }

// Of is what one owner has, names resolved.
func (v *View) Of(owner string) Peers { return v.owners[owner] }

// OwnersOf are those who may come from addr by an address or network of their
// own, sorted; who may come from anywhere is left out.
func (v *View) OwnersOf(addr netip.Addr) []string {
	var list []string
	for owner, p := range v.owners {
		if !p.IsAny() && p.Allows(addr) {
			list = append(list, owner)
		}
	}
	slices.Sort(list)
	return list
}

// Knows reports whether the set has the owner.
func (v *View) Knows(owner string) bool {
	_, ok := v.owners[owner]
	return ok
}

// Untried reports whether a name of the set has not been looked up even once.
func (v *View) Untried() bool { return v.untried }

// Unresolved are the DNS names of an owner that have no address yet.
func (v *View) Unresolved(owner string) []string { return v.unresolved[owner] }

// Replaced is closed when the set has a newer view.
func (v *View) Replaced() <-chan struct{} { return v.replaced }

func (s *Set) init() {
	s.once.Do(func() {
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		if s.Lookup == nil {
			s.Lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
				return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
			}
		}
		s.wake = make(chan struct{}, 1)
		s.names = map[string]*resolution{}
		s.view.Store(&View{replaced: make(chan struct{})})
	})
}

// View is the set as it is now; before the first Put it allows nobody.
func (s *Set) View() *View {
	s.init()
	return s.view.Load()
}

// Put replaces the owners and what each of them has. When it returns, addresses
// and networks count, and names that were known before; new names are being
// looked up.
func (s *Set) Put(owners map[string]Peers) {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners != nil && maps.EqualFunc(s.owners, owners, Peers.Equal) {
		return
	}
	s.owners = maps.Clone(owners)
	wanted := map[string]*resolution{}
	for _, p := range s.owners {
		for _, name := range p.names {
			if wanted[name] = s.names[name]; wanted[name] == nil {
				wanted[name] = &resolution{}
			}
		}
	}
	s.names = wanted
	s.renewLocked()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// renewLocked makes the view of what is known now.
func (s *Set) renewLocked() {
	former := s.view.Load()
	v := &View{owners: make(map[string]Peers, len(s.owners)), unresolved: map[string][]string{}, replaced: make(chan struct{})}
	all := make([]Peers, 0, len(s.owners))
	for owner, p := range s.owners {
		if len(p.names) > 0 && !p.any {
			prefixes := slices.Clone(p.prefixes)
			for _, name := range p.names {
				known := s.names[name].addrs
				v.untried = v.untried || !s.names[name].tried
				for _, a := range known {
					prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
				}
				if len(known) == 0 {
					v.unresolved[owner] = append(v.unresolved[owner], name)
				}
			}
			p = Peers{prefixes: merge(prefixes)}
		}
		v.owners[owner] = p
		all = append(all, p)
	}
	v.union = Union(all...)
	s.view.Store(v)
	close(former.replaced)
}

// Run resolves names until ctx ends: a new one at once, the others every 30 s.
func (s *Set) Run(ctx context.Context) error {
	s.init()
	places := make(chan struct{}, resolveAtOnce)
	var asking sync.WaitGroup
	defer asking.Wait()
	for {
		due, next := s.due(time.Now())
		for _, name := range due {
			asking.Go(func() {
				select {
				case places <- struct{}{}:
				case <-ctx.Done():
					return
				}
				defer func() { <-places }()
				s.resolve(ctx, name)
			})
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// due are the names to be looked up now, which are marked so that nobody else
// does, and how long it is until the next.
func (s *Set) due(now time.Time) (names []string, next time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next = resolveEvery
	for name, r := range s.names {
		switch {
		case r.asking:
		case !now.Before(r.due):
			r.asking = true
			names = append(names, name)
		default:
			next = min(next, r.due.Sub(now))
		}
	}
	return names, next
}

// resolve looks one name up and takes the answer into the view.
func (s *Set) resolve(ctx context.Context, name string) {
	bounded, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := s.Lookup(bounded, name)
	if ctx.Err() != nil {
		return
	}
	addrs := usable(found)
	left := max(len(addrs)-maxAddresses, 0)
	addrs = addrs[:len(addrs)-left]
	why := ""
	switch {
	case err != nil:
		why = err.Error()
		why = why[:min(len(why), 200)]
	case len(addrs) == 0:
		why = "it has no usable address"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.names[name]
	if r == nil {
		return // nobody has it any more
	}
	first := !r.tried
	r.asking, r.tried, r.due = false, true, time.Now().Add(resolveEvery)
	if why != "" {
		if len(r.addrs) == 0 {
			r.due = time.Now().Add(resolveRetry)
		}
		if r.failed == "" {
			s.Log.Warn("a peer's name cannot be resolved; its last good answer stays", "name", name, "addresses", texts(r.addrs), "cause", why,
				"remedy", "check the name and this host's name server, or name the peer by its address")
		}
		r.failed = why
	} else {
		if r.failed != "" {
			s.Log.Info("a peer's name can be resolved again", "name", name, "addresses", texts(addrs))
		}
		r.failed = ""
		if !slices.Equal(r.addrs, addrs) {
			s.Log.Info("a peer's name has other addresses", "name", name, "addresses", texts(addrs), "before", texts(r.addrs))
			r.addrs, first = addrs, true
			if left > 0 {
				s.Log.Warn("a peer's name has more addresses than count", "name", name, "left_out", left, "counted", len(addrs), "remedy", "name the peer by a CIDR")
			}
		}
	}
	if first {
		s.renewLocked()
	}
	select {
	case s.wake <- struct{}{}: // the time of its next attempt is known now
	default:
	}
}

// usable is an answer of the DNS as the set takes it: sorted, each address once.
func usable(found []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range found {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func texts(addrs []netip.Addr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}
