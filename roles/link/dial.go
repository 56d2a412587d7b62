package link

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"sallyport/acme/pki"
)

// Dialler is the dialling side: a gateway that dials core, core that dials a
// proxy.
type Dialler struct {
	Self *Self // what it proves and believes

	// Token, at a gateway that has not joined: it proves the bootstrap key and
	// believes the pinned root. Only for ALPNJoin.
	Token *pki.Token

	// BootstrapKey, at core: the key that the proxy's token makes. Only for ALPNJoin.
	BootstrapKey ed25519.PublicKey

	// Recovery, at core, verifies the listener's identity on ALPNRenew, where
	// it may have expired: (*pki.Authority).RecoveryVerifier. At a component,
	// which has none, core's is verified by the roots.
	Recovery func() *pki.Verifier

	// Outside says that the listener shows the world another certificate (mode
	// files or acme), and how that is verified. Nil: it shows its identity. A
	// listener in another mode than is expected is refused, both ways.
	Outside *Outside

	Log *slog.Logger // what is of use to nobody but who looks for a fault (debug)

	// Connect opens the TCP connection; nil is a net.Dialer.
	Connect func(ctx context.Context, network, address string) (net.Conn, error)

	// Timeout bounds a whole Dial; 10 s if zero.
	Timeout time.Duration
}

// Dial connects to address, where want is expected to listen, for alpn. The
// connection is returned when the listener has accepted it. When the listener
// refuses, Dial asks it why, once, and the error is its *pki.Refusal; when
// this side refuses, or TLS fails, the error is a *pki.Refusal that says so.
func (d *Dialler) Dial(ctx context.Context, address, alpn string, want pki.Expect) (*Conn, error) {
	timeout := d.Timeout
	if timeout <= 0 {
		timeout = defaultHandshakeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := d.connect(ctx, address, alpn, want)
	if err == nil {
		return conn, nil
	}
	if !errors.Is(err, errRefusedThere) || ctx.Err() != nil {
		return nil, err
	}
	refusal, whyErr := d.why(ctx, address, alpn, want)
	switch {
	case refusal != nil:
		return nil, fmt.Errorf("%s refused this component: %w", address, refusal)
	case whyErr != nil:
		if d.Log != nil {
			d.Log.Debug("asked why and got no answer", "address", address, "protocol", alpn, "cause", whyErr.Error())
		}
		return nil, err
	default:
		return nil, fmt.Errorf("%w (asked why: it would accept this certificate now)", err)
	}
}

// self is Self; a newcomer may have none.
func (d *Dialler) self() *Self {
	if d.Self == nil {
		return NewSelf()
	}
	return d.Self
}

// errRefusedThere marks that the other side ended the handshake.
var errRefusedThere = errors.New("refused by the other side")

// refusedThere is what a dialler knows before it has asked why.
type refusedThere struct{ refusal *pki.Refusal }

func (e *refusedThere) Error() string   { return e.refusal.Error() }
func (e *refusedThere) Unwrap() []error { return []error{e.refusal, errRefusedThere} }

// connect is one attempt, without asking why.
func (d *Dialler) connect(ctx context.Context, address, alpn string, want pki.Expect) (*Conn, error) {
	connect := d.Connect
	if connect == nil {
		connect = (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext
	}
	nc, err := connect(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, refusalOf(err))
	}
	conn, err := d.handshake(ctx, nc, address, alpn, want)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("%s at %s: %w", alpn, address, err)
	}
	return conn, nil
}

func (d *Dialler) handshake(ctx context.Context, nc net.Conn, address, alpn string, want pki.Expect) (*Conn, error) {
	hs := &dialHandshake{dialler: d, alpn: alpn, want: want, self: d.self().state.Load(), peer: Peer{Remote: remoteOf(nc), Begun: time.Now()}, local: addressOf(nc.LocalAddr())}
	c := baseConfig(alpn)
	c.InsecureSkipVerify = true // all checks are in VerifyConnection
	c.VerifyConnection = hs.verify
	c.GetClientCertificate = hs.certificate
	if host, _, err := net.SplitHostPort(address); err == nil {
		c.ServerName, hs.host = host, host
	}
	if d.Outside != nil && d.Outside.ServerName != "" {
		c.ServerName = d.Outside.ServerName
	}
	tc := tls.Client(nc, c)
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err := tc.HandshakeContext(ctx)
	if err == nil {
		err = hs.preface(tc)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, hs.explain(ctx, err)
	}
	conn := &Conn{Conn: tc, ALPN: alpn, Peer: hs.peer, Dialled: true, own: hs.own, expires: expiryOf(hs.own, hs.theirs)}
	conn.freshFor(d.Self, hs.self, conn.expires)
	return conn, nil
}

// preface waits until the listener accepts, and judges the identity that it
// proves with that word, if TLS has shown another certificate.
func (h *dialHandshake) preface(tc *tls.Conn) error {
	p, err := readPreface(tc)
	if err != nil {
		return err
	}
	outside := h.dialler.Outside != nil
	if outside != (p != nil) {
		h.refusal = refuseMode(outside)
		return h.refusal
	}
	if !outside {
		return nil
	}
	cs := tc.ConnectionState()
	// First whose key it is, then whether that is who was wanted.
	if h.refusal = p.proves(&cs, h.alpn, h.want.Role); h.refusal == nil {
		h.refusal = h.whose(p.chain)
	}
	if h.refusal != nil {
		return h.refusal
	}
	return nil
}

// dialHandshake is one handshake of the dialling side.
type dialHandshake struct {
	dialler *Dialler
	alpn    string
	want    pki.Expect
	self    *selfState
	own     *x509.Certificate
	theirs  *x509.Certificate
	peer    Peer
	host    string // that was dialled
	local   netip.AddrPort
	refusal *pki.Refusal // ours
}

// certificate is called by GetClientCertificate: a static certificate that
// does not fit what the listener asks for would silently not be sent.
func (h *dialHandshake) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if t := h.dialler.Token; t != nil {
		c, err := t.BootstrapCertificate(h.dialler.self().now())
		return &c, err
	}
	h.own = h.self.leaf()
	return h.self.certificate(h.alpn == ALPNJoin || h.alpn == ALPNRenew)
}

// verify judges the listener. crypto/tls calls it before the listener's
// signature has been checked, and fails the handshake if that is wrong.
func (h *dialHandshake) verify(cs tls.ConnectionState) error {
	h.refusal = h.judge(cs)
	if h.refusal != nil {
		return h.refusal
	}
	return nil
}

func (h *dialHandshake) judge(cs tls.ConnectionState) *pki.Refusal {
	if cs.NegotiatedProtocol != h.alpn {
		return &pki.Refusal{Code: pki.CodeNoCommonProtocol,
			Cause:  fmt.Sprintf("the server did not choose the protocol %s: it is no port of a Sallyport component", h.alpn),
			Remedy: "check address and port; a TLS-terminating load balancer in between has to pass TLS through"}
	}
	if cs.Version != tls.VersionTLS13 || len(cs.PeerCertificates) == 0 || cs.DidResume {
		return refuseProtocol("it did not make a full TLS 1.3 handshake with a certificate")
	}
	if o := h.dialler.Outside; o != nil {
		h.peer.Outside = cs.PeerCertificates[0]
		return o.verify(&cs, h.host, h.dialler.self().now())
	}
	r := h.whose(cs.PeerCertificates)
	if _, err := pki.CertificateID(cs.PeerCertificates[0]); r != nil && err != nil && h.dialler.BootstrapKey == nil {
		// Most likely a certificate for the world.
		hint := *r
		hint.Remedy += "; if that port shows a certificate of its own (--grpc-cert, mode files), this side has to know: the join token and the snapshots tell the mode, --grpc-ca or --proxy-grpc-ca names the CA"
		return &hint
	}
	return r
}

// whose judges the listener's identity. On an error nothing of it is kept.
func (h *dialHandshake) whose(chain []*x509.Certificate) *pki.Refusal {
	h.peer.Chain, h.theirs = chain, chain[0]
	d := h.dialler
	switch {
	case d.Token != nil:
		id, err := d.Token.VerifyCore(chain, d.self().now())
		if err != nil {
			return refusalOf(err)
		}
		h.peer.ID = id
	case d.BootstrapKey != nil:
		key, err := pki.BootstrapPublicKey(chain)
		if err == nil && key.Equal(d.BootstrapKey) {
			h.peer.BootstrapKey, h.theirs = key, nil
			return nil
		}
		if h.alpn == ALPNRenew { // it may have joined meanwhile; its answer counts if it is who we want
			return h.identity(chain)
		}
		return refuseOtherBootstrap()
	default:
		return h.identity(chain)
	}
	return nil
}

func (h *dialHandshake) identity(chain []*x509.Certificate) *pki.Refusal {
	d := h.dialler
	verify := h.self.verifier(d.self().now).Component
	if h.alpn == ALPNRenew {
		verify = h.self.rootVerifier(d.self().now).Component
		if d.Recovery != nil {
			verify = d.Recovery().Recover
		}
	}
	id, err := verify(chain, h.want)
	if err != nil {
		return refusalOf(err)
	}
	h.peer.ID = id
	h.peer.Incarnation, _ = pki.Incarnation(chain[0])
	return nil
}

// explain turns a failed handshake into a refusal: ours, theirs (to be asked
// about), or what pki.Explain makes of the failure.
func (h *dialHandshake) explain(ctx context.Context, err error) error {
	if h.refusal != nil {
		return h.refusal
	}
	if ctx.Err() != nil {
		return &pki.Refusal{Code: pki.CodeNoAnswer, Cause: "the handshake did not end in time",
			Remedy: "check that the port belongs to a Sallyport component and that the network between passes more than the first packets"}
	}
	if errors.Is(err, errNoIdentity) {
		return refuseNotJoined()
	}
	if r, ok := pki.AsRefusal(err); ok {
		return r
	}
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		if strings.Contains(remote.Err.Error(), "no application protocol") {
			return &refusedThere{&pki.Refusal{Code: pki.CodeNoCommonProtocol,
				Cause:  fmt.Sprintf("the server does not speak %s", h.alpn),
				Remedy: "check address and port (the gRPC port, not the public one), and that both sides run versions that work together"}}
		}
		if remote.Err.Error() == tls.AlertError(49).Error() {
			return refuseDeniedAddress(h.want.Role, h.local)
		}
		return &refusedThere{&pki.Refusal{Code: pki.CodeRefusedByPeer,
			Cause:  "the other side refused this component's certificate: " + remote.Err.Error(),
			Remedy: "its log says why"}}
	}
	if _, ok := errors.AsType[*prefaceError](err); ok {
		return &refusedThere{&pki.Refusal{Code: pki.CodeRefusedByPeer,
			Cause:  "the other side closed the connection without accepting this component: " + err.Error(),
			Remedy: "its log says why"}}
	}
	return refusalOf(err)
}
