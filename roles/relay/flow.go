package relay

import "time"

// Flow control. A peer gets credit for the connection as soon as its bytes are
// read, and for the stream when they have left for the next hop; so one slow
// reader stops its own stream and nobody else's, and what we hold is bounded by
// the streams' windows, by the connection's budget and by the process's.

// sendData passes bytes and possibly the end of a stream on, as far as the
// windows and the write buffer let it, and keeps the rest. It says whether that
// is more than the budgets allow. c.mu is held.
func (c *Conn) sendData(s *stream, p []byte, end bool, b *batch) (over bool) {
	if s.gone || s.sentEnd || s.end {
		return false
	}
	s.end = end
	if s.queue == nil && s.id != 0 && c.ready.head == nil && c.buffered() < softLimit {
		n := int(min(int64(len(p)), s.sendWindow, c.sendWindow))
		if n < 0 {
			n = 0
		}
		if n == len(p) {
			if n > 0 || end {
				c.writeData(s, p, end, b)
			}
			return false
		}
		if n > 0 {
			c.writeData(s, p[:n], false, b)
			p = p[n:]
		}
	}
	if len(p) == 0 {
		if end && s.queue == nil && s.id != 0 {
			c.writeData(s, nil, true, b)
		}
		return false
	}
	if s.queue == nil {
		s.moved = time.Now().UnixNano()
		if c.queued == 0 {
			c.progress = s.moved
		}
	}
	var grown int64
	s.queue, grown = sized(s.queue, p)
	left := c.hold(s, grown)
	c.arm(time.Second)
	c.enqueue(s, b)
	return left == crammed || left == tight && s.queue.len() > 16<<10
}

// hold counts n bytes more as waiting in s, and says what room is left: in the
// budget of whoever made the call, and on this connection. c.mu is held.
func (c *Conn) hold(s *stream, n int64) room {
	s.held += n
	c.queued += n
	c.m.Buffered.Add(n)
	left := s.call.account.add(n)
	switch {
	case c.queued > 2*c.lim.ConnBuffer:
		return crammed
	case c.queued > c.lim.ConnBuffer:
		return max(left, tight)
	}
	return left
}

// release counts nothing as waiting in s any more. c.mu is held.
func (c *Conn) release(s *stream) {
	if s.held == 0 {
		return
	}
	c.queued -= s.held
	c.m.Buffered.Add(-s.held)
	s.call.account.sub(s.held)
	s.held = 0
}

func (c *Conn) buffered() int {
	if c.wbuf == nil {
		return 0
	}
	return len(c.wbuf.b)
}

// enqueue puts a stream with something queued on the ready list, if its window
// is open. c.mu is held.
func (c *Conn) enqueue(s *stream, b *batch) {
	if s.id == 0 || s.queue == nil || s.sendWindow <= 0 {
		return
	}
	c.ready.push(s)
	if c.sendWindow > 0 {
		c.touch(b)
	}
}

// writeData writes DATA frames, for which there is window, and credits whoever
// sent the bytes. c.mu is held.
func (c *Conn) writeData(s *stream, p []byte, end bool, b *batch) {
	n := int64(len(p))
	s.sendWindow -= n
	c.sendWindow -= n
	w := c.wb(b)
	for {
		k := min(len(p), int(c.peerMaxFrame))
		var flags uint8
		if end && k == len(p) {
			flags = flagEndStream
		}
		w.b = appendFrameHeader(w.b, k, frameData, flags, s.id)
		w.b = append(w.b, p[:k]...)
		if p = p[k:]; len(p) == 0 {
			break
		}
	}
	b.bytes += int(n) + frameHeaderLen
	c.useful()
	if n > 0 {
		s.left += n
		if s.src != nil {
			left := s.left
			if s.base64 {
				left = left / 4 * 3
			}
			if d := left - s.debt - s.src.mark; d > 0 {
				s.src.mark += d
				b.credits = append(b.credits, credit{s.src, d})
			}
		}
	}
	if end {
		c.ended(s, b)
	}
}

// quantum is what a stream may send before it is the next one's turn.
const quantum = minFrameSize

// pump moves queued bytes into the write buffer, in turn, up to the soft limit.
// c.mu is held.
func (c *Conn) pump(b *batch) {
	if c.ready.head == nil {
		return
	}
	now := time.Now().UnixNano()
	for c.ready.head != nil && c.sendWindow > 0 && c.buffered() < softLimit {
		s := c.ready.pop()
		if s == nil {
			return
		}
		n := int(min(int64(s.queued()), quantum, s.sendWindow, c.sendWindow))
		if n <= 0 {
			continue
		}
		q, last := s.queue, n == s.queue.len()
		if last {
			s.queue = nil
		}
		s.moved, c.progress = now, now
		c.writeData(s, q.rest()[:n], last && s.end && s.trailers == nil, b)
		if last {
			putSized(q)
			c.release(s)
			if s.trailers != nil {
				c.writeHeaders(s, s.trailers, true, b)
			}
			continue
		}
		q.skip(n)
		if s.sendWindow > 0 {
			c.ready.push(s)
		}
	}
}

// give returns window for n bytes of s that have left.
func (c *Conn) give(s *stream, n int64, b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone || s.recvEnd {
		return
	}
	s.owed += n
	if s.owed < int64(c.lim.StreamWindow)/4 {
		return
	}
	w := c.wb(b)
	w.b = appendWindowUpdate(w.b, s.id, uint32(s.owed))
	s.recvWindow += s.owed
	s.owed = 0
}

// received accounts for the flow-controlled length of a DATA frame on the
// connection and returns credit at once. Reader only.
func (c *Conn) received(n int64, b *batch) error {
	c.recvWindow -= n
	if c.recvWindow < 0 {
		return connErr(codeFlowControl, "more DATA than the connection's window")
	}
	if owed := int64(c.lim.ConnWindow) - c.recvWindow; owed >= int64(c.lim.ConnWindow)/4 {
		c.mu.Lock()
		w := c.wb(b)
		w.b = appendWindowUpdate(w.b, 0, uint32(owed))
		c.mu.Unlock()
		c.recvWindow += owed
	}
	return nil
}

// windowUpdate handles a WINDOW_UPDATE frame. Reader only.
func (c *Conn) windowUpdate(id uint32, n int64, b *batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		switch {
		case n == 0:
			return connErr(codeProtocol, "WINDOW_UPDATE of 0 on the connection")
		case c.sendWindow+n > maxWindow:
			return connErr(codeFlowControl, "the connection's window grew beyond 2^31-1")
		}
		c.sendWindow += n
		if c.ready.head != nil {
			c.touch(b)
		}
		return nil
	}
	s := c.streams[id]
	if s == nil {
		if c.isIdle(id) {
			return connErr(codeProtocol, "WINDOW_UPDATE on idle stream %d", id)
		}
		return nil
	}
	switch {
	case n == 0:
		return streamErr(codeProtocol, "WINDOW_UPDATE of 0")
	case s.sendWindow+n > maxWindow:
		return streamErr(codeFlowControl, "the stream's window grew beyond 2^31-1")
	}
	s.sendWindow += n
	c.enqueue(s, b)
	return nil
}

// peerWindow applies a change of the peer's INITIAL_WINDOW_SIZE to every open
// stream. c.mu is held.
func (c *Conn) peerWindow(n int64, b *batch) error {
	delta := n - c.peerInitial
	c.peerInitial = n
	for _, s := range c.streams {
		if s.sendWindow+delta > maxWindow {
			return connErr(codeFlowControl, "INITIAL_WINDOW_SIZE makes the window of stream %d too large", s.id)
		}
		s.sendWindow += delta
		c.enqueue(s, b)
	}
	return nil
}

// dropQueue forgets what waits to be sent on s. c.mu is held.
func (c *Conn) dropQueue(s *stream) {
	if s.queue != nil {
		putSized(s.queue)
		s.queue = nil
	}
	c.release(s)
	s.trailers = nil
}
