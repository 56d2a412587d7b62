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
	"sallyport/configs"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

const (
	publicPort     = "the public port"
	strangeTimeout = 5 * time.Second // answering somebody who speaks no HTTP/2
	cutTimeout     = time.Second     // telling callers that their calls were cut
)

// public is the listener that callers reach.
type public struct {
	proxy     *proxy
	refusals  *link.Refusals
	config    *tls.Config
	admission *admission
	limits    configs.Limits

	mu     sync.Mutex // guards what follows
	open   map[*relay.Conn]bool
	closed bool
}

func newPublic(p *proxy) *public {
	l := &public{proxy: p, refusals: link.NewRefusals(p.log), admission: p.deps.admission, limits: p.settings.Limits, open: make(map[*relay.Conn]bool)}
	if l.limits == (configs.Limits{}) {
		l.limits = configs.DefaultLimits()
	}
	if l.admission == nil {
		l.admission = newAdmission(l.limits)
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
			remote := link.RemoteOf(nc)
			if from, why := l.admission.come(remote.Addr(), l.shared(remote.Addr())); from != nil {
				running.Go(func() { l.connection(work, nc, from) })
			} else {
				nc.Close()
				l.crowded(remote, why)
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

// shared says whether many callers come from this address.
func (l *public) shared(a netip.Addr) bool {
	return l.balancer(a) || contains(l.proxy.settings.TrustedFronts, a)
}

// crowded takes note of a connection for which there is no place.
func (l *public) crowded(remote netip.AddrPort, why string) {
	l.refused(why)
	l.refusals.Note(remote, "", &pki.Refusal{Code: why, Cause: "this source has too many connections to the public port, or all sources together",
		Remedy: "none if somebody does so on purpose: others find a place; if they are yours, let clients share connections, start more proxies, raise --limit connections or handshakes, or the limit of open files"})
}

// connection is one connection from its first byte to its end.
func (l *public) connection(ctx context.Context, raw net.Conn, from *source) {
	defer func() { l.admission.leave(from) }()
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	a := l.enter(ctx, raw, &from)
	l.admission.shaken(from)
	if !stop() || a == nil {
		return
	}
	defer a.nc.Close()
	if a.spoken != link.HTTP2 || a.secure && a.alpn != "h2" {
		l.answerStranger(a)
		return
	}
	raw.SetDeadline(time.Time{})
	p := l.proxy
	peer := newClient(a.remote, a.chain)
	peer.from, peer.secure, peer.front = from, a.secure, contains(p.settings.TrustedFronts, a.remote.Addr())
	conn := relay.NewServer(a.nc, l.options(peer), relay.HandlerFunc(p.serve))
	conn.SetPeer(peer)
	if !l.add(conn) {
		return
	}
	defer l.remove(conn)
	err := conn.Run(ctx)
	p.log.Debug("a caller's connection ended", "from", a.remote.String(), "cause", err)
}

// options are those of one caller's connection.
func (l *public) options(from *client) *relay.Options {
	p := l.proxy
	limits := edgeLimits(l.limits)
	if from.front {
		limits = frontLimits(limits)
	}
	return &relay.Options{Limits: limits, Metrics: p.frames, Log: p.log, Hop: p.hop(), Remote: "caller", Edge: true, Front: from.front,
		Violated: p.violated, Document: p.document}
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
func (l *public) answerStranger(a *arrival) {
	nc := a.nc
	nc.SetDeadline(time.Now().Add(strangeTimeout))
	const text = "This is a gRPC server. It speaks HTTP/2 over TLS, negotiated by ALPN (h2), and nothing else.\n"
	if a.spoken == link.HTTP2 {
		l.proxy.edge.handshakes.WithLabelValues("no_h2").Inc()
		// Something between the two took ALPN away.
		framer := http2.NewFramer(nc, nil)
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
		fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", kind, len(body))
		if request.Method == http.MethodGet {
			_, _ = nc.Write(body)
		}
		return
	}
	l.proxy.edge.handshakes.WithLabelValues("no_h2").Inc()
	fmt.Fprintf(nc, "HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(text))
	if request.Method != http.MethodHead {
		_, _ = io.WriteString(nc, text)
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
