package configs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func ptr(s string) *string { return &s }

// try loads settings from a file's text, flags written as key=value and an
// environment.
func try(t testing.TB, text string, args []string, environ ...string) (*Settings, Provenance, error) {
	t.Helper()
	var f Flags
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		s := settingOf(k)
		if s.list {
			field := reflect.ValueOf(&f).Elem().Field(s.index)
			field.Set(reflect.Append(field, reflect.ValueOf(v)))
			continue
		}
		set(&f, s, v)
	}
	if text != "" {
		f.Config = write(t, text)
	}
	return Load(f, Sources{Environ: append([]string{"HOME=/home/x"}, environ...), UID: 1000})
}

func must(t testing.TB, text string, args []string, environ ...string) *Settings {
	t.Helper()
	s, _, err := try(t, text, args, environ...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDefaults(t *testing.T) {
	s := must(t, "", []string{"role=core,proxy,gateway"})
	want := &Settings{
		Roles:   []Role{RoleCore, RoleProxy, RoleGateway},
		Process: Process{HealthAddress: "127.0.0.1:8080", LogFormat: "auto", DrainTimeout: 30 * time.Second},
		Core: &Core{DataDir: "/home/x/.local/state/sallyport", GRPCAddress: ":50055", TrustDomain: "sallyport.internal",
			CertLifetime: 24 * time.Hour, DrainTimeout: 30 * time.Second, MaxLinkAge: 168 * time.Hour, AccessLog: "failures",
			GRPCTLS: "internal", BackupEvery: 24 * time.Hour, BackupKeep: 14, FirewallFile: "/home/x/.local/state/sallyport/firewall.json"},
		Proxy: &Proxy{DataDir: "/home/x/.local/state/sallyport", GRPCAddress: ":50051", PublicAddress: "127.0.0.1:8443", TLS: "internal",
			DrainTimeout: 30 * time.Second, MaxLinkAge: 168 * time.Hour, AccessLog: "failures", GRPCTLS: "internal", Limits: DefaultLimits(),
			FirewallFile: "/home/x/.local/state/sallyport/firewall.json", AskClientCert: "auto"},
		Gateway: &Gateway{DataDir: "/home/x/.local/state/sallyport", Demo: true,
			DrainTimeout: 30 * time.Second, MaxLinkAge: 168 * time.Hour, AccessLog: "failures"},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v %+v %+v %+v\nwant %+v %+v %+v %+v", s, s.Core, s.Proxy, s.Gateway, want, want.Core, want.Proxy, want.Gateway)
	}
}

func TestAllStaysOnLoopback(t *testing.T) {
	cert, key := *write(t, "c"), *write(t, "k")
	s := must(t, "", []string{"role=all", "tls-cert=" + cert, "tls-key=" + key}, "PORT=3000")
	for what, address := range map[string]string{"core": s.Core.GRPCAddress, "proxy": s.Proxy.GRPCAddress, "public": s.Proxy.PublicAddress, "health": s.Process.HealthAddress} {
		if !strings.HasPrefix(address, "127.0.0.1:") {
			t.Errorf("%s listens on %s", what, address)
		}
	}
	if s.Proxy.PublicAddress != "127.0.0.1:3000" {
		t.Errorf("PORT gave %s", s.Proxy.PublicAddress)
	}
	if !s.Core.Demo || !s.Process.All {
		t.Error("--role all without an upstream and a policy is the demo")
	}
	s = must(t, "", []string{"role=all", "public-address=:8443", "upstream=127.0.0.1:9000"})
	if s.Proxy.PublicAddress != ":8443" || s.Core.Demo || s.Gateway.Demo {
		t.Errorf("an address that is given counts, and an upstream ends the demo: %+v %+v", s.Proxy, s.Core)
	}
	s = must(t, "", []string{"role=all", "policy=" + cert})
	if s.Core.Demo {
		t.Error("a policy ends the demo's own")
	}
}

func TestPublicAddress(t *testing.T) {
	cert, key := *write(t, "c"), *write(t, "k")
	for _, c := range []struct {
		args    []string
		environ []string
		want    string
	}{
		{[]string{"tls-cert=" + cert, "tls-key=" + key}, nil, ":443"},
		{nil, []string{"PORT=8081"}, ":8081"},
		{nil, []string{"PORT=8081", "SALLYPORT_PUBLIC_ADDRESS=127.0.0.1:1"}, "127.0.0.1:1"},
		{[]string{"public-address=:2"}, []string{"PORT=8081"}, ":2"},
	} {
		if got := must(t, "", append([]string{"role=proxy"}, c.args...), c.environ...).Proxy; got.PublicAddress != c.want {
			t.Errorf("%v %v: %s, want %s", c.args, c.environ, got.PublicAddress, c.want)
		}
	}
}

func TestRoleTables(t *testing.T) {
	s := must(t, `
role = "core,proxy,gateway"
grpc_address = ":1"
drain_timeout = "10s"
health_address = ":9"
[core]
grpc_address = ":2"
[proxy]
drain_timeout = "50s"
[gateway]
core = "core.example.org"
[[gateway.upstream]]
address = "127.0.0.1:9000"
`, nil)
	if s.Core.GRPCAddress != ":2" || s.Proxy.GRPCAddress != ":1" || s.Core.DrainTimeout != 10*time.Second || s.Proxy.DrainTimeout != 50*time.Second {
		t.Errorf("%+v %+v", s.Core, s.Proxy)
	}
	if s.Process.DrainTimeout != 50*time.Second || s.Process.HealthAddress != ":9" || s.Gateway.Core != "core.example.org:50055" || len(s.Gateway.Upstreams) != 1 {
		t.Errorf("%+v %+v", s.Process, s.Gateway)
	}
}

// TestRefused holds one row per mistake: what the message must say, always
// with the place it was made in.
func TestRefused(t *testing.T) {
	here := *write(t, "x")
	for _, c := range []struct {
		name string
		text string
		args []string
		env  []string
		want []string
	}{
		{name: "no role", want: []string{"--role", "no role is given", "--role all"}},
		{name: "unknown role", args: []string{"role=proxi"}, want: []string{"flag --role", "did you mean proxy?"}},
		{name: "role twice", args: []string{"role=core,core"}, want: []string{"core is named twice"}},
		{name: "all and more", args: []string{"role=all,core"}, want: []string{"all is core, proxy and gateway already"}},
		{name: "unknown key", text: "role = \"core\"\ngrpc_adress = \":1\"\n", want: []string{"sallyport.toml:2:1: grpc_adress", "unknown key", "did you mean grpc_address?"}},
		{name: "dashes", text: "role = \"core\"\ngrpc-address = \":1\"\n", want: []string{":2:1", "did you mean grpc_address?"}},
		{name: "unknown far key", text: "role = \"core\"\nzzzzzz = 1\n", want: []string{":2:1: zzzzzz", "sallyport --help"}},
		{name: "unknown in table", text: "role = \"core\"\n[core]\n  polcy = \"x\"\n", want: []string{":3:3", "unknown key in [core]", "policy"}},
		{name: "wrong table", text: "role = \"core\"\n[core]\npublic_address = \":1\"\n", want: []string{":3:1", "no setting of [core]", "[proxy]"}},
		{name: "process key in table", text: "role = \"core\"\n[core]\nlog_level = \"info\"\n", want: []string{":3:1", "top of the file"}},
		{name: "config in file", text: "config = \"x\"\n", args: []string{"role=core"}, want: []string{":1:1", "cannot name another"}},
		{name: "unknown in upstream", text: "role = \"gateway\"\n[[upstream]]\naddress = \"127.0.0.1:1\"\nservice = []\n", want: []string{":4:1", "upstream.service", "did you mean services?"}},
		{name: "table as list", text: "role = \"core\"\n[[core]]\ngrpc_address = \":1\"\n", want: []string{":2:3", "write [core]"}},
		{name: "no toml", text: "role = core\n", want: []string{"sallyport.toml:1:8"}},
		{name: "key twice", text: "role = \"core\"\nrole = \"proxy\"\n", want: []string{"sallyport.toml:2"}},
		{name: "number", text: "role = \"proxy\"\npublic_address = 443\n", want: []string{":2:1", "this is an integer", `write public_address = "443"`}},
		{name: "list for text", text: "role = \"proxy\"\npublic_address = [\"a\"]\n", want: []string{"this is a list"}},
		{name: "number in list", text: "role = \"gateway\"\nallow = [\"/a.A/B\", 7]\n", want: []string{":2:20", "holds an integer"}},
		{name: "missing file", args: []string{"role=core", "config=/nowhere/x.toml"}, want: []string{"flag --config", "cannot be read"}},
		{name: "shared flag", args: []string{"role=core,proxy", "grpc-address=:1"}, want: []string{"flag --grpc-address", "core and proxy at once", "[core] and [proxy]"}},
		{name: "shared environment", args: []string{"role=all"}, env: []string{"SALLYPORT_GRPC_ADDRESS=:1"}, want: []string{"environment SALLYPORT_GRPC_ADDRESS", "[core] and [proxy]"}},
		{name: "shared key", text: "role = \"core,proxy\"\ngrpc_address = \":1\"\n", want: []string{":2:1", "[core] and [proxy]"}},
		{name: "shared token", args: []string{"role=proxy,gateway", "join=sp1.x"}, want: []string{"--join", "[proxy] and [gateway]"}},
		{name: "token with all", args: []string{"role=all", "join=sp1.x"}, want: []string{"takes no token"}},
		{name: "other role's flag", args: []string{"role=gateway", "policy=" + here}, want: []string{"flag --policy", "setting of core", "only gateway runs"}},
		{name: "same port", args: []string{"role=proxy", "public-address=:7", "grpc-address=:7"}, want: []string{"--grpc-address", "its own port"}},
		{name: "bare port", args: []string{"role=proxy", "public-address=443"}, want: []string{"flag --public-address", "write :443"}},
		{name: "bad port", args: []string{"role=proxy", "public-address=:70000"}, want: []string{`"70000" is no port`}},
		{name: "bad host", args: []string{"role=proxy", "public-address=300.1.1.1:1"}, want: []string{"300.1.1.1"}},
		{name: "empty flag", args: []string{"role=proxy", "public-address="}, want: []string{"flag --public-address"}},
		{name: "bad PORT", args: []string{"role=proxy"}, env: []string{"PORT=tcp://1.2.3.4:5"}, want: []string{"environment PORT"}},
		{name: "duration", args: []string{"role=core", "drain-timeout=30"}, want: []string{"flag --drain-timeout", `"30" is no duration`, "30s"}},
		{name: "negative", args: []string{"role=core", "drain-timeout=-1s"}, want: []string{"out of range"}},
		{name: "short life", args: []string{"role=core", "cert-lifetime=10s"}, want: []string{"from 1m to 2160h"}},
		{name: "word", args: []string{"role=core"}, env: []string{"SALLYPORT_ACCESS_LOG=some"}, want: []string{"environment SALLYPORT_ACCESS_LOG", "write off, failures or all"}},
		{name: "level", args: []string{"role=core", "log-level=loud"}, want: []string{"debug, info, warn or error"}},
		{name: "trust domain", args: []string{"role=core", "trust-domain=Big.Example"}, want: []string{"--trust-domain"}},
		{name: "trust domain as id", args: []string{"role=core", "trust-domain=spiffe://x"}, want: []string{"--trust-domain"}},
		{name: "dial scheme", args: []string{"role=gateway", "core=https://x:1"}, want: []string{"--core", "always TLS"}},
		{name: "dial anywhere", args: []string{"role=core", "advertise=0.0.0.0:1"}, want: []string{"where one listens"}},
		{name: "dial nobody", args: []string{"role=core", "advertise=:1"}, want: []string{"no host"}},
		{name: "cert alone", args: []string{"role=proxy", "tls-cert=" + here}, want: []string{"flag --tls-cert", "without its key"}},
		{name: "files without files", args: []string{"role=proxy", "tls=files"}, want: []string{"flag --tls", "none is named"}},
		{name: "internal with files", args: []string{"role=proxy", "tls=internal", "tls-cert=" + here, "tls-key=" + here}, want: []string{"flag --tls", "remove one"}},
		{name: "mode", args: []string{"role=proxy", "tls=magic"}, want: []string{`"magic" is not one of the words`, "acme"}},
		{name: "missing cert", args: []string{"role=proxy", "tls-cert=/nowhere.pem", "tls-key=" + here}, want: []string{"/nowhere.pem"}},
		{name: "directory", args: []string{"role=core", "policy=" + filepath.Dir(here)}, want: []string{"is a directory"}},
		{name: "no token", args: []string{"role=proxy", "join=hello"}, want: []string{"flag --join", "no join token", "'proxy add'"}},
		{name: "nobody to ask", args: []string{"role=proxy", "join=-"}, want: []string{"nobody can be asked", "--join-file"}},
		{name: "token twice", args: []string{"role=proxy", "join=sp1.x", "join-file=" + here}, want: []string{"flag --join-file too"}},
		{name: "plaintext", args: []string{"role=gateway", "upstream=orders=10.0.0.1:9000"}, want: []string{"--upstream", "tls://10.0.0.1:9000", "h2c://10.0.0.1:9000"}},
		{name: "upstream names", args: []string{"role=gateway", "upstream=a=127.0.0.1:1", "upstream=a=127.0.0.1:2"}, want: []string{`two upstreams are called "a"`}},
		{name: "upstream without address", text: "role = \"gateway\"\n[[upstream]]\nname = \"a\"\n", want: []string{":2:3", "no address"}},
		{name: "upstream TLS settings", text: "role = \"gateway\"\n[[upstream]]\naddress = \"127.0.0.1:1\"\nserver_name = \"x\"\n", want: []string{":4:1", "tls://"}},
		{name: "upstream half a pair", text: "role = \"gateway\"\n[[upstream]]\naddress = \"tls://x\"\ncert = \"" + here + "\"\n", want: []string{"belong together"}},
		{name: "service", args: []string{"role=gateway", "upstream=a=127.0.0.1:1=a.*.B"}, want: []string{`"a.*.B" is no service`}},
		{name: "gRPC half a pair", args: []string{"role=core", "grpc-cert=" + here}, want: []string{"flag --grpc-cert", "without its key", "--grpc-key FILE"}},
		{name: "gRPC other half", args: []string{"role=proxy", "grpc-key=" + here}, want: []string{"flag --grpc-key", "without its certificate", "--grpc-cert FILE"}},
		{name: "gRPC files without", args: []string{"role=core", "grpc-tls=files"}, want: []string{"flag --grpc-tls", "--grpc-cert FILE"}},
		{name: "gRPC internal with", args: []string{"role=core", "grpc-tls=internal", "grpc-cert=" + here, "grpc-key=" + here}, want: []string{"flag --grpc-tls", "flag --grpc-cert names a certificate"}},
		{name: "gRPC mode", args: []string{"role=core", "grpc-tls=magic"}, want: []string{`"magic" is not one of the words`, "files or acme"}},
		{name: "gRPC CA", args: []string{"role=gateway", "grpc-ca=/nowhere/ca.pem"}, want: []string{"flag --grpc-ca", "cannot be read"}},
		{name: "gRPC CA of another role", args: []string{"role=core", "grpc-ca=system"}, want: []string{"flag --grpc-ca", "setting of gateway"}},
		{name: "server name", args: []string{"role=gateway", "grpc-server-name=https://x"}, want: []string{"flag --grpc-server-name", "core.example.org"}},
		{name: "key file and passphrase", args: []string{"role=core", "ca-key-file=/k", "ca-passphrase-file=" + here}, want: []string{"flag --ca-key-file", "flag --ca-passphrase-file gives a passphrase"}},
		{name: "passphrase file away", args: []string{"role=core", "ca-passphrase-file=/nowhere/p"}, want: []string{"flag --ca-passphrase-file", "cannot be read"}},
		{name: "passphrase of no letters", args: []string{"role=core", "ca-passphrase-file=" + *write(t, " \n")}, want: []string{"is empty", "openssl rand"}},
		{name: "passphrase of two lines", args: []string{"role=core", "ca-passphrase-file=" + *write(t, "a\nb\n")}, want: []string{"several lines"}},
		{name: "backups in the clear", args: []string{"role=core", "backup-dir=/b"}, want: []string{"flag --backup-dir", "--backup-passphrase-file"}},
		{name: "backups nowhere", text: "role = \"core\"\nbackup_every = \"1h\"\n", want: []string{":2:1", "--backup-dir DIR"}},
		{name: "passphrase for nothing", args: []string{"role=core", "backup-passphrase-file=" + here}, want: []string{"flag --backup-passphrase-file", "--backup-dir DIR"}},
		{name: "no backup kept", args: []string{"role=core", "backup-dir=/b", "backup-passphrase-file=" + here, "backup-keep=0"}, want: []string{"flag --backup-keep", "from 1 to 10000"}},
		{name: "backups all the time", args: []string{"role=core", "backup-dir=/b", "backup-passphrase-file=" + here, "backup-every=1s"}, want: []string{"flag --backup-every", "out of range"}},
		{name: "webhook", args: []string{"role=core", "alert-webhook=hooks.example/T0"}, want: []string{"flag --alert-webhook", "https://HOST/PATH"}},
		{name: "webhook in the clear", args: []string{"role=core", "alert-webhook=http://hooks.example/T0"}, want: []string{"flag --alert-webhook", "write https://"}},
		{name: "webhook file away", args: []string{"role=core", "alert-webhook-file=/nowhere/w"}, want: []string{"flag --alert-webhook-file", "cannot be read"}},
		{name: "client CA without file", args: []string{"role=proxy", "client-ca=partner"}, want: []string{"flag --client-ca", "NAME=FILE"}},
		{name: "client CA name", text: "role = \"proxy\"\nclient_ca = [\n  \"Partner=" + here + "\",\n]\n", want: []string{":3:3", `"Partner" is no name`}},
		{name: "client CA twice", args: []string{"role=proxy", "client-ca=a=" + here, "client-ca=a=" + here}, want: []string{`two CAs are called "a"`}},
		{name: "CORS for all", args: []string{"role=proxy", "cors-origin=*"}, want: []string{"flag --cors-origin", "every site", "https://*.DOMAIN"}},
		{name: "CORS with a path", text: "role = \"proxy\"\ncors_origin = [\n  \"https://a.example/\",\n]\n", want: []string{":3:3", "without a slash"}},
		{name: "client CA file away", args: []string{"role=proxy", "client-ca=a=/nowhere/ca.pem"}, want: []string{"flag --client-ca", "cannot be read"}},
		{name: "export among the own keys", args: []string{"role=gateway", "data-dir=/d", "export-cert=/d/tls"}, want: []string{"flag --export-cert", "a directory of its own"}},
		{name: "renew before issued", args: []string{"role=all", "cert-lifetime=1h", "renew-before=1h"}, want: []string{"flag --renew-before", "--cert-lifetime 1h"}},
		{name: "renew never", args: []string{"role=gateway", "renew-before=0s"}, want: []string{"flag --renew-before", "out of range"}},
		{name: "link age", args: []string{"role=gateway", "max-link-age=1s"}, want: []string{"flag --max-link-age", "out of range"}},
		{name: "lifetime", args: []string{"role=core", "cert-lifetime=2161h"}, want: []string{"flag --cert-lifetime", "from 1m to 2160h"}},
		{name: "empty role", text: "role = []\n", want: []string{":1:1", "no role is given"}},
		{name: "empty ceiling", text: "role = \"gateway\"\nallow = []\n", want: []string{":2:1", "allows nothing"}},
		{name: "allow everything", args: []string{"role=gateway", "allow=/*"}, want: []string{"every method"}},
		{name: "allow", text: "role = \"gateway\"\nallow = [\n  \"/a.A/B\",\n  \"a.A/C\",\n]\n", want: []string{":4:3", "begin with a slash"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := try(t, c.text, c.args, c.env...)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is missing in: %v", w, err)
				}
			}
		})
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	_, _, err := try(t, "role = \"core\"\nx = 1\ndrain_timeout = \"soon\"\n", []string{"grpc-address=1"})
	if n := strings.Count(err.Error(), "\n") + 1; n != 3 {
		t.Errorf("%d of 3 mistakes are reported: %v", n, err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Setting == "" || e.Remedy == "" {
		t.Errorf("no *Error in %v", err)
	}
}

func TestWarnings(t *testing.T) {
	s := must(t, "role = \"proxy\"\npolicy = \"x\"\n[core]\ngrpc_address = \":1\"\n", nil,
		"SALLYPORT_ACESS_LOG=off", "SALLYPORT_SERVICE_HOST=10.0.0.1", "SALLYPORT_TEST_REQUIRE=all")
	if len(s.Warnings) != 2 || !strings.Contains(s.Warnings[0], ":2: policy is a setting of core") || !strings.Contains(s.Warnings[1], "SALLYPORT_ACCESS_LOG?") {
		t.Errorf("%q", s.Warnings)
	}
}

func TestEmptyVariableIsNotSet(t *testing.T) {
	if s := must(t, "", []string{"role=core"}, "SALLYPORT_LOG_FORMAT= ", "SALLYPORT_POLICY="); s.Process.LogFormat != "auto" || s.Core.PolicyFile != "" {
		t.Errorf("%+v", s)
	}
}

func TestListsInEnvironment(t *testing.T) {
	s := must(t, "", nil, "SALLYPORT_ROLE=gateway", "SALLYPORT_UPSTREAM=a=127.0.0.1:1=x.X,x.Y\n b=unix:///run/b.sock", "SALLYPORT_ALLOW=/a.A/B,/c.C/* /d.*")
	if len(s.Gateway.Upstreams) != 2 || len(s.Gateway.Upstreams[0].Services) != 2 || len(s.Gateway.Allow) != 3 {
		t.Errorf("%+v", s.Gateway)
	}
}

func TestRelativePathsFollowTheFile(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"policy.toml", "ca.pem"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "s.toml")
	text := "role = \"core,gateway\"\npolicy = \"policy.toml\"\ndata_dir = \"state\"\n[[upstream]]\naddress = \"tls://x\"\nca = \"ca.pem\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, err := Load(Flags{Config: &file}, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Core.PolicyFile != filepath.Join(dir, "policy.toml") || s.Core.DataDir != filepath.Join(dir, "state") || s.Gateway.Upstreams[0].CA != filepath.Join(dir, "ca.pem") {
		t.Errorf("%+v %+v", s.Core, s.Gateway)
	}
}

func TestConfigFlag(t *testing.T) {
	a, b := write(t, "role = \"core\"\ngrpc_address = \":1\""), write(t, "role = \"core\"\ngrpc_address = \":2\"")
	s, _, err := Load(Flags{}, Sources{Environ: []string{"SALLYPORT_CONFIG=" + *a}})
	if err != nil || s.Core.GRPCAddress != ":1" || s.File != *a {
		t.Fatal(s, err)
	}
	if s, _, err = Load(Flags{Config: b}, Sources{Environ: []string{"SALLYPORT_CONFIG=" + *a}}); err != nil || s.Core.GRPCAddress != ":2" {
		t.Fatal(s, err)
	}
	if s, _, err = Load(Flags{Role: ptr("core")}, Sources{}); err != nil || s.File != "" {
		t.Fatal(s, err)
	}
}

func TestJoin(t *testing.T) {
	file := *write(t, "  sp1.fromfile \n")
	asked := 0
	src := Sources{Environ: []string{"HOME=/h"}, UID: 1, ReadSecret: func(prompt string) (string, error) {
		asked++
		if !strings.Contains(prompt, "gateway") {
			t.Errorf("the prompt does not say for whom: %q", prompt)
		}
		return "sp1.asked\n", nil
	}}
	join := func(f Flags, env ...string) string {
		t.Helper()
		f.Role = ptr("gateway")
		s := src
		s.Environ = append(s.Environ, env...)
		got, p, err := Load(f, s)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range p.Rows() {
			if strings.Contains(r.Value, "sp1.") {
				t.Errorf("a secret is in the provenance: %+v", r)
			}
		}
		return got.Gateway.Join
	}
	if got := join(Flags{Join: ptr("-")}); got != "sp1.asked" || asked != 1 {
		t.Errorf("%q, asked %d times", got, asked)
	}
	if got := join(Flags{}, "SALLYPORT_JOIN_FILE="+file); got != "sp1.fromfile" {
		t.Errorf("%q", got)
	}
	if got := join(Flags{Join: ptr("sp1.flag")}, "SALLYPORT_JOIN_FILE="+file); got != "sp1.flag" {
		t.Errorf("the flag wins over the environment's file: %q", got)
	}
	if got := join(Flags{JoinFile: &file}, "SALLYPORT_JOIN=sp1.env"); got != "sp1.fromfile" {
		t.Errorf("the flag's file wins over the environment: %q", got)
	}
	s, _, err := Load(Flags{Role: ptr("gateway"), JoinFile: ptr("/nowhere/token")}, src)
	if err != nil || s.Gateway.Join != "" || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "does not exist") {
		t.Errorf("a token file that was removed after joining: %v %v", s, err)
	}
}

func TestDataDir(t *testing.T) {
	for _, c := range []struct {
		environ []string
		uid     int
		want    string
	}{
		{[]string{"SALLYPORT_DATA_DIR=/a", "STATE_DIRECTORY=/b"}, 0, "/a"},
		{[]string{"STATE_DIRECTORY=/b:/c"}, 0, "/b"},
		{[]string{"HOME=/root"}, 0, "/var/lib/sallyport"},
		{[]string{"HOME=/h", "XDG_STATE_HOME=/x"}, 1, "/x/sallyport"},
		{[]string{"HOME=/h", "XDG_STATE_HOME=relative"}, 1, "/h/.local/state/sallyport"},
		{nil, 1, ""},
	} {
		if got := DataDir(c.environ, c.uid); got != c.want {
			t.Errorf("%v: %q, want %q", c.environ, got, c.want)
		}
	}
	if _, _, err := Load(Flags{Role: ptr("core")}, Sources{UID: 1}); err == nil || !strings.Contains(err.Error(), "--data-dir DIR") {
		t.Errorf("no place for state: %v", err)
	}
}

// TestPrintReadsBack prints settings, reads the print as a file and gets the
// same settings; the token is not among them.
func TestPrintReadsBack(t *testing.T) {
	here := *write(t, "the passphrase")
	s, p, err := try(t, `
role = "core,proxy,gateway"
grpc_cert = "`+here+`"
grpc_key = "`+here+`"
proxy_grpc_ca = "system"
grpc_ca = "`+here+`"
ca_passphrase_file = "`+here+`"
backup_dir = "/b"
backup_keep = 3
backup_passphrase_file = "`+here+`"
alert_webhook = "https://hooks.example/secret"
client_ca = ["partner=`+here+`"]
renew_before = "3h"
advertise = "core.example.org"
allow = ["/a.A/*", "/b.*"]
[proxy]
join = "sp1.secret"
tls_cert = "`+here+`"
tls_key = "`+here+`"
[[gateway.upstream]]
name = "orders"
address = "tls://orders.internal"
services = ["acme.Orders", "acme.v1.*"]
ca = "`+here+`"
server_name = "orders"
[[gateway.upstream]]
address = "unix:///run/x.sock"
`, []string{"health-address=127.0.0.1:9"}, "SALLYPORT_DRAIN_TIMEOUT=90s")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := Print(&b, s, p); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	if strings.Contains(text, "sp1.") || strings.Contains(text, "hooks.example") || strings.Contains(text, "the passphrase") {
		t.Errorf("a secret is printed:\n%s", text)
	}
	for _, w := range []string{"# flag --health-address", "# environment SALLYPORT_DRAIN_TIMEOUT", "sallyport.toml:3", "# default", "join is set and not shown"} {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
	again, _, err := try(t, text, nil)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	s.Proxy.Join, s.Core.AlertWebhook, again.File = "", "", s.File
	if !reflect.DeepEqual(s, again) {
		t.Errorf("read back differently:\n%s\n%+v %+v %+v\n%+v %+v %+v", text, s.Core, s.Proxy, s.Gateway, again.Core, again.Proxy, again.Gateway)
	}
}
