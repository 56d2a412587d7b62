package gateway

import (
	"net/netip"
	"sync"

	"sallyport/roles/link"
)

// room is how many connections and calls an entrance takes.
type room struct {
	maxApps, maxCalls int
	sourceApps        int // of those, from one source
	sourceCalls       int

	mu      sync.Mutex // guards what follows
	all     appSource
	sources map[netip.Prefix]*appSource
}

// appSource is what is open from one address, or IPv6 /64. Its counts are
// guarded by the room's mutex.
type appSource struct {
	prefix      netip.Prefix
	apps, calls int
}

// newRoom is the part of one of n entrances. With strangers set, apps come from
// several hosts, and none of these may have more than half.
func newRoom(n int, strangers bool) *room {
	r := &room{maxApps: maxApps / n, maxCalls: maxAppCalls / n, sources: make(map[netip.Prefix]*appSource)}
	r.sourceApps, r.sourceCalls = r.maxApps, r.maxCalls
	if strangers {
		r.sourceApps, r.sourceCalls = r.maxApps/2, r.maxCalls/2
	}
	return r
}

// come takes a connection, nil when there is no place for it; leave is owed.
func (r *room) come(from netip.Addr) *appSource {
	r.mu.Lock()
	defer r.mu.Unlock()
	var prefix netip.Prefix // zero on unix sockets
	if from.IsValid() {
		prefix = link.SourcePrefix(from)
	}
	s := r.sources[prefix]
	if s == nil {
		s = &appSource{prefix: prefix}
	}
	if r.all.apps >= r.maxApps || s.apps >= r.sourceApps {
		return nil
	}
	r.sources[prefix] = s
	r.all.apps++
	s.apps++
	return s
}

// leave is the end of a connection. Its calls may still be ending.
func (r *room) leave(s *appSource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all.apps--
	s.apps--
	r.forget(s)
}

// begin takes a call; end is owed if it says so.
func (r *room) begin(s *appSource) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all.calls >= r.maxCalls || s.calls >= r.sourceCalls {
		return false
	}
	r.all.calls++
	s.calls++
	return true
}

// end is the end of a call.
func (r *room) end(s *appSource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all.calls--
	s.calls--
	r.forget(s)
}

// forget drops a source that has nothing open. r.mu is held.
func (r *room) forget(s *appSource) {
	if s.apps == 0 && s.calls == 0 && r.sources[s.prefix] == s {
		delete(r.sources, s.prefix)
	}
}
