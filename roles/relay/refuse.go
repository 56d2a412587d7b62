package relay

import "google.golang.org/grpc/codes"

// Refuse hands the call back to the hop it came from as not looked at, by
// RST_STREAM with REFUSED_STREAM, so that it can be tried elsewhere: see
// ForwardOptions.Retry. That is only true, and only done, while the call is
// with nobody: it was never forwarded, or whoever it was forwarded to refused
// it likewise. Otherwise, and towards callers at an edge, the call ends with
// UNAVAILABLE and reason, as by Reject. reason is also the outcome's message.
func (c *Call) Refuse(reason string) {
	var own batch
	c.mu.Lock()
	if c.done {
		c.mu.Unlock()
		return
	}
	if c.in.c.edge || c.out != nil || c.answered {
		c.mu.Unlock()
		c.Reject(codes.Unavailable, reason)
		return
	}
	c.done = true
	c.freeBody()
	c.mu.Unlock()
	c.in.c.reset(&c.in, codeRefused, &own)
	c.finish(Outcome{Code: codes.Unavailable, Message: reason, OriginHop: true, Reason: "refused"})
	own.run()
}
