package relay

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
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
		case s.trailers != nil:
			c.writeHeaders(s, s.trailers, true, b)
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
		c.headers -= s.weight
		c.budget.used.Add(-s.weight)
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

// notNew judges HEADERS on a stream that is not open and not new. c.mu is held.
func (c *Conn) notNew(id uint32) error {
	switch how := c.recent.find(id); {
	case id%2 == 0:
		return connErr(codeProtocol, "a client opened stream %d, which is even", id)
	case how == closedByUs:
		return nil
	case how == closedByPeer, how == closedByReset:
		return connErr(codeStreamClosed, "HEADERS on stream %d, which is closed", id)
	}
	return connErr(codeProtocol, "stream %d was opened after stream %d", id, c.lastID)
}

// newCall begins a call.
func (c *Conn) newCall(id uint32, fields []Field, end, tooLarge bool, b *batch) error {
	if id%2 == 0 {
		return connErr(codeProtocol, "a client opened stream %d, which is even", id)
	}
	length := int64(-1)
	var broken error
	if !tooLarge {
		if length, broken = checkPseudo(fields, c.dec.clean); broken == nil && end && length > 0 {
			broken = streamErr(codeProtocol, "content-length is %d, and no bytes come", length)
		}
	}
	call := &Call{timeout: -1, started: time.Unix(0, c.lastRead.Load()), bodyEnd: end, serving: b}
	in := &call.in
	in.c, in.call, in.id, in.recvEnd, in.length, in.recvWindow = c, call, id, end, length, int64(c.lim.StreamWindow)
	var v *Violation
	if broken == nil && !tooLarge {
		v = checkRequest(fields, c.edge, c.dec.clean, true)
		call.split(fields)
	}

	c.mu.Lock()
	c.lastID = id
	switch {
	case c.finalSent && id > c.finalLast:
		c.mu.Unlock()
		return nil // our GOAWAY told the peer that nobody looks at it
	case c.why != nil:
		c.mu.Unlock()
		return streamErr(codeRefused, "the connection ends")
	case len(c.streams) >= int(c.lim.Streams):
		c.mu.Unlock()
		if err := c.rates.count(c, CalmResets, c.lim.Resets); err != nil {
			return err
		}
		return streamErr(codeRefused, "more than %d streams", c.lim.Streams)
	case broken != nil:
		c.mu.Unlock()
		return broken
	}
	in.sendWindow = c.peerInitial
	c.streams[id] = in
	c.open.Add(1)
	if size := int64(len(call.path)+len(call.authority)) + headerSize(call.header); size > smallList && v == nil {
		in.weight = size
		c.headers += size
		if used := c.budget.used.Add(size); c.headers > c.lim.ConnBuffer/4 || used > c.budget.limit {
			v = &Violation{Code: codes.ResourceExhausted, Reason: "header_space", Message: c.hop + ": too many calls with large headers are open"}
		}
	}
	if len(c.streams) == 1 {
		c.armPing()
	}
	if v == nil && !tooLarge && c.edge && call.timeout >= 0 {
		in.deadline = call.started.Add(call.timeout + c.lim.DeadlineGrace).UnixNano()
		c.timers.add(in, in.deadline)
	}
	c.mu.Unlock()

	c.m.Calls.Add(1)
	c.m.CallsOpen.Add(1)
	switch {
	case tooLarge:
		v = &Violation{Code: codes.ResourceExhausted, Reason: "header_list", Message: fmt.Sprintf("the request's header is larger than %d bytes", c.lim.HeaderList)}
		fallthrough
	case v != nil:
		call.violate(v, b)
		return nil
	}
	if c.edge {
		call.header = StripReserved(call.header)
	}
	c.handler.ServeCall(call)
	call.mu.Lock()
	call.serving = nil
	held := call.out == nil && !call.done
	call.mu.Unlock()
	if held {
		c.scheduleHalfOpen(call)
	}
	return nil
}

// smallList is a header list, in bytes, that is not worth counting. Larger ones
// are: they stay as long as their call, and cost their sender next to nothing
// once they are in the compression table.
const smallList = 4 << 10

// headerSize is the size of a header list, as SETTINGS_MAX_HEADER_LIST_SIZE counts.
func headerSize(fields []Field) (n int64) {
	for i := range fields {
		n += int64(len(fields[i].Name) + len(fields[i].Value) + headerFieldOverhead)
	}
	return n
}

// split takes the pseudo-headers out of a request's fields, and keeps the rest:
// the reader's list is used again.
func (c *Call) split(fields []Field) {
	n := 0
	for i := range fields {
		f := &fields[i]
		if f.Name[0] != ':' {
			break
		}
		n++
		switch f.Name {
		case ":path":
			c.path = f.Value
		case ":authority":
			c.authority = f.Value
		}
	}
	c.header = append(make([]Field, 0, len(fields)-n), fields[n:]...)
	for i := range c.header {
		switch f := &c.header[i]; f.Name {
		case "grpc-timeout":
			if d, ok := parseTimeout(f.Value); ok {
				c.timeout = d
			}
		case "host":
			if c.authority == "" {
				c.authority = f.Value
			}
		}
	}
}

// violate answers a request that broke a rule.
func (c *Call) violate(v *Violation, b *batch) {
	m := c.in.c.m
	m.Violations.Add(1)
	o := Outcome{Code: v.Code, Message: v.Message, Reason: "violation"}
	var extra []Field
	if hear := c.in.c.violated; hear != nil {
		extra = hear(c, v)
	}
	if v.HTTP == 0 {
		c.reject(o, extra, b)
		return
	}
	c.mu.Lock()
	c.done, c.answered = true, true
	in := &c.in
	in.c.mu.Lock()
	in.c.sendTrailers(in, append([]Field{{Name: ":status", Value: itoa(v.HTTP)}, {Name: "content-type", Value: contentTypeGRPC},
		{Name: "grpc-status", Value: itoa(int(v.Code))}, {Name: "grpc-message", Value: EncodeMessage(v.Message)}}, extra...), b)
	in.c.mu.Unlock()
	c.mu.Unlock()
	o.OriginHop = true
	c.finish(o)
}

// breakStream answers a frame that broke a rule on its stream.
func (c *Conn) breakStream(id uint32, se *streamError, b *batch) error {
	c.m.Malformed.Add(1)
	c.log.Debug("stream ended", "remote", c.remote, "stream", id, "error", se)
	if !c.client && se.code != codeRefused {
		if err := c.rates.count(c, CalmMalformed, c.lim.MalformedCalls); err != nil {
			return err
		}
	}
	c.mu.Lock()
	s := c.streams[id]
	w := c.wb(b)
	w.b = appendRST(w.b, id, se.code)
	if s != nil {
		c.remove(s, closedByUs, b)
	} else {
		c.recent.add(id, closedByUs)
	}
	c.mu.Unlock()
	switch {
	case s == nil:
	case c.client:
		s.call.fail(s, Outcome{Code: codes.Internal, Message: fmt.Sprintf("%s: %s sent a malformed response: %s", c.hop, c.remote, se.text), Reason: "malformed"}, b)
	default:
		s.call.canceled(Outcome{Code: codes.Internal, Message: se.text, OriginHop: true, Reason: "malformed"}, b)
	}
	return nil
}

// onReset handles RST_STREAM.
func (c *Conn) onReset(id uint32, code errCode, b *batch) error {
	if !c.client {
		if err := c.rates.count(c, CalmResets, c.lim.Resets); err != nil {
			return err
		}
	}
	c.mu.Lock()
	s := c.streams[id]
	if s == nil {
		defer c.mu.Unlock()
		if c.isIdle(id) {
			return connErr(codeProtocol, "RST_STREAM on idle stream %d", id)
		}
		return nil
	}
	c.remove(s, closedByReset, b)
	c.mu.Unlock()
	if c.client {
		s.call.responseReset(s, code, b)
		return nil
	}
	s.call.canceled(Outcome{Code: codes.Canceled, Message: "canceled by the caller", Reason: "canceled"}, b)
	return nil
}

// settleCalls ends every call on a connection that is over.
func (c *Conn) settleCalls(why error, b *batch) {
	c.mu.Lock()
	streams := make([]*stream, 0, len(c.streams))
	for _, s := range c.streams {
		streams = append(streams, s)
	}
	waiting := c.waiting
	c.waiting = nil
	c.draining = true
	if c.why == nil {
		c.why = why
	}
	c.mu.Unlock()
	for _, s := range streams {
		if !c.client {
			if c.finish {
				s.call.reject(Outcome{Code: codes.Unavailable, Message: fmt.Sprintf("%s: %v", c.hop, why), Reason: "closed"}, nil, b)
			} else {
				s.call.canceled(Outcome{Code: codes.Canceled, Message: "the caller's connection ended", Reason: "canceled"}, b)
			}
			continue
		}
		c.mu.Lock()
		gone := s.gone
		c.remove(s, closedUnknown, b)
		c.mu.Unlock()
		if !gone {
			c.m.Lost.Add(1)
			s.call.fail(s, Outcome{Code: codes.Unavailable, Message: c.lostMessage(why), Reason: "lost"}, b)
		}
	}
	for _, s := range waiting {
		c.mu.Lock()
		gone := s.gone
		c.remove(s, closedUnknown, b)
		c.mu.Unlock()
		if !gone {
			s.call.refused(s, fmt.Errorf("%w: %w", ErrRefused, why), b)
		}
	}
}

// lostMessage is what callers read when a connection was lost under them.
func (c *Conn) lostMessage(why error) string {
	if errors.Is(why, ErrDrained) {
		return fmt.Sprintf("%s: %s was lost: it was closed while draining", c.hop, c.remote)
	}
	return fmt.Sprintf("%s: %s was lost: %v", c.hop, c.remote, why)
}
