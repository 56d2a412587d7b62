package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"sallyport/acme/pki"
)

// Plaintext is what the first bytes of a connection say it is, when it is not TLS.
type Plaintext int

const (
	TLS         Plaintext = iota // a TLS handshake record: go on
	HTTP1                        // an HTTP/1 request line
	HTTP2                        // the HTTP/2 preface without TLS: gRPC "insecure", h2c
	ProxyHeader                  // a PROXY protocol header
	SSH                          // an SSH banner
	NotKnown                     // something else
)

// peeked is a connection whose first bytes are read again by the next reader.
type peeked struct {
	net.Conn
	head []byte
	mute bool // what is written goes nowhere; set and used by one goroutine in the handshake
}

func (c *peeked) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// NetConn is the connection beneath. By the time anybody can ask, the first
// bytes have been read.
func (c *peeked) NetConn() net.Conn { return c.Conn }

func (c *peeked) Write(b []byte) (int, error) {
	if c.mute {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Peek reads the first bytes of a connection to see whether they are TLS and
// returns the connection with those bytes still to be read. It waits for one
// byte, and for more only while they could still be several things. The
// caller sets the deadline.
func Peek(nc net.Conn) (net.Conn, Plaintext, error) {
	c, kind, err := peek(nc)
	return c, kind, err
}

func peek(nc net.Conn) (*peeked, Plaintext, error) {
	buf := make([]byte, 16)
	n := 0
	for {
		m, err := nc.Read(buf[n:])
		n += m
		if kind, sure := classify(buf[:n]); n > 0 && (sure || err != nil || n == len(buf)) {
			return &peeked{Conn: nc, head: buf[:n]}, kind, nil
		}
		if err != nil {
			return nil, NotKnown, err
		}
	}
}

var http1Methods = []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "CONNECT ", "TRACE "}

// classify says what the first bytes are, and whether more bytes could change that.
func classify(b []byte) (kind Plaintext, sure bool) {
	if len(b) == 0 {
		return NotKnown, false
	}
	if b[0] == 0x16 {
		return TLS, true
	}
	could := false
	is := func(prefix string) bool {
		if bytes.HasPrefix(b, []byte(prefix)) {
			return true
		}
		could = could || strings.HasPrefix(prefix, string(b))
		return false
	}
	switch {
	case is("PRI * HTTP/2"):
		return HTTP2, true
	case is("PROXY ") || is("\r\n\r\n\x00\r\nQUIT\n"):
		return ProxyHeader, true
	case is("SSH-"):
		return SSH, true
	}
	for _, m := range http1Methods {
		if is(m) {
			return HTTP1, true
		}
	}
	return NotKnown, !could
}

// Refusal is the cause and remedy for the log of a port that speaks TLS only.
// port names it to a person: "the gRPC port", "the public port".
func (k Plaintext) Refusal(port string) *pki.Refusal {
	switch k {
	case HTTP1:
		return &pki.Refusal{Code: pki.CodePlaintext, Cause: "a plain HTTP/1 request came to " + port + ", which speaks TLS only",
			Remedy: "use https, or for a health probe the process's --health-address"}
	case HTTP2:
		return &pki.Refusal{Code: pki.CodePlaintext, Cause: "plain HTTP/2 (gRPC without TLS) came to " + port + ", which speaks TLS only",
			Remedy: "switch TLS on in the client (grpcurl: leave -plaintext out; grpc-go: transport credentials instead of insecure)"}
	case ProxyHeader:
		return &pki.Refusal{Code: pki.CodePlaintext, Cause: "a PROXY protocol header came to " + port + ", which does not expect one",
			Remedy: "switch the PROXY protocol off in the load balancer for this port, or if the port is a proxy's public one, give --proxy-protocol the load balancer's address"}
	case SSH:
		return &pki.Refusal{Code: pki.CodeNotTLS, Cause: "an SSH client came to " + port, Remedy: "check the port number"}
	default:
		return &pki.Refusal{Code: pki.CodeNotTLS, Cause: "something that is not TLS came to " + port,
			Remedy: "check who dials this port: it is for gRPC over TLS"}
	}
}

// Answer tells the other end, in its own language, that TLS is expected, and
// closes the connection.
func (k Plaintext) Answer(nc net.Conn, port string) {
	defer nc.Close()
	r := k.Refusal(port)
	var answer []byte
	switch k {
	case HTTP1:
		text := r.Cause + ".\n" + r.Remedy + ".\n"
		answer = fmt.Appendf(nil, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
	case HTTP2:
		nc.SetDeadline(time.Now().Add(time.Second))
		awaitRequest(nc)
		answer = goAway(r.Cause + "; " + r.Remedy)
	default:
		return
	}
	nc.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := nc.Write(answer); err == nil {
		linger(nc)
	}
}

// awaitRequest reads HTTP/2 frames up to the first request, or until the
// deadline. A client that is sent away before it has asked anything reports
// only that the connection is closing; its pending request it ends with the
// debug data.
func awaitRequest(nc net.Conn) {
	if _, err := io.CopyN(io.Discard, nc, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(io.Discard, nc)
	f.SetMaxReadFrameSize(16 << 10)
	nc.Write([]byte{0, 0, 0, byte(http2.FrameSettings), 0, 0, 0, 0, 0})
	for range 16 {
		frame, err := f.ReadFrame()
		if err != nil || frame.Header().Type == http2.FrameHeaders {
			return
		}
	}
}

// goAway is a GOAWAY with INADEQUATE_SECURITY and debug data. It lets pending
// requests stand: the end of the connection ends them, and they are not tried
// again.
func goAway(text string) []byte {
	var b bytes.Buffer
	http2.NewFramer(&b, nil).WriteGoAway(1<<31-1, http2.ErrCodeInadequateSecurity, []byte(text))
	return b.Bytes()
}

// linger says that no more will come and reads what is still arriving, for a
// second and 64 KiB at most: a socket closed with unread bytes is reset, and a
// reset can overtake the answer.
func linger(nc net.Conn) {
	inner := nc
	if p, ok := nc.(*peeked); ok {
		inner = p.Conn
	}
	cw, ok := inner.(interface{ CloseWrite() error })
	if !ok || cw.CloseWrite() != nil {
		return
	}
	nc.SetReadDeadline(time.Now().Add(time.Second))
	io.CopyN(io.Discard, nc, 64<<10)
}

// quiet tells errors that are no news: the other end went away or said nothing.
func quiet(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)
}
