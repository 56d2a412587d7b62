package relay

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
)

// Call is one request and what became of it.
type Call struct {
	in        stream // guarded by its connection
	first     stream // what the first Forward opens
	path      string
	method    string
	web       *webCall // of a browser; nil for others
	front     *Front   // nil without one
	authority string
	header    []Field
	timeout   time.Duration // -1 without
	started   time.Time
	account   *Budget // what is held for the call is counted here
	up, down  atomic.Int64

	mu       sync.Mutex // guards what follows
	out      *stream
	o        ForwardOptions
	tries    int
	body     *buffer // what the caller has sent, while it may have to be sent (again)
	keeping  bool    // body is kept although the call was forwarded
	bodyEnd  bool
	serving  *batch // the reader's, while ServeCall runs
	answered bool   // a response header has gone to the caller
	done     bool
	outcome  *Outcome
	onDone   func(Outcome)
	meter    *Meter // set before the call is forwarded, if at all

	capped string // what is said at the end that Cap set; guarded by the connection's mutex
}

// ForwardOptions say how a call is passed on.
type ForwardOptions struct {
	Path      string // instead of the caller's
	Authority string // instead of the caller's
	// Retry is called when the peer refused the call without having looked at
	// it while every byte of the request is still held: Forward again, or
	// Reject. Nil: the caller gets UNAVAILABLE.
	// The reason is ErrRefused, and says more.
	Retry func(reason error)
	// ResponseHeader and ResponseTrailer may rewrite what goes back to the
	// caller, after sallyport-* has been dropped. A response that consists of
	// trailers only passes through ResponseHeader alone. They run on reader
	// goroutines and must neither block nor keep the slice.
	ResponseHeader, ResponseTrailer func([]Field) []Field
}

// Outcome is how a call ended.
type Outcome struct {
	Code      codes.Code
	Message   string
	OriginHop bool   // this hop made the status; otherwise it came from beyond
	Reason    string // stable snake_case: "ok", "status", "rejected", "canceled", "deadline", "lost", "refused", "malformed", "overflow", "stalled", "violation"
	Duration  time.Duration
	BytesUp   int64
	BytesDown int64
}

// Path is the method's path, /package.Service/Method.
func (c *Call) Path() string { return c.path }

// Method is the method of HTTP, which for what reaches a handler is POST.
func (c *Call) Method() string { return c.method }

// Protocol is "grpc-web" for a call that came by it, whose header is that of a
// native call all the same, and empty for others.
func (c *Call) Protocol() string {
	if c.web != nil {
		return "grpc-web"
	}
	return ""
}

// Authority is the caller's :authority.
func (c *Call) Authority() string { return c.authority }

// Header is the request's fields without pseudo-headers, names in lower case,
// after the common rules. It must not be changed in place.
func (c *Call) Header() []Field { return c.header }

// Get is the first value of the named field, or "".
func (c *Call) Get(name string) string {
	for i := range c.header {
		if c.header[i].Name == name {
			return c.header[i].Value
		}
	}
	return ""
}

// Timeout is the grpc-timeout of the request.
func (c *Call) Timeout() (time.Duration, bool) { return max(c.timeout, 0), c.timeout >= 0 }

// Peer is the value that was attached to the call's connection.
func (c *Call) Peer() any { return c.in.c.peer }

// Conn is the connection on which the call came.
func (c *Call) Conn() *Conn { return c.in.c }

// RemoteAddr is the address of whoever sent the call.
func (c *Call) RemoteAddr() net.Addr { return c.in.c.RemoteAddr() }

// Started is when the call's header arrived.
func (c *Call) Started() time.Time { return c.started }

// OnDone registers f to be called exactly once, when the call has ended. It
// replaces an earlier one. f must not block.
func (c *Call) OnDone(f func(Outcome)) {
	c.mu.Lock()
	outcome := c.outcome
	if outcome == nil {
		c.onDone = f
	}
	c.mu.Unlock()
	if outcome != nil {
		f(*outcome)
	}
}

var errForwarded = errors.New("the call has been forwarded already")

// maxTries bounds how often one call is sent.
const maxTries = 8

// Forward opens a stream on to and pairs it with the call. header is the fields
// to send, without pseudo-headers; te is written by the engine. It returns
// ErrNotAccepting, with nothing done, when to takes no more streams, and nil
// when the call has meanwhile ended.
func (c *Call) Forward(to *Conn, header []Field, o ForwardOptions) error {
	var own batch
	err := c.forward(to, header, o, &own)
	own.run()
	return err
}

func (c *Call) forward(to *Conn, header []Field, o ForwardOptions, b *batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return nil
	}
	if c.out != nil {
		return errForwarded
	}
	if c.serving != nil {
		b = c.serving
	}
	path, authority := c.path, c.authority
	if o.Path != "" {
		path = o.Path
	}
	if o.Authority != "" {
		authority = o.Authority
	}
	to.mu.Lock()
	if !to.opening() {
		to.mu.Unlock()
		return ErrNotAccepting
	}
	s := &c.first
	if s.call != nil {
		s = new(stream)
	}
	s.c, s.call, s.src, s.length = to, c, &c.in, -1
	s.onHeader, s.onTrailer = o.ResponseHeader, o.ResponseTrailer
	bare := c.bodyEnd && c.body == nil
	if !to.open1(s, path, authority, header, bare, b) {
		to.mu.Unlock()
		return ErrNotAccepting
	}
	if c.body != nil {
		to.sendData(s, c.body.rest(), c.bodyEnd, b)
	}
	to.mu.Unlock()
	c.out, c.o = s, o
	c.tries++
	if o.Retry == nil || c.body != nil && c.body.len() > heldMax {
		c.freeBody()
	} else {
		c.keeping = true
	}
	return nil
}

// freeBody gives up the means to send the request again. c.mu is held.
func (c *Call) freeBody() {
	c.keeping = false
	if c.body != nil {
		c.account.sub(int64(cap(c.body.b)))
		c.in.c.m.Buffered.Add(-int64(cap(c.body.b)))
		putSized(c.body)
		c.body = nil
	}
}

// keep appends to the held request. c.mu is held.
func (c *Call) keep(p []byte) room {
	var grown int64
	c.body, grown = sized(c.body, p)
	c.in.c.m.Buffered.Add(grown)
	return c.account.add(grown)
}

// Charge has what is held for the call counted in b, and says whether there was
// room for it. A handler calls it before anything else, from ServeCall; without
// it that is the budget of the connection on which the call came.
func (c *Call) Charge(b *Budget) bool {
	in := &c.in
	c.mu.Lock()
	defer c.mu.Unlock()
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	if in.gone || c.account == b || in.held != 0 || c.body != nil {
		return true
	}
	c.account.sub(in.weight)
	c.account = b
	return b.add(in.weight) == roomy
}

// requestData is DATA from the caller.
func (c *Call) requestData(p []byte, end bool, b *batch) {
	if w := c.web; w != nil && w.decode {
		q, ok := c.decodeWeb(p, end)
		defer putBuffer(q)
		if !ok {
			c.reject(Outcome{Code: codes.InvalidArgument, Message: c.in.c.hop + ": the request is not base64, as its content-type says", Reason: "malformed"}, nil, b)
			return
		}
		p = q.b
	}
	c.up.Add(int64(len(p)))
	c.mu.Lock()
	if c.done {
		c.mu.Unlock()
		return
	}
	if c.meter != nil {
		if no := c.meter.up(p); no != nil {
			c.mu.Unlock()
			c.reject(no.outcome(), no.Extra, b)
			return
		}
	}
	c.bodyEnd = c.bodyEnd || end
	out := c.out
	var over bool
	if out == nil || c.keeping {
		have := 0
		if c.body != nil {
			have = c.body.len()
		}
		if out != nil && (have+len(p) > heldMax || c.account.half()) {
			c.freeBody() // the next hop has it; not to try again elsewhere is what it costs least to give up
		} else if len(p) > 0 {
			left := c.keep(p)
			over = out == nil && (left == crammed || left == tight && have > 16<<10)
		}
	}
	if out != nil {
		out.c.mu.Lock()
		over = out.c.sendData(out, p, end, b)
		out.c.mu.Unlock()
	}
	c.mu.Unlock()
	if over {
		c.overflow("the request waits for a service that does not read it", b)
	}
}

// requestTrailers are the last HEADERS of a request. gRPC has none, and its
// servers end the connection for them: they go no further.
func (c *Call) requestTrailers(fields []Field, end bool, b *batch) error {
	if !end {
		return streamErr(codeProtocol, "HEADERS inside a request without END_STREAM")
	}
	if err := checkTrailers(fields, c.in.c.dec.clean); err != nil {
		return err
	}
	c.requestData(nil, true, b)
	return nil
}

// Reject ends the call with a status of our own, in trailers-only form while no
// response header has been sent. After Forward it also cancels the far side. A
// call that has ended is left alone.
func (c *Call) Reject(code codes.Code, message string, extra ...Field) {
	var own batch
	c.reject(Outcome{Code: code, Message: message, Reason: "rejected"}, extra, &own)
	own.run()
}

// reject ends the call with a status of ours, and cancels the far side.
func (c *Call) reject(o Outcome, extra []Field, b *batch) {
	c.mu.Lock()
	if c.done {
		c.mu.Unlock()
		return
	}
	c.done = true
	out := c.out
	if c.serving != nil {
		c.answer(o, extra, false, c.serving) // only under c.mu: the reader goes on with it after
	} else {
		c.answer(o, extra, false, b)
	}
	c.mu.Unlock()
	if out != nil {
		out.c.reset(out, codeCancel, b)
	}
	o.OriginHop = true
	c.finish(o)
}

// answer writes a status to the caller: behind what is queued for it, or, unless
// keep is set, instead of that. c.mu is held.
func (c *Call) answer(o Outcome, extra []Field, keep bool, b *batch) {
	c.freeBody()
	if c.web != nil {
		c.answerWeb(o, extra, keep, b)
		c.answered = true
		return
	}
	fields := statusFields(!c.answered, o.Code, o.Message, extra)
	in := &c.in
	in.c.mu.Lock()
	if !in.gone && !in.sentEnd {
		if !keep {
			in.c.dropQueue(in)
		}
		in.end = false
		in.c.sendTrailers(in, fields, b)
	}
	in.c.mu.Unlock()
	c.answered = true
}

// overflow ends a call for which more bytes wait than the budgets allow.
func (c *Call) overflow(what string, b *batch) {
	m := c.in.c.m
	m.Overflows.Add(1)
	c.reject(Outcome{Code: codes.ResourceExhausted, Message: c.in.c.hop + ": out of buffer space: " + what, Reason: "overflow"}, nil, b)
}

// finish reports the outcome, once; whoever set done calls it, without locks.
func (c *Call) finish(o Outcome) {
	o.Duration = time.Since(c.started)
	o.BytesUp, o.BytesDown = c.up.Load(), c.down.Load()
	m := c.in.c.m
	m.CallsOpen.Add(-1)
	m.BytesUp.Add(o.BytesUp)
	m.BytesDown.Add(o.BytesDown)
	if o.Reason == "rejected" {
		m.Rejected.Add(1)
	}
	c.mu.Lock()
	c.outcome = &o
	f := c.onDone
	c.onDone = nil
	c.mu.Unlock()
	if f != nil {
		f(o)
	}
}
