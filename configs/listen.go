package configs

import (
	"fmt"
	"net"
	"strings"
)

// Listen is an entrance of a gateway: where apps beside it come in with calls of
// services behind other gateways.
type Listen struct {
	Label   string          // as grants name it; empty: it has none
	Address UpstreamAddress // SchemePlain on loopback, SchemeTLS or SchemeUnix
}

// String writes the entrance as ParseListen reads it.
func (l Listen) String() string {
	if l.Label == "" {
		return l.Address.String()
	}
	return l.Label + "=" + l.Address.String()
}

// ParseListen reads [LABEL=]ADDRESS. An address is unix:///PATH, HOST:PORT on
// loopback, or tls://HOST:PORT. The error ends in a remedy, after a semicolon.
func ParseListen(s string) (Listen, error) {
	var l Listen
	rest := strings.TrimSpace(s)
	if label, after, ok := strings.Cut(rest, "="); ok && !strings.ContainsAny(label, ":/.") {
		if !dnsLabel(label) {
			return l, fmt.Errorf("%q is no label; write at most 63 lower-case letters, digits and -", label)
		}
		l.Label, rest = label, after
	}
	scheme, target, ok := strings.Cut(rest, "://")
	if path, short := strings.CutPrefix(rest, "unix:"); short && !ok {
		scheme, target, ok = SchemeUnix, path, true
	}
	switch {
	case !ok:
		scheme, target = SchemePlain, rest
	case scheme == SchemeUnix:
		address, err := parseUnix(target)
		if err != nil {
			return l, err
		}
		l.Address = address
		return l, nil
	case scheme != SchemeTLS:
		return l, fmt.Errorf("%q is no address of an entrance; write unix:///run/sallyport/call.sock, 127.0.0.1:9090, or tls://HOST:PORT", rest)
	}
	if problem, remedy := checkListen(target); problem != "" {
		return l, fmt.Errorf("%s; %s", problem, remedy)
	}
	host, port, _ := net.SplitHostPort(target)
	if scheme == SchemePlain && !loopbackHost(host) {
		return l, fmt.Errorf("%s can be reached from other hosts, and without TLS everyone between could read and alter the calls, and call as this gateway; write 127.0.0.1:%s, or tls://%s, where callers show a client certificate or a token", target, port, target)
	}
	l.Address = UpstreamAddress{scheme, target}
	return l, nil
}

// listens reads the entrances of a gateway.
func (b *loader) listens(upstreams []Upstream) (all []Listen, group string) {
	f := b.find(settingOf("listen"), RoleGateway)
	unix := false
	for i, text := range f.texts {
		l, err := ParseListen(text)
		if err != nil {
			problem, remedy, _ := strings.Cut(err.Error(), "; ")
			b.bad.add("listen", f.at(i), problem, remedy)
			continue
		}
		for _, other := range all {
			if other.Address.Target == l.Address.Target && !strings.HasSuffix(l.Address.Target, ":0") {
				b.bad.add("listen", f.at(i), l.Address.Target+" is given twice", "remove one, or give it an address of its own")
			}
		}
		for _, u := range upstreams {
			if u.Address.Target == l.Address.Target {
				b.bad.add("listen", f.at(i), fmt.Sprintf("%s is the address of upstream %s too: its calls would come back without end", l.Address.Target, u.Name), "give the entrance an address of its own")
			}
		}
		unix = unix || l.Address.Scheme == SchemeUnix
		all = append(all, l)
	}
	rows := make([]string, len(all))
	for i, l := range all {
		rows[i] = l.String()
	}
	b.row(f, quoteList(rows))
	f = b.find(settingOf("listen-group"), RoleGateway)
	if group = f.text(); f.given() && !unix {
		b.bad.add("listen-group", f.from, "it says who may use a unix socket, and none is listened on", "add --listen unix:///run/sallyport/call.sock, or leave it out")
	}
	if !f.given() {
		group = ""
		b.row(f, "")
	} else {
		b.row(f, quote(group))
	}
	return all, group
}
