package relay

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

// onSettings handles SETTINGS and their acknowledgement.
func (c *Conn) onSettings(f frame, p []byte, b *batch) error {
	if err := c.rates.count(c, CalmSettings, c.lim.Settings); err != nil {
		return err
	}
	if f.has(flagAck) {
		if !c.gotFirst {
			return connErr(codeProtocol, "the first frame acknowledges SETTINGS")
		}
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) >= settingLen; p = p[settingLen:] {
		value := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case settingHeaderTable:
			c.enc.setLimit(value)
		case settingEnablePush:
			if value > 1 || c.client && value == 1 {
				return connErr(codeProtocol, "ENABLE_PUSH is %d", value)
			}
		case settingMaxStreams:
			c.peerMaxStream, c.maxStreamsSet = value, true
		case settingInitialWindow:
			if value > maxWindow {
				return connErr(codeFlowControl, "INITIAL_WINDOW_SIZE is %d", value)
			}
			if err := c.peerWindow(int64(value), b); err != nil {
				return err
			}
		case settingMaxFrame:
			if value < minFrameSize || value > maxFrameSize {
				return connErr(codeProtocol, "MAX_FRAME_SIZE is %d", value)
			}
			c.peerMaxFrame = min(value, 64<<10)
		}
	}
	w := c.wb(b)
	w.b = appendFrameHeader(w.b, 0, frameSettings, flagAck, 0)
	if !c.gotFirst {
		c.gotFirst = true
		if c.client && !c.maxStreamsSet {
			c.peerMaxStream = 1 << 30 // a server that names no limit has none
		}
		close(c.ready1)
		c.armPing()
		c.armIdle()
	}
	if c.client {
		c.startWaiting(b)
	}
	return nil
}

// pings are the PINGs of ours that are under way.
type pings struct {
	next    uint64
	alive   uint64 // the one that asks for a sign of life, 0: none
	asked   int64  // when
	drain   uint64 // the one between the two GOAWAYs
	drainBy int64
	users   map[uint64]chan struct{}
}

// ping sends a PING. c.mu is held.
func (c *Conn) ping(b *batch) uint64 {
	c.pings.next++
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], c.pings.next)
	w := c.wb(b)
	w.b = appendPing(w.b, false, data)
	return c.pings.next
}

// onPing answers PING, ahead of bulk data, and takes answers.
func (c *Conn) onPing(f frame, p []byte, b *batch) error {
	if !f.has(flagAck) {
		if err := c.rates.ping(c); err != nil {
			return err
		}
		c.mu.Lock()
		w := c.wb(b)
		w.b = appendPing(w.b, true, [8]byte(p))
		c.mu.Unlock()
		return nil
	}
	id := binary.BigEndian.Uint64(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 || id > c.pings.next {
		return nil
	}
	if id == c.pings.alive {
		c.pings.alive = 0
	}
	if id == c.pings.drain {
		c.pings.drain = 0
		c.lastGoAway(b)
	}
	if ch := c.pings.users[id]; ch != nil {
		delete(c.pings.users, id)
		close(ch)
	}
	return nil
}

// Ping measures the time to the peer and back.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	select {
	case <-c.ready1:
	case <-c.done:
		return 0, ErrNotAccepting
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	var b batch
	ch := make(chan struct{})
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return 0, ErrNotAccepting
	}
	start := time.Now()
	id := c.ping(&b)
	if c.pings.users == nil {
		c.pings.users = make(map[uint64]chan struct{})
	}
	c.pings.users[id] = ch
	c.mu.Unlock()
	b.run()
	select {
	case <-ch:
		return time.Since(start), nil
	case <-c.done:
		return 0, fmt.Errorf("ping %s: the connection ended", c.remote)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pings.users, id)
		c.mu.Unlock()
		return 0, context.Cause(ctx)
	}
}

// Drain ends the connection without losing a call. A server end says GOAWAY
// twice: first that it is about to stop, then, when the peer has answered a PING
// and so has seen that, which stream was the last one it looks at. A client end
// opens nothing more. Run returns when the last call has ended.
func (c *Conn) Drain() {
	var b batch
	c.mu.Lock()
	if c.draining || c.dead || c.why != nil {
		c.mu.Unlock()
		return
	}
	c.draining = true
	if c.client || !c.greeted {
		c.finalSent = !c.client
		c.maybeDrained()
	} else {
		w := c.wb(&b)
		w.b = appendGoAway(w.b, maxStreamID, codeNo, "")
		c.pings.drain = c.ping(&b)
		c.pings.drainBy = time.Now().Add(time.Second).UnixNano()
		c.arm(time.Second)
	}
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	for _, s := range waiting {
		c.mu.Lock()
		gone := s.gone
		c.remove(s, closedUnknown, &b)
		c.mu.Unlock()
		if !gone {
			s.call.refused(s, fmt.Errorf("%w: it drains", ErrRefused), &b)
		}
	}
	b.run()
}

// lastGoAway is the second step. c.mu is held.
func (c *Conn) lastGoAway(b *batch) {
	if c.finalSent {
		return
	}
	c.finalSent, c.finalLast = true, c.lastID
	w := c.wb(b)
	w.b = appendGoAway(w.b, c.lastID, codeNo, "")
	c.maybeDrained()
}

// maybeDrained ends a draining connection that has no streams left. c.mu is
// held.
func (c *Conn) maybeDrained() {
	if len(c.streams) > 0 || len(c.waiting) > 0 || c.why != nil {
		return
	}
	if c.draining && (c.client || c.finalSent) || c.goneAway && c.client {
		c.finish, c.why = true, ErrDrained
		if c.running {
			_ = c.bottom.SetReadDeadline(past) // wakes the reader
		}
	}
}

// stopping says whether the reader is to go home.
func (c *Conn) stopping() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why != nil
}

// onGoAway handles the peer's GOAWAY: calls above its last id go elsewhere.
func (c *Conn) onGoAway(last uint32, code errCode, debug string, b *batch) error {
	c.mu.Lock()
	said := c.goAwayWhy != codeNo // it is no news then, however often it is said
	c.goneAway = true
	if !said {
		c.goAwayWhy = code
	}
	if !c.client {
		c.mu.Unlock()
		return nil
	}
	var refused []*stream
	for id, s := range c.streams {
		if id > last {
			refused = append(refused, s)
		}
	}
	for _, s := range refused {
		c.remove(s, closedUnknown, b)
	}
	waiting := c.waiting
	c.waiting = nil
	for _, s := range waiting {
		if !s.gone {
			refused = append(refused, s)
		}
		c.remove(s, closedUnknown, b)
	}
	c.maybeDrained()
	c.mu.Unlock()
	reason := fmt.Errorf("%w: the peer is going away", ErrRefused)
	if code != codeNo {
		if len(debug) > maxGoAwayDebugKept {
			debug = debug[:maxGoAwayDebugKept]
		}
		if !said {
			c.log.Warn("peer ended the connection", "remote", c.remote, "code", code.String(), "debug", debug)
		}
		reason = fmt.Errorf("%w: the peer ended the connection with %s", ErrRefused, code)
	}
	for _, s := range refused {
		s.call.refused(s, reason, b)
	}
	return nil
}

// farewell appends the last GOAWAY.
func (c *Conn) farewell(code errCode, text string, b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.aborted {
		return
	}
	last := c.lastID
	if c.finalSent {
		last = c.finalLast
	}
	w := c.wb(b)
	w.b = appendGoAway(w.b, last, code, text)
}
