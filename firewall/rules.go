package firewall

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sallyport/configs"
)

// MaxPorts bounds the ports of one role: its own and those mapped to it.
const MaxPorts = 64

// Rules are the nftables rules of one role: which set of peers may reach which
// TCP ports of this host. NewRules makes them; they need no further check, and
// there is nothing in them but numbers and addresses.
type Rules struct {
	role       configs.Role
	generation uint64
	peers      Peers
	ports      []uint16 // sorted, each once
}

// DefaultPort is the gRPC port of a role.
func DefaultPort(role configs.Role) uint16 {
	if role == configs.RoleProxy {
		return 50051
	}
	return 50055
}

// NewRules limits ports of this host to the peers of an entry: the role's gRPC
// port, and host ports that are mapped to it. The ports come from whoever loads
// the rules, never from the file that the entry may be from.
func NewRules(role configs.Role, e Entry, ports ...uint16) (Rules, error) {
	switch {
	case !slices.Contains(Roles(), role):
		return Rules{}, fmt.Errorf("firewall rules of %q: only core and proxy have a port to limit", clip(string(role)))
	case len(ports) == 0 || slices.Contains(ports, 0):
		return Rules{}, fmt.Errorf("firewall rules of %s: a port from 1 to 65535 is needed", role)
	case len(ports) > MaxPorts:
		return Rules{}, fmt.Errorf("firewall rules of %s: %d ports are too many, %d are allowed", role, len(ports), MaxPorts)
	case len(e.Peers.names) > 0:
		return Rules{}, fmt.Errorf("firewall rules of %s: the name %s is not resolved", role, e.Peers.names[0])
	case len(e.Peers.prefixes) > MaxDataEntries:
		return Rules{}, fmt.Errorf("firewall rules of %s: %d addresses and networks are too many, %d are allowed: use CIDRs", role, len(e.Peers.prefixes), MaxDataEntries)
	}
	ports = slices.Clone(ports)
	slices.Sort(ports)
	return Rules{role, e.Generation, e.Peers, slices.Compact(ports)}, nil
}

// Role is whose rules they are.
func (r Rules) Role() configs.Role { return r.role }

// Ports are the TCP ports they limit, in order.
func (r Rules) Ports() []uint16 { return slices.Clone(r.ports) }

// Peers are who may reach them.
func (r Rules) Peers() Peers { return r.peers }

// Table is the name of a role's table, of the family inet.
func Table(role configs.Role) string { return "sallyport_" + string(role) }

// The peers that a role has, for the text.
func who(role configs.Role) string {
	if role == configs.RoleProxy {
		return "core"
	}
	return "gateways"
}

func (r Rules) families() (v4, v6 []netip.Prefix) {
	i, _ := slices.BinarySearchFunc(r.peers.prefixes, netip.IPv6Unspecified(), func(p netip.Prefix, first netip.Addr) int {
		return p.Addr().Compare(first)
	})
	return r.peers.prefixes[:i], r.peers.prefixes[i:]
}

// Warnings are what a person should know before loading the rules.
func (r Rules) Warnings() []string {
	if r.peers.any {
		return []string{fmt.Sprintf("any address may reach %s; mutual TLS alone guards it", r.portsText())}
	}
	if len(r.peers.prefixes) == 0 {
		return []string{fmt.Sprintf("nobody may reach %s: no peer of %s has an address yet", r.portsText(), r.role)}
	}
	var out []string
	v4, v6 := r.families()
	for family, list := range map[string][]netip.Prefix{"IPv4": v4, "IPv6": v6} {
		if len(list) == 2 && list[0].Bits() == 1 && list[1].Bits() == 1 {
			out = append(out, fmt.Sprintf("the networks together are every %s address; mutual TLS alone guards %s", family, r.portsText()))
		}
	}
	slices.Sort(out)
	return out
}

func (r Rules) portsText() string {
	texts := make([]string, len(r.ports))
	for i, p := range r.ports {
		texts[i] = strconv.Itoa(int(p))
	}
	if len(texts) == 1 {
		return "TCP port " + texts[0]
	}
	return "TCP ports " + strings.Join(texts, ", ")
}

// Render is the rules as nft reads them: for each role one table, replaced
// whole; loaded as one transaction. The same rules give the same text.
func Render(rules ...Rules) (string, error) {
	if len(rules) == 0 {
		return "", errors.New("firewall rules: none")
	}
	var b strings.Builder
	for i, r := range rules {
		if i > 0 {
			if slices.ContainsFunc(rules[:i], func(o Rules) bool { return o.role == r.role }) {
				return "", fmt.Errorf("firewall rules of %s: twice", r.role)
			}
			b.WriteByte('\n')
		}
		r.header(&b)
		r.table(&b)
	}
	return b.String(), nil
}

// Summary says in a few words who is allowed.
func (r Rules) Summary() string {
	v4, v6 := r.families()
	switch {
	case r.peers.any:
		return "allowed: ANY address"
	case len(r.peers.prefixes) == 0:
		return "allowed: NOBODY"
	}
	return fmt.Sprintf("allowed: %d IPv4 and %d IPv6 addresses or networks", len(v4), len(v6))
}

func (r Rules) header(b *strings.Builder) {
	fmt.Fprintf(b, "# Sallyport, %s: who may reach %s of this host (%s).\n", r.role, r.portsText(), who(r.role))
	fmt.Fprintf(b, "# Generation %d, %s.\n", r.generation, r.Summary())
	for _, w := range r.Warnings() {
		fmt.Fprintf(b, "# WARNING: %s.\n", w)
	}
	fmt.Fprintf(b, "# This table is replaced whole, no other one is touched, and it only drops.\n")
	fmt.Fprintf(b, "# Load: nft -f FILE   Remove: nft delete table inet %s\n", Table(r.role))
}

func (r Rules) table(b *strings.Builder) {
	t := Table(r.role)
	fmt.Fprintf(b, "add table inet %s\ndelete table inet %s\ntable inet %s {\n", t, t, t)
	b.WriteString("\tset ports {\n\t\ttype inet_service\n\t\telements = { ")
	for i, p := range r.ports {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Itoa(int(p)))
	}
	b.WriteString(" }\n\t}\n\n")
	v4, v6 := r.families()
	if !r.peers.any {
		set(b, "peers4", "ipv4_addr", v4)
		set(b, "peers6", "ipv6_addr", v6)
		for _, f := range [][2]string{{setRefused4, "ipv4_addr"}, {setRefused6, "ipv6_addr"}} {
			fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n\t\tsize %d\n\t\tflags dynamic, timeout\n\t\ttimeout %s\n\t}\n\n", f[0], f[1], refusedSize, refusedFor)
		}
	}
	for _, name := range r.counters() {
		fmt.Fprintf(b, "\tcounter %s {\n\t}\n\n", name)
	}
	for i, c := range r.chains() {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(b, "\tchain %s {\n", c.name)
		if c.hook != "" {
			fmt.Fprintf(b, "\t\ttype filter hook %s priority mangle; policy accept;\n", c.hook)
		}
		for _, rule := range c.rules {
			if rule.why != "" {
				fmt.Fprintf(b, "\t\t# %s\n", rule.why)
			}
			fmt.Fprintf(b, "\t\t%s\n", rule.text)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
}

func set(b *strings.Builder, name, kind string, list []netip.Prefix) {
	fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n\t\tflags interval\n\t\tauto-merge\n", name, kind)
	for i, p := range list {
		if i == 0 {
			b.WriteString("\t\telements = {\n\t\t\t")
		} else {
			b.WriteString(",\n\t\t\t")
		}
		if p.IsSingleIP() {
			b.WriteString(p.Addr().String())
		} else {
			b.WriteString(p.String())
		}
	}
	if len(list) > 0 {
		b.WriteString("\n\t\t}\n")
	}
	b.WriteString("\t}\n\n")
}

// CloudGroup is the same set for a cloud's security group or another firewall:
// ingress of TCP from CIDRs to ports. Everybody is 0.0.0.0/0 and ::/0, nobody is
// two empty lists.
type CloudGroup struct {
	Role       configs.Role `json:"role"`
	Generation uint64       `json:"generation"`
	Protocol   string       `json:"protocol"` // tcp
	Ports      []uint16     `json:"ports"`
	Any        bool         `json:"any"`
	IPv4       []string     `json:"ipv4"`
	IPv6       []string     `json:"ipv6"`
}

// RenderJSON is the rules as a list of CloudGroups:
//
//	{"version": 1, "groups": [{"role": "core", …}]}
func RenderJSON(rules ...Rules) ([]byte, error) {
	out := struct {
		Version int          `json:"version"`
		Groups  []CloudGroup `json:"groups"`
	}{Version: 1, Groups: []CloudGroup{}}
	for _, r := range rules {
		g := CloudGroup{Role: r.role, Generation: r.generation, Protocol: "tcp", Ports: r.Ports(), Any: r.peers.any, IPv4: []string{}, IPv6: []string{}}
		v4, v6 := r.families()
		for _, p := range v4 {
			g.IPv4 = append(g.IPv4, p.String())
		}
		for _, p := range v6 {
			g.IPv6 = append(g.IPv6, p.String())
		}
		if g.Any {
			g.IPv4, g.IPv6 = []string{"0.0.0.0/0"}, []string{"::/0"}
		}
		out.Groups = append(out.Groups, g)
	}
	text, err := json.MarshalIndent(out, "", "  ")
	return append(text, '\n'), err
}
