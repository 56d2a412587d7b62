package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"sallyport/acme"
	"sallyport/acme/pki"
	"sallyport/roles/link"
)

// arrival is a connection that got past the door: the balancer has said whom it
// brings, TLS is up where it is spoken, and what is spoken above is known.
type arrival struct {
	nc      net.Conn            // speaks spoken
	spoken  link.Plaintext      // HTTP2, or HTTP1, or what is neither
	alpn    string              // what TLS agreed on; empty without TLS
	secure  bool                // TLS ends here
	remote  netip.AddrPort      // of the caller, past a balancer
	obscure bool                // where remote is this host, nothing shows that the caller is on it: a balancer brought it
	chain   []*x509.Certificate // the client certificate it proved to hold, or nil
}

// enter brings a new connection past the door, or answers it and returns nil. It
// may find that the connection belongs to another source.
func (l *public) enter(ctx context.Context, raw net.Conn, from **source) *arrival {
	raw.SetDeadline(time.Now().Add(l.limits.HandshakeTime))
	a := &arrival{nc: raw, remote: link.RemoteOf(raw)}
	if l.balancer(a.remote.Addr()) && !l.introduced(a, from) {
		return nil
	}
	if l.proxy.settings.TLS == "off" {
		return l.plaintext(a)
	}
	return l.handshake(ctx, a)
}

// handshake ends TLS.
func (l *public) handshake(ctx context.Context, a *arrival) *arrival {
	nc, kind, err := link.Peek(a.nc)
	if err != nil {
		l.silent(err)
		return nil
	}
	if kind != link.TLS {
		l.refusals.Note(a.remote, "", kind.Refusal(publicPort))
		l.refused("plaintext")
		kind.Answer(nc, publicPort)
		return nil
	}
	tc := tls.Server(nc, l.config)
	if err := tc.HandshakeContext(ctx); err != nil {
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if l.silent(err) {
			return nil
		}
		why, ok := pki.AsRefusal(err)
		if !ok {
			explained := pki.Explain(err)
			why = &explained
		}
		l.refusals.Note(a.remote, "", why)
		l.refused(why.Code)
		return nil
	}
	state := tc.ConnectionState()
	if state.NegotiatedProtocol == acme.ProtocolChallenge {
		tc.Close() // the CA has seen what it came for
		return nil
	}
	l.proxy.edge.connections.Inc()
	a.nc, a.secure, a.alpn, a.chain = tc, true, state.NegotiatedProtocol, state.PeerCertificates
	if a.alpn == "h2" {
		a.spoken = link.HTTP2
		return a
	}
	tc.SetDeadline(time.Now().Add(strangeTimeout))
	if a.nc, a.spoken, err = link.Peek(tc); err != nil {
		l.silent(err)
		tc.Close()
		return nil
	}
	return a
}

// plaintext finds out what is spoken where TLS is off.
func (l *public) plaintext(a *arrival) *arrival {
	nc, kind, err := link.Peek(a.nc)
	if err != nil {
		l.silent(err)
		return nil
	}
	switch kind {
	case link.HTTP1, link.HTTP2:
		a.nc, a.spoken = nc, kind
		l.proxy.edge.connections.Inc()
		return a
	case link.TLS:
		l.refusals.Note(a.remote, "", &pki.Refusal{Code: pki.CodePlaintext, Cause: "a TLS handshake came to " + publicPort + ", which speaks none (--tls off)",
			Remedy: "let the front speak HTTP/2 without TLS (h2c) to this port, or give the port a certificate"})
	default:
		l.refusals.Note(a.remote, "", kind.Refusal(publicPort))
	}
	l.refused("not_http")
	return nil
}

// silent counts a connection whose time ran out before it had said what it had
// to say, and says whether it is one.
func (l *public) silent(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	l.refused("handshake_time")
	return true
}

// refused counts a connection that comes to nothing.
func (l *public) refused(cause string) { l.proxy.edge.handshakes.WithLabelValues(cause).Inc() }
