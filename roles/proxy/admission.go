package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"sallyport/roles/link"
)

// How much strangers may hold at a time. A source may have as much as is free
// then: one alone gets half of everything, two that take all they can get a
// third each, and there is a place for who comes next, until a dozen or more of
// them do it. Where all callers come from one address, a balancer's, they share
// half.
const (
	maxConnections = 16384 // and never more than half of the files that may be open
	maxHandshakes  = 2048  // connections that have not finished theirs
	maxCalls       = 9000  // a link to core takes 10000
)

// admission counts connections and calls at the public port, per source: an
// IPv4 address, an IPv6 /64.
type admission struct {
	maxConnections, maxHandshakes int
	maxCalls                      int64

	calls atomic.Int64

	mu          sync.Mutex // guards what follows
	sources     map[netip.Prefix]*source
	connections int
	handshakes  int
}

// source is where connections come from.
type source struct {
	prefix      netip.Prefix
	calls       atomic.Int64
	connections int // guarded by the admission's mutex
	handshakes  int // likewise
}

func newAdmission() *admission {
	return &admission{maxConnections: min(maxConnections, fileLimit()/2), maxHandshakes: maxHandshakes, maxCalls: maxCalls,
		sources: make(map[netip.Prefix]*source)}
}

// come takes a new connection, which begins with its handshake. It returns nil
// when there is no place for it.
func (a *admission) come(from netip.Addr) *source {
	prefix := link.SourcePrefix(from)
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sources[prefix]
	if s == nil {
		s = &source{prefix: prefix}
	}
	if s.connections >= a.maxConnections-a.connections || s.handshakes >= a.maxHandshakes-a.handshakes {
		return nil
	}
	a.sources[prefix] = s
	s.connections++
	s.handshakes++
	a.connections++
	a.handshakes++
	return s
}

// shaken notes that a connection's handshake is over.
func (a *admission) shaken(s *source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.handshakes--
	a.handshakes--
}

// leave gives the place of a connection back.
func (a *admission) leave(s *source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connections--
	if s.connections--; s.connections == 0 {
		delete(a.sources, s.prefix)
	}
}

// begin counts a call; end is owed for it, whatever begin says.
func (a *admission) begin(s *source) bool {
	return s.calls.Add(1)+a.calls.Add(1) <= a.maxCalls
}

// end is the end of a call.
func (a *admission) end(s *source) {
	s.calls.Add(-1)
	a.calls.Add(-1)
}
