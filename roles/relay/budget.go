package relay

import "sync"

// Budget bounds the memory that peers can make us hold: what waits for a window
// or a socket, headers of open calls, blocks and frames that have begun to come,
// and a sum for each connection and call as such. Bytes are counted as the
// buffers that hold them are large.
//
// A budget can be shared: each share may hold as much as is free then, so that
// one that takes all it can gets half, two a third each, and there is something
// left for who comes next.
type Budget struct {
	limit  int64
	parent *Budget // of a share
	used   counter
}

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// DefaultBudget is what connections without a budget of their own share: 512 MiB.
var DefaultBudget = NewBudget(512 << 20)

// Share makes one of those who share b, which is no share itself. It need not be
// given back.
func (b *Budget) Share() *Budget { return &Budget{limit: b.limit, parent: b} }

// Used is the number of bytes held now.
func (b *Budget) Used() int64 { return b.used.Load() }

// Limit is the number of bytes that may be held.
func (b *Budget) Limit() int64 { return b.limit }

// Hold counts n bytes as held, and says whether there was room for them. They
// are counted in any case; Release is owed.
func (b *Budget) Hold(n int64) bool { return b.add(n) == roomy }

// Release counts n bytes as held no longer.
func (b *Budget) Release(n int64) { b.sub(n) }

// room says how much of a budget is left.
type room uint8

const (
	roomy   room = iota
	tight        // over: there is none for more than a little
	crammed      // over by an eighth, or a share that has more than is free
)

func (b *Budget) add(n int64) room {
	used, limit := b.used.Add(n), b.limit
	if b.parent != nil {
		total := b.parent.used.Add(n)
		switch {
		case total > limit+limit/8:
			return crammed
		case used > modest(limit) && used > limit-total: // more than is free
			return crammed
		}
		return roomy
	}
	switch {
	case used > limit+limit/8:
		return crammed
	case used > limit:
		return tight
	}
	return roomy
}

// modest is what each share may have although others leave little.
func modest(limit int64) int64 { return limit / 128 }

func (b *Budget) sub(n int64) {
	b.used.Add(-n)
	if b.parent != nil {
		b.parent.used.Add(-n)
	}
}

// half says whether half of what b may have is used.
func (b *Budget) half() bool {
	used := b.used.Load()
	if b.parent != nil {
		used += b.parent.used.Load()
	}
	return used > b.limit/2
}

// Shares are the shares of a budget by whatever those are called for whom
// something is held.
type Shares struct {
	budget *Budget

	mu  sync.Mutex // guards what follows
	all map[string]*shareUse
}

type shareUse struct {
	budget *Budget
	users  int
}

// NewShares makes the shares of b.
func NewShares(b *Budget) *Shares { return &Shares{budget: b, all: make(map[string]*shareUse)} }

// Take is the share of name, made if it is not there; Leave is owed for it.
func (s *Shares) Take(name string) *Budget {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.all[name]
	if u == nil {
		u = &shareUse{budget: s.budget.Share()}
		s.all[name] = u
	}
	u.users++
	return u.budget
}

// Leave gives a share back.
func (s *Shares) Leave(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.all[name]; u != nil {
		if u.users--; u.users == 0 {
			delete(s.all, name)
		}
	}
}

// What a connection and a call cost beside what they send, in bytes, measured
// with TLS 1.3: its state and stacks, ours, and what the garbage collector has
// not found yet.
const (
	connCost = 24 << 10
	callCost = 2 << 10
)

// holdReading counts what the reader holds while it waits for the rest of a
// frame, of a TLS record or of a header block, and ends a connection for which
// there is no room. It runs on the reader goroutine, before that waits.
func (c *Conn) holdReading() {
	n := int64(0)
	if c.rb != nil && c.rw > c.rr {
		n = readSize
	}
	if c.block.buf != nil {
		n += int64(cap(c.block.buf.b))
	}
	if c.sock != nil {
		n += c.sock.partial()
	}
	d := n - c.heldReading
	if d == 0 {
		return
	}
	c.heldReading = n
	if d < 0 {
		c.budget.sub(-d)
		return
	}
	if c.budget.add(d) != roomy {
		c.crowdedOut()
	}
}

// crowdedOut ends the connection for want of memory.
func (c *Conn) crowdedOut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return
	}
	c.calmed(CalmMemory)
	c.why = connErr(codeCalm, "no memory is left for this peer")
	_ = c.bottom.SetReadDeadline(past) // wakes the reader
}

// holdWriting counts what waits for a socket that takes nothing. c.mu is held.
func (c *Conn) holdWriting() {
	n := int64(0)
	if c.stuck != 0 {
		if c.wbuf != nil {
			n = int64(cap(c.wbuf.b))
		}
		if c.sock != nil {
			n += c.sock.held()
		}
	}
	d := n - c.heldWriting
	if d == 0 {
		return
	}
	c.heldWriting = n
	if d < 0 {
		c.budget.sub(-d)
		return
	}
	if c.budget.add(d) != roomy && !c.client && !c.aborted {
		c.calmed(CalmMemory)
		c.abort(connErr(codeCalm, "no memory is left for what the peer does not read"))
	}
}
