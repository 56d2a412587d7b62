package configs

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
)

// How a gateway reaches an upstream.
const (
	SchemePlain = "plain" // HTTP/2 without TLS, towards this host only
	SchemeTLS   = "tls"
	SchemeUnix  = "unix"
	SchemeH2C   = "h2c" // HTTP/2 without TLS, over a network, asked for in words
)

// UpstreamAddress says where an upstream is and how it is spoken to.
type UpstreamAddress struct {
	Scheme string // SchemePlain, SchemeTLS, SchemeUnix or SchemeH2C
	Target string // HOST:PORT, or the path of a socket
}

// String writes the address as ParseUpstreamAddress reads it.
func (a UpstreamAddress) String() string {
	switch a.Scheme {
	case SchemePlain:
		return a.Target
	case "":
		return ""
	}
	return a.Scheme + "://" + a.Target
}

// Network is the first argument of a net.Dialer.
func (a UpstreamAddress) Network() string {
	if a.Scheme == SchemeUnix {
		return "unix"
	}
	return "tcp"
}

// upstreams reads the upstreams of the gateway, in tables or in short form.
func (b *loader) upstreams() []Upstream {
	f := b.find(settingOf("upstream"), RoleGateway)
	var all []Upstream
	add := func(from origin, u Upstream, err error) {
		if err != nil {
			problem, remedy, _ := strings.Cut(err.Error(), "; ")
			if remedy == "" {
				remedy = "write NAME=ADDRESS, or NAME=ADDRESS=SERVICES"
			}
			b.bad.add("upstream", from, problem, remedy)
			return
		}
		for _, other := range all {
			if other.Name == u.Name {
				b.bad.add("upstream", from, fmt.Sprintf("two upstreams are called %q", u.Name), "give each a name of its own: NAME="+u.Address.String())
			}
		}
		all = append(all, u)
	}
	if f.from.kind != fromFile {
		for _, text := range f.texts {
			u, err := parseUpstream(text)
			add(f.from, u, err)
		}
	}
	for _, item := range f.items {
		at := f.from
		at.pos = item.Pos
		switch item.Kind {
		case "string":
			u, err := parseUpstream(item.Text)
			add(at, u, err)
		case "table":
			bad := len(b.bad.errs)
			u, err := b.upstreamTable(at, item.Table)
			if len(b.bad.errs) == bad || err != nil {
				add(at, u, err)
			}
		default:
			b.bad.add("upstream", at, article(item.Kind)+" is no upstream", "write [[upstream]] tables with an address")
		}
	}
	rows := make([]string, len(all))
	for i, u := range all {
		rows[i] = u.toml()
	}
	value := ""
	if len(rows) > 0 {
		value = "[\n  " + strings.Join(rows, ",\n  ") + ",\n]"
	}
	b.row(f, value)
	return all
}

var upstreamKeys = []string{"name", "address", "services", "ca", "cert", "key", "server_name"}

// upstreamTable reads one [[upstream]].
func (b *loader) upstreamTable(at origin, t *Table) (Upstream, error) {
	text := map[string]string{}
	place := func(key string) origin {
		o := at
		if v := t.Get(key); v != nil {
			o.pos, o.name = v.KeyPos, "upstream."+key
		}
		return o
	}
	var u Upstream
	for _, key := range t.Keys {
		v := t.Values[key]
		switch {
		case !slices.Contains(upstreamKeys, key):
			remedy := "the keys are " + strings.Join(upstreamKeys, ", ")
			if near := Nearest(key, upstreamKeys); near != "" {
				remedy = "did you mean " + near + "?"
			}
			b.bad.add("upstream", place(key), "unknown key in [[upstream]]", remedy)
		case key == "services" && v.Kind == "list":
			for _, s := range v.List {
				o := place(key)
				o.pos = s.Pos
				if s.Kind != "string" {
					b.bad.add("upstream", o, "a list of services holds "+article(s.Kind), "write every service in quotes")
				} else if err := ServicePattern(s.Text); err != nil {
					problem, remedy, _ := strings.Cut(err.Error(), "; ")
					b.bad.add("upstream", o, problem, remedy)
				}
				u.Services = append(u.Services, s.Text)
			}
		case key == "services":
			b.bad.add("upstream", place(key), "services is a list and this is "+article(v.Kind), `write services = ["acme.orders.v1.Orders"]`)
		case v.Kind != "string":
			b.bad.add("upstream", place(key), "a text is needed here and this is "+article(v.Kind), "write "+key+` = "…"`)
		default:
			text[key] = v.Text
		}
	}
	if t.Get("address") == nil {
		return u, fmt.Errorf(`this upstream has no address; write address = "127.0.0.1:9000"`)
	}
	address, err := ParseUpstreamAddress(text["address"])
	if err != nil {
		problem, remedy, _ := strings.Cut(err.Error(), "; ")
		b.bad.add("upstream", place("address"), problem, remedy)
		return u, nil
	}
	u.Address, u.ServerName = address, text["server_name"]
	u.Name = text["name"]
	if t.Get("name") == nil {
		u.Name = deriveName(address)
	} else if !dnsLabel(u.Name) {
		b.bad.add("upstream", place("name"), fmt.Sprintf("%q is no name", u.Name), "write at most 63 lower-case letters, digits and -")
	}
	for _, key := range []string{"ca", "cert", "key", "server_name"} {
		if t.Get(key) == nil {
			continue
		}
		if address.Scheme != SchemeTLS {
			b.bad.add("upstream", place(key), "it concerns TLS, and "+address.String()+" is spoken to without", "write address = \"tls://…\", or remove the line")
			continue
		}
		if key == "server_name" {
			if !validHost(u.ServerName) {
				b.bad.add("upstream", place(key), fmt.Sprintf("%q is no name of a server", u.ServerName), "write the name that its certificate has, such as orders.internal")
			}
			continue
		}
		file := b.pathOf(at, text[key])
		b.mustExist("upstream", place(key), file)
		switch key {
		case "ca":
			u.CA = file
		case "cert":
			u.Cert = file
		case "key":
			u.Key = file
		}
	}
	if (t.Get("cert") == nil) != (t.Get("key") == nil) {
		b.bad.add("upstream", at, "cert and key belong together, and one of them is missing", "give both, or neither")
	}
	return u, nil
}

// parseUpstream reads the short form [NAME=]ADDRESS[=SERVICES].
func parseUpstream(s string) (Upstream, error) {
	var u Upstream
	rest := strings.TrimSpace(s)
	if name, after, ok := strings.Cut(rest, "="); ok && !strings.ContainsAny(name, ":/.") {
		if !dnsLabel(name) {
			return u, fmt.Errorf("%q is no name of an upstream; write at most 63 lower-case letters, digits and -", name)
		}
		u.Name, rest = name, after
	}
	address, services, listed := strings.Cut(rest, "=")
	var err error
	if u.Address, err = ParseUpstreamAddress(address); err != nil {
		return u, err
	}
	if listed {
		for p := range strings.SplitSeq(services, ",") {
			p = strings.TrimSpace(p)
			if err := ServicePattern(p); err != nil {
				return u, err
			}
			u.Services = append(u.Services, p)
		}
	}
	if u.Name == "" {
		u.Name = deriveName(u.Address)
	}
	return u, nil
}

// deriveName names an upstream after where it is: the first label of its host,
// the port on this host, the file of a socket.
func deriveName(a UpstreamAddress) string {
	if a.Scheme == SchemeUnix {
		base := strings.ToLower(path.Base(a.Target))
		base, _, _ = strings.Cut(base, ".")
		if dnsLabel(base) {
			return base
		}
		return "socket"
	}
	host, port, _ := net.SplitHostPort(a.Target)
	if loopbackHost(host) {
		return "port-" + port
	}
	label, _, _ := strings.Cut(strings.ToLower(host), ".")
	if dnsLabel(label) && strings.Trim(label, "0123456789") != "" {
		return label
	}
	return "host-" + strings.Trim(strings.NewReplacer(".", "-", ":", "-", "%", "-").Replace(strings.ToLower(host)), "-")
}

func dnsLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// toml writes an upstream as an inline table.
func (u Upstream) toml() string {
	parts := []string{"name = " + quote(u.Name), "address = " + quote(u.Address.String())}
	if len(u.Services) > 0 {
		parts = append(parts, "services = "+quoteList(u.Services))
	}
	for _, kv := range [][2]string{{"ca", u.CA}, {"cert", u.Cert}, {"key", u.Key}, {"server_name", u.ServerName}} {
		if kv[1] != "" {
			parts = append(parts, kv[0]+" = "+quote(kv[1]))
		}
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}
