package relay

import "google.golang.org/grpc/codes"

// Refuse hands the call back to where it came from, as not looked at, so that
// it can be tried elsewhere.
func (c *Call) Refuse(reason string) { c.Reject(codes.Unavailable, reason) }
