package relay

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
)

// One timer per connection, and none on a connection that has nothing to wait
// for, looks after everything that has a time: deadlines of calls in a hashed
// wheel, signs of life, stalled peers, and the steps of a connection's own life.

const (
	tick       = 50 * time.Millisecond
	wheelSlots = 128
)

type timers struct {
	conn    *Conn
	timer   *time.Timer
	at      int64 // when the timer is due, 0: not armed
	stopped bool
	wheel   *[wheelSlots]*stream
	count   int
	last    int64 // the last tick looked at
}

// arm sees to it that something looks at the connection within d. c.mu is held.
func (c *Conn) arm(d time.Duration) {
	t := &c.timers
	if t.stopped || d <= 0 {
		return
	}
	at := time.Now().UnixNano() + int64(d)
	if t.at != 0 && t.at <= at {
		return
	}
	t.at = at
	if t.timer == nil {
		t.timer = time.AfterFunc(d, c.onTimer)
	} else {
		t.timer.Reset(d)
	}
}

func (t *timers) stop() {
	t.stopped = true
	if t.timer != nil {
		t.timer.Stop()
	}
}

// armPing arms the watch for signs of life. c.mu is held.
func (c *Conn) armPing() {
	if c.gotFirst && (c.lim.PingIdle || len(c.streams) > 0) {
		c.arm(c.lim.PingInterval)
	}
}

// armIdle arms the watch for connections that nobody uses. c.mu is held.
func (c *Conn) armIdle() {
	if c.lim.Idle > 0 && !c.client {
		c.arm(c.lim.Idle)
	}
}

// scheduleHalfOpen gives a call that was neither forwarded nor answered a time
// by which it has to be.
func (c *Conn) scheduleHalfOpen(call *Call) {
	c.mu.Lock()
	in := &call.in
	if !in.gone {
		in.halfOpen = time.Now().Add(c.lim.HalfOpen).UnixNano()
		c.timers.add(in, in.halfOpen)
	}
	c.mu.Unlock()
}

// add puts s into the wheel for a time, unless it is there for an earlier one.
// The connection's mutex is held.
func (t *timers) add(s *stream, at int64) {
	due := at/int64(tick) + 1
	if s.wheel {
		if s.dueTick <= due {
			return
		}
		t.cancel(s)
	}
	if t.wheel == nil {
		t.wheel = new([wheelSlots]*stream)
	}
	if t.count == 0 {
		t.last = time.Now().UnixNano()/int64(tick) - 1
	}
	t.count++
	head := &t.wheel[due%wheelSlots]
	s.wheel, s.dueTick, s.wPrev, s.wNext = true, due, nil, *head
	if *head != nil {
		(*head).wPrev = s
	}
	*head = s
	t.conn.arm(max(tick, time.Duration(due*int64(tick)-time.Now().UnixNano())))
}

// cancel takes s out of the wheel. The connection's mutex is held.
func (t *timers) cancel(s *stream) {
	if !s.wheel {
		return
	}
	t.count--
	if s.wPrev != nil {
		s.wPrev.wNext = s.wNext
	} else {
		t.wheel[s.dueTick%wheelSlots] = s.wNext
	}
	if s.wNext != nil {
		s.wNext.wPrev = s.wPrev
	}
	s.wheel, s.wPrev, s.wNext = false, nil, nil
}

// due takes out what is due, and says when to look again.
func (t *timers) due(now int64) (due []*stream, next int64) {
	if t.count == 0 {
		return nil, 0
	}
	nowTick := now / int64(tick)
	from := max(t.last+1, nowTick-wheelSlots+1)
	for i := from; i <= nowTick; i++ {
		for s := t.wheel[i%wheelSlots]; s != nil; {
			after := s.wNext
			if s.dueTick <= nowTick {
				t.cancel(s)
				due = append(due, s)
			}
			s = after
		}
	}
	t.last = nowTick
	for i := int64(1); t.count > 0 && i <= wheelSlots; i++ {
		for s := t.wheel[(nowTick+i)%wheelSlots]; s != nil; s = s.wNext {
			if s.dueTick == nowTick+i {
				return due, (nowTick + i) * int64(tick)
			}
		}
	}
	if t.count > 0 {
		next = (nowTick + wheelSlots) * int64(tick)
	}
	return due, next
}

// onTimer looks at everything that has a time.
func (c *Conn) onTimer() {
	var b batch
	var stalled, late []*stream
	c.mu.Lock()
	if c.timers.stopped {
		c.mu.Unlock()
		return
	}
	c.timers.at = 0
	now := time.Now().UnixNano()
	var next int64
	want := func(at int64) {
		if at > now && (next == 0 || at < next) {
			next = at
		}
	}
	due, at := c.timers.due(now)
	want(at)
	want(c.checkStart(now))
	want(c.checkBlock(now))
	want(c.checkPeer(now, &b))
	want(c.checkDrain(now, &b))
	stalled, at = c.checkStall(now)
	want(at)
	late, at = c.checkWaiting(now, &b)
	want(at)
	if next != 0 {
		c.arm(time.Duration(next - now))
	}
	c.mu.Unlock()
	for _, s := range due {
		c.fire(s, now, &b)
	}
	for _, s := range stalled {
		s.call.stalled(s, &b)
	}
	for _, s := range late {
		s.call.refused(s, fmt.Errorf("%w: no place among its %d streams within %v", ErrRefused, c.peerMaxStream, c.lim.QueueWait), &b)
	}
	b.run()
}

// checkStart gives up a peer that does not begin. c.mu is held, as in the other
// checks; each returns when to look again.
func (c *Conn) checkStart(now int64) int64 {
	select {
	case <-c.ready1:
		return 0
	default:
	}
	by := c.begun + int64(c.lim.FirstFrame)
	if now < by {
		return by
	}
	if c.why == nil {
		c.calmed(CalmFirstFrame)
		c.abort(fmt.Errorf("%s said nothing for %v", c.remote, c.lim.FirstFrame))
	}
	return 0
}

// checkBlock gives up a peer that does not finish a header block.
func (c *Conn) checkBlock(now int64) int64 {
	if c.blockBy == 0 || c.why != nil {
		return 0
	}
	if now < c.blockBy {
		return c.blockBy
	}
	c.calmed(CalmHeaderTime)
	c.why = connErr(codeCalm, "a header block was not complete within %v", c.lim.HeaderTime)
	_ = c.bottom.SetReadDeadline(past)
	return 0
}

// checkPeer asks a silent peer for a sign of life, and gives up one that shows
// none.
func (c *Conn) checkPeer(now int64, b *batch) int64 {
	if !c.gotFirst || c.why != nil {
		return 0
	}
	if !c.lim.PingIdle && len(c.streams) == 0 {
		c.pings.alive = 0
		return c.checkIdle(now)
	}
	heard := c.lastRead.Load()
	if c.pings.alive != 0 {
		if heard > c.pings.asked {
			c.pings.alive = 0
		} else if by := c.pings.asked + int64(c.lim.PingTimeout); now < by {
			return by
		} else {
			c.abort(fmt.Errorf("%s gave no sign of life for %v", c.remote, time.Duration(now-heard).Round(time.Second)))
			return 0
		}
	}
	if at := heard + int64(c.lim.PingInterval); now < at {
		return at
	}
	c.pings.asked = now
	c.pings.alive = c.ping(b)
	return now + int64(c.lim.PingTimeout)
}

// checkIdle drains a connection without calls.
func (c *Conn) checkIdle(now int64) int64 {
	if c.lim.Idle == 0 || c.client || c.draining {
		return 0
	}
	at := c.idleSince + int64(c.lim.Idle)
	if now < at {
		return at
	}
	go c.Drain()
	return 0
}

// checkDrain takes the second step of GOAWAY for a peer that answers no PING.
func (c *Conn) checkDrain(now int64, b *batch) int64 {
	if c.pings.drain == 0 {
		return 0
	}
	if now < c.pings.drainBy {
		return c.pings.drainBy
	}
	c.pings.drain = 0
	c.lastGoAway(b)
	return 0
}

// checkStall gives up a peer that takes nothing, and finds streams nobody reads.
func (c *Conn) checkStall(now int64) (stalled []*stream, next int64) {
	stall := int64(c.lim.Stall)
	if c.stuck != 0 {
		if now-c.stuck > stall {
			c.calmed(CalmStall)
			c.abort(connErr(codeCalm, "the peer has read nothing for %v", c.lim.Stall))
			return nil, 0
		}
		next = now + int64(time.Second)
	}
	if c.queued == 0 {
		return nil, next
	}
	if c.sendWindow <= 0 && now-c.progress > stall && c.why == nil {
		c.calmed(CalmStall)
		c.why = connErr(codeCalm, "the peer has granted no window for %v", c.lim.Stall)
		_ = c.bottom.SetReadDeadline(past)
		return nil, 0
	}
	for _, s := range c.streams {
		if s.queue != nil && now-s.moved > int64(c.lim.StreamStall) {
			stalled = append(stalled, s)
		}
	}
	return stalled, now + int64(time.Second)
}

// checkWaiting finds calls that have waited too long for a place.
func (c *Conn) checkWaiting(now int64, b *batch) (late []*stream, next int64) {
	for len(c.waiting) > 0 {
		s := c.waiting[0]
		if by := s.wait.until.UnixNano(); !s.gone && now < by {
			return late, min(by, now+int64(tick))
		}
		c.waiting = c.waiting[1:]
		if !s.gone {
			late = append(late, s)
			c.remove(s, closedUnknown, b)
		}
	}
	return late, 0
}

// fire handles a call whose time has come.
func (c *Conn) fire(s *stream, now int64, b *batch) {
	call := s.call
	call.mu.Lock()
	forwarded, serving := call.out != nil, call.serving != nil
	call.mu.Unlock()
	c.mu.Lock()
	deadline, halfOpen, message := s.deadline, s.halfOpen, call.capped
	c.mu.Unlock()
	if message == "" {
		message = c.hop + ": nobody answered before the call's deadline"
	}
	switch {
	case serving: // the handler is at it: OnDone does not run beside it
		c.mu.Lock()
		if !s.gone {
			c.timers.add(s, now+int64(tick))
		}
		c.mu.Unlock()
	case deadline != 0 && now >= deadline:
		c.m.Expired.Add(1)
		call.reject(Outcome{Code: codes.DeadlineExceeded, Message: message, Reason: "deadline"}, nil, b)
	case !forwarded && halfOpen != 0 && now >= halfOpen:
		call.reject(Outcome{Code: codes.Unavailable, Message: c.hop + ": no place was found for the call in time", Reason: "half_open"}, nil, b)
	default:
		c.mu.Lock()
		if s.deadline != 0 && !s.gone {
			c.timers.add(s, s.deadline)
		}
		c.mu.Unlock()
	}
}

// stalled ends a call of which one side has not read for too long.
func (c *Call) stalled(s *stream, b *batch) {
	who := "the caller"
	if s != &c.in {
		who = "the service"
	}
	c.in.c.m.Calmed[CalmStall].Add(1)
	c.reject(Outcome{Code: codes.ResourceExhausted, Message: fmt.Sprintf("%s: %s did not read for %v", s.c.hop, who, s.c.lim.StreamStall), Reason: "stalled"}, nil, b)
}
