package configs

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The directories of Let's Encrypt: the one that browsers trust, and the one
// for trying things out, whose limits are wide and whose certificates nobody
// trusts.
const (
	LetsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// ACME says of which public CA certificates are ordered, and as whom. Its terms
// were agreed to, or Load would have failed.
type ACME struct {
	Directory string // URL
	Root      string // absolute; PEM, verifies the directory's own TLS; empty: the public roots
	Email     string // where the CA writes to; may be empty
	EABKeyID  string // external account; empty: none
	EABKey    Secret // base64url without padding; set when EABKeyID is
}

// maxDomains is how many names a port can have: each is an order of its own.
const maxDomains = 100

// domains reads the names that certificates are ordered for.
func (b *loader) domains(flag string, r Role) []string {
	f := b.find(settingOf(flag), r)
	var names []string
	for i, text := range f.texts {
		name := strings.ToLower(strings.TrimSuffix(strings.TrimSpace(text), "."))
		problem, remedy := checkDomain(name)
		switch {
		case problem != "":
			b.bad.add(flag, f.at(i), problem, remedy)
		case slices.Contains(names, name):
			b.bad.add(flag, f.at(i), name+" is named twice", "name it once")
		}
		names = append(names, name)
	}
	if len(names) > maxDomains {
		b.bad.add(flag, f.from, fmt.Sprintf("these are %d names, and one port can have %d", len(names), maxDomains), "use --tls files with a certificate for all of them")
	}
	if f.setting.list {
		b.row(f, quoteList(names))
	} else {
		b.row(f, quote(strings.Join(names, "")))
		if len(names) == 0 {
			b.unset(f.setting.key)
		}
	}
	return names
}

// checkDomain says why no public CA would take a name.
func checkDomain(name string) (problem, remedy string) {
	_, addr := netip.ParseAddr(name)
	switch {
	case name == "":
		return "it names no domain", "write a name such as api.example.org"
	case strings.HasPrefix(name, "*."):
		return name + " is a wildcard, and those are proven by DNS records alone, which nothing here can write", "name every domain, or use --tls files with a certificate made elsewhere"
	case addr == nil:
		return name + " is an address", "write a name that leads to it"
	case strings.ContainsFunc(name, func(r rune) bool { return r > 127 }):
		return fmt.Sprintf("%q is not in the form that DNS knows", name), "write it as xn--…"
	case !validHost(name) || strings.Contains(name, "_"):
		return fmt.Sprintf("%q is no domain", name), "write a name alone, such as api.example.org"
	}
	return "", ""
}

// acme reads of which CA a role orders its certificates. names are those that
// it orders them for: without any it orders nothing.
func (b *loader) acme(r Role, names []string) *ACME {
	flags := map[string]found{}
	for _, flag := range []string{"acme-directory", "acme-staging", "acme-agree-tos", "acme-email", "acme-eab-key-id"} {
		flags[flag] = b.find(settingOf(flag), r)
	}
	staging, agreed := b.yes(flags["acme-staging"]), b.yes(flags["acme-agree-tos"])
	a := &ACME{Directory: b.directory(flags["acme-directory"], flags["acme-staging"], staging), Root: b.existing("acme-root", r), Email: b.email(flags["acme-email"])}
	id := flags["acme-eab-key-id"]
	a.EABKeyID = id.text()
	b.row(id, quote(a.EABKeyID))
	mac := b.secret("acme-eab-mac-key", r, b.src.ReadSecret, "MAC key of the external account", nil)
	a.EABKey = b.macKey(mac)
	b.row(mac, "")
	switch {
	case id.given() && a.EABKeyID == "":
		b.bad.add("acme-eab-key-id", id.from, "it names no key", "write what the CA gave you, or leave it out")
	case id.given() && mac.text() == "":
		b.bad.add("acme-eab-key-id", id.from, "an external account has a key id and a MAC key", "give --acme-eab-mac-key-file FILE too")
	case mac.text() != "" && !id.given():
		b.bad.add("acme-eab-mac-key", mac.from, "an external account has a key id and a MAC key", "give --acme-eab-key-id ID too")
	}
	if !id.given() {
		b.unset("acme_eab_key_id")
	}
	if len(names) == 0 {
		return nil
	}
	at := b.find(settingOf("domain"), r)
	if !at.given() || r == RoleCore {
		at = b.find(settingOf("grpc-domain"), r)
	}
	if !agreed {
		b.bad.add("acme-agree-tos", flags["acme-agree-tos"].from, "a certificate for "+names[0]+" is to be ordered, and the CA's terms were not agreed to", "read the terms of "+hostOf(a.Directory)+", and give --acme-agree-tos")
	}
	for _, name := range names {
		if public := a.Directory == LetsEncrypt || a.Directory == LetsEncryptStaging; public && !strings.Contains(name, ".") {
			b.bad.add(at.setting.flag, at.from, name+" is a name of this network alone, and no public CA signs one", "use --tls files or --tls internal, or name another CA with --acme-directory")
		}
	}
	return a
}

// hostOf is the host of a URL, for a message.
func hostOf(text string) string {
	if u, err := url.Parse(text); err == nil {
		return u.Host
	}
	return text
}

// directory reads the URL of the CA's directory.
func (b *loader) directory(f, s found, staging bool) string {
	if !f.given() {
		b.row(f, "")
		if staging {
			return LetsEncryptStaging
		}
		return LetsEncrypt
	}
	b.row(f, quote(f.text()))
	if staging {
		b.bad.add("acme-staging", s.from, "it chooses the staging directory of Let's Encrypt, and "+f.from.String()+" names another", "remove one of them")
	}
	u, err := url.Parse(f.text())
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Fragment != "":
		b.bad.add("acme-directory", f.from, "this is no URL of a directory", "write https://HOST/PATH, as the CA's pages give it")
	case u.Scheme == "http":
		b.bad.add("acme-directory", f.from, "without TLS anyone between could answer for the CA", "write https://, with --acme-root FILE where the CA is your own")
	}
	return f.text()
}

// email reads where a CA writes to.
func (b *loader) email(f found) string {
	if !f.given() {
		b.row(f, "")
		return ""
	}
	text := strings.TrimPrefix(f.text(), "mailto:")
	user, host, ok := strings.Cut(text, "@")
	if !ok || user == "" || !validHost(host) || strings.ContainsAny(text, " ,;<>?&\t\r\n") {
		b.bad.add(f.setting.flag, f.from, fmt.Sprintf("%q is no address of a mailbox", f.text()), "write one, such as certificates@example.org")
	}
	b.row(f, quote(text))
	return text
}

// macKey reads a MAC key in any of the alphabets of base64.
func (b *loader) macKey(f found) Secret {
	if f.text() == "" {
		return ""
	}
	text := strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(f.text(), "="))
	key, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(key) < 16 {
		b.bad.add(f.setting.flag, f.from, "this is no MAC key of an external account", "paste the base64 text that the CA gave you")
	}
	return Secret(text)
}

// yes reads a setting that is true or false.
func (b *loader) yes(f found) bool {
	if f.text() == "" { // not given, or refused already
		b.row(f, "")
		return false
	}
	v, err := strconv.ParseBool(f.text())
	if err != nil {
		b.bad.add(f.setting.flag, f.from, fmt.Sprintf("%q is neither true nor false", f.text()), "write true or false")
	}
	b.row(f, strconv.FormatBool(v))
	return v
}

// offAddress is written where a listener is not wanted.
const offAddress = "off"

// httpAddress reads where plain HTTP answers a CA's challenges and sends
// everybody else to https. ordering says that this role orders certificates.
func (b *loader) httpAddress(r Role, ordering bool) string {
	f := b.find(settingOf("http-address"), r)
	text := f.text()
	switch {
	case r == RoleCore && (!ordering || f.from.role != RoleCore && b.proxyOrders()):
		text = "" // the proxy in this process answers for both
	case r == RoleProxy && !ordering && f.given() && f.from.role != RoleProxy && b.s.Core != nil && b.s.Core.ACME != nil:
		text = "" // core answers there
	case !f.given() && ordering:
		if text = b.beyond("80"); b.s.Process.All {
			b.warn("--role all listens on loopback, where no CA comes to look for its proof: give --public-address :443 and --http-address :80")
		}
	}
	if text == "" || text == offAddress {
		if text == "" && f.given() && r == RoleCore && !b.runs(RoleProxy) {
			b.bad.add("http-address", f.from, "core answers plain HTTP only for a CA that it orders a certificate of", "give --grpc-tls acme and --grpc-domain NAME, or leave it out")
		}
		b.row(f, "")
		if text == offAddress {
			b.row(f, quote(offAddress))
		}
		return ""
	}
	f.texts = []string{text}
	if problem, remedy := checkListen(text); problem != "" {
		b.bad.add("http-address", f.from, problem, remedy+"; or off")
	}
	b.bound = append(b.bound, f)
	b.row(f, quote(text))
	return text
}

// proxyOrders says whether a proxy in the same process orders certificates too,
// and answers the CA.
func (b *loader) proxyOrders() bool {
	return b.runs(RoleProxy) && (b.find(settingOf("domain"), RoleProxy).given() || b.find(settingOf("grpc-domain"), RoleProxy).given())
}

// idleACME refuses settings of a CA of which nothing is ordered.
func (b *loader) idleACME() {
	for _, r := range []Role{RoleCore, RoleProxy} {
		if b.s.Core != nil && b.s.Core.ACME != nil || b.s.Proxy != nil && b.s.Proxy.ACME != nil || !b.runs(r) {
			continue
		}
		for _, s := range settings() {
			if f := b.find(s, r); strings.HasPrefix(s.flag, "acme-") && f.given() {
				b.bad.add(s.flag, f.from, "no certificate is ordered of any CA", "give --domain NAME for the public port, or --grpc-tls acme with --grpc-domain NAME, or leave it out")
			}
		}
	}
}

// String shows everything but the secret.
func (a *ACME) String() string {
	if a == nil {
		return "none"
	}
	return fmt.Sprintf("%+v", *a)
}
