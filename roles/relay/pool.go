package relay

// Pool is a set of live connections towards one peer. The zero value is empty
// and ready.
type Pool struct{}

// Add puts a connection into the pool. It leaves by itself when it is done.
func (p *Pool) Add(c *Conn) {}

// Remove takes a connection out without touching it.
func (p *Pool) Remove(c *Conn) {}

// Pick returns the accepting connection with the fewest calls in flight, or nil.
func (p *Pool) Pick() *Conn { return nil }

// Len is the number of connections, InFlight that of their open calls.
func (p *Pool) Len() int { return 0 }

// InFlight is the number of open calls over all connections.
func (p *Pool) InFlight() int { return 0 }

// Drain drains every connection.
func (p *Pool) Drain() {}

// Close closes every connection.
func (p *Pool) Close(reason error) {}
