package configs

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// certificate reads where a port has its certificate from: the settings of the
// mode, the chain and the key, or the names that it is ordered for.
func (b *loader) certificate(r Role, modeFlag, certFlag, keyFlag, domainFlag string) (mode, certFile, keyFile string, names []string) {
	names = b.domains(domainFlag, r)
	domain := b.find(settingOf(domainFlag), r)
	certFile, keyFile = b.existing(certFlag, r), b.existing(keyFlag, r)
	m, cert, key := b.find(settingOf(modeFlag), r), b.find(settingOf(certFlag), r), b.find(settingOf(keyFlag), r)
	switch {
	case cert.given() && !key.given():
		b.bad.add(certFlag, cert.from, "a certificate is given without its key", "give --"+keyFlag+" FILE too")
	case key.given() && !cert.given():
		b.bad.add(keyFlag, key.from, "a key is given without its certificate", "give --"+certFlag+" FILE too")
	}
	mode = "internal"
	switch {
	case cert.given() && key.given():
		mode = "files"
		if len(names) > 0 {
			b.bad.add(domainFlag, domain.from, "a certificate is to be ordered, and "+cert.from.String()+" names one that is there", "remove one of them")
		}
	case len(names) > 0:
		mode = "acme"
	}
	if m.given() {
		mode = m.text()
		switch {
		case b.unknownWord(m):
		case mode == "files" && !cert.given() && !key.given():
			b.bad.add(modeFlag, m.from, "files are to be used and none is named", "give --"+certFlag+" FILE and --"+keyFlag+" FILE")
		case mode == "off" && (cert.given() || key.given()):
			b.bad.add(modeFlag, m.from, "TLS is off, and "+cert.from.String()+" names a certificate", "remove one of them")
		case mode == "internal" && (cert.given() || key.given()):
			b.bad.add(modeFlag, m.from, "the embedded CA is to be used, and "+cert.from.String()+" names a certificate", "remove one of them")
		case mode == "acme" && len(names) == 0:
			b.bad.add(modeFlag, m.from, "a certificate is to be ordered, and for no name", "give --"+domainFlag+" NAME")
		case mode == "acme" && (cert.given() || key.given()):
			b.bad.add(modeFlag, m.from, "a certificate is to be ordered, and "+cert.from.String()+" names one that is there", "remove one of them")
		case mode != "acme" && len(names) > 0:
			b.bad.add(modeFlag, m.from, "a certificate is ordered with --tls acme alone, and "+domain.from.String()+" names what for", "remove one of them")
		}
	}
	b.row(m, quote(mode))
	if mode != "acme" {
		names = nil
	}
	return mode, certFile, keyFile, names
}

// ca reads who vouches for an outside certificate: a file, or the system.
func (b *loader) ca(flag string, r Role) string {
	if f := b.find(settingOf(flag), r); f.text() == CASystem {
		b.row(f, quote(CASystem))
		return CASystem
	}
	return b.existing(flag, r)
}

// serverName reads the name expected in an outside certificate.
func (b *loader) serverName(flag string, r Role) string {
	f := b.find(settingOf(flag), r)
	if !f.given() {
		b.row(f, "")
		return ""
	}
	if !validHost(f.text()) {
		b.bad.add(flag, f.from, fmt.Sprintf("%q is no name of a server", f.text()), "write the name that its certificate has, such as core.example.org")
	}
	b.row(f, quote(f.text()))
	return f.text()
}

// renewBefore reads how long before its end a component's certificate is
// renewed. How long it lives is for core to say.
func (b *loader) renewBefore(r Role) time.Duration {
	f := b.find(settingOf("renew-before"), r)
	if !f.given() {
		b.row(f, "")
		return 0
	}
	return b.duration(f, time.Second, 89*24*time.Hour)
}

// renewalOf is the RenewBefore of a role that may not run.
func renewalOf[T Proxy | Gateway](role *T) time.Duration {
	switch r := any(role).(type) {
	case *Proxy:
		if r != nil {
			return r.RenewBefore
		}
	case *Gateway:
		if r != nil {
			return r.RenewBefore
		}
	}
	return 0
}

// exportDir reads where a gateway keeps a pair for others. The files in it are
// replaced, so it is not where the gateway has its own.
func (b *loader) exportDir(dataDir string) string {
	f := b.find(settingOf("export-cert"), RoleGateway)
	if !f.given() {
		b.row(f, "")
		return ""
	}
	dir := b.path(f)
	switch {
	case dir == "":
		b.bad.add("export-cert", f.from, "it names no directory", "give a path, or leave it out")
	case dataDir != "" && within(dir, dataDir):
		b.bad.add("export-cert", f.from, dir+" is in the data directory, where no other service may read", "give a directory of its own")
	}
	b.row(f, quote(dir))
	return dir
}

// within says whether path is dir or lies below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// clientCAs reads the foreign CAs of a proxy, each NAME=FILE.
func (b *loader) clientCAs() []ClientCA {
	f := b.find(settingOf("client-ca"), RoleProxy)
	var all []ClientCA
	var rows []string
	for i, text := range f.texts {
		name, file, ok := strings.Cut(text, "=")
		name = strings.TrimSpace(name)
		ca := ClientCA{Name: name, File: b.pathOf(f.at(i), strings.TrimSpace(file))}
		switch {
		case !ok:
			b.bad.add("client-ca", f.at(i), fmt.Sprintf("%q names no file", text), "write NAME=FILE, such as partner=/etc/sallyport/partner-ca.pem")
			continue
		case !dnsLabel(name):
			b.bad.add("client-ca", f.at(i), fmt.Sprintf("%q is no name of a CA", name), "write at most 63 lower-case letters, digits and -, then =FILE")
		}
		for _, other := range all {
			if other.Name == name {
				b.bad.add("client-ca", f.at(i), fmt.Sprintf("two CAs are called %q", name), "put all their certificates into one file, or give each a name of its own")
			}
		}
		b.mustExist("client-ca", f.at(i), ca.File)
		all = append(all, ca)
		rows = append(rows, ca.Name+"="+ca.File)
	}
	b.row(f, quoteList(rows))
	return all
}
