package core

import (
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// key names a component.
type key struct {
	role pki.Role
	name string
}

func (k key) String() string { return string(k.role) + " " + k.name }

// registry is the components as they live: their sessions, links, and what
// they last said. What is decided about them is in the store.
type registry struct {
	mu         sync.Mutex
	components map[key]*component
	started    time.Time
	changed    chan struct{} // closed and replaced when a component may have become able to take calls
}

func newRegistry() *registry {
	return &registry{components: map[key]*component{}, started: time.Now(), changed: make(chan struct{})}
}

// get returns the component named k, new if there is none.
func (r *registry) get(k key) *component {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.components[k]
	if c == nil {
		c = &component{key: k, lines: rate.NewLimiter(rate.Every(10*time.Second), 20)}
		c.turned.Store(r.started.UnixNano())
		r.components[k] = c
	}
	return c
}

// find is get for readers: nil if there is none.
func (r *registry) find(k key) *component {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.components[k]
}

// remove takes the component out and cuts it off: its session ends, its links
// are closed and the calls on them end with UNAVAILABLE.
func (r *registry) remove(k key, why *pki.Refusal) {
	r.mu.Lock()
	c := r.components[k]
	delete(r.components, k)
	r.mu.Unlock()
	if c != nil {
		c.cut(why)
	}
	r.wake()
}

// forget takes a component out that has been cut off, unless another one has
// its name by now.
func (r *registry) forget(c *component) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.components[c.key] == c {
		delete(r.components, c.key)
	}
}

// list returns the components of a role, by name; "" is all.
func (r *registry) list(role pki.Role) []*component {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*component
	for k, c := range r.components {
		if role == "" || k.role == role {
			out = append(out, c)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].key.String() < out[j].key.String() })
	return out
}

// wake tells calls that wait for a gateway to look again.
func (r *registry) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// waiter is closed at the next wake.
func (r *registry) waiter() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// component is one gateway or proxy as it lives.
type component struct {
	key
	lines *rate.Limiter // see speak

	// Every call reads these.
	links        relay.Pool    // towards a gateway, from a proxy
	calling      relay.Pool    // from a gateway: what its apps call, see eastwest.go
	connected    atomic.Bool   // a control session is up
	acknowledged atomic.Uint64 // generation in force at its end, of this core's epoch
	enforces     atomic.Uint64 // the newest revocation in force at its end, of this core's list
	turned       atomic.Int64  // when it was last connected or lost, or core started; nanoseconds

	mu       sync.Mutex // guards what follows
	removed  bool
	session  *link.Session
	instance [16]byte
	announce *announcement
	said     map[string]bool            // what the operator was told already
	calls    map[string]*atomic.Int64   // in flight, by service
	conns    map[*relay.Conn]*link.Conn // what the links run on
	snapshot *control.Snapshot
	hash     [32]byte
	sent     map[uint64]content // by generation: what has not been acknowledged yet
	detail   string             // why it is not connected
	noted    time.Time          // when the store last heard that it was seen
}

// current is the live session, or nil.
func (c *component) current() *link.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

// begin makes s the session of the component. When the process at the other
// end is another one than before, the former one's links are closed.
func (c *component) begin(s *link.Session) bool {
	c.mu.Lock()
	if c.removed {
		c.mu.Unlock()
		return false
	}
	other := c.instance != s.Instance && c.instance != [16]byte{}
	if other {
		c.announce = nil
	}
	c.session, c.instance, c.detail = s, s.Instance, ""
	// A process that replaces its session works on by the snapshot it has.
	if held := s.Hello.GetHeld(); other || held.GetGeneration() != c.acknowledged.Load() || held.GetEpoch() != c.snapshot.GetGeneration().GetEpoch() {
		c.acknowledged.Store(0)
		c.enforces.Store(0)
	}
	c.turned.Store(time.Now().UnixNano())
	c.connected.Store(true)
	c.mu.Unlock()
	if other {
		c.close(errSuperseded(c.key))
	}
	return true
}

// end notes that s is over. It reports whether s was the current session.
func (c *component) end(s *link.Session, cause string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != s {
		return false
	}
	c.session, c.detail = nil, cause
	c.turned.Store(time.Now().UnixNano())
	c.connected.Store(false)
	return true
}

// maxLinks bounds the relay links that one component may have open; it has one,
// and a second while one replaces the other.
const maxLinks = 16

// add takes a relay link of the session that is current, into one of the
// component's pools. It is false when there is no session, or when there are too
// many links.
func (c *component) add(l *relay.Conn, conn *link.Conn, pool *relay.Pool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed || c.session == nil || pool.Len() >= maxLinks {
		return false
	}
	pool.Add(l)
	if c.conns == nil {
		c.conns = map[*relay.Conn]*link.Conn{}
	}
	c.conns[l] = conn
	return true
}

// forget takes out a link that has ended.
func (c *component) forget(l *relay.Conn) {
	c.mu.Lock()
	delete(c.conns, l)
	c.mu.Unlock()
	c.links.Remove(l)
	c.calling.Remove(l)
}

// close ends all links, and the calls on them.
func (c *component) close(why error) {
	c.links.Close(why)
	c.calling.Close(why)
}

// replace asks those who keep the component's links to replace them.
func (c *component) replace() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Replace()
	}
}

// cutIf ends the session and each link whose peer is refused.
func (c *component) cutIf(refuse func(link.Peer) *pki.Refusal) {
	c.mu.Lock()
	s := c.session
	type refusedLink struct {
		l   *relay.Conn
		why *pki.Refusal
	}
	var links []refusedLink
	for l, conn := range c.conns {
		if why := refuse(conn.Peer); why != nil {
			links = append(links, refusedLink{l, why})
		}
	}
	c.mu.Unlock()
	for _, r := range links {
		r.l.Close(errCut(c.key, r.why))
	}
	if s == nil {
		return
	}
	if why := refuse(s.Peer); why != nil {
		s.Close(why)
		c.end(s, why.Cause)
	}
}

// settling is how long after it was lost, or came, a component is expected to
// be able to take calls: it comes back within 3 s, and then looks at its
// upstreams.
const settling = 3 * time.Second

// expected reports whether the component may take calls in a moment.
func (c *component) expected(now time.Time) bool {
	return now.Sub(time.Unix(0, c.turned.Load())) < settling
}

// cut ends everything that is open with the component, for good.
func (c *component) cut(why *pki.Refusal) {
	c.mu.Lock()
	c.removed = true
	s := c.session
	c.session = nil
	c.connected.Store(false)
	c.mu.Unlock()
	if s != nil {
		s.Close(why)
	}
	c.close(errCut(c.key, why))
}

// explain sets why the component is not connected.
func (c *component) explain(detail string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		c.detail = detail
	}
}

// speak reports whether a line may be logged about what the component has just
// said: it alone chooses how often it says it.
func (c *component) speak() bool { return c.lines.Allow() }

// once reports whether what has not been said yet; it has been from then on.
func (c *component) once(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said[what] {
		return false
	}
	if c.said == nil || len(c.said) > 1000 {
		c.said = map[string]bool{}
	}
	c.said[what] = true
	return true
}

// announcement returns what the gateway last announced; nil if nothing.
func (c *component) announcement() *announcement {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.announce
}
