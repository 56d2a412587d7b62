package relay

import (
	"net"
	"time"

	"google.golang.org/grpc/codes"
)

// Call is one request and what became of it.
type Call struct{}

// ForwardOptions say how a call is passed on.
type ForwardOptions struct {
	Path      string // instead of the caller's
	Authority string // instead of the caller's
	// Retry is called when the peer refused the call without having looked at
	// it, or the connection ended before it answered with anything, while every
	// byte of the request is still held: Forward again, or Reject. Nil: the
	// caller gets UNAVAILABLE.
	Retry func(reason error)
	// ResponseHeader and ResponseTrailer may rewrite what goes back to the
	// caller, after sallyport-* has been dropped. A response that consists of
	// trailers only passes through ResponseHeader alone. They run on reader
	// goroutines and must not block.
	ResponseHeader, ResponseTrailer func([]Field) []Field
}

// Outcome is how a call ended.
type Outcome struct {
	Code      codes.Code
	Message   string
	OriginHop bool   // this hop made the status; otherwise it came from beyond
	Reason    string // stable snake_case: "ok", "status", "rejected", "canceled", "deadline", "link_lost", "refused", "malformed", "overflow", …
	Duration  time.Duration
	BytesUp   int64
	BytesDown int64
}

// Path is the method's path, /package.Service/Method.
func (c *Call) Path() string { return "" }

// Authority is the caller's :authority.
func (c *Call) Authority() string { return "" }

// Header is the request's fields without pseudo-headers, names in lower case,
// after the common rules. It must not be changed in place.
func (c *Call) Header() []Field { return nil }

// Get is the first value of the named field, or "".
func (c *Call) Get(name string) string { return "" }

// Timeout is the grpc-timeout of the request.
func (c *Call) Timeout() (time.Duration, bool) { return 0, false }

// Peer is the value that was attached to the call's connection.
func (c *Call) Peer() any { return nil }

// Conn is the connection on which the call came.
func (c *Call) Conn() *Conn { return nil }

// RemoteAddr is the address of whoever sent the call.
func (c *Call) RemoteAddr() net.Addr { return nil }

// Started is when the call's header arrived.
func (c *Call) Started() time.Time { return time.Time{} }

// Forward opens a stream on to and pairs it with the call. header is the fields
// to send, without pseudo-headers; te is written by the engine. It returns
// ErrNotAccepting, with nothing done, when to takes no more streams, and nil
// when the call has meanwhile ended.
func (c *Call) Forward(to *Conn, header []Field, o ForwardOptions) error { return nil }

// Reject ends the call with a status of our own, in trailers-only form while no
// response header has been sent. After Forward it also cancels the far side. A
// call that has ended is left alone.
func (c *Call) Reject(code codes.Code, message string, extra ...Field) {}

// OnDone registers f to be called exactly once, when the call has ended. It
// replaces an earlier one. f must not block.
func (c *Call) OnDone(f func(Outcome)) {}
