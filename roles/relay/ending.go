package relay

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
)

// How streams end before their time: by mistakes of the peer, by its resets, and
// with their connection.

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
