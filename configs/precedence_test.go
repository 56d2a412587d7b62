package configs

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// sample says how to see a setting: the roles to run, three values that
// differ, and where the settings hold it.
type sample struct {
	roles  string
	values [3]string
	read   func(*Settings) string
	want   func(value string) string // what read gives for a value; nil: the value
}

func samples(t *testing.T) map[string]sample {
	dir := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	files := func(base string) [3]string {
		return [3]string{file(base+"1", base), file(base+"2", base), file(base+"3", base)}
	}
	var tokens [3]string
	for i := range tokens {
		tokens[i] = file(fmt.Sprint("token", i), fmt.Sprintf("sp1.token%d\n", i))
	}
	cert, key := file("cert.pem", "c"), file("key.pem", "k")
	passphrases := [3]string{file("pass1", "one two\n"), file("pass2", "three four"), file("pass3", "five six\r\n")}
	words := map[string]string{passphrases[0]: "one two", passphrases[1]: "three four", passphrases[2]: "five six"}
	word := func(v string) string { return words[v] }
	hooks := [3]string{"https://a.example/x", "https://b.example/y", "http://127.0.0.1:9/z"}
	hookFiles := [3]string{file("hook1", hooks[0]), file("hook2", hooks[1]), file("hook3", hooks[2])}
	hookOf := func(v string) string { return hooks[slices.Index(hookFiles[:], v)] }
	cas := files("ca")
	macs := [3]string{"YWFhYWFhYWFhYWFhYWFhYWFh", "YmJiYmJiYmJiYmJiYmJiYmJi", "Y2NjY2NjY2NjY2NjY2NjY2Nj"}
	macFiles := [3]string{file("mac1", macs[0]), file("mac2", macs[1]), file("mac3", macs[2])}
	order := func(s *Settings) ACME {
		if s.Proxy.ACME == nil { // nothing is ordered where nothing is given
			return ACME{}
		}
		return *s.Proxy.ACME
	}
	directory := func(s *Settings) string { return order(s).Directory }
	return map[string]sample{
		"role":             {"", [3]string{"core", "proxy", "gateway"}, func(s *Settings) string { return string(s.Roles[0]) }, nil},
		"data-dir":         {"core", [3]string{"/a", "/b", "/c"}, func(s *Settings) string { return s.Core.DataDir }, nil},
		"drain-timeout":    {"proxy", [3]string{"1s", "2s", "3s"}, func(s *Settings) string { return s.Proxy.DrainTimeout.String() }, nil},
		"access-log":       {"core", [3]string{"off", "all", "failures"}, func(s *Settings) string { return s.Core.AccessLog }, nil},
		"max-link-age":     {"gateway", [3]string{"1h0m0s", "2h0m0s", "3h0m0s"}, func(s *Settings) string { return s.Gateway.MaxLinkAge.String() }, nil},
		"health-address":   {"core", [3]string{":1", ":2", ":3"}, func(s *Settings) string { return s.Process.HealthAddress }, nil},
		"log-level":        {"core", [3]string{"debug", "warn", "error"}, func(s *Settings) string { return strings.ToLower(s.Process.LogLevel.String()) }, nil},
		"log-format":       {"core", [3]string{"json", "text", "auto"}, func(s *Settings) string { return s.Process.LogFormat }, nil},
		"grpc-address":     {"proxy", [3]string{":1", ":2", ":3"}, func(s *Settings) string { return s.Proxy.GRPCAddress }, nil},
		"grpc-tls":         {"core;grpc-cert=" + cert + ";grpc-key=" + key, [3]string{"files", "files", "files"}, func(s *Settings) string { return s.Core.GRPCTLS }, nil},
		"grpc-cert":        {"core;grpc-key=" + key, files("grpccert"), func(s *Settings) string { return s.Core.GRPCCert }, nil},
		"grpc-key":         {"proxy;grpc-cert=" + cert, files("grpckey"), func(s *Settings) string { return s.Proxy.GRPCKey }, nil},
		"proxy-grpc-ca":    {"core", [3]string{cas[0], "system", cas[1]}, func(s *Settings) string { return s.Core.ProxyGRPCCA }, nil},
		"grpc-ca":          {"gateway", [3]string{"system", cas[0], cas[1]}, func(s *Settings) string { return s.Gateway.GRPCCA }, nil},
		"grpc-server-name": {"gateway", [3]string{"a.example", "b.example", "10.1.2.3"}, func(s *Settings) string { return s.Gateway.GRPCServerName }, nil},
		"peer-check":       {"proxy", [3]string{"off", "on", "off"}, func(s *Settings) string { return map[bool]string{true: "off", false: "on"}[s.Proxy.NoPeerCheck] }, nil},
		"firewall-file":    {"core", [3]string{"/a", "/b", "/c"}, func(s *Settings) string { return s.Core.FirewallFile }, nil},
		"core-ip":          {"proxy", [3]string{"10.0.0.1", "core.example", "any"}, func(s *Settings) string { return strings.Join(s.Proxy.CoreIP, ",") }, nil},
		"export-cert":      {"gateway", [3]string{"/a", "/b", "/c"}, func(s *Settings) string { return s.Gateway.ExportCert }, nil},
		"state": {"gateway", [3]string{"memory", "disk", "memory"}, func(s *Settings) string {
			if s.Gateway.DataDir == "" {
				return "memory"
			}
			return "disk"
		}, nil},
		"renew-before": {"gateway", [3]string{"1h0m0s", "2h0m0s", "3h0m0s"}, func(s *Settings) string { return s.Gateway.RenewBefore.String() }, nil},
		"client-ca": {"proxy", [3]string{"a=" + cas[0], "b=" + cas[1], "c=" + cas[2]}, func(s *Settings) string {
			if len(s.Proxy.ClientCAs) == 0 {
				return ""
			}
			return s.Proxy.ClientCAs[0].Name + "=" + s.Proxy.ClientCAs[0].File
		}, nil},
		"cors-origin": {"proxy", [3]string{"https://a.example", "https://*.b.example", "http://localhost:3"}, func(s *Settings) string {
			if len(s.Proxy.CORSOrigins) == 0 {
				return ""
			}
			return s.Proxy.CORSOrigins[0].String()
		}, nil},
		"ask-client-cert":        {"proxy", [3]string{"always", "never", "auto"}, func(s *Settings) string { return s.Proxy.AskClientCert }, nil},
		"ca-passphrase-file":     {"core", passphrases, func(s *Settings) string { return s.Core.CAPassphrase.Reveal() }, word},
		"ca-key-file":            {"core", [3]string{"/a", "/b", "/c"}, func(s *Settings) string { return s.Core.CAKeyFile }, nil},
		"backup-dir":             {"core;backup-passphrase-file=" + passphrases[0], [3]string{"/a", "/b", "/c"}, func(s *Settings) string { return s.Core.BackupDir }, nil},
		"backup-every":           {"core;backup-dir=/b;backup-passphrase-file=" + passphrases[0], [3]string{"1h0m0s", "2h0m0s", "3h0m0s"}, func(s *Settings) string { return s.Core.BackupEvery.String() }, nil},
		"backup-keep":            {"core;backup-dir=/b;backup-passphrase-file=" + passphrases[0], [3]string{"1", "2", "3"}, func(s *Settings) string { return strconv.Itoa(s.Core.BackupKeep) }, nil},
		"backup-passphrase-file": {"core;backup-dir=/b", passphrases, func(s *Settings) string { return s.Core.BackupPassphrase.Reveal() }, word},
		"alert-webhook":          {"core", hooks, func(s *Settings) string { return s.Core.AlertWebhook.Reveal() }, nil},
		"alert-webhook-file":     {"core", hookFiles, func(s *Settings) string { return s.Core.AlertWebhook.Reveal() }, hookOf},
		"advertise":              {"core", [3]string{"a:1", "b:2", "c"}, func(s *Settings) string { return s.Core.Advertise }, func(v string) string { return strings.Replace(v, "c", "c:50055", 1) }},
		"trust-domain":           {"core", [3]string{"a.example", "b.example", "c.example"}, func(s *Settings) string { return s.Core.TrustDomain }, nil},
		"policy":                 {"core", files("policy"), func(s *Settings) string { return s.Core.PolicyFile }, nil},
		"cert-lifetime":          {"core", [3]string{"1h0m0s", "2h0m0s", "3h0m0s"}, func(s *Settings) string { return s.Core.CertLifetime.String() }, nil},
		"public-address":         {"proxy", [3]string{":1", ":2", ":3"}, func(s *Settings) string { return s.Proxy.PublicAddress }, nil},
		"tls":                    {"proxy;tls-cert=" + cert + ";tls-key=" + key, [3]string{"files", "files", "files"}, func(s *Settings) string { return s.Proxy.TLS }, nil},
		"tls-cert":               {"proxy;tls-key=" + key, files("cert"), func(s *Settings) string { return s.Proxy.TLSCert }, nil},
		"tls-key":                {"proxy;tls-cert=" + cert, files("key"), func(s *Settings) string { return s.Proxy.TLSKey }, nil},
		"memory-budget":          {"core", [3]string{"64MiB", "128M", "1GiB"}, func(s *Settings) string { return sizeText(s.Process.MemoryBudget) }, func(v string) string { return strings.Replace(v, "8M", "8MiB", 1) }},
		"trusted-front":          {"proxy", [3]string{"10.0.0.0/8", "192.0.2.7", "2001:db8::/32"}, func(s *Settings) string { return prefixText(s.Proxy.TrustedFronts) }, func(v string) string { return strings.Replace(v, "2.7", "2.7/32", 1) }},
		"proxy-protocol":         {"proxy", [3]string{"10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"}, func(s *Settings) string { return prefixText(s.Proxy.ProxyProtocol) }, nil},
		"limit":                  {"proxy", [3]string{"pings=1", "pings=2", "pings=3"}, func(s *Settings) string { return fmt.Sprint("pings=", s.Proxy.Limits.Pings) }, nil},
		"join":                   {"proxy", [3]string{"sp1.a", "sp1.b", "sp1.c"}, func(s *Settings) string { return s.Proxy.Join }, nil},
		"join-file":              {"gateway", tokens, func(s *Settings) string { return s.Gateway.Join }, func(v string) string { return "sp1." + filepath.Base(v) }},
		"core":                   {"gateway", [3]string{"a:1", "b:2", "c:3"}, func(s *Settings) string { return s.Gateway.Core }, nil},
		"upstream": {"gateway", [3]string{"a=127.0.0.1:1", "b=127.0.0.1:2", "c=127.0.0.1:3"}, func(s *Settings) string {
			if len(s.Gateway.Upstreams) == 0 {
				return ""
			}
			return s.Gateway.Upstreams[0].Name + "=" + s.Gateway.Upstreams[0].Address.String()
		}, nil},
		"domain":                {"proxy;acme-agree-tos=true", [3]string{"a.example", "b.example", "c.example"}, func(s *Settings) string { return strings.Join(s.Proxy.Domains, " ") }, nil},
		"grpc-domain":           {"core;acme-agree-tos=true", [3]string{"a.example", "b.example", "c.example"}, func(s *Settings) string { return s.Core.GRPCDomain }, nil},
		"http-address":          {"proxy;domain=a.example;acme-agree-tos=true", [3]string{":1", "off", ":3"}, func(s *Settings) string { return s.Proxy.HTTPAddress }, func(v string) string { return strings.Replace(v, "off", "", 1) }},
		"acme-directory":        {"proxy;domain=a.example;acme-agree-tos=true", [3]string{"https://a/d", "https://b/d", "https://c/d"}, directory, nil},
		"acme-email":            {"proxy;domain=a.example;acme-agree-tos=true", [3]string{"a@x.example", "b@x.example", "c@x.example"}, func(s *Settings) string { return order(s).Email }, nil},
		"acme-root":             {"proxy;domain=a.example;acme-agree-tos=true", cas, func(s *Settings) string { return order(s).Root }, nil},
		"acme-eab-key-id":       {"proxy;domain=a.example;acme-agree-tos=true;acme-eab-mac-key=" + macs[0], [3]string{"a", "b", "c"}, func(s *Settings) string { return order(s).EABKeyID }, nil},
		"acme-eab-mac-key":      {"proxy;domain=a.example;acme-agree-tos=true;acme-eab-key-id=k", macs, func(s *Settings) string { return order(s).EABKey.Reveal() }, nil},
		"acme-eab-mac-key-file": {"proxy;domain=a.example;acme-agree-tos=true;acme-eab-key-id=k", macFiles, func(s *Settings) string { return order(s).EABKey.Reveal() }, func(v string) string { return macs[slices.Index(macFiles[:], v)] }},
		"acme-staging": {"proxy;domain=a.example;acme-agree-tos=true", [3]string{"true", "false", "true"}, directory, func(v string) string {
			if v == "true" {
				return LetsEncryptStaging
			}
			return LetsEncrypt
		}},
		"acme-agree-tos": {"proxy;domain=a.example", [3]string{"true", "true", "true"}, directory, func(string) string { return LetsEncrypt }},
		"listen": {"gateway", [3]string{"unix:///run/a.sock", "batch=127.0.0.1:1", "tls://10.0.0.1:2"}, func(s *Settings) string {
			var texts []string
			for _, l := range s.Gateway.Listen {
				texts = append(texts, l.String())
			}
			return strings.Join(texts, " ")
		}, nil},
		"listen-group": {"gateway;listen=unix:///run/a.sock", [3]string{"apps", "web", "1000"}, func(s *Settings) string { return s.Gateway.ListenGroup }, nil},
		"allow":        {"gateway", [3]string{"/a.A/*", "/b.B/M", "/c.*"}, func(s *Settings) string { return strings.Join(s.Gateway.Allow, " ") }, nil},
	}
}

func prefixText(list []netip.Prefix) string {
	var s []string
	for _, p := range list {
		s = append(s, p.String())
	}
	return strings.Join(s, " ")
}

// set gives a value to a field of Flags.
func set(f *Flags, s setting, value string) {
	v := reflect.ValueOf(f).Elem().Field(s.index)
	if s.list {
		v.Set(reflect.ValueOf([]string{value}))
		return
	}
	if v.Type().Elem().Kind() == reflect.Bool {
		yes := value == "true"
		v.Set(reflect.ValueOf(&yes))
		return
	}
	v.Set(reflect.ValueOf(&value))
}

// TestPrecedence walks every field of Flags and proves flag over environment
// over role table over top level over default.
func TestPrecedence(t *testing.T) {
	all := samples(t)
	for _, s := range settings() {
		if s.kind == "config" { // cannot be in a file; TestConfigFlag has the rest
			continue
		}
		t.Run(s.flag, func(t *testing.T) {
			c, ok := all[s.flag]
			if !ok {
				t.Fatalf("--%s has no sample: add one, so that its precedence is proven", s.flag)
			}
			want := func(v string) string {
				if c.want != nil {
					return c.want(v)
				}
				return v
			}
			roles, others, _ := strings.Cut(c.roles, ";")
			base := Flags{}
			if roles != "" {
				base.Role = &roles
			}
			for kv := range strings.SplitSeq(others, ";") {
				if k, v, ok := strings.Cut(kv, "="); ok {
					set(&base, settingOf(k), v)
				}
			}
			load := func(flag, env, table, top string) (string, string) {
				t.Helper()
				f := base
				environ := []string{"HOME=/h"}
				if flag+env+table+top == "" { // what goes with it means nothing without it
					f = Flags{Role: base.Role}
				}
				if flag != "" {
					set(&f, s, flag)
				}
				if env != "" {
					environ = append(environ, s.env+"="+env)
				}
				text, form := "", "%s = %q\n"
				if s.kind == "true|false" {
					form = "%s = %s\n"
				}
				if top != "" {
					text += fmt.Sprintf(form, s.key, top)
				}
				if table != "" {
					text += fmt.Sprintf("[%s]\n"+form, roles, s.key, table)
				}
				if text != "" {
					f.Config = write(t, text)
				}
				got, p, err := Load(f, Sources{Environ: environ, UID: 1})
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range p.Rows() {
					if r.Key == s.key {
						return c.read(got), r.From
					}
				}
				return c.read(got), "default"
			}
			check := func(level, got, from, value, wantFrom string) {
				t.Helper()
				if got != want(value) || !strings.HasPrefix(from, wantFrom) {
					t.Errorf("%s: got %q from %q, want %q from %q", level, got, from, want(value), wantFrom)
				}
			}
			v := c.values
			got, from := load(v[0], v[1], "", v[2])
			check("flag over environment and file", got, from, v[0], "flag --"+s.flag)
			got, from = load("", v[1], "", v[2])
			check("environment over file", got, from, v[1], "environment "+s.env)
			got, from = load("", "", "", v[2])
			check("file over default", got, from, v[2], "/")
			if len(s.roles) > 0 && s.flag != "core" { // core names a table too: one file has one of them
				got, from = load("", "", v[1], v[2])
				check("table over top level", got, from, v[1], "/")
				if !strings.HasSuffix(from, ":3") {
					t.Errorf("table over top level: came from %q, want line 3", from)
				}
				got, from = load("", v[0], v[1], v[2])
				check("environment over table", got, from, v[0], "environment ")
			}
			if s.flag == "role" { // has no default
				return
			}
			got, from = load("", "", "", "")
			if from != "default" {
				t.Errorf("default: came from %q", from)
			}
			if s.fallback != "" && got != want(s.fallback) && !strings.HasPrefix(got, s.fallback) {
				t.Errorf("default: got %q, want %q", got, s.fallback)
			}
		})
	}
}

// TestTags keeps the tags of Flags and what the parser of the command line
// makes of them in order.
func TestTags(t *testing.T) {
	for _, s := range settings() {
		f := reflect.TypeFor[Flags]().Field(s.index)
		if f.Tag.Get("env") != "" || f.Tag.Get("default") != "" {
			t.Errorf("--%s: env and default tags would take precedence out of our hands", s.flag)
		}
		if s.fallback != "" && !strings.Contains(f.Tag.Get("help"), "default "+s.fallback) {
			t.Errorf("--%s: the help does not say default %s", s.flag, s.fallback)
		}
		if s.flag == "" || s.kind == "" || f.Tag.Get("help") == "" || f.Tag.Get("placeholder") == "" || f.Tag.Get("roles") == "" {
			t.Errorf("%s: a tag is missing", f.Name)
		}
	}
}

func TestKongFillsOnlyWhatIsGiven(t *testing.T) {
	parse := func(args ...string) Flags {
		t.Helper()
		var cli struct {
			Run struct {
				Flags Flags `embed:""`
			} `cmd:"" default:"withargs"`
		}
		p, err := kong.New(&cli)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Parse(args); err != nil {
			t.Fatal(err)
		}
		return cli.Run.Flags
	}
	if got := parse("--role", "all"); !reflect.DeepEqual(got, Flags{Role: got.Role}) {
		t.Errorf("fields are set that were not given: %+v", got)
	}
	f := parse("--role=gateway", "--join", "-", "--upstream", "orders=127.0.0.1:9000=a.A,b.*", "--upstream=tls://x:1", "--allow=/a.A/*,/b.B/C")
	if *f.Join != "-" || !reflect.DeepEqual(f.Upstream, []string{"orders=127.0.0.1:9000=a.A,b.*", "tls://x:1"}) ||
		!reflect.DeepEqual(f.Allow, []string{"/a.A/*", "/b.B/C"}) {
		t.Errorf("got %q %q %q", *f.Join, f.Upstream, f.Allow)
	}
}

// write puts a settings file into a fresh directory.
func write(t testing.TB, text string) *string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "sallyport.toml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return &p
}
