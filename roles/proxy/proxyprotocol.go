package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"github.com/pires/go-proxyproto"

	"sallyport/acme/pki"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// A balancer that passes bytes on hides who sends them, unless it begins each
// connection with a PROXY protocol header. One is taken only from the addresses
// of --proxy-protocol, and from those always: a connection without one would be
// counted as the balancer's, and anybody else's header would be a claim.

const (
	maxHeaderV1 = 107     // its specification allows no more
	maxHeaderV2 = 4 << 10 // with all that balancers add
)

// balancer says whether a connection from there begins with a header.
func (l *public) balancer(from netip.Addr) bool {
	return contains(l.proxy.settings.ProxyProtocol, from)
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// introduced reads the header and takes the connection for what it says. The
// deadline of the handshake holds.
func (l *public) introduced(a *arrival, from **source) bool {
	header, err := readProxyHeader(a.nc)
	if err != nil {
		if !l.silent(err) && !errors.Is(err, io.EOF) {
			l.refused("proxy_header")
			l.refusals.Note(a.remote, "", &pki.Refusal{Code: "proxy_header", Cause: "a connection from --proxy-protocol did not begin with a PROXY protocol header: " + err.Error(),
				Remedy: "switch the PROXY protocol (v1 or v2) on in the balancer for this port, or take its address out of --proxy-protocol"})
		}
		return false
	}
	relay.Restart(a.nc)
	if header.Command.IsLocal() && header.Version != 1 {
		return true // the balancer's own: a health check
	}
	source, ok := header.SourceAddr.(*net.TCPAddr)
	if !ok {
		a.obscure = true // it does not know either
		return true
	}
	was := link.RemoteOf(a.nc)
	a.nc = &introducedConn{a.nc, source}
	a.remote = link.RemoteOf(a.nc)
	a.obscure = !was.Addr().IsLoopback() // what it calls this host would be its own
	moved, why := l.admission.move(*from, a.remote.Addr())
	*from = moved
	if why != "" {
		l.crowded(a.remote, why)
		return false
	}
	l.proxy.log.Debug("a balancer brings a caller", "balancer", was.String(), "from", a.remote.String())
	return true
}

// readProxyHeader reads a header and not a byte more.
func readProxyHeader(r io.Reader) (*proxyproto.Header, error) {
	head := make([]byte, 12, 232)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	switch {
	case bytes.Equal(head, proxyproto.SIGV2):
		head = head[:16]
		if _, err := io.ReadFull(r, head[12:]); err != nil {
			return nil, err
		}
		n := int(head[14])<<8 | int(head[15])
		if n > maxHeaderV2 {
			return nil, fmt.Errorf("it says that it has %d bytes, and %d are read", n, maxHeaderV2)
		}
		head = append(head, make([]byte, n)...)
		if _, err := io.ReadFull(r, head[16:]); err != nil {
			return nil, err
		}
	case bytes.HasPrefix(head, proxyproto.SIGV1):
		for one := make([]byte, 1); head[len(head)-1] != '\n'; head = append(head, one[0]) {
			if len(head) == maxHeaderV1 {
				return nil, fmt.Errorf("its line does not end within %d bytes", maxHeaderV1)
			}
			if _, err := io.ReadFull(r, one); err != nil {
				return nil, err
			}
		}
	default:
		return nil, fmt.Errorf("it began with %q", head)
	}
	return proxyproto.Read(bufio.NewReader(bytes.NewReader(head)))
}

// introducedConn is a connection of which a balancer has said where it is from.
type introducedConn struct {
	net.Conn
	from net.Addr
}

// RemoteAddr is the caller's address.
func (c *introducedConn) RemoteAddr() net.Addr { return c.from }

// NetConn is the balancer's connection.
func (c *introducedConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the sending direction.
func (c *introducedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
