package configs

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Sources is the world outside the command line.
type Sources struct {
	Environ []string // as os.Environ gives it

	UID int // decides the default data directory

	// ReadSecret answers "-" given for a secret: it asks on a terminal, or
	// reads a line of standard input. prompt names what is asked for. An
	// empty answer is no secret.
	ReadSecret func(prompt string) (string, error)

	// CheckPeers says what is wrong with a list of addresses, networks and
	// names that may connect. Nil: nothing is.
	CheckPeers func([]string) error
}

// Load makes settings of what the command line, the environment and the file
// say, in this order of precedence, above the defaults. It can be called
// again at any time and changes nothing outside. All that is wrong is
// reported at once, in one error whose parts are *Error or *SyntaxError.
func Load(flags Flags, src Sources) (*Settings, Provenance, error) {
	b := &loader{src: src, s: &Settings{}}
	b.lookup = newLookup(&flags, src.Environ, &b.bad)
	b.open()
	b.s.File = b.file
	if b.roles(); len(b.s.Roles) > 0 {
		b.misplaced()
		b.process()
		for _, r := range b.s.Roles {
			switch r {
			case RoleCore:
				b.core()
			case RoleProxy:
				b.proxy()
			case RoleGateway:
				b.gateway()
			}
		}
		b.together()
	}
	if err := b.bad.err(); err != nil {
		return nil, Provenance{}, err
	}
	return b.s, b.provenance, nil
}

type loader struct {
	*lookup
	src        Sources
	bad        problems
	s          *Settings
	provenance Provenance
	bound      []found // the addresses to listen on
}

// roles reads which roles run.
func (b *loader) roles() {
	f := b.find(settingOf("role"), "")
	if len(f.texts) == 0 {
		b.bad.add("role", f.from, "no role is given", "write --role core, proxy or gateway, several with commas, or --role all for everything in one process")
		return
	}
	words := []string{"core", "proxy", "gateway", "all"}
	var given []string
	for _, t := range f.texts {
		for w := range strings.SplitSeq(t, ",") {
			given = append(given, strings.TrimSpace(w))
		}
	}
	seen := map[string]bool{}
	for _, w := range given {
		switch {
		case !slices.Contains(words, w):
			remedy := "the roles are core, proxy, gateway and all"
			if near := Nearest(strings.ToLower(w), words); near != "" {
				remedy = "did you mean " + near + "?"
			}
			b.bad.add("role", f.from, fmt.Sprintf("%q is no role", w), remedy)
		case seen[w]:
			b.bad.add("role", f.from, w+" is named twice", "name it once")
		}
		seen[w] = true
	}
	if seen["all"] && len(seen) > 1 {
		b.bad.add("role", f.from, "all is core, proxy and gateway already", "write --role all alone, or list the roles without it")
	}
	b.s.Process.All = seen["all"]
	for _, r := range []Role{RoleCore, RoleProxy, RoleGateway} {
		if seen["all"] || seen[string(r)] {
			b.s.Roles = append(b.s.Roles, r)
		}
	}
	if len(b.bad.errs) == 0 {
		b.row(f, quote(strings.Join(given, ",")))
	}
}

// runs says whether one of the roles runs.
func (b *loader) runs(roles ...Role) bool {
	return slices.ContainsFunc(roles, func(r Role) bool { return slices.Contains(b.s.Roles, r) })
}

// misplaced reports what is given and has no one to act on it.
func (b *loader) misplaced() {
	running := "only " + join(b.s.Roles) + " runs here"
	for _, s := range settings() {
		if len(s.roles) == 0 || b.runs(s.roles...) {
			continue
		}
		if _, ok := s.flagValue(b.flags); ok {
			b.bad.add(s.flag, origin{kind: fromFlag, name: "--" + s.flag}, "it is a setting of "+join(s.roles)+", and "+running,
				"leave it out, or name the role in --role")
		}
		if v := b.root.Get(s.key); v != nil && (v.Kind != "table" || !isRole(s.key)) {
			b.warn(fmt.Sprintf("%s:%d: %s is a setting of %s, and %s", b.file, v.KeyPos.Line, s.key, join(s.roles), running))
		}
	}
	var known []string
	for _, s := range settings() {
		known = append(known, s.env)
	}
	for _, kv := range b.src.Environ {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "SALLYPORT_") || slices.Contains(known, name) {
			continue
		}
		if near := Nearest(name, known); near != "" && edits(name, near, 3) <= 2 {
			b.warn("environment " + name + " is no setting; did you mean " + near + "?")
		}
	}
}

func (b *loader) warn(s string) {
	if !slices.Contains(b.s.Warnings, s) {
		b.s.Warnings = append(b.s.Warnings, s)
	}
}

func (b *loader) process() {
	p := &b.s.Process
	p.HealthAddress = b.listen("health-address", "", "")
	p.LogFormat = b.word("log-format", "")
	p.MemoryBudget = b.memory()
	if err := p.LogLevel.UnmarshalText([]byte(b.word("log-level", ""))); err != nil {
		p.LogLevel = slog.LevelInfo // reported by word
	}
}

func (b *loader) core() {
	c := &Core{
		DataDir:     b.dataDir(RoleCore),
		GRPCAddress: b.listen("grpc-address", RoleCore, b.beyond("50055")),
		Advertise:   b.dial("advertise", RoleCore),
		PolicyFile:  b.existing("policy", RoleCore),
	}
	var names []string
	c.GRPCTLS, c.GRPCCert, c.GRPCKey, names = b.certificate(RoleCore, "grpc-tls", "grpc-cert", "grpc-key", "grpc-domain")
	c.GRPCDomain = strings.Join(names, "")
	c.ACME = b.acme(RoleCore, names)
	c.HTTPAddress = b.httpAddress(RoleCore, c.ACME != nil)
	c.ProxyGRPCCA = b.ca("proxy-grpc-ca", RoleCore)
	f := b.find(settingOf("trust-domain"), RoleCore)
	if td, err := spiffeid.TrustDomainFromString(f.text()); err != nil || td.Name() != f.text() || len(f.text()) > 255 {
		b.bad.add("trust-domain", f.from, fmt.Sprintf("%q is no trust domain", f.text()), "write lower-case letters, digits, dots, - and _, such as example.org")
	}
	c.TrustDomain = f.text()
	b.row(f, quote(c.TrustDomain))
	f = b.find(settingOf("cert-lifetime"), RoleCore)
	c.CertLifetime = b.duration(f, time.Minute, 90*24*time.Hour)
	b.sealing(c)
	b.backups(c)
	c.AlertWebhook = b.webhook()
	c.NoPeerCheck, c.FirewallFile = b.peers(RoleCore, c.DataDir)
	c.DrainTimeout, c.MaxLinkAge, c.AccessLog = b.common(RoleCore)
	b.s.Core = c
}

func (b *loader) proxy() {
	p := &Proxy{
		DataDir:     b.stateDir(RoleProxy),
		GRPCAddress: b.listen("grpc-address", RoleProxy, b.beyond("50051")),
		Join:        b.join(RoleProxy, "join token of this proxy"),
		RenewBefore: b.renewBefore(RoleProxy),
	}
	p.TLS, p.TLSCert, p.TLSKey, p.Domains = b.certificate(RoleProxy, "tls", "tls-cert", "tls-key", "domain")
	var names []string
	p.GRPCTLS, p.GRPCCert, p.GRPCKey, names = b.certificate(RoleProxy, "grpc-tls", "grpc-cert", "grpc-key", "grpc-domain")
	p.GRPCDomain = strings.Join(names, "")
	p.ACME = b.acme(RoleProxy, append(slices.Clone(p.Domains), names...))
	b.needsDisk(p)
	p.HTTPAddress = b.httpAddress(RoleProxy, p.ACME != nil)
	p.ClientCAs = b.clientCAs()
	p.NoPeerCheck, p.FirewallFile = b.peers(RoleProxy, p.DataDir)
	p.CoreIP = b.coreIP()
	p.CORSOrigins = b.origins()
	p.AskClientCert = b.word("ask-client-cert", RoleProxy)
	public := "127.0.0.1:8443"
	if (p.TLSCert != "" || len(p.Domains) > 0) && !b.s.Process.All {
		public = ":443"
	}
	p.PublicAddress = b.listen("public-address", RoleProxy, public)
	p.Limits = b.limits()
	b.front(p)
	p.DrainTimeout, p.MaxLinkAge, p.AccessLog = b.common(RoleProxy)
	b.s.Proxy = p
}

func (b *loader) gateway() {
	g := &Gateway{
		DataDir: b.stateDir(RoleGateway),
		Core:    b.dial("core", RoleGateway),
		Join:    b.join(RoleGateway, "join token of this gateway"),

		RenewBefore:    b.renewBefore(RoleGateway),
		GRPCCA:         b.ca("grpc-ca", RoleGateway),
		GRPCServerName: b.serverName("grpc-server-name", RoleGateway),
	}
	g.ExportCert = b.exportDir(g.DataDir)
	g.Upstreams = b.upstreams()
	g.Demo = len(g.Upstreams) == 0
	g.Listen, g.ListenGroup = b.listens(g.Upstreams)
	f := b.find(settingOf("allow"), RoleGateway)
	if f.given() && len(f.texts) == 0 {
		b.bad.add("allow", f.from, "an empty list allows nothing and cannot be told from no list", "name the methods, or leave the setting out to set no ceiling")
	}
	for i, p := range f.texts {
		if err := MethodPattern(p); err != nil {
			problem, remedy, _ := strings.Cut(err.Error(), "; ")
			b.bad.add("allow", f.at(i), problem, remedy)
		}
	}
	g.Allow = f.texts
	b.row(f, quoteList(f.texts))
	g.DrainTimeout, g.MaxLinkAge, g.AccessLog = b.common(RoleGateway)
	b.s.Gateway = g
}

// common reads what every role has.
func (b *loader) common(r Role) (drain, age time.Duration, access string) {
	drain = b.duration(b.find(settingOf("drain-timeout"), r), 0, 24*time.Hour)
	b.s.Process.DrainTimeout = max(b.s.Process.DrainTimeout, drain)
	age = b.duration(b.find(settingOf("max-link-age"), r), time.Minute, 90*24*time.Hour)
	return drain, age, b.word("access-log", r)
}

// together checks what concerns several roles at once.
func (b *loader) together() {
	s := b.s
	if s.Core != nil && s.Gateway != nil {
		s.Core.Demo = s.Process.All && s.Gateway.Demo && s.Core.PolicyFile == ""
	}
	for r, before := range map[Role]time.Duration{RoleProxy: renewalOf(s.Proxy), RoleGateway: renewalOf(s.Gateway)} {
		if s.Core != nil && before >= s.Core.CertLifetime && before > 0 {
			f := b.find(settingOf("renew-before"), r)
			b.bad.add("renew-before", f.from, short(before)+" before its end, a certificate of --cert-lifetime "+short(s.Core.CertLifetime)+" is not issued yet", "write a shorter one")
		}
	}
	b.idleACME()
	b.healthBesidePort()
	for i, f := range b.bound {
		for _, g := range b.bound[:i] {
			if f.text() == g.text() && !strings.HasSuffix(f.text(), ":0") {
				b.bad.add(f.setting.flag, f.from, "it is "+f.text()+", and so is --"+g.setting.flag, "give each its own port")
			}
		}
	}
}

// single refuses a value that two running roles would share and cannot.
func (b *loader) single(f found) bool {
	if f.role == "" || !f.given() || f.from.role != "" || !f.setting.exclusive() {
		return true
	}
	var sharing []Role
	for _, r := range f.setting.roles {
		if b.runs(r) && b.find(f.setting, r).from == f.from {
			sharing = append(sharing, r)
		}
	}
	if len(sharing) < 2 {
		return true
	}
	remedy := "write " + f.setting.key + " under " + tables(sharing) + " of a settings file"
	b.bad.add(f.setting.flag, f.from, "it would apply to "+join(sharing)+" at once", remedy)
	return false
}

// beyond is the default address of a component port.
func (b *loader) beyond(port string) string {
	if b.s.Process.All {
		return "127.0.0.1:" + port
	}
	return ":" + port
}
