package configs

import (
	"net/netip"
	"strings"
)

// Origin says from where scripts in browsers may call: one origin, as browsers
// write it (RFC 6454), or every origin below a domain.
type Origin struct {
	scheme, host, port string // host without the wildcard, port with its colon or empty
	below              bool   // what is below host, at any depth, and not host itself
}

// ParseOrigin reads SCHEME://HOST[:PORT], where HOST may begin with "*.". It
// returns what is wrong and how to mend it, or empty strings.
func ParseOrigin(text string) (o Origin, problem, remedy string) {
	const form = "write https://HOST or https://HOST:PORT, or https://*.DOMAIN for every host below a domain"
	s := strings.ToLower(text)
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case s == "*" || strings.HasPrefix(rest, "*") && !strings.HasPrefix(rest, "*."):
		return o, "it would let scripts of every site call", form
	case s == "null":
		return o, "null is what any sandboxed page is called, so it names nobody", form
	case !ok || scheme != "https" && scheme != "http":
		return o, "it does not begin with https:// or http://", form
	case strings.ContainsAny(rest, "/?#"):
		return o, "an origin ends with its host or port, without a slash or path", form
	}
	o.scheme = scheme
	o.host, o.below = strings.CutPrefix(rest, "*.")
	if i := strings.LastIndexByte(o.host, ':'); i >= 0 && !strings.HasSuffix(o.host, "]") {
		o.host, o.port = o.host[:i], o.host[i:]
		if !portNumber(o.port[1:]) {
			return o, "its port is no number from 1 to 65535", form
		}
	}
	if o.port == ":443" && scheme == "https" || o.port == ":80" && scheme == "http" {
		o.port = "" // browsers leave it out
	}
	address := strings.HasPrefix(o.host, "[") && strings.HasSuffix(o.host, "]")
	if address {
		ip, err := netip.ParseAddr(strings.Trim(o.host, "[]"))
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return o, "its address is none of IPv6", form
		}
		o.host = "[" + ip.String() + "]"
	}
	_, err := netip.ParseAddr(o.host)
	switch {
	case !address && !hostLabels(o.host):
		return o, "its host is no host name (other alphabets are written as xn--…)", form
	case o.below && (address || err == nil):
		return o, "nothing is below an address", form
	case o.below && !strings.Contains(o.host, ".") && o.host != "localhost":
		return o, "it would let scripts of everybody below ." + o.host + " call", "name a domain of yours after the *."
	}
	return o, "", ""
}

// Matches says whether origin, as a browser sent it, is meant.
func (o Origin) Matches(origin string) bool {
	rest, ok := strings.CutPrefix(origin, o.scheme+"://")
	if !ok {
		return false
	}
	rest, ok = strings.CutSuffix(rest, o.host+o.port)
	if !ok || !o.below {
		return ok && rest == ""
	}
	rest, ok = strings.CutSuffix(rest, ".")
	return ok && hostLabels(rest)
}

// Private says whether nobody between the browser and the page's server can
// have put words in it: by TLS, or because it is this host.
func (o Origin) Private() bool {
	if o.scheme == "https" || o.host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(o.host, "[]"))
	return err == nil && ip.IsLoopback()
}

// String is the origin as it is written in settings.
func (o Origin) String() string {
	host := o.host
	if o.below {
		host = "*." + host
	}
	return o.scheme + "://" + host + o.port
}

// hostLabels says whether s is a host name in lower case.
func hostLabels(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

func portNumber(s string) bool {
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 65535 {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n >= 1 && n <= 65535 && s[0] != '0'
}

// origins reads from where browsers may call.
func (b *loader) origins() []Origin {
	f := b.find(settingOf("cors-origin"), RoleProxy)
	var all []Origin
	var rows []string
	for i, text := range f.texts {
		o, problem, remedy := ParseOrigin(strings.TrimSpace(text))
		if problem != "" {
			b.bad.add("cors-origin", f.at(i), quote(text)+": "+problem, remedy)
			continue
		}
		if !o.Private() {
			b.warn("--cors-origin " + o.String() + ": without TLS, whoever is between a browser and that site can call in its place; prefer https://")
		}
		all = append(all, o)
		rows = append(rows, o.String())
	}
	b.row(f, quoteList(rows))
	return all
}
