package relay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

// Options say how a connection behaves. They may be shared by many connections
// and are not changed after the first of them exists.
type Options struct {
	Limits  Limits
	Metrics *Metrics     // nil: counted nowhere
	Budget  *Budget      // nil: the process's own, see DefaultBudget
	Log     *slog.Logger // nil: nothing is logged
	Hop     string       // who we are, as callers read it in errors: "edge", "core", "gateway orders-1"
	Remote  string       // what is at the other end, as callers read it: "link to gateway orders-1", "upstream orders"
	Edge    bool         // the peer is not one of our components: reserved headers and request trailers are dropped, deadlines enforced
}

// Handler takes calls.
type Handler interface {
	// ServeCall runs on the reader goroutine of the connection, once per
	// request. It must not block; it may keep the call and Forward or Reject it
	// later, from any goroutine.
	ServeCall(*Call)
}

// HandlerFunc is a function as Handler.
type HandlerFunc func(*Call)

// ServeCall calls f.
func (f HandlerFunc) ServeCall(c *Call) { f(c) }

var (
	// ErrNotAccepting is what Forward returns when the connection takes no new
	// streams: it drains, is closed, or was told to by its peer. Pick another.
	ErrNotAccepting = errors.New("the connection takes no new calls")
	// ErrDrained is why Run returned after Drain, or after the peer's GOAWAY,
	// when the last stream had ended.
	ErrDrained = errors.New("the connection was drained")
)

// Conn is one HTTP/2 connection, either end of it.
type Conn struct{}

// NewServer makes the end that receives requests: of clients, and on links that
// we dialled.
func NewServer(nc net.Conn, o *Options, h Handler) *Conn { return &Conn{} }

// NewClient makes the end that opens streams: towards upstreams, and on links
// that we accepted.
func NewClient(nc net.Conn, o *Options) *Conn { return &Conn{} }

// Run speaks on the connection until it ends, and returns why, in words. It must
// be called exactly once. When ctx ends the connection is closed.
func (c *Conn) Run(ctx context.Context) error { return nil }

// Drain ends the connection without losing a call.
func (c *Conn) Drain() {}

// Close ends the connection at once. Open calls get UNAVAILABLE with reason.
func (c *Conn) Close(reason error) {}

// InFlight is the number of open calls.
func (c *Conn) InFlight() int { return 0 }

// Accepting says whether new streams can be opened on a client end, or are
// taken on a server end.
func (c *Conn) Accepting() bool { return false }

// Ready is closed when the peer's SETTINGS have arrived.
func (c *Conn) Ready() <-chan struct{} { return nil }

// Done is closed when Run has returned.
func (c *Conn) Done() <-chan struct{} { return nil }

// Ping measures the time to the peer and back.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) { return 0, nil }

// SetPeer attaches a value that Call.Peer returns. Call it before Run.
func (c *Conn) SetPeer(v any) {}

// Peer is the value attached by SetPeer.
func (c *Conn) Peer() any { return nil }

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return nil }
