// Package firewall decides from which addresses a gRPC port of ours may be
// reached: core's by the gateways, a proxy's by core. Peers is the set of those
// addresses. The process holds to it (Set), and so can the kernel.
//
// The set answers one threat: whatever else is wrong with a port, strangers
// should not be able to talk to it at all. It is no authentication, for which
// mutual TLS stays in charge; a peer's DNS name in particular only says where
// to look for its addresses. Nothing stands for everybody: a set that is empty
// allows nobody, the word any has to be written, and a prefix that comes to the
// same (0.0.0.0/0) is refused.
//
// # From the process to the kernel
//
// The process that faces the network has no right to change the firewall, and
// root loads no text that it wrote. It writes Data: addresses and a number, in
// firewall.json, through a File that the roles of one process share. Root reads
// that strictly (ReadData, ParseData), adds the ports, which are its own to say
// (NewRules), and renders the rules itself (Render). There is nothing in them
// but numbers and addresses that were parsed, so nothing that anybody wrote can
// become a statement.
//
// Rules are one table per role, inet sallyport_core or inet sallyport_proxy,
// replaced whole in one transaction by nft. No other table is touched, and the
// rules only drop. chains.go has them, and why each is there.
//
// Host loads and removes them under one lock, with a way back if asked: a guard
// in a process of its own restores the former rules unless a confirmation comes.
// Watcher follows the file. Rules.Drift compares with what the kernel lists.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ErrNoPeers is the refusal of an empty list.
var ErrNoPeers = errors.New("no peer address was given: the port would be open to nobody. Name the IP address, CIDR or DNS name that the other side connects from, as this side sees it, or write `any` to leave it to mutual TLS alone")

const maxPeers = 1024

// Peers is a set of addresses that may connect. The zero value allows nobody.
// It is immutable.
type Peers struct {
	any      bool
	prefixes []netip.Prefix // masked, sorted, none inside or beside another; IPv4 as IPv4
	names    []string       // lower case, sorted; resolved by Resolve
}

// ParsePeers reads IP addresses, CIDRs, DNS names and the word any, and merges
// what overlaps. An empty list is ErrNoPeers.
func ParsePeers(list []string) (Peers, error) {
	if len(list) == 0 {
		return Peers{}, ErrNoPeers
	}
	if len(list) > maxPeers {
		return Peers{}, fmt.Errorf("%d peers are too many, %d are allowed: use CIDRs", len(list), maxPeers)
	}
	var p Peers
	for _, s := range list {
		if err := p.add(strings.TrimSpace(s)); err != nil {
			return Peers{}, err
		}
	}
	if p.any {
		return Peers{any: true}, nil
	}
	p.prefixes = merge(p.prefixes)
	slices.Sort(p.names)
	p.names = slices.Compact(p.names)
	return p, nil
}

func (p *Peers) add(s string) error {
	switch {
	case s == "":
		return errors.New("a peer address is empty: name an IP address, a CIDR, a DNS name or any")
	case strings.EqualFold(s, "any"):
		p.any = true
		return nil
	case strings.Contains(s, "%"):
		return fmt.Errorf("peer %q: an address with a zone means something on one machine only; use the address without it, or a CIDR such as fe80::/10", clip(s))
	case strings.Contains(s, "/"):
		prefix, err := parsePrefix(s)
		if err == nil {
			p.prefixes = append(p.prefixes, prefix)
		}
		return err
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		addr = addr.Unmap()
		if addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return fmt.Errorf("peer %q: nobody connects from that address; write any if everybody is meant", clip(s))
		}
		p.prefixes = append(p.prefixes, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	name, err := parseName(s)
	if err == nil {
		p.names = append(p.names, name)
	}
	return err
}

func parsePrefix(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("peer %q is not a CIDR such as 10.1.0.0/16", clip(s))
	}
	if prefix.Addr().Is4In6() {
		if prefix.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("peer %q mixes IPv4 and IPv6: write the IPv4 prefix as such", clip(s))
		}
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	if prefix.Bits() == 0 {
		return netip.Prefix{}, fmt.Errorf("peer %q is everybody: write any, if that is meant", clip(s))
	}
	if masked := prefix.Masked(); masked != prefix {
		return netip.Prefix{}, fmt.Errorf("peer %q: write %s for the whole network or %s for the one host", clip(s), masked, prefix.Addr())
	}
	return prefix, nil
}

func parseName(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	labels := strings.Split(name, ".")
	ok := len(name) <= 253
	for _, l := range labels {
		ok = ok && l != "" && len(l) <= 63 && l[0] != '-' && l[len(l)-1] != '-'
		for i := range len(l) {
			c := l[i]
			ok = ok && (c == '-' || c == '_' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9')
		}
	}
	// No name of the DNS ends in a number; 10.0.0.300 is a mistyped address.
	last := labels[len(labels)-1]
	if !ok || strings.Trim(last, "0123456789") == "" {
		return "", fmt.Errorf("peer %q is neither an IP address, a CIDR, a DNS name nor the word any", clip(s))
	}
	return name, nil
}

// IsAny reports whether the set was written as any.
func (p Peers) IsAny() bool { return p.any }

// Empty reports whether the set allows nobody, now and after any resolution.
func (p Peers) Empty() bool { return !p.any && len(p.prefixes) == 0 && len(p.names) == 0 }

// Prefixes are the addresses and networks in the set, names left out.
func (p Peers) Prefixes() []netip.Prefix { return slices.Clone(p.prefixes) }

// Names are the DNS names in the set.
func (p Peers) Names() []string { return slices.Clone(p.names) }

// Strings is the set as text; ParsePeers makes the same set of it. Single
// addresses are written without a prefix length.
func (p Peers) Strings() []string {
	if p.any {
		return []string{"any"}
	}
	var out []string
	for _, prefix := range p.prefixes {
		if prefix.IsSingleIP() {
			out = append(out, prefix.Addr().String())
		} else {
			out = append(out, prefix.String())
		}
	}
	return append(out, p.names...)
}

// Allows reports whether addr is in the set. DNS names count only in what
// Resolve returns. An invalid address is in no set, not even any.
func (p Peers) Allows(addr netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	if p.any {
		return true
	}
	addr = addr.Unmap().WithZone("")
	// The prefixes are disjoint and in order: the last one that begins at addr
	// or before it is the only one that can hold it.
	i, _ := slices.BinarySearchFunc(p.prefixes, addr, func(prefix netip.Prefix, addr netip.Addr) int {
		if prefix.Addr().Compare(addr) <= 0 {
			return -1
		}
		return 1
	})
	return i > 0 && p.prefixes[i-1].Contains(addr)
}

// Union is everything that is in one of the sets, names included.
func Union(sets ...Peers) Peers {
	var out Peers
	for _, p := range sets {
		if p.any {
			return Peers{any: true}
		}
		out.prefixes = append(out.prefixes, p.prefixes...)
		out.names = append(out.names, p.names...)
	}
	out.prefixes = merge(out.prefixes)
	slices.Sort(out.names)
	out.names = slices.Compact(out.names)
	return out
}

// Equal reports whether both sets allow the same, now and after any resolution.
func (p Peers) Equal(q Peers) bool {
	return p.any == q.any && slices.Equal(p.prefixes, q.prefixes) && slices.Equal(p.names, q.names)
}

// Resolve returns the set with the addresses of its DNS names in their place.
// Names that do not resolve allow nobody; the error, which comes with an
// otherwise complete set, names them.
func (p Peers) Resolve(ctx context.Context, lookup func(ctx context.Context, name string) ([]netip.Addr, error)) (Peers, error) {
	out := Peers{any: p.any, prefixes: slices.Clone(p.prefixes)}
	var errs []error
	for _, name := range p.names {
		addrs, err := lookup(ctx, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("peer %s has no address: %w", name, err))
			continue
		}
		for _, a := range addrs {
			if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() {
				out.prefixes = append(out.prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	out.prefixes = merge(out.prefixes)
	return out, errors.Join(errs...)
}

// merge sorts prefixes, drops those inside others and joins halves. It stops
// before a whole address family, which only the word any may say.
func merge(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].Bits() <= p.Bits() && out[n-1].Contains(p.Addr()) {
			continue
		}
		out = append(out, p)
		for n := len(out); n >= 2; n = len(out) {
			a, b := out[n-2], out[n-1]
			whole := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
			if a.Bits() != b.Bits() || a.Bits() <= 1 || !whole.Contains(b.Addr()) || whole.Addr() != a.Addr() {
				break
			}
			out = append(out[:n-2], whole)
		}
	}
	return out
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
