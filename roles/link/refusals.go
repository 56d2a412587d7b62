package link

import (
	"log/slog"
	"net"
	"net/netip"

	"sallyport/acme/pki"
)

// Refusals is the bounded log of refused connections, for listeners that are
// no Port: the public port of a proxy.
type Refusals struct{ log *refusalLog }

// NewRefusals writes to log.
func NewRefusals(log *slog.Logger) *Refusals { return &Refusals{newRefusalLog(log)} }

// Note logs that remote was refused for r, or counts it when the same was said
// of late. alpn may be empty.
func (r *Refusals) Note(remote netip.AddrPort, alpn string, why *pki.Refusal) {
	r.log.note(remote, alpn, why)
}

// SourcePrefix is what counts as one source of strangers: an IPv4 address, an
// IPv6 /64.
func SourcePrefix(a netip.Addr) netip.Prefix { return sourcePrefix(a) }

// RemoteOf is the peer's address, IPv4 as IPv4 and without zone; zero where it
// is no IP address.
func RemoteOf(nc net.Conn) netip.AddrPort { return remoteOf(nc) }
