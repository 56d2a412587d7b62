package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options say how a connection behaves. They may be shared by many connections
// and are not changed after the first of them exists.
type Options struct {
	Limits  Limits
	Metrics *Metrics     // nil: counted nowhere
	Budget  *Budget      // what the peer and its calls hold is counted here; nil: DefaultBudget
	Log     *slog.Logger // nil: nothing is logged
	Hop     string       // who we are, as callers read it in errors: "edge", "core", "gateway orders-1"
	Remote  string       // what is at the other end, as callers read it: "link to gateway orders-1", "upstream orders"
	Edge    bool         // the peer is not one of our components: reserved headers are dropped, deadlines enforced

	// Front says that the peer is, or may be, an HTTP proxy: Call.Front has what
	// it says of each caller, for the handler to believe or not.
	Front bool

	// Violated, if set, hears of a request that broke the header rules and
	// therefore reaches no handler, before it is answered. What it returns goes
	// into the answer. It runs on the reader goroutine.
	Violated func(*Call, *Violation) []Field

	// Web, if set, has gRPC-Web taken too. It hears of each such call before it
	// reaches the handler, and before its header is that of a native call, and
	// returns what the response's header has to say to the browser, whatever
	// becomes of the call; a violation refuses it. It runs on the reader
	// goroutine.
	Web func(*Call) ([]Field, *Violation)

	// Other, if set, answers what is no call, because its method is not POST or
	// its content-type not one of gRPC. It runs on the reader goroutine; the
	// bytes of the answer must not change. It may put the violation, which is
	// the outcome, in better words. Nil: the violation says it all.
	Other func(*Call, *Violation) *Answer
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
	// ErrRefused is why a call is offered to ForwardOptions.Retry: the peer has
	// certainly not looked at it.
	ErrRefused = errors.New("the call was refused")
	// ErrDrained is why Run returned after Drain, or after the peer's GOAWAY,
	// when the last stream had ended.
	ErrDrained = errors.New("the connection was drained")
)

// tlsConn is what the engine asks of a TLS connection beyond net.Conn; a type
// that embeds a *tls.Conn is one too.
type tlsConn interface {
	net.Conn
	ConnectionState() tls.ConnectionState
	HandshakeContext(context.Context) error
	CloseWrite() error
}

// Conn is one HTTP/2 connection, either end of it.
//
// Its reader is the goroutine that called Run. Locks: a call's mutex may be held
// while a connection's is taken, never the other way round, and no goroutine
// holds two of one kind.
type Conn struct {
	nc        net.Conn
	bottom    net.Conn // the transport under nc
	sock      *socket  // the transport if it is one of ours
	tls       tlsConn  // nc, if it speaks TLS
	client    bool
	edge      bool
	front     bool
	scheme    string
	hop       string
	remote    string
	lim       Limits
	m         *Metrics
	budget    *Budget
	log       *slog.Logger
	handler   Handler
	violated  func(*Call, *Violation) []Field
	web       func(*Call) ([]Field, *Violation)
	other     func(*Call, *Violation) *Answer
	peer      any
	lingerFor time.Duration // how long the peer may take to read our last words

	// reader only
	rb         *[]byte
	rr, rw     int
	rbatch     batch
	reads      int // since the batch was last run
	dec        *headerDecoder
	block      headerBlock
	scratch    []Field // of the block just decoded
	recvWindow int64
	rates      rates
	gotFirst   bool // the peer's first SETTINGS

	heldReading int64 // bytes counted for what has come in part

	lastRead atomic.Int64 // unix nanoseconds
	open     atomic.Int64 // streams open or waiting for a place
	calm     atomic.Int64 // frames that account for PING and WINDOW_UPDATE of the peer

	mu            sync.Mutex // guards what follows; never held while anything blocks
	wbuf          *buffer
	dirty         bool // somebody will flush
	writing       bool // somebody is flushing
	stuck         int64
	heldWriting   int64 // bytes counted for what the socket does not take
	blockBy       int64 // when the header block that has begun has to be whole, 0: none has
	enc           headerEncoder
	streams       map[uint32]*stream
	recent        closedRing
	ready         ready
	waiting       []*stream // client: streams that wait for a place
	nextID        uint32    // client: the next stream
	lastID        uint32    // server: the highest stream the peer opened
	sendWindow    int64
	queued        int64 // bytes in all streams' queues
	headers       int64 // bytes of large request headers of open calls
	progress      int64 // when bytes last left a queue
	idleSince     int64
	begun         int64
	peerInitial   int64
	peerMaxFrame  uint32
	peerMaxStream uint32
	maxStreamsSet bool
	goAwayWhy     errCode
	running       bool
	greeted       bool   // our preface and SETTINGS are in the write buffer
	draining      bool   // we asked the peer to stop, or will open nothing more
	goneAway      bool   // the peer asked us to stop
	finalLast     uint32 // server: what our last GOAWAY said
	finalSent     bool
	finish        bool // close once everything is written
	finished      bool
	flooded       bool // the backlog is over its limit
	dead          bool // Run is over
	aborted       bool
	why           error // the first cause of the end
	timers        timers
	pings         pings

	ready1  chan struct{} // closed: Ready
	done    chan struct{}
	flushed chan struct{}
	writers sync.WaitGroup
}

// NewServer makes the end that receives requests: of clients, and on links that
// we dialled.
func NewServer(nc net.Conn, o *Options, h Handler) *Conn {
	c := newConn(nc, o)
	c.handler, c.edge, c.front, c.violated, c.web, c.other = h, o.Edge, o.Front, o.Violated, o.Web, o.Other
	if o.Edge {
		c.lim = o.Limits.or(EdgeLimits())
	} else {
		c.lim = o.Limits.or(LinkLimits())
	}
	c.adjust()
	return c
}

// NewClient makes the end that opens streams: towards upstreams, and on links
// that we accepted.
func NewClient(nc net.Conn, o *Options) *Conn {
	c := newConn(nc, o)
	c.client, c.nextID = true, 1
	c.lim = o.Limits.or(UpstreamLimits())
	c.adjust()
	return c
}

func newConn(nc net.Conn, o *Options) *Conn {
	c := &Conn{
		nc: nc, bottom: transport(nc), sock: socketUnder(nc),
		hop: o.Hop, remote: o.Remote, m: o.Metrics, budget: o.Budget, log: o.Log,
		lingerFor:  250 * time.Millisecond,
		streams:    make(map[uint32]*stream),
		sendWindow: defaultWindow, peerInitial: defaultWindow, peerMaxFrame: minFrameSize, peerMaxStream: 100,
		ready1: make(chan struct{}), done: make(chan struct{}), flushed: make(chan struct{}),
	}
	c.scheme = "http"
	if c.tls, _ = nc.(tlsConn); c.tls != nil || secured(nc) {
		c.scheme = "https"
	}
	if c.m == nil {
		c.m = new(Metrics)
	}
	if c.budget == nil {
		c.budget = DefaultBudget
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.hop == "" {
		c.hop = "relay"
	}
	if c.remote == "" {
		c.remote = "the connection"
		if a := nc.RemoteAddr(); a != nil {
			c.remote = "the connection to " + a.String()
		}
	}
	return c
}

func (c *Conn) adjust() {
	c.lim.StreamWindow = min(max(c.lim.StreamWindow, defaultWindow), maxWindow)
	c.lim.ConnWindow = min(max(c.lim.ConnWindow, defaultWindow), maxWindow)
	c.recvWindow = int64(c.lim.ConnWindow)
	c.dec = newHeaderDecoder(c.lim.HeaderTable, c.lim.HeaderList)
	c.timers.conn = c
}

// Run speaks on the connection until it ends, and returns why, in words. It must
// be called exactly once. When ctx ends the connection is closed.
func (c *Conn) Run(ctx context.Context) error {
	c.budget.add(connCost)
	c.m.Conns.Add(1)
	c.m.ConnsOpen.Add(1)
	defer c.m.ConnsOpen.Add(-1)
	c.mu.Lock()
	c.running = true
	if c.why != nil {
		c.mu.Unlock()
		return c.end(nil)
	}
	c.mu.Unlock()
	if t := c.tls; t != nil && !t.ConnectionState().HandshakeComplete {
		hctx, cancel := context.WithTimeout(ctx, c.lim.FirstFrame)
		err := t.HandshakeContext(hctx)
		cancel()
		if err != nil {
			return c.end(fmt.Errorf("TLS handshake: %w", err))
		}
	}
	if c.sock != nil {
		c.sock.own(2*c.lim.Backlog+1<<20, func() {
			c.holdReading()
			c.rbatch.run()
		})
	}
	closing := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closing)
		c.Close(context.Cause(ctx))
	})
	c.hello()
	err := c.readLoop()
	err = c.end(err)
	if !stop() {
		<-closing
	}
	return err
}

// hello sends our preface and settings.
func (c *Conn) hello() {
	var b batch
	c.mu.Lock()
	c.begun = time.Now().UnixNano()
	c.idleSince = c.begun
	c.lastRead.Store(c.begun)
	w := c.wb(&b)
	list := []setting{{settingInitialWindow, c.lim.StreamWindow}, {settingMaxHeaderList, c.lim.HeaderList}}
	if c.client {
		w.b = append(w.b, preface...)
		list = append(list, setting{settingEnablePush, 0})
	} else {
		list = append(list, setting{settingMaxStreams, c.lim.Streams})
	}
	if c.lim.HeaderTable != 4096 {
		list = append(list, setting{settingHeaderTable, c.lim.HeaderTable})
	}
	w.b = appendSettings(w.b, list...)
	if d := c.lim.ConnWindow - defaultWindow; d > 0 {
		w.b = appendWindowUpdate(w.b, 0, d)
	}
	c.greeted = true
	c.arm(c.lim.FirstFrame)
	c.mu.Unlock()
	b.run()
}

// end takes the connection down after its reader stopped because of err, and
// settles every call on it.
func (c *Conn) end(err error) error {
	c.mu.Lock()
	if c.why == nil {
		c.why = err
	}
	why := c.why
	said := c.finish
	c.mu.Unlock()

	b := &c.rbatch
	code, text := codeNo, ""
	if ce := (*connError)(nil); errors.As(why, &ce) {
		code, text, said = ce.code, ce.text, true
		c.log.Debug("connection ended", "remote", c.remote, "error", why)
	} else if said && why != nil {
		text = why.Error()
	}
	why = c.explain(why)
	c.settleCalls(why, b)
	if said {
		c.farewell(code, text, b)
	}
	b.run()
	if said {
		c.linger()
	}
	c.mu.Lock()
	c.dead = true
	c.timers.stop()
	c.abort(why)
	c.mu.Unlock()
	_ = c.nc.Close()
	c.writers.Wait()
	c.mu.Lock()
	if c.wbuf != nil {
		putBuffer(c.wbuf)
		c.wbuf = nil
	}
	c.budget.sub(connCost + c.heldWriting + c.heldReading)
	c.heldWriting, c.heldReading = 0, 0
	for _, s := range c.streams {
		c.remove(s, closedUnknown, b)
	}
	c.mu.Unlock()
	b.run()
	if c.rb != nil {
		readBuffers.Put(c.rb)
		c.rb = nil
	}
	putSized(c.block.buf)
	c.block = headerBlock{}
	close(c.done)
	return why
}

// linger lets the last words be written and read: a socket closed with unread
// bytes would take them back.
func (c *Conn) linger() {
	c.mu.Lock()
	if c.aborted {
		c.mu.Unlock()
		return
	}
	c.finish = true
	var b batch
	c.touch(&b)
	c.mu.Unlock()
	b.run()
	select {
	case <-c.flushed:
	case <-time.After(time.Second):
		return
	}
	c.closeNotify()
	_ = c.bottom.SetReadDeadline(time.Now().Add(c.lingerFor))
	buf := make([]byte, 4<<10)
	for range 256 {
		if _, err := c.nc.Read(buf); err != nil {
			return
		}
	}
}

// explain makes what the reader returned readable.
func (c *Conn) explain(err error) error {
	switch {
	case err == nil:
		return ErrDrained
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.goneAway || c.draining {
			return ErrDrained
		}
		return fmt.Errorf("%s was closed by the peer: %w", c.remote, err)
	}
	return err
}

// Close ends the connection at once. Open calls get UNAVAILABLE with reason.
func (c *Conn) Close(reason error) {
	if reason == nil {
		reason = errors.New("the connection was closed")
	}
	c.mu.Lock()
	if c.dead || c.why != nil {
		c.mu.Unlock()
		return
	}
	c.why = reason
	c.draining, c.finish = true, true
	running := c.running
	c.mu.Unlock()
	if running {
		_ = c.bottom.SetReadDeadline(past) // the reader does the rest
	}
}

// InFlight is the number of open calls.
func (c *Conn) InFlight() int { return int(c.open.Load()) }

// Ready is closed when the peer's SETTINGS have arrived.
func (c *Conn) Ready() <-chan struct{} { return c.ready1 }

// Done is closed when Run has returned.
func (c *Conn) Done() <-chan struct{} { return c.done }

// SetPeer attaches a value that Call.Peer returns. Call it before Run.
func (c *Conn) SetPeer(v any) { c.peer = v }

// Peer is the value attached by SetPeer.
func (c *Conn) Peer() any { return c.peer }

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// past is a deadline that wakes whoever waits.
var past = time.Unix(1, 0)

// over says whether Run has returned.
func (c *Conn) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
