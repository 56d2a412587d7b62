package proxy

import (
	"context"
	"crypto/tls"
	"net/netip"
	"strings"

	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// A front is an HTTP proxy before the public port: the edge of a serverless
// platform, a load balancer that ends TLS. What it says of a caller's address
// and of TLS counts if it comes from --trusted-front; from anybody else these
// headers are dropped, as they are by every entrance; on this host alone they are
// read first, because they tell that a call comes from further away.

// origin is where a call came from: its connection, or who stands behind the
// front that brought it.
type origin struct {
	name    string // the bare address; empty where it is not known
	share   *source
	visitor bool // share is a visit's
}

// originOf finds out where a call came from; gone is owed.
func (l *public) originOf(c *relay.Call, from *client) origin {
	if a := l.proxy.behind(c.Front(), from); a.IsValid() {
		return origin{a.String(), l.admission.visit(a), true}
	}
	return origin{name: from.name, share: from.from}
}

// named is where a call came from in words alone.
func (l *public) named(c *relay.Call, from *client) origin {
	if a := l.proxy.behind(c.Front(), from); a.IsValid() {
		return origin{name: a.String()}
	}
	return origin{name: from.name}
}

// gone is the end of a call.
func (l *public) gone(o origin) {
	if o.visitor {
		l.admission.depart(o.share)
	}
}

// stranger is how a caller without an identity is counted.
func (o origin) stranger() string {
	if a, err := netip.ParseAddr(o.name); err == nil {
		return link.SourcePrefix(a).String()
	}
	return "unknown source"
}

// maxHops bounds how many entries of x-forwarded-for are looked at.
const maxHops = 16

// behind is the address of the caller that a front brings; zero without a front,
// and where it does not say. Each hop appends the address it saw, so the entry
// that counts is the last one that is not a trusted front's itself.
func (p *proxy) behind(said relay.Front, from *client) netip.Addr {
	if !from.front {
		return netip.Addr{}
	}
	var found netip.Addr
	list := said.For
	for range maxHops {
		i := strings.LastIndexByte(list, ',')
		a, ok := hopAddress(strings.TrimSpace(list[i+1:]))
		if !ok {
			break
		}
		found = a
		if i < 0 || !p.passes(a) {
			break
		}
		list = list[:i]
	}
	return found
}

// passes says whether an address in the list is a front's, behind which somebody
// else stands. Where every address is trusted, the nearest is as far as it goes.
func (p *proxy) passes(a netip.Addr) bool {
	for _, f := range p.settings.TrustedFronts {
		if f.Bits() > 0 && f.Contains(a) {
			return true
		}
	}
	return false
}

// hopAddress reads an entry: an address, with a port or without.
func hopAddress(s string) (netip.Addr, bool) {
	if len(s) > 64 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	return a.Unmap().WithZone(""), true
}

// private says whether a token in this call was kept from the eyes of others on
// its way, as far as can be known here, and why not. A call from this host is,
// unless something on this host has brought it from elsewhere: who is named as a
// front has to say that TLS was used, and what another one says against it counts.
func private(front relay.Front, from *client) (ok bool, why string) {
	here := from.source.Addr().IsLoopback()
	switch {
	case from.secure && (!from.front || front.Proto == ""):
		return true, ""
	case here && from.obscure:
		return false, "this port speaks no TLS, and the call came through a balancer, from nobody knows where"
	case here && !from.front && front == (relay.Front{}):
		return true, ""
	case !here && !from.front:
		return false, "this port speaks no TLS, and " + from.source.Addr().String() + " is no --trusted-front that has ended it: call through the front"
	case front.Proto == "":
		return false, "the front does not say in x-forwarded-proto that the caller used TLS"
	}
	for p := range strings.SplitSeq(front.Proto, ",") {
		if !strings.EqualFold(strings.TrimSpace(p), "https") {
			return false, "the front says in x-forwarded-proto that the caller did not use TLS: call by https"
		}
	}
	return true, ""
}

// noCertificate is the certificate of a public port without TLS.
type noCertificate struct{}

func (noCertificate) current() (*tls.Certificate, error) { return nil, nil }
func (noCertificate) run(context.Context)                {}
func (noCertificate) report() *control.Certificate       { return nil }
