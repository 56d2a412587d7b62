package relay

import (
	"time"
)

// The table of a connection's streams: how they begin, end, and are forgotten.

// opening says whether the client end opens new streams. c.mu is held.
func (c *Conn) opening() bool {
	return c.client && c.greeted && !c.dead && !c.draining && !c.goneAway && c.why == nil && c.nextID < lastUsableID
}

// lastUsableID leaves room at the end of the id space, so that a link can be
// replaced before it has none left.
const lastUsableID = maxStreamID - 1<<20

// Accepting says whether new streams can be opened on a client end, or are
// taken on a server end.
func (c *Conn) Accepting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client {
		return c.opening()
	}
	return !c.dead && !c.draining && c.why == nil
}

// maxWaiting bounds the calls that wait for a place on one connection.
const maxWaiting = 1024

// open1 gives s the next id and writes its HEADERS, or lets it wait for a place.
// Both are one critical section: c.mu is held.
func (c *Conn) open1(s *stream, path, authority string, header []Field, end bool, b *batch) bool {
	if c.buffered() > c.lim.Backlog/4 {
		return false // headers have no window: more of them would end in the connection's being given up
	}
	if len(c.streams) < int(c.peerMaxStream) && len(c.waiting) == 0 {
		c.open.Add(1)
		c.start(s, path, authority, header, end, b)
		return true
	}
	if len(c.waiting) >= maxWaiting {
		return false
	}
	c.open.Add(1)
	s.wait = &waitingStream{path: path, authority: authority, header: append([]Field(nil), header...), end: end,
		until: time.Now().Add(c.lim.QueueWait)}
	c.waiting = append(c.waiting, s)
	c.arm(tick)
	return true
}

// waitingStream is what a stream needs to start later.
type waitingStream struct {
	path, authority string
	header          []Field
	end             bool
	until           time.Time
}

// start opens s on the wire. c.mu is held.
func (c *Conn) start(s *stream, path, authority string, header []Field, end bool, b *batch) {
	s.id = c.nextID
	c.nextID += 2
	s.sendWindow, s.recvWindow = c.peerInitial, int64(c.lim.StreamWindow)
	c.streams[s.id] = s
	c.enc.begin()
	c.enc.index(3) // :method POST
	if c.scheme == "https" {
		c.enc.index(7)
	} else {
		c.enc.index(6)
	}
	c.enc.field(":path", path, false)
	if authority != "" {
		c.enc.field(":authority", authority, false)
	}
	c.enc.field("te", "trailers", false)
	for i := range header {
		f := &header[i]
		if f.Name == "" || f.Name[0] == ':' || f.Name == "te" || f.Name == "host" || hopByHop(f.Name) {
			continue
		}
		c.enc.field(f.Name, f.Value, f.Sensitive || secret(f.Name))
	}
	c.writeBlock(s, end, b)
	if len(c.streams) == 1 {
		c.armPing()
	}
}

// startWaiting opens what waits for a place, as far as there are any. c.mu is
// held.
func (c *Conn) startWaiting(b *batch) {
	for len(c.waiting) > 0 && len(c.streams) < int(c.peerMaxStream) && c.opening() {
		s := c.waiting[0]
		c.waiting = c.waiting[1:]
		if s.gone {
			continue
		}
		w := s.wait
		s.wait = nil
		c.start(s, w.path, w.authority, w.header, w.end, b)
		switch {
		case s.queue != nil:
			c.enqueue(s, b)
		case s.end && !s.sentEnd:
			c.writeData(s, nil, true, b)
		}
	}
	if len(c.waiting) == 0 {
		c.waiting = nil
	}
}

// writeHeaders writes a header block on s. c.mu is held.
func (c *Conn) writeHeaders(s *stream, fields []Field, end bool, b *batch) {
	c.enc.begin()
	for i := range fields {
		f := &fields[i]
		c.enc.field(f.Name, f.Value, f.Sensitive || secret(f.Name))
	}
	c.writeBlock(s, end, b)
}

func (c *Conn) writeBlock(s *stream, end bool, b *batch) {
	w := c.wb(b)
	block := c.enc.block()
	w.b = appendHeaderBlock(w.b, s.id, block, end, int(c.peerMaxFrame))
	b.bytes += len(block)
	c.useful()
	if end {
		c.ended(s, b)
	}
}

// sendTrailers ends a stream with a header block, behind what is queued. c.mu is
// held.
func (c *Conn) sendTrailers(s *stream, fields []Field, b *batch) {
	if s.gone || s.sentEnd || s.end {
		return
	}
	if s.queue != nil || s.id == 0 {
		s.trailers, s.end = append(make([]Field, 0, len(fields)), fields...), true
		c.hold(s, headerSize(fields))
		return
	}
	c.writeHeaders(s, fields, true, b)
}

// ended is called when END_STREAM of s has been written. c.mu is held.
func (c *Conn) ended(s *stream, b *batch) {
	s.sentEnd, s.end = true, true
	switch {
	case s.recvEnd:
		c.remove(s, closedByPeer, b)
	case !c.client:
		// The rest of the request is of no use.
		w := c.wb(b)
		w.b = appendRST(w.b, s.id, codeNo)
		c.remove(s, closedByUs, b)
	}
}

// reset ends a stream with RST_STREAM, if it is still there.
func (c *Conn) reset(s *stream, code errCode, b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone {
		return
	}
	if s.id != 0 {
		w := c.wb(b)
		w.b = appendRST(w.b, s.id, code)
	}
	c.remove(s, closedByUs, b)
}

// remove forgets a stream. c.mu is held.
func (c *Conn) remove(s *stream, how closedHow, b *batch) {
	if s.gone {
		return
	}
	s.gone = true
	c.open.Add(-1)
	if s.weight > 0 {
		c.headers -= s.largeHeader()
		s.call.account.sub(s.weight)
	}
	c.dropQueue(s)
	c.timers.cancel(s)
	if s.id != 0 {
		delete(c.streams, s.id)
		c.recent.add(s.id, how)
	}
	if len(c.waiting) > 0 {
		c.startWaiting(b)
	}
	if len(c.streams) == 0 {
		c.idleSince = c.lastRead.Load()
		c.maybeDrained()
	}
}

// smallList is a header list, in bytes, that is nothing special.
const smallList = 4 << 10

// headerSize is the size of a header list, as SETTINGS_MAX_HEADER_LIST_SIZE counts.
func headerSize(fields []Field) (n int64) {
	for i := range fields {
		n += int64(len(fields[i].Name) + len(fields[i].Value) + headerFieldOverhead)
	}
	return n
}
