package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"sallyport/acme/pki"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

const (
	publicPort       = "the public port"
	handshakeTimeout = 10 * time.Second
	strangeTimeout   = 5 * time.Second // answering somebody who speaks no HTTP/2
	cutTimeout       = time.Second     // telling callers that their calls were cut
)

// public is the listener that callers reach.
type public struct {
	proxy     *proxy
	refusals  *link.Refusals
	config    *tls.Config
	admission *admission

	mu     sync.Mutex // guards what follows
	open   map[*relay.Conn]bool
	closed bool
}

func newPublic(p *proxy) *public {
	l := &public{proxy: p, refusals: link.NewRefusals(p.log), admission: p.deps.admission, open: make(map[*relay.Conn]bool)}
	if l.admission == nil {
		l.admission = newAdmission()
	}
	l.config = &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are all modern
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"h2", "http/1.1"}, // the latter to be told that it does not work
		// Certificates are asked for and judged later: a bad one is answered
		// in words, on every call, and not with a TLS alert.
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.certificates.current()
		},
		DynamicRecordSizingDisabled: true,
	}
	return l
}

// serve accepts connections until ctx ends or the listener fails. Connections
// live in work, which outlives ctx while calls are drained.
func (l *public) serve(ctx, work context.Context, listener net.Listener) error {
	var running sync.WaitGroup
	defer running.Wait()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()
	pause := 5 * time.Millisecond
	for {
		nc, err := listener.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
			if from := l.admission.come(link.RemoteOf(nc).Addr()); from != nil {
				running.Go(func() { l.connection(work, nc, from) })
			} else {
				l.crowded(nc)
			}
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
		l.refusals.Note(netip.AddrPort{}, "", &pki.Refusal{Code: "accept_failed", Cause: "cannot accept a connection on the public port: " + err.Error(),
			Remedy: "if it persists, raise the limit of open files"})
		select {
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		case <-ctx.Done():
			return nil
		}
	}
}

// crowded turns away a connection for which there is no place.
func (l *public) crowded(nc net.Conn) {
	nc.Close()
	l.proxy.edge.handshakes.WithLabelValues("too_many").Inc()
	l.refusals.Note(link.RemoteOf(nc), "", &pki.Refusal{Code: "too_many", Cause: "this source has too many connections to the public port, or all sources together",
		Remedy: "none if somebody does so on purpose: others find a place; if they are yours, let clients share connections, start more proxies, or raise the limit of open files"})
}

// connection is one connection from its first byte to its end.
func (l *public) connection(ctx context.Context, raw net.Conn, from *source) {
	defer l.admission.leave(from)
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	tc := l.handshake(ctx, raw)
	l.admission.shaken(from)
	if !stop() || tc == nil {
		return
	}
	defer tc.Close()
	state := tc.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		l.answerStranger(tc)
		return
	}
	raw.SetDeadline(time.Time{})
	p := l.proxy
	conn := relay.NewServer(tc, &relay.Options{Limits: relay.EdgeLimits(), Metrics: p.frames, Log: p.log, Hop: p.hop(), Remote: "caller", Edge: true, Violated: p.violated, Document: p.document}, relay.HandlerFunc(p.serve))
	peer := newClient(link.RemoteOf(raw), state.PeerCertificates)
	peer.from = from
	conn.SetPeer(peer)
	if !l.add(conn) {
		return
	}
	defer l.remove(conn)
	err := conn.Run(ctx)
	p.log.Debug("a caller's connection ended", "from", raw.RemoteAddr().String(), "cause", err)
}

// handshake returns the connection after its TLS handshake, or nil when it was
// refused and answered.
func (l *public) handshake(ctx context.Context, raw net.Conn) *tls.Conn {
	remote := link.RemoteOf(raw)
	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	nc, kind, err := link.Peek(raw)
	if err != nil {
		return nil // it came and went without a word
	}
	if kind != link.TLS {
		l.refusals.Note(remote, "", kind.Refusal(publicPort))
		l.proxy.edge.handshakes.WithLabelValues("plaintext").Inc()
		kind.Answer(nc, publicPort)
		return nil
	}
	tc := tls.Server(nc, l.config)
	if err := tc.HandshakeContext(ctx); err != nil {
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		why, ok := pki.AsRefusal(err)
		if !ok {
			explained := pki.Explain(err)
			why = &explained
		}
		l.refusals.Note(remote, "", why)
		l.proxy.edge.handshakes.WithLabelValues(why.Code).Inc()
		return nil
	}
	l.proxy.edge.connections.Inc()
	return tc
}

// crlPath is where the list of what the callers' issuer has revoked lies.
const crlPath = "/.well-known/sallyport/ca.crl"

// document is what lies at the public port for who asks with a plain GET.
func (p *proxy) document(path string) (kind string, body []byte) {
	if v := p.view.Load(); v != nil && path == crlPath {
		return "application/pkix-crl", v.crl
	}
	return "", nil
}

// answerStranger tells a client that did not negotiate HTTP/2 what is spoken
// here, in whichever version of HTTP it speaks.
func (l *public) answerStranger(tc *tls.Conn) {
	tc.SetDeadline(time.Now().Add(strangeTimeout))
	nc, kind, err := link.Peek(tc)
	if err != nil {
		return
	}
	const text = "This is a gRPC server. It speaks HTTP/2 over TLS, negotiated by ALPN (h2), and nothing else.\n"
	if kind == link.HTTP2 {
		l.proxy.edge.handshakes.WithLabelValues("no_h2").Inc()
		// Something between the two took ALPN away.
		framer := http2.NewFramer(tc, nil)
		_ = framer.WriteSettings()
		_ = framer.WriteGoAway(0, http2.ErrCodeInadequateSecurity, []byte("HTTP/2 was not negotiated by ALPN (h2): let the client offer it, and what stands in between pass it on"))
		return
	}
	request, err := http.ReadRequest(bufio.NewReader(io.LimitReader(nc, 64<<10)))
	if err != nil {
		return
	}
	request.Body.Close()
	if kind, body := l.proxy.document(request.URL.Path); body != nil && (request.Method == http.MethodGet || request.Method == http.MethodHead) {
		fmt.Fprintf(tc, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", kind, len(body))
		if request.Method == http.MethodGet {
			_, _ = tc.Write(body)
		}
		return
	}
	l.proxy.edge.handshakes.WithLabelValues("no_h2").Inc()
	fmt.Fprintf(tc, "HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(text))
	if request.Method != http.MethodHead {
		_, _ = io.WriteString(tc, text)
	}
}

func (l *public) add(c *relay.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.open[c] = true
	}
	return !l.closed
}

// connections are those that are open.
func (l *public) connections() []*relay.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*relay.Conn, 0, len(l.open))
	for c := range l.open {
		list = append(list, c)
	}
	return list
}

func (l *public) remove(c *relay.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
}

// drain ends every connection without losing a call; calls still open after
// the time given end with UNAVAILABLE.
func (l *public) drain(within time.Duration) {
	l.mu.Lock()
	l.closed = true
	open := make([]*relay.Conn, 0, len(l.open))
	for c := range l.open {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		c.Drain()
	}
	limit := time.NewTimer(within)
	defer limit.Stop()
	for i, c := range open {
		select {
		case <-c.Done():
			continue
		case <-limit.C:
		}
		calls := 0
		for _, c := range open[i:] {
			calls += c.InFlight()
			c.Close(errors.New("the proxy is shutting down"))
		}
		if calls > 0 {
			l.proxy.log.Warn("drain time is over, calls are cut", "calls", calls)
		}
		limit.Reset(cutTimeout)
		for _, c := range open[i:] {
			select {
			case <-c.Done(): // every caller has been told
			case <-limit.C:
				return
			}
		}
		return
	}
}
