package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
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
	http1     *http1

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
		l.admission = newAdmission(l.limits, p.deps.Budget)
	}
	l.config = &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are all modern
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"h2", "http/1.1"},
		// Certificates are asked for and judged later: a bad one is answered
		// in words, on every call, and not with a TLS alert.
		ClientAuth:                  tls.RequestClientCert,
		GetCertificate:              l.present,
		DynamicRecordSizingDisabled: true,
	}
	l.askForCertificates(p.settings.AskClientCert)
	l.takeChallenges()
	l.http1 = newHTTP1(l)
	return l
}

// askForCertificates says who is asked for a client certificate. A browser that
// is asked asks its user, for nothing: callers there have tokens. Browsers offer
// HTTP/1.1 beside HTTP/2, clients of gRPC do not.
func (l *public) askForCertificates(when string) {
	switch when {
	case "always":
	case "never":
		l.config.ClientAuth = tls.NoClientCert
	default:
		unasked := l.config.Clone()
		unasked.ClientAuth = tls.NoClientCert
		l.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedProtos, "http/1.1") {
				return unasked, nil
			}
			return nil, nil
		}
	}
}

// serve accepts connections until ctx ends or the listener fails. Connections
// live in work, which outlives ctx while calls are drained.
func (l *public) serve(ctx, work context.Context, listener net.Listener) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(l.http1.run)
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
	peer := newClient(a.remote, a.chain)
	peer.from, peer.secure, peer.front = from, a.secure, contains(l.proxy.settings.TrustedFronts, a.remote.Addr())
	peer.obscure = a.obscure
	switch {
	case a.spoken == link.HTTP1:
		l.http1.serve(ctx, a.nc, peer)
		return
	case a.spoken != link.HTTP2:
		l.refused("not_http")
		return
	case a.secure && a.alpn != "h2":
		l.notNegotiated(a.nc)
		return
	}
	raw.SetDeadline(time.Time{})
	conn := l.server(a.nc, peer)
	if !l.add(conn) {
		return
	}
	defer l.remove(conn)
	err := conn.Run(ctx)
	l.proxy.log.Debug("a caller's connection ended", "from", a.remote.String(), "cause", err)
}

// server is the end of a connection that takes a caller's requests, in either
// version of HTTP.
func (l *public) server(nc net.Conn, from *client) *relay.Conn {
	p := l.proxy
	limits := edgeLimits(l.limits)
	if from.front {
		limits = frontLimits(limits)
	}
	conn := relay.NewServer(nc, &relay.Options{Limits: limits, Metrics: p.frames, Budget: from.from.budget, Log: p.log, Hop: p.hop(), Remote: "caller", Edge: true, Front: from.front || !from.secure && from.source.Addr().IsLoopback(),
		Violated: p.violated, Web: p.web, Other: p.other}, relay.HandlerFunc(p.serve))
	conn.SetPeer(from)
	return conn
}

// notNegotiated tells a client that speaks HTTP/2 without having said so what
// is wrong. Something between the two took ALPN away.
func (l *public) notNegotiated(nc net.Conn) {
	nc.SetDeadline(time.Now().Add(strangeTimeout))
	l.refused("no_h2")
	framer := http2.NewFramer(nc, nil)
	_ = framer.WriteSettings()
	_ = framer.WriteGoAway(0, http2.ErrCodeInadequateSecurity, []byte("HTTP/2 was not negotiated by ALPN (h2): let the client offer it, and what stands in between pass it on"))
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
	l.http1.noMore()
	defer l.http1.close()
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
