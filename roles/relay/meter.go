package relay

import (
	"encoding/binary"
	"time"

	"google.golang.org/grpc/codes"
)

// What a role may ask of a call beside passing it on: that its messages are
// counted and measured, and that it ends at some time. Messages are still not
// parsed: of each only its prefix of five bytes is read, where it passes.

// Rejection is why a call is ended by a role.
type Rejection struct {
	Code    codes.Code
	Message string
	Reason  string // stable snake_case, for Outcome
	Extra   []Field
}

// Meter is what is asked of a call's messages. Its functions may run with the
// call's lock held: they must not block and not use the call.
type Meter struct {
	MaxMessage uint64 // bytes of a message, in either direction; 0: any
	// Large makes the answer to a call with a larger one, as soon as its prefix
	// says so: size is what it says, response whether the service sends it.
	Large func(size uint64, response bool) Rejection
	// Message is asked when the caller begins a message; what it returns ends
	// the call. Nil: messages are not counted.
	Message func() *Rejection

	request, response prefix
}

// prefix finds the beginnings of messages in one direction.
type prefix struct {
	have [5]byte
	n    int    // bytes of have
	left uint64 // bytes of the message that are still to come
}

// next reads p up to the end of the next prefix, and returns what is left of p
// and the length that the prefix announces.
func (f *prefix) next(p []byte) (rest []byte, length uint64, found bool) {
	if f.left > 0 {
		n := min(f.left, uint64(len(p)))
		f.left -= n
		p = p[n:]
	}
	if len(p) == 0 {
		return nil, 0, false
	}
	n := copy(f.have[f.n:], p)
	f.n += n
	if p = p[n:]; f.n < len(f.have) {
		return nil, 0, false
	}
	f.n = 0
	f.left = uint64(binary.BigEndian.Uint32(f.have[1:]))
	return p, f.left, true
}

// up looks at bytes from the caller. The call's mutex is held.
func (m *Meter) up(p []byte) *Rejection {
	for {
		rest, length, found := m.request.next(p)
		if !found {
			return nil
		}
		if m.MaxMessage > 0 && length > m.MaxMessage {
			no := m.Large(length, false)
			return &no
		}
		if m.Message != nil {
			if no := m.Message(); no != nil {
				return no
			}
		}
		p = rest
	}
}

// down looks at bytes from the service. Only the reader of the connection that
// the call went out on calls it.
func (m *Meter) down(p []byte) *Rejection {
	if m.MaxMessage == 0 {
		return nil
	}
	for {
		rest, length, found := m.response.next(p)
		if !found {
			return nil
		}
		if length > m.MaxMessage {
			no := m.Large(length, true)
			return &no
		}
		p = rest
	}
}

// Meter puts a meter on the call, which must not have been forwarded yet, and
// must not have one. What has come of the request already is looked at now, so
// that it may end the call. m belongs to the call.
func (c *Call) Meter(m *Meter) {
	c.mu.Lock()
	if c.done || c.meter != nil || c.out != nil {
		c.mu.Unlock()
		return
	}
	c.meter = m
	var no *Rejection
	if c.body != nil {
		no = m.up(c.body.rest())
	}
	c.mu.Unlock()
	if no != nil {
		c.RejectBy(*no)
	}
}

// RejectBy is Reject with a reason that the Outcome repeats.
func (c *Call) RejectBy(no Rejection) {
	var own batch
	c.reject(no.outcome(), no.Extra, &own)
	own.run()
}

func (no *Rejection) outcome() Outcome {
	return Outcome{Code: no.Code, Message: no.Message, Reason: no.Reason}
}

// Cap ends the call with DEADLINE_EXCEEDED and message when it has taken d,
// unless it ends, or its own deadline comes, before. It does not change the
// grpc-timeout that goes on; CapTimeout makes that.
func (c *Call) Cap(d time.Duration, message string) {
	at := c.started.Add(d).UnixNano()
	in := &c.in
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	if in.gone || in.deadline != 0 && in.deadline <= at {
		return
	}
	in.deadline, c.capped = at, message
	in.c.timers.add(in, at)
}

// capGrace is how much longer than a cap the service is given: many answer the
// end of their deadline by a reset, which the caller, who set none, would read
// as CANCELLED.
const capGrace = time.Second

// CapTimeout returns header, or a copy of it, with a grpc-timeout that does not
// go beyond a Cap of d: of d and a second, unless the caller's ends before d.
func CapTimeout(header []Field, d time.Duration) []Field {
	for i := range header {
		if header[i].Name != "grpc-timeout" {
			continue
		}
		if own, ok := parseTimeout(header[i].Value); ok && own <= d+capGrace {
			return header
		}
		header = append([]Field(nil), header...)
		header[i].Value = formatTimeout(d + capGrace)
		return header
	}
	return append(header[:len(header):len(header)], Field{Name: "grpc-timeout", Value: formatTimeout(d + capGrace)})
}

// formatTimeout writes a grpc-timeout of at least d: eight digits at most.
func formatTimeout(d time.Duration) string {
	const most = 99999999
	for _, u := range []struct {
		unit time.Duration
		sign string
	}{{time.Microsecond, "u"}, {time.Millisecond, "m"}, {time.Second, "S"}, {time.Minute, "M"}} {
		if n := (d + u.unit - 1) / u.unit; n <= most {
			return itoa(int(n)) + u.sign
		}
	}
	return itoa(int(min((d+time.Hour-1)/time.Hour, most))) + "H"
}

// Calls are the calls that are open on a server end.
func (c *Conn) Calls() []*Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client {
		return nil
	}
	list := make([]*Call, 0, len(c.streams))
	for _, s := range c.streams {
		list = append(list, s.call)
	}
	return list
}
