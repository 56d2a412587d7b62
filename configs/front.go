package configs

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// front reads who stands before the public port: balancers that speak the PROXY
// protocol, and fronts that end TLS and speak HTTP/2 to us.
func (b *loader) front(p *Proxy) {
	p.TrustedFronts = b.prefixes("trusted-front")
	p.ProxyProtocol = b.prefixes("proxy-protocol")
	if slices.ContainsFunc(p.ProxyProtocol, everything) {
		b.warn(b.find(settingOf("proxy-protocol"), RoleProxy).from.long() + ": every address is believed as a balancer: whoever reaches the port past yours may claim any source address")
	}
	f := b.find(settingOf("tls"), RoleProxy)
	if p.TLS != "off" {
		return
	}
	host, _, err := net.SplitHostPort(p.PublicAddress)
	local := err == nil && loopbackHost(host)
	if len(p.TrustedFronts) == 0 && !local {
		b.bad.add("tls", f.from, "without TLS nobody could call with a token: no front is trusted to have ended it",
			"give --trusted-front CIDR with the addresses that your platform's front or load balancer comes from, or let --public-address be on loopback")
	} else {
		b.warn(f.from.long() + ": the public port speaks no TLS; tokens count only from --trusted-front with x-forwarded-proto: https, and from this host; client certificates do not reach the proxy")
	}
	if slices.ContainsFunc(p.TrustedFronts, everything) {
		b.warn(b.find(settingOf("trusted-front"), RoleProxy).from.long() + ": every address is trusted as a front: whoever reaches the port past the platform's own front may claim any source address, and to have used TLS")
	}
}

// everything says whether a prefix is all of its family.
func everything(p netip.Prefix) bool { return p.Bits() == 0 }

// prefixes reads a list of addresses and CIDRs.
func (b *loader) prefixes(flag string) []netip.Prefix {
	f := b.find(settingOf(flag), RoleProxy)
	var all []netip.Prefix
	var rows []string
	for i, text := range f.texts {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			b.bad.add(flag, f.at(i), fmt.Sprintf("%q is no address and no CIDR", text), "write one such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7")
			continue
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		if m := p.Masked(); m != p {
			b.bad.add(flag, f.at(i), text+" has bits beyond its length", "write "+m.String())
			continue
		}
		all = append(all, p)
		rows = append(rows, text)
	}
	b.row(f, quoteList(rows))
	return all
}

// HealthBeside is where health is when PORT gives its port to clients.
func HealthBeside(port string) string {
	if port == "8081" {
		return "127.0.0.1:8082"
	}
	return "127.0.0.1:8081"
}

// healthBesidePort gives way to a platform that names the public port by PORT:
// it likes 8080, and so do health checks. Where somebody wrote the address of
// the health listener down, two ports that are the same are his mistake.
func (b *loader) healthBesidePort() {
	if b.s.Proxy == nil || b.find(settingOf("public-address"), RoleProxy).from.name != "PORT" {
		return
	}
	f := b.find(settingOf("health-address"), "")
	_, health, herr := net.SplitHostPort(b.s.Process.HealthAddress)
	_, public, perr := net.SplitHostPort(b.s.Proxy.PublicAddress)
	if herr != nil || perr != nil || health != public || health == "0" {
		return
	}
	if f.from.kind == fromFlag || f.from.kind == fromFile {
		b.bad.add("health-address", f.from, "it has port "+health+", and so has the public port, by environment PORT", "give it another one, such as 127.0.0.1:8081")
		return
	}
	b.s.Process.HealthAddress = HealthBeside(public)
	b.bound = slices.DeleteFunc(b.bound, func(g found) bool { return g.setting.flag == "health-address" })
	b.warn("environment PORT gives port " + health + " to clients; health and metrics are at " + b.s.Process.HealthAddress)
}
