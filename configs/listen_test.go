package configs

import (
	"strings"
	"testing"
)

func TestParseListen(t *testing.T) {
	for in, want := range map[string]string{
		"unix:///run/sallyport/call.sock": "unix:///run/sallyport/call.sock",
		"unix:/run/call.sock":             "unix:///run/call.sock",
		"batch=unix:///run/b.sock":        "batch=unix:///run/b.sock",
		"127.0.0.1:9090":                  "127.0.0.1:9090",
		"web=[::1]:9090":                  "web=[::1]:9090",
		"localhost:0":                     "localhost:0",
		"tls://10.0.0.5:9443":             "tls://10.0.0.5:9443",
		"edge=tls://:9443":                "edge=tls://:9443",
		"unix:///run/a=b.sock":            "unix:///run/a=b.sock",
	} {
		l, err := ParseListen(in)
		if err != nil || l.String() != want {
			t.Errorf("ParseListen(%q) = %q, %v; want %q", in, l, err, want)
		}
	}
	for in, words := range map[string]string{
		"10.0.0.5:9090":                       "without TLS",
		":9090":                               "without TLS",
		"0.0.0.0:9090":                        "without TLS",
		"app.example:9090":                    "tls://app.example:9090",
		"9090":                                "no colon",
		"unix://relative":                     "absolute",
		"h2c://127.0.0.1:1":                   "unix:///",
		"Batch=127.0.0.1:1":                   "no label",
		"=127.0.0.1:1":                        "no label",
		"tls://10.0.0.5":                      "no address",
		"127.0.0.1:99999":                     "port",
		"unix:///" + strings.Repeat("x", 110): "107",
	} {
		l, err := ParseListen(in)
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "; ") {
			t.Errorf("ParseListen(%q) = %q, %v; want an error with a remedy that says %q", in, l, err, words)
		}
	}
}

func TestListenSettings(t *testing.T) {
	s := must(t, "listen = [\"unix:///run/a.sock\", \"batch=127.0.0.1:9090\"]\nlisten_group = \"apps\"\n", []string{"role=gateway", "upstream=a=127.0.0.1:1"})
	if g := s.Gateway; len(g.Listen) != 2 || g.Listen[1].Label != "batch" || g.Listen[0].Address.Scheme != SchemeUnix || g.ListenGroup != "apps" {
		t.Errorf("%+v", s.Gateway)
	}
}
