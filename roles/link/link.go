package link

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
)

// The protocols of a component's gRPC port. One connection speaks one of them.
const (
	ALPNJoin    = "sallyport-join/1"
	ALPNRenew   = "sallyport-renew/1"
	ALPNControl = "sallyport-control/1"
	ALPNRelay   = "sallyport-relay/1"
	ALPNCall    = "sallyport-call/1"
	ALPNHealth  = "h2"
)

// Peer is the other end of a connection. ID, Incarnation and Chain are proven
// on control, relay and call connections. On join and renew connections any
// certificate completes the handshake: the peer has proven that it holds the
// key of Chain[0] and nothing else, ID is zero, and BootstrapKey is that key
// if it is an Ed25519 key, which identities never have.
type Peer struct {
	ID           pki.ID
	Incarnation  uint64
	Chain        []*x509.Certificate
	BootstrapKey ed25519.PublicKey
	Remote       netip.AddrPort
	Begun        time.Time         // when the handshake began
	Outside      *x509.Certificate // what the listener presents to the world, in mode files or acme
}

// String names the peer as a log line should: its identity and address.
func (p Peer) String() string {
	if p.ID.IsZero() {
		return p.Remote.String()
	}
	return string(p.ID.Role) + " " + p.ID.Name + " (" + p.Remote.String() + ")"
}

// Conn is a finished connection: handshake done, peer judged.
type Conn struct {
	*tls.Conn
	ALPN    string
	Peer    Peer
	Dialled bool // this side dialled

	freshness
	own      *x509.Certificate // this side's identity, nil before it has one
	expires  time.Time
	lastRead atomic.Int64 // monotonic
}

// Read reads from the connection and notes that the peer is alive.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.lastRead.Store(monotonic())
	}
	return n, err
}

// Expires is when the first of both ends' certificates ends, and with it the
// right to keep this connection.
func (c *Conn) Expires() time.Time { return c.expires }

var processStart = time.Now()

// monotonic is a time that no change of the host's clock moves.
func monotonic() int64 { return int64(time.Since(processStart)) }

// expiryOf is the earliest NotAfter among the leaves given; nil leaves do not count.
func expiryOf(leaves ...*x509.Certificate) time.Time {
	var t time.Time
	for _, l := range leaves {
		if l != nil && (t.IsZero() || l.NotAfter.Before(t)) {
			t = l.NotAfter
		}
	}
	return t
}

// remoteOf is the peer's address, IPv4 as IPv4 and without zone, or the zero
// value for connections that are not IP.
func remoteOf(c net.Conn) netip.AddrPort { return addressOf(c.RemoteAddr()) }

func addressOf(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	if t, ok := a.(*net.TCPAddr); ok {
		ip, _ := netip.AddrFromSlice(t.IP)
		return netip.AddrPortFrom(ip.Unmap(), uint16(t.Port))
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
