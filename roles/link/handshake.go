package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"sallyport/acme/pki"
)

// alertNoProtocol is a fatal TLS alert, no_application_protocol. crypto/tls
// would send internal_error, which tells the other end nothing.
var alertNoProtocol = []byte{21, 3, 3, 0, 2, 2, 120}

// handshake takes a connection from its first byte to an accepted Conn. It
// logs what it refuses; the error is for the caller to stop.
func (p *Port) handshake(ctx context.Context, nc net.Conn, remote netip.AddrPort) (*Conn, error) {
	nc.SetDeadline(time.Now().Add(p.HandshakeTimeout))
	pc, kind, err := peek(nc)
	if err != nil {
		if !quiet(err) {
			p.Log.Debug("a connection ended before its first byte", "from", sourceText(remote), "cause", err.Error())
		}
		return nil, err
	}
	if kind != TLS {
		r := kind.Refusal("the gRPC port")
		p.refusals.note(remote, "", r)
		kind.Answer(pc, "the gRPC port")
		return nil, r
	}

	hs := &portHandshake{port: p, conn: pc, begun: time.Now()}
	tc := tls.Server(pc, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: hs.config})
	if err := tc.HandshakeContext(ctx); err != nil {
		if ctx.Err() == nil && hs.refusal != nil {
			p.refusals.note(remote, hs.alpn, hs.refusal)
		} else if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) { // else it was displaced, and that was said
			p.refusals.note(remote, hs.alpn, explainHandshake(err))
		}
		linger(pc)
		return nil, err
	}
	conn, r := hs.finish(tc, remote)
	if r != nil {
		p.refusals.note(remote, hs.alpn, r)
		tc.CloseWrite()
		linger(pc)
		return nil, r
	}
	if conn.ALPN != ALPNHealth {
		nc.SetWriteDeadline(time.Now().Add(prefaceTime))
		preface, err := hs.preface(tc)
		if err == nil {
			_, err = conn.Write(preface)
		}
		if err != nil {
			p.Log.Debug("a connection ended before it was accepted", "from", sourceText(remote), "protocol", conn.ALPN, "cause", err.Error())
			return nil, err
		}
	}
	nc.SetDeadline(time.Time{})
	return conn, nil
}

// portHandshake is one handshake of the listening side.
type portHandshake struct {
	port    *Port
	conn    *peeked
	alpn    string
	self    *selfState
	own     *x509.Certificate
	begun   time.Time
	refusal *pki.Refusal

	identity *tls.Certificate // of the preface
	outside  *tls.Certificate // what TLS shows; nil: the identity
}

// preface is the port's first word: that it accepts, and, if TLS has shown
// another certificate, who it is.
func (h *portHandshake) preface(tc *tls.Conn) ([]byte, error) {
	if h.outside == nil {
		return acceptPreface, nil
	}
	cs := tc.ConnectionState()
	return makePreface(&cs, h.alpn, h.port.role(), h.outside.Certificate[0], h.identity)
}

func (h *portHandshake) refuse(r *pki.Refusal) (*tls.Config, error) {
	h.refusal = r
	return nil, r
}

// config picks the protocol and returns the one configuration for it.
func (h *portHandshake) config(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	p := h.port
	served := p.served()
	if i := slices.IndexFunc(hello.SupportedProtos, func(s string) bool { return slices.Contains(served, s) }); i >= 0 {
		h.alpn = hello.SupportedProtos[i]
	} else {
		h.conn.Write(alertNoProtocol)
		h.conn.mute = true
		if len(hello.SupportedProtos) == 0 {
			return h.refuse(refuseNoALPN())
		}
		return h.refuse(refuseForeignALPN(hello.SupportedProtos, served))
	}

	st, token := p.state()
	h.self = st
	switch {
	case token == nil && st.credentials == nil:
		return h.refuse(refuseNotJoined())
	case token != nil && h.alpn != ALPNJoin && h.alpn != ALPNRenew && h.alpn != ALPNHealth:
		return h.refuse(refuseNotJoined())
	case token == nil && h.alpn == ALPNJoin && p.Expect == pki.RoleCore:
		return h.refuse(refuseNoJoinExpected())
	}
	cert, r := p.certificate(h.alpn, st, token)
	if r != nil {
		return h.refuse(r)
	}
	if token == nil {
		h.own = st.leaf()
	}
	if h.identity = cert; p.Outside != nil {
		outside, err := p.Outside()
		if err != nil {
			return h.refuse(refusalOf(err))
		}
		h.outside, cert = outside, outside
	}
	c := baseConfig(h.alpn)
	c.Certificates = []tls.Certificate{*cert}
	c.ClientAuth = tls.RequireAnyClientCert
	if h.alpn == ALPNHealth {
		c.ClientAuth = tls.NoClientCert
	}
	c.VerifyConnection = h.verify
	return c, nil
}

// baseConfig is what both sides of every connection have in common.
func baseConfig(alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{alpn},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// verify judges the dialler's certificate. The dialler has not yet proven that
// it holds the key: nothing here may record, count or alarm.
func (h *portHandshake) verify(cs tls.ConnectionState) error {
	if cs.NegotiatedProtocol != h.alpn || cs.Version != tls.VersionTLS13 || cs.DidResume {
		h.refusal = refuseProtocol("the handshake ended with another protocol than it began with")
		return h.refusal
	}
	switch h.alpn {
	case ALPNHealth, ALPNJoin, ALPNRenew:
		return nil
	}
	if _, err := h.self.verifier(h.port.Self.now).Component(cs.PeerCertificates, pki.Expect{Role: h.port.Expect}); err != nil {
		h.refusal = refusalOf(err)
		return h.refusal
	}
	return nil
}

// finish makes the Conn of a completed handshake: now the peer has proven its
// key, and what depends on that is checked.
func (h *portHandshake) finish(tc *tls.Conn, remote netip.AddrPort) (*Conn, *pki.Refusal) {
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol != h.alpn || h.alpn == "" {
		return nil, refuseNoALPN()
	}
	conn := &Conn{Conn: tc, ALPN: h.alpn, own: h.own, Peer: Peer{Chain: cs.PeerCertificates, Remote: remote, Begun: h.begun}}
	switch h.alpn {
	case ALPNHealth:
		return conn, nil
	case ALPNJoin, ALPNRenew:
		conn.Peer.BootstrapKey, _ = pki.BootstrapPublicKey(cs.PeerCertificates)
		if h.alpn == ALPNJoin && h.port.Expect == pki.RoleCore {
			// A proxy waits for one core, and knows it by its token. Nobody else
			// gets as far as the RPC; the core of another token asks Why.
			return conn, h.port.verdict(h.alpn, &conn.Peer)
		}
		return conn, nil
	}
	if r := h.port.verdict(h.alpn, &conn.Peer); r != nil {
		return nil, r
	}
	conn.expires = expiryOf(h.own, cs.PeerCertificates[0])
	conn.freshFor(h.port.Self, h.self, conn.expires)
	return conn, nil
}

// verdict is what the port thinks of a peer that has proven its key and wants
// to speak alpn. It fills in who the peer is.
func (p *Port) verdict(alpn string, peer *Peer) *pki.Refusal {
	served := p.served()
	if !slices.Contains(served, alpn) {
		return refuseForeignALPN([]string{alpn}, served)
	}
	if len(peer.Chain) == 0 {
		return refuseNoCertificate()
	}
	st, token := p.state()
	switch alpn {
	case ALPNHealth, ALPNRenew:
		return nil
	case ALPNJoin:
		return p.joinVerdict(token, peer)
	}
	if st.credentials == nil {
		return refuseNotJoined()
	}
	id, err := st.verifier(p.Self.now).Component(peer.Chain, pki.Expect{Role: p.Expect})
	if err != nil {
		return refusalOf(err)
	}
	peer.ID = id
	peer.Incarnation, _ = pki.Incarnation(peer.Chain[0])
	if p.Check != nil {
		return p.Check(alpn, *peer)
	}
	return nil
}

// role is whose port this is.
func (p *Port) role() pki.Role {
	if p.Expect == pki.RoleCore {
		return pki.RoleProxy
	}
	return pki.RoleCore
}

func (p *Port) joinVerdict(token *pki.Token, peer *Peer) *pki.Refusal {
	if p.Expect == pki.RoleCore { // a proxy: core joins it
		if token == nil {
			return refuseNoJoinExpected()
		}
		_, err := token.VerifyCore(peer.Chain, p.Self.now())
		return refusalOf(err)
	}
	if peer.BootstrapKey == nil {
		return refuseNotBootstrap()
	}
	if p.JoinKey != nil {
		return p.JoinKey(peer.BootstrapKey, peer.Remote)
	}
	return nil
}

// served are the protocols of this port, sorted.
func (p *Port) served() []string {
	list := []string{ALPNRenew}
	if p.Health != nil {
		list = append(list, ALPNHealth)
	}
	for alpn := range p.Handlers {
		list = append(list, alpn)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// explainHandshake says why a handshake failed that nobody here refused.
func explainHandshake(err error) *pki.Refusal {
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		return &pki.Refusal{Code: pki.CodeRefusedByPeer,
			Cause:  "the other side refused our certificate or protocol: " + remote.Err.Error(),
			Remedy: "its log says why; likely it belongs to another core (its join token or stored CA is not ours), or one of the two clocks is wrong"}
	}
	if errors.Is(err, io.EOF) {
		return &pki.Refusal{Code: pki.CodeConnectionClosed,
			Cause:  "the other side closed the connection in the middle of the handshake",
			Remedy: "its log says why; a port scan or a TCP health probe does the same"}
	}
	return refusalOf(err)
}
