package relay

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
)

// How a request becomes a call.

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
	call := &Call{timeout: -1, started: time.Unix(0, c.lastRead.Load()), bodyEnd: end, serving: b, account: c.budget}
	in := &call.in
	in.c, in.call, in.id, in.recvEnd, in.length, in.recvWindow = c, call, id, end, length, int64(c.lim.StreamWindow)
	var v *Violation
	if broken == nil && !tooLarge {
		v = checkRequest(fields, c.edge, c.dec.clean, true, c.web != nil)
		call.split(fields)
		if c.front {
			call.front = frontOf(call.header)
		}
		if c.web != nil && (v == nil || v.HTTP == 0) {
			call.web = newWebCall(call)
		}
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
	// A header stays as long as its call, and costs its sender next to nothing
	// once it is in the compression table.
	in.weight = callCost + int64(len(call.path)+len(call.authority)) + headerSize(call.header)
	c.headers += in.largeHeader()
	if left := c.budget.add(in.weight); v == nil && (in.largeHeader() > 0 && c.headers > c.lim.ConnBuffer/4 || left != roomy) {
		v = &Violation{Code: codes.ResourceExhausted, Reason: "header_space", Message: c.hop + ": no memory is left for another call from here"}
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
	if tooLarge {
		v = &Violation{Code: codes.ResourceExhausted, Reason: "header_list", Message: fmt.Sprintf("the request's header is larger than %d bytes", c.lim.HeaderList)}
		if c.web != nil {
			call.glean(fields)
		}
	}
	if call.web != nil {
		v = call.admitWeb(v)
	}
	if v != nil {
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
		case ":method":
			c.method = f.Value
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

// Answer is what somebody gets who made no call.
type Answer struct {
	Status int     // of HTTP, at least 200
	Header []Field // without content-length
	Body   []byte
	Proper bool // it was asked for properly: no violation, and nobody else is told
}

// other answers a request that is no call.
func (c *Call) other(a *Answer, b *batch) {
	in := &c.in
	header := append([]Field{{Name: ":status", Value: itoa(a.Status)}}, a.Header...)
	if a.Status != 204 && a.Status != 304 {
		header = append(header, Field{Name: "content-length", Value: itoa(len(a.Body))})
	}
	body := a.Body
	if c.method == "HEAD" {
		body = nil
	}
	c.mu.Lock()
	c.done, c.answered = true, true
	in.c.mu.Lock()
	in.c.writeHeaders(in, header, len(body) == 0, b)
	over := len(body) > 0 && in.c.sendData(in, body, true, b)
	in.c.mu.Unlock()
	c.mu.Unlock()
	if over {
		in.c.reset(in, codeInternal, b)
	}
}

// violate answers a request that broke a rule.
func (c *Call) violate(v *Violation, b *batch) {
	if other := c.in.c.other; v.HTTP != 0 && other != nil {
		if a := other(c, v); a != nil {
			o := Outcome{Code: codes.OK, Reason: "document", OriginHop: true}
			if !a.Proper {
				c.in.c.m.Violations.Add(1)
				o.Code, o.Message, o.Reason = v.Code, v.Message, "violation"
			}
			c.other(a, b)
			c.finish(o)
			return
		}
	}
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
