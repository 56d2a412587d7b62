package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestParseUpstreamAddress(t *testing.T) {
	for in, want := range map[string]UpstreamAddress{
		"127.0.0.1:9000":       {SchemePlain, "127.0.0.1:9000"},
		"127.9.9.9:9000":       {SchemePlain, "127.9.9.9:9000"},
		"localhost:9000":       {SchemePlain, "localhost:9000"},
		"[::1]:9000":           {SchemePlain, "[::1]:9000"},
		"tls://orders.x:8443":  {SchemeTLS, "orders.x:8443"},
		"tls://orders.x":       {SchemeTLS, "orders.x:443"},
		"tls://[fd00::1]":      {SchemeTLS, "[fd00::1]:443"},
		"tls://127.0.0.1:1":    {SchemeTLS, "127.0.0.1:1"},
		"unix:///run/x.sock":   {SchemeUnix, "/run/x.sock"},
		"unix:/run/x.sock":     {SchemeUnix, "/run/x.sock"},
		"h2c://10.0.0.1:9000":  {SchemeH2C, "10.0.0.1:9000"},
		"h2c://orders.x:9000":  {SchemeH2C, "orders.x:9000"},
		"h2c://127.0.0.1:9000": {SchemeH2C, "127.0.0.1:9000"},
	} {
		got, err := ParseUpstreamAddress(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", in, got, err, want)
		}
		if again, err := ParseUpstreamAddress(got.String()); err != nil || again != got {
			t.Errorf("%s is written as %s, which reads as %+v %v", in, got, again, err)
		}
	}
	for in, want := range map[string]string{
		"10.0.0.1:9000":                       "h2c://10.0.0.1:9000",
		"orders.x:9000":                       "tls://orders.x:9000",
		"[::ffff:10.0.0.1]:9000":              "not on this host",
		"0.0.0.0:9000":                        "not on this host",
		"localhost.evil.x:9000":               "not on this host",
		"127.0.0.1.evil.x:9000":               "not on this host",
		"9000":                                "127.0.0.1:9000",
		":9000":                               "127.0.0.1:9000",
		"127.0.0.1":                           "HOST:PORT",
		"127.0.0.1:0":                         "no port",
		"127.0.0.1:09000":                     "no port",
		"https://orders.x:1":                  "tls://orders.x:1",
		"http://orders.x:1":                   "h2c://orders.x:1",
		"dns:///orders.x:1":                   "tls://orders.x:1",
		"ftp://orders.x:1":                    "not known",
		"tls://orders.x:1/path":               "HOST:PORT alone",
		"tls://me@orders.x:1":                 "HOST:PORT alone",
		"h2c://orders.x":                      "HOST:PORT",
		"unix://run/x.sock":                   "unix:///run",
		"unix:///" + strings.Repeat("x", 120): "107",
		"":                                    "HOST:PORT",
	} {
		got, err := ParseUpstreamAddress(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v %v, want an error with %q", in, got, err, want)
		}
	}
}

func TestParseUpstream(t *testing.T) {
	for in, want := range map[string]Upstream{
		"orders=127.0.0.1:9000=acme.orders.v1.Orders,acme.stock.v1.*": {Name: "orders", Address: UpstreamAddress{SchemePlain, "127.0.0.1:9000"},
			Services: []string{"acme.orders.v1.Orders", "acme.stock.v1.*"}},
		"127.0.0.1:9000":             {Name: "port-9000", Address: UpstreamAddress{SchemePlain, "127.0.0.1:9000"}},
		"127.0.0.1:9000=acme.A":      {Name: "port-9000", Address: UpstreamAddress{SchemePlain, "127.0.0.1:9000"}, Services: []string{"acme.A"}},
		"tls://Orders.internal:1":    {Name: "orders", Address: UpstreamAddress{SchemeTLS, "Orders.internal:1"}},
		"h2c://10.1.2.3:9000":        {Name: "host-10-1-2-3", Address: UpstreamAddress{SchemeH2C, "10.1.2.3:9000"}},
		"unix:///run/stock.sock=a.B": {Name: "stock", Address: UpstreamAddress{SchemeUnix, "/run/stock.sock"}, Services: []string{"a.B"}},
		"x=unix:///run/a.sock":       {Name: "x", Address: UpstreamAddress{SchemeUnix, "/run/a.sock"}},
		" a=tls://b:1=c.D, e.* ":     {Name: "a", Address: UpstreamAddress{SchemeTLS, "b:1"}, Services: []string{"c.D", "e.*"}},
	} {
		got, err := parseUpstream(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v %v, want %+v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"Orders=127.0.0.1:1":   "no name of an upstream",
		"a=127.0.0.1:1=":       "is no service",
		"a=127.0.0.1:1=b.C,":   "is no service",
		"a=127.0.0.1:1=/b.C/D": "is no service",
		"a=":                   "HOST:PORT",
		"orders":               "HOST:PORT",
	} {
		if got, err := parseUpstream(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v %v, want an error with %q", in, got, err, want)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, ok := range []string{"/a.v1.S/M", "/S/M", "/S/*", "/a.b.*", "/a.*", "/_x.Y_1/Z_2"} {
		if err := MethodPattern(ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "/", "*", "/*", "/*/*", "/.*", "a.S/M", "/a.S", "/a.S/", "//M", "/a..S/M", "/.S/M", "/a.S/M/", "/a.S/M/N", "/a.S/M*", "/a.*/M", "/a*", "/a.S%2FM", "/a.S/M?x", "/a.S/ M", "/1a.S/M", "/a.S/Mé", "/a.*.b.*"} {
		if MethodPattern(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for _, c := range []struct {
		pattern, service string
		want             bool
	}{{"a.B", "a.B", true}, {"a.B", "a.b", false}, {"a.*", "a.B", true}, {"a.*", "a.b.C", true}, {"a.*", "a", false}, {"a.*", "ab.C", false}, {"a.*", "a.", false}} {
		if MatchService(c.pattern, c.service) != c.want {
			t.Errorf("%s matches %s: want %v", c.pattern, c.service, c.want)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"grpc_address", "public_address", "policy", "upstream"}
	for in, want := range map[string]string{"grpc_adress": "grpc_address", "polcy": "policy", "upsrteam": "upstream", "zebra": "", "": "", "upstreams": "upstream"} {
		if got := Nearest(in, words); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestExamples loads every sample file as it is shipped, and with the lines that
// are commented out, with the files that it names beside it.
func TestExamples(t *testing.T) {
	list, err := filepath.Glob("examples/*.toml")
	if err != nil || len(list) < 4 {
		t.Fatal(list, err)
	}
	optional := regexp.MustCompile(`(?m)^#   (\w+ = .*)$`)
	for _, name := range list {
		if filepath.Base(name) == "policy.toml" { // roles/policy reads that one
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		whole := optional.ReplaceAllString(string(text), "$1")
		for what, text := range map[string]string{"": string(text), " whole": whole} {
			t.Run(filepath.Base(name)+what, func(t *testing.T) { loadExample(t, filepath.Base(name), text) })
		}
	}
}

func loadExample(t *testing.T, name, text string) {
	dir := t.TempDir()
	path := filepath.Join(dir, name)
	files := map[string]string{name: text, "alert-webhook": "https://hooks.example/x"}
	for _, file := range []string{"policy.toml", "ca-passphrase", "backup-passphrase", "partner-ca.pem", "fullchain.pem", "privkey.pem", "grpc-fullchain.pem", "grpc-privkey.pem"} {
		files[file] = "x"
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, _, err := Load(Flags{Config: &path}, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	role := strings.TrimSuffix(name, ".toml")
	if role != "all" && string(s.Roles[0]) != role || role == "all" && !s.Process.All {
		t.Errorf("it runs %v", s.Roles)
	}
	for _, w := range s.Warnings {
		if !strings.Contains(w, "/etc/sallyport/join does not exist") {
			t.Error(w)
		}
	}
}
