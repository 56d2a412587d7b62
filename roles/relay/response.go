package relay

import (
	"fmt"

	"google.golang.org/grpc/codes"
)

// What comes back: each function runs on the reader of the connection on which
// the call went out.

// responseHeader is a HEADERS block of the response: informational, the header,
// or the trailers.
func (c *Call) responseHeader(s *stream, fields []Field, end bool, b *batch) error {
	if s.answered {
		if !end {
			return streamErr(codeProtocol, "trailers without END_STREAM")
		}
		if err := checkTrailers(fields, s.c.dec.clean); err != nil {
			return err
		}
		code, message := codeOf(fields)
		fields = dropOurs(fields)
		if s.onTrailer != nil {
			fields = s.onTrailer(fields)
		}
		c.respond(s, fields, true, Outcome{Code: code, Message: message}, b)
		return nil
	}
	status, length, err := checkResponse(fields, s.c.dec.clean)
	if err != nil {
		return err
	}
	if status < 200 {
		if end {
			return streamErr(codeProtocol, "informational response with END_STREAM")
		}
		if s.informed++; s.informed > maxInformed {
			return streamErr(codeCalm, "more than %d informational responses", maxInformed)
		}
		c.inform(s, dropOurs(fields), b)
		return nil
	}
	s.answered = true
	if c.web != nil {
		if o, foreign := foreignResponse(status, fields); foreign {
			c.fail(s, o, b)
			s.c.closeOut(s, b)
			return nil
		}
	}
	var o Outcome
	if end {
		o.Code, o.Message = codeOf(fields)
	} else {
		s.length = length
	}
	fields = dropOurs(fields)
	if s.onHeader != nil {
		fields = s.onHeader(fields)
	}
	c.respond(s, fields, end, o, b)
	return nil
}

// maxInformed bounds the 1xx responses of one call: no window does.
const maxInformed = 8

// inform passes a 1xx response on.
func (c *Call) inform(s *stream, fields []Field, b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done || c.out != s || c.answered || c.web != nil {
		return
	}
	in := &c.in
	in.c.mu.Lock()
	if !in.gone && !in.sentEnd {
		in.c.writeHeaders(in, fields, false, b)
	}
	in.c.mu.Unlock()
}

// respond passes the response's header or trailers on.
func (c *Call) respond(s *stream, fields []Field, end bool, o Outcome, b *batch) {
	c.mu.Lock()
	if c.done || c.out != s {
		c.mu.Unlock()
		s.c.closeOut(s, b)
		return
	}
	in := &c.in
	in.c.mu.Lock()
	if in.c.buffered() > in.c.lim.Backlog/2 && headerSize(fields) > smallList {
		in.c.mu.Unlock()
		c.mu.Unlock()
		c.overflow("the response's header waits for a caller that does not read", b)
		return
	}
	c.freeBody()
	in.src = s
	c.done = end
	if c.web != nil {
		c.respondWeb(fields, end, b)
	} else if end {
		in.c.sendTrailers(in, fields, b)
	} else if !in.gone && !in.sentEnd {
		in.c.writeHeaders(in, fields, false, b)
	}
	c.answered = true
	in.c.mu.Unlock()
	c.mu.Unlock()
	if !end {
		return
	}
	s.c.closeOut(s, b)
	o.Reason = "status"
	if o.Code == codes.OK {
		o.Reason = "ok"
	}
	c.finish(o)
}

// responseData is DATA of the response.
func (c *Call) responseData(s *stream, p []byte, end bool, b *batch) {
	c.down.Add(int64(len(p)))
	if c.meter != nil {
		if no := c.meter.down(p); no != nil {
			c.reject(no.outcome(), no.Extra, b)
			return
		}
	}
	in := &c.in
	var over, broken bool
	if c.web == nil {
		in.c.mu.Lock()
		over = in.c.sendData(in, p, end, b)
		in.c.mu.Unlock()
	} else {
		over, broken = c.webData(p, b)
		broken = broken || end
	}
	switch {
	case broken:
		c.fail(s, Outcome{Code: codes.Internal, Message: s.c.hop + ": " + s.c.remote + " sent what is no message, or no trailers", Reason: "malformed"}, b)
		s.c.closeOut(s, b)
	case over:
		c.overflow("the response waits for a caller that does not read it", b)
	case end:
		c.mu.Lock()
		if c.done || c.out != s {
			c.mu.Unlock()
			s.c.closeOut(s, b)
			return
		}
		c.done = true
		c.mu.Unlock()
		s.c.closeOut(s, b)
		c.finish(Outcome{Code: codes.Internal, Message: "the response ended without trailers", Reason: "malformed"})
	}
}

// closeOut forgets a stream whose response is complete, telling the peer that
// the rest of the request will not come; or one whose call has ended otherwise,
// of which more may be under way.
func (c *Conn) closeOut(s *stream, b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone {
		return
	}
	how, code := closedByPeer, codeNo
	if !s.recvEnd {
		how, code = closedByUs, codeCancel
	}
	if (!s.sentEnd || !s.recvEnd) && s.id != 0 {
		w := c.wb(b)
		w.b = appendRST(w.b, s.id, code)
	}
	c.remove(s, how, b)
}

// responseReset is RST_STREAM from the service's side.
func (c *Call) responseReset(s *stream, code errCode, b *batch) {
	switch code {
	case codeRefused:
		c.refused(s, ErrRefused, b)
	case codeCancel:
		c.mu.Lock()
		if c.done || c.out != s {
			c.mu.Unlock()
			return
		}
		c.done = true
		c.freeBody()
		c.mu.Unlock()
		c.in.c.reset(&c.in, codeCancel, b)
		c.finish(Outcome{Code: codes.Canceled, Message: "canceled by the service", Reason: "canceled"})
	default:
		c.fail(s, Outcome{Code: codeOfReset(code), Message: fmt.Sprintf("%s: %s reset the call: %s", s.c.hop, s.c.remote, code), Reason: "reset"}, b)
	}
}

// refused is a call that the peer has certainly not looked at. It is offered for
// another try while all of it is still held.
func (c *Call) refused(s *stream, reason error, b *batch) {
	c.mu.Lock()
	if c.done || c.out != s {
		c.mu.Unlock()
		return
	}
	whole := c.keeping || c.bodyEnd && c.up.Load() == 0
	retry := c.o.Retry
	if retry == nil || !whole || c.answered || c.tries >= maxTries {
		c.mu.Unlock()
		c.fail(s, Outcome{Code: codes.Unavailable, Message: fmt.Sprintf("%s: %s: %v", s.c.hop, s.c.remote, reason), Reason: "refused"}, b)
		return
	}
	c.out = nil
	c.mu.Unlock()
	c.in.c.m.Retries.Add(1)
	retry(reason)
}

// fail ends a call with a status of ours because its stream s has ended. What
// came before goes to the caller first.
func (c *Call) fail(s *stream, o Outcome, b *batch) {
	c.mu.Lock()
	if c.done || c.out != s {
		c.mu.Unlock()
		return
	}
	c.done = true
	c.answer(o, nil, true, b)
	c.mu.Unlock()
	o.OriginHop = true
	c.finish(o)
}

// canceled is a call that its caller reset, or whose caller is gone.
func (c *Call) canceled(o Outcome, b *batch) {
	c.mu.Lock()
	if c.done {
		c.mu.Unlock()
		return
	}
	c.done = true
	c.freeBody()
	out := c.out
	c.mu.Unlock()
	if out != nil {
		out.c.reset(out, codeCancel, b)
	}
	c.finish(o)
}
