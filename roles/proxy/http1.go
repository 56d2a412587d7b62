// The transport of x/net is deprecated in favour of the one in net/http, which is
// left out of the binary that is shipped (.ci/build): it is the larger of the two.
//
//lint:file-ignore SA1019 see above

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// http1 takes requests of HTTP/1.1, which browsers and what stands before them
// may speak. It decides nothing: each request goes over a connection in memory,
// one per client's connection, to the same engine as those of HTTP/2, so that
// who calls, what he may, the limits and the log are the same.
type http1 struct {
	public *public
	server *http.Server
	conns  chan net.Conn
	ended  chan struct{}
	end    func()
}

const (
	http1Body   = 64 << 20               // bytes of one request: a message, there is no more in gRPC-Web
	http1Window = 64 << 10               // bytes of a response that may wait for its client: what carries it is in memory, and fast
	http1Cost   = 24 << 10               // bytes of memory that a connection costs beside the one that carries it
	http1Held   = 112 << 10              // and a request: its window, and what copies it
	http1Rest   = 250 * time.Millisecond // for the rest of a request after its answer
)

func newHTTP1(l *public) *http1 {
	h := &http1{public: l, conns: make(chan net.Conn), ended: make(chan struct{})}
	h.end = sync.OnceFunc(func() { close(h.ended) })
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	h.server = &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: l.limits.HeaderTime,
		IdleTimeout:       l.limits.Idle,
		MaxHeaderBytes:    l.limits.HeaderList,
		ErrorLog:          slog.NewLogLogger(l.proxy.log.Handler(), slog.LevelDebug),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, http1Key{}, c) },

		DisableGeneralOptionsHandler: true,
	}
	return h
}

type http1Key struct{}

// run serves until close.
func (h *http1) run() { _ = h.server.Serve(h) } // ends by close

// Accept, Close and Addr make it the listener of its own server.
func (h *http1) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *http1) Close() error { h.end(); return nil }

// Addr is none: connections come from another listener.
func (h *http1) Addr() net.Addr { return &net.TCPAddr{} }

// noMore lets the requests that are there be the last ones.
func (h *http1) noMore() { h.server.SetKeepAlivesEnabled(false) }

// close ends every connection, soon.
func (h *http1) close() {
	ctx, cancel := context.WithTimeout(context.Background(), cutTimeout)
	defer cancel()
	_ = h.server.Shutdown(ctx)
	h.server.Close()
	h.end()
}

// serve takes a client's connection until it ends.
func (h *http1) serve(ctx context.Context, nc net.Conn, peer *client) {
	nc.SetDeadline(time.Time{})
	peer.http1 = true
	memory := peer.from.budget
	defer memory.Release(http1Cost)
	if !memory.Hold(http1Cost) {
		h.public.refused("memory")
		return
	}
	c := &http1Conn{Conn: nc, public: h.public, peer: peer, ended: make(chan struct{})}
	defer c.carried.Wait()
	c.transport = inMemoryTransport(func() (net.Conn, error) { return c.carry(ctx) })
	defer c.transport.CloseIdleConnections()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	select {
	case h.conns <- c:
	case <-h.ended:
		return
	}
	<-c.ended
}

// inMemoryTransport speaks HTTP/2 over what carry makes.
func inMemoryTransport(carry func() (net.Conn, error)) *http2.Transport {
	windows := &http.Transport{HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: http1Window, MaxReceiveBufferPerConnection: 2 * http1Window}}
	t, err := http2.ConfigureTransports(windows)
	if err != nil {
		panic("proxy: " + err.Error()) // only a transport that was configured before fails
	}
	t.ConnPool = nil // which would leave dialling to net/http
	t.AllowHTTP, t.DisableCompression = true, true
	t.DialTLSContext = func(context.Context, string, string, *tls.Config) (net.Conn, error) { return carry() }
	return t
}

// http1Conn is one connection of a client.
type http1Conn struct {
	net.Conn
	public    *public
	peer      *client
	transport *http2.Transport
	carried   sync.WaitGroup
	once      sync.Once
	ended     chan struct{}
}

// Close closes it.
func (c *http1Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.ended) })
	return err
}

var errShuttingDown = errors.New("the proxy is shutting down")

// carry makes the connection in memory.
func (c *http1Conn) carry(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	conn := c.public.server(&inMemory{Conn: far, remote: c.RemoteAddr()}, c.peer)
	if !c.public.add(conn) {
		near.Close()
		far.Close()
		return nil, errShuttingDown
	}
	c.carried.Go(func() {
		defer c.public.remove(conn)
		_ = conn.Run(ctx)
	})
	return near, nil
}

// inMemory is the end of a connection in memory that stands for a client's.
type inMemory struct {
	net.Conn
	remote net.Addr
}

// RemoteAddr is the client's address.
func (m *inMemory) RemoteAddr() net.Addr { return m.remote }

// ServeHTTP carries one request and its answer.
func (h *http1) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(http1Key{}).(*http1Conn)
	control := http.NewResponseController(w)
	// Short answers are taken in time too, or nobody is there.
	_ = control.SetWriteDeadline(time.Now().Add(h.public.limits.Stall))
	switch kind := r.Header.Get("Content-Type"); {
	case strings.HasPrefix(kind, "application/grpc") && !strings.HasPrefix(kind, "application/grpc-web"):
		h.public.proxy.edge.handshakes.WithLabelValues("no_h2").Inc()
		w.Header().Set("Connection", "close")
		tell(w, http.StatusHTTPVersionNotSupported, "gRPC needs HTTP/2, negotiated by ALPN (h2); over HTTP/1.1 there is gRPC-Web.")
		return
	case r.Method == http.MethodConnect:
		tell(w, http.StatusMethodNotAllowed, "This is no HTTP proxy.")
		return
	case headerSize(r) > h.public.limits.HeaderList:
		tell(w, http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("The request's header is larger than %d bytes, counted as in HTTP/2.", h.public.limits.HeaderList))
		return
	case r.ContentLength > http1Body:
		tooLarge(w)
		return
	}
	memory := c.peer.from.budget
	defer memory.Release(http1Held)
	if !memory.Hold(http1Held) {
		w.Header().Set("Connection", "close")
		tell(w, http.StatusServiceUnavailable, h.public.proxy.hop()+": no memory is left for another request from here.")
		return
	}
	// A service may answer before it has been sent everything.
	_ = control.EnableFullDuplex()
	body := &http1Reader{body: http.MaxBytesReader(w, r.Body, http1Body), control: control, stall: h.public.limits.Stall}
	out := (&http.Request{Method: r.Method, Host: r.Host, URL: &url.URL{Scheme: "http", Host: "edge", Opaque: requestPath(r.RequestURI)},
		Header: requestHeader(r.Header), Body: body, ContentLength: r.ContentLength}).WithContext(r.Context())
	if r.ContentLength == 0 {
		out.Body, body.over = http.NoBody, true
	}
	response, err := c.transport.RoundTrip(out)
	_ = control.SetWriteDeadline(time.Now().Add(h.public.limits.Stall))
	if err != nil {
		body.finish()
		var large *http.MaxBytesError
		switch {
		case errors.As(err, &large):
			tooLarge(w)
		case r.Context().Err() != nil:
			panic(http.ErrAbortHandler)
		case body.failed():
			w.Header().Set("Connection", "close")
			tell(w, http.StatusBadRequest, "The request's body does not follow HTTP/1.1 (RFC 9112 section 7).")
		default:
			w.Header().Set("Connection", "close")
			tell(w, http.StatusServiceUnavailable, h.public.proxy.hop()+": the request could not be taken: try again.")
		}
		return
	}
	defer response.Body.Close()
	defer body.finish()
	header := w.Header()
	for name, values := range response.Header {
		header[name] = values
	}
	w.WriteHeader(response.StatusCode)
	if !deliver(w, control, response.Body, h.public.limits.Stall) {
		panic(http.ErrAbortHandler) // so that the client sees that the response is not whole
	}
}

// deliver passes a response's body on as it comes, to a client that keeps reading.
func deliver(w io.Writer, control *http.ResponseController, body io.Reader, stall time.Duration) bool {
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(stall))
			if _, err := w.Write(buf[:n]); err != nil {
				return false
			}
			if err := control.Flush(); err != nil {
				return false
			}
		}
		switch {
		case err == io.EOF:
			_ = control.SetWriteDeadline(time.Now().Add(stall)) // of the end, which is still to be written
			return true
		case err != nil:
			return false
		}
	}
}

// http1Reader is the body of a request, whose next bytes have to come in time.
type http1Reader struct {
	body    io.Reader
	control *http.ResponseController
	stall   time.Duration

	mu   sync.Mutex // guards what follows
	over bool       // nothing more is waited for: all has come, or nobody wants it
	bad  bool       // what came is no body
}

// Read reads what comes next.
func (b *http1Reader) Read(p []byte) (int, error) {
	b.wait(b.stall)
	n, err := b.body.Read(p)
	if err == nil || err == io.EOF {
		b.wait(0)
	}
	if err != nil {
		b.mu.Lock()
		b.over = b.over || err == io.EOF
		b.bad = err != io.EOF
		b.mu.Unlock()
	}
	return n, err
}

// failed says whether what came could not be read.
func (b *http1Reader) failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bad
}

// Close does nothing: the server closes a request's body itself, after the
// answer, and reads what is left of it for that.
func (b *http1Reader) Close() error { return nil }

// wait sets for how long bytes are waited for; 0: as long as it takes.
func (b *http1Reader) wait(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.over:
	case d == 0:
		_ = b.control.SetReadDeadline(time.Time{})
	default:
		_ = b.control.SetReadDeadline(time.Now().Add(d))
	}
}

// finish is the end of the answer: the rest of the request is of no use, but if
// it is under way already, the connection can go on.
func (b *http1Reader) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		b.over = true
		_ = b.control.SetReadDeadline(time.Now().Add(http1Rest))
	}
}

// requestPath is what the engine gets to see of a request's target: the target
// byte for byte, if it is a path, else something that no method is called.
func requestPath(target string) string {
	if !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "//") {
		return "/" + url.PathEscape(target)
	}
	return target
}

// requestHeader is a request's header without what concerns this connection alone.
func requestHeader(in http.Header) http.Header {
	out := in.Clone()
	for _, line := range in["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Te", "Trailer", "Expect", "Content-Length", "Http2-Settings"} {
		delete(out, name)
	}
	if out["User-Agent"] == nil {
		out["User-Agent"] = []string{""} // else the transport names itself
	}
	return out
}

// headerSize is the size of a request's header as SETTINGS_MAX_HEADER_LIST_SIZE
// counts it (RFC 9113 section 6.5.2), and a little more.
func headerSize(r *http.Request) int {
	n := len(r.RequestURI) + len(r.Host) + len(r.Method) + 5*(32+len(":authority"))
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + 32
		}
	}
	return n
}

func tooLarge(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	tell(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("A request over HTTP/1.1 may have %d MiB; HTTP/2 has no such limit.", http1Body>>20))
}

func tell(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
