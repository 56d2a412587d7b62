package relay

import (
	"slices"
	"sync"
)

// Pool is a set of live connections towards one peer. The zero value is empty
// and ready.
type Pool struct {
	mu    sync.Mutex // guards conns, of which a new slice is made with every change
	conns []*Conn
}

// Add puts a connection into the pool. It need not be removed when it is done.
func (p *Pool) Add(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := slices.DeleteFunc(slices.Clone(p.conns), func(x *Conn) bool { return x == c || x.over() })
	p.conns = append(live, c)
}

// Remove takes a connection out without touching it.
func (p *Pool) Remove(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = slices.DeleteFunc(slices.Clone(p.conns), func(x *Conn) bool { return x == c })
}

func (p *Pool) all() []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

// Pick returns the accepting connection with the fewest calls in flight, or nil.
func (p *Pool) Pick() *Conn {
	var best *Conn
	least := 0
	for _, c := range p.all() {
		if n := c.InFlight(); (best == nil || n < least) && c.Accepting() {
			best, least = c, n
		}
	}
	return best
}

// Len is the number of connections that accept calls.
func (p *Pool) Len() int {
	n := 0
	for _, c := range p.all() {
		if c.Accepting() {
			n++
		}
	}
	return n
}

// InFlight is the number of open calls over all connections.
func (p *Pool) InFlight() int {
	n := 0
	for _, c := range p.all() {
		n += c.InFlight()
	}
	return n
}

// Drain drains every connection.
func (p *Pool) Drain() {
	for _, c := range p.all() {
		c.Drain()
	}
}

// Close closes every connection.
func (p *Pool) Close(reason error) {
	for _, c := range p.all() {
		c.Close(reason)
	}
}
