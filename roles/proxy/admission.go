package proxy

import (
	"cmp"
	"net/netip"
	"sync"
	"sync/atomic"

	"sallyport/configs"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// handshakeCost is what a handshake may make us hold: what came of it, its
// stack, and what it leaves to the garbage collector.
const handshakeCost = 32 << 10

// admission counts connections and calls at the public port, per source: an
// IPv4 address, an IPv6 /64. A source may have as much as is free then: one
// alone gets half of everything, two that take all they can get a third each,
// and there is a place for who comes next, until a dozen or more of them do it.
// Where all callers come from one address, a balancer's, they share half; one
// that says who they are (--proxy-protocol, --trusted-front) may have it all.
type admission struct {
	maxCalls, maxCallsPerSource int64

	budget *relay.Budget
	calls  atomic.Int64

	mu sync.Mutex // guards what follows

	maxConnections, maxPerSource, maxHandshakes int

	sources     map[netip.Prefix]*source
	connections int
	handshakes  int
}

// source is where connections come from.
type source struct {
	prefix      netip.Prefix
	budget      *relay.Budget // its share of the process's
	calls       atomic.Int64
	connections int // guarded by the admission's mutex
	handshakes  int // likewise
	visits      int // likewise; calls from here that came through a front
}

// newAdmission has the ceilings of l and shares b, nil for relay.DefaultBudget.
func newAdmission(l configs.Limits, b *relay.Budget) *admission {
	return &admission{maxConnections: min(l.Connections, fileLimit()/2), maxPerSource: l.PerSource, maxHandshakes: l.Handshakes,
		maxCalls: int64(l.Calls), maxCallsPerSource: int64(l.CallsPerSource), budget: cmp.Or(b, relay.DefaultBudget), sources: make(map[netip.Prefix]*source)}
}

// come takes a new connection, which begins with its handshake. It returns nil,
// and the limit that it would exceed, when there is no place for it. many says
// that it comes from where many callers share an address.
func (a *admission) come(from netip.Addr, many bool) (*source, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.at(from)
	connections, handshakes := a.maxConnections-a.connections, a.maxHandshakes-a.handshakes
	switch {
	case connections <= 0 || !many && (s.connections >= connections || s.connections >= a.maxPerSource):
		return nil, "too_many"
	case handshakes <= 0 || !many && s.handshakes >= handshakes:
		return nil, "too_many_handshakes"
	case !s.budget.Hold(handshakeCost):
		s.budget.Release(handshakeCost)
		return nil, "memory"
	}
	a.sources[s.prefix] = s
	s.connections++
	s.handshakes++
	a.connections++
	a.handshakes++
	return s, ""
}

// move counts a connection in its handshake as one of another source: a
// balancer has said where it comes from. Without a place there it stays with s.
func (a *admission) move(s *source, from netip.Addr) (*source, string) {
	a.shaken(s)
	a.leave(s)
	to, why := a.come(from, false)
	if to != nil {
		return to, ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sources[s.prefix] = s
	s.budget.Hold(handshakeCost)
	s.connections++
	s.handshakes++
	a.connections++
	a.handshakes++
	return s, why
}

// visit notes a call of from that came on a front's connection; depart is owed.
func (a *admission) visit(from netip.Addr) *source {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.at(from)
	a.sources[s.prefix] = s
	s.visits++
	return s
}

// depart is the end of a visit.
func (a *admission) depart(s *source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.visits--
	a.forget(s)
}

// at is the source of an address. a.mu is held.
func (a *admission) at(from netip.Addr) *source {
	prefix := link.SourcePrefix(from)
	if s := a.sources[prefix]; s != nil {
		return s
	}
	return &source{prefix: prefix, budget: a.budget.Share()}
}

// forget drops a source that has nothing here. a.mu is held.
func (a *admission) forget(s *source) {
	if s.connections == 0 && s.visits == 0 && a.sources[s.prefix] == s {
		delete(a.sources, s.prefix)
	}
}

// shaken notes that a connection's handshake is over.
func (a *admission) shaken(s *source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.handshakes--
	a.handshakes--
	s.budget.Release(handshakeCost)
}

// leave gives the place of a connection back.
func (a *admission) leave(s *source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connections--
	s.connections--
	a.forget(s)
}

// begin counts a call; end is owed for it, whatever begin says.
func (a *admission) begin(s *source) bool {
	own, all := s.calls.Add(1), a.calls.Add(1)
	return own+all <= a.maxCalls && own <= a.maxCallsPerSource
}

// end is the end of a call.
func (a *admission) end(s *source) {
	s.calls.Add(-1)
	a.calls.Add(-1)
}
