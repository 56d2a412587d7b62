package relay

import "time"

// Writing. Whoever has something for a connection appends it to the write buffer
// under the connection's mutex; whoever first made the buffer dirty flushes it
// when its own batch is over; whoever finds a flush going on leaves its bytes to
// it. A write never waits for the peer on a goroutine that has other work: when
// the kernel takes no more, a goroutine of the connection's own carries on.

// batch is what one goroutine has appended and not yet flushed.
type batch struct {
	conns   []*Conn
	credits []credit
	bytes   int
	spare   []*Conn
}

// credit is bytes of a stream that have left for the next hop.
type credit struct {
	s *stream
	n int64
}

// run flushes and gives credit until there is nothing left to do. No lock is
// held.
func (b *batch) run() {
	b.bytes = 0
	for len(b.conns) > 0 || len(b.credits) > 0 {
		b.settle()
		conns := b.conns
		b.conns = b.spare[:0]
		for i, c := range conns {
			c.flush(b)
			conns[i] = nil
		}
		b.spare = conns[:0]
	}
}

// settle gives the credit that came up.
func (b *batch) settle() {
	for i := range b.credits {
		cr := b.credits[i]
		b.credits[i] = credit{}
		cr.s.c.give(cr.s, cr.n, b)
	}
	b.credits = b.credits[:0]
}

// wb is the write buffer, about to be appended to. c.mu is held.
func (c *Conn) wb(b *batch) *buffer {
	if c.wbuf == nil {
		c.wbuf = getBuffer()
	}
	c.touch(b)
	if c.stuck != 0 && int64(cap(c.wbuf.b)) > c.heldWriting {
		c.holdWriting()
	}
	if n := len(c.wbuf.b); n > c.lim.Backlog || c.flooded {
		if !c.flooded {
			c.flooded = true
			c.calmed(CalmBacklog)
			c.abort(connErr(codeCalm, "%d bytes wait for a peer that does not read", n))
		}
		c.wbuf.b = c.wbuf.b[:0]
	}
	return c.wbuf
}

// touch sees to it that somebody flushes c. c.mu is held.
func (c *Conn) touch(b *batch) {
	if !c.dirty && !c.writing {
		c.dirty = true
		b.conns = append(b.conns, c)
	}
}

// rounds is how often a flush goes on with what others appended meanwhile before
// it leaves the rest to a goroutine and goes back to its own work.
const rounds = 16

// flush writes what is there.
func (c *Conn) flush(b *batch) {
	c.mu.Lock()
	c.dirty = false
	if c.writing || c.dead {
		c.mu.Unlock()
		return
	}
	c.writing = true
	for round := 0; ; round++ {
		c.pump(b)
		if c.wbuf == nil || len(c.wbuf.b) == 0 {
			c.idleWriter()
			c.mu.Unlock()
			return
		}
		if round == rounds || c.sock == nil {
			c.spawnWriter()
			c.mu.Unlock()
			return
		}
		out := c.wbuf
		c.wbuf = nil
		c.mu.Unlock()
		err := c.write(out.b)
		putBuffer(out)
		c.mu.Lock()
		if err == nil && !c.sock.pending() {
			continue
		}
		if err != nil {
			c.writing = false
			c.abort(err)
		} else {
			c.spawnWriter()
		}
		c.mu.Unlock()
		return
	}
}

// idleWriter ends a flush. c.mu is held.
func (c *Conn) idleWriter() {
	if c.wbuf != nil {
		putBuffer(c.wbuf)
		c.wbuf = nil
	}
	c.writing = false
	if c.heldWriting != 0 {
		c.holdWriting()
	}
	if c.finish {
		c.nothingLeft()
	}
}

// nothingLeft tells whoever waits for the last words. c.mu is held.
func (c *Conn) nothingLeft() {
	if !c.finished {
		c.finished = true
		close(c.flushed)
	}
}

// spawnWriter hands the writing to a goroutine. c.mu is held and c.writing set.
func (c *Conn) spawnWriter() {
	if c.dead {
		c.writing = false
		return
	}
	c.stuck = time.Now().UnixNano()
	c.holdWriting()
	c.arm(time.Second)
	c.writers.Add(1)
	go c.writeLoop()
}

// writeLoop writes until nothing is left. It may wait for the peer.
func (c *Conn) writeLoop() {
	defer c.writers.Done()
	var b batch
	var err error
	for {
		if c.sock != nil {
			err = c.sock.drain()
		}
		b.run()
		c.mu.Lock()
		if err != nil || c.dead {
			c.writing = false
			if err != nil {
				c.abort(err)
			}
			c.mu.Unlock()
			return
		}
		c.stuck = time.Now().UnixNano()
		c.pump(&b)
		c.holdWriting()
		if c.wbuf == nil || len(c.wbuf.b) == 0 {
			c.stuck = 0
			c.idleWriter()
			c.mu.Unlock()
			b.run()
			return
		}
		out := c.wbuf
		c.wbuf = nil
		c.mu.Unlock()
		err = c.write(out.b)
		putBuffer(out)
	}
}

// write gives p to TLS in pieces of writeSize.
func (c *Conn) write(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), writeSize)
		if _, err := c.nc.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// abort closes the transport because of err; the reader does the rest. c.mu is
// held.
func (c *Conn) abort(err error) {
	if c.why == nil {
		c.why = err
	}
	if !c.aborted {
		c.aborted = true
		_ = c.bottom.Close()
		c.nothingLeft()
	}
}

// closeNotify tells the peer's TLS that nothing follows.
func (c *Conn) closeNotify() {
	if c.tls != nil {
		_ = c.tls.SetWriteDeadline(time.Now().Add(time.Second))
		_ = c.tls.CloseWrite()
	}
	if w, ok := c.bottom.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}
