package configs

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	s := must(t, "limit = { connections = 100, header_list = \"32KiB\", stall = \"2m\" }\n[proxy]\nlimit.connections = 200\nlimit.pings = 7\n",
		[]string{"role=proxy", "limit=resets=9", "limit=first-frame=3s"}, "SALLYPORT_LIMIT=pings=8,connection_buffer=1MiB resets=5")
	l := s.Proxy.Limits
	want := DefaultLimits()
	want.Connections, want.HeaderList, want.Stall, want.Pings, want.Resets, want.FirstFrame, want.ConnBuffer =
		200, 32<<10, 2*time.Minute, 8, 9, 3*time.Second, 1<<20
	if l != want {
		t.Errorf("got  %+v\nwant %+v", l, want)
	}
	for args, words := range map[string]string{
		"limit=conections=5":       "did you mean connections?",
		"limit=pings=-1":           "pings: \"-1\"",
		"limit=header_list=1GiB":   "from 8KiB to 64KiB",
		"limit=stall=forever":      "from 1s to 24h",
		"limit=streams":            "write NAME=VALUE",
		"memory-budget=1MiB":       "from 32MiB up",
		"memory-budget=plenty":     "no amount of memory",
		"trusted-front=10.0.0.1/8": "write 10.0.0.0/8",
		"proxy-protocol=front":     "no address and no CIDR",
		"tls=off":                  "", // on loopback
	} {
		_, _, err := try(t, "", []string{"role=proxy", args})
		if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", args, err, words)
		}
	}
	if _, _, err := try(t, "limit = { pings = [1] }", []string{"role=proxy"}); err == nil || !strings.Contains(err.Error(), "a limit is a number or a text") {
		t.Error(err)
	}
}

// TestLimitsPrinted: what is printed is read as the same, with the origin of each.
func TestLimitsPrinted(t *testing.T) {
	s, p, err := try(t, "[limit]\nhalf_open = \"5s\"\n", []string{"role=proxy", "limit=streams=3", "memory-budget=64M", "trusted-front=10.0.0.0/8", "tls=off", "public-address=:1"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Print(&out, s, p); err != nil {
		t.Fatal(err)
	}
	again := must(t, out.String(), nil)
	if again.Proxy.Limits != s.Proxy.Limits || again.Process.MemoryBudget != 64<<20 || again.Proxy.TLS != "off" {
		t.Errorf("read back as %+v\n%s", again.Proxy.Limits, out.String())
	}
	for _, line := range []string{"limit.streams = 3   # flag --limit", "limit.half_open = \"5s\"   # /", "limit.connections = 16384   # default"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("no %q in\n%s", line, out.String())
		}
	}
}

func TestFront(t *testing.T) {
	if _, _, err := try(t, "", []string{"role=proxy", "tls=off"}, "PORT=8443"); err == nil || !strings.Contains(err.Error(), "--trusted-front") {
		t.Errorf("TLS off and nobody trusted: %v", err)
	}
	cert := *write(t, "c")
	if _, _, err := try(t, "", []string{"role=proxy", "tls=off", "tls-cert=" + cert, "tls-key=" + cert}); err == nil || !strings.Contains(err.Error(), "TLS is off, and") {
		t.Error(err)
	}
	s := must(t, "", []string{"role=proxy", "tls=off", "trusted-front=0.0.0.0/0"}, "PORT=8080", "SALLYPORT_HEALTH_ADDRESS=:8080")
	if s.Proxy.PublicAddress != ":8080" || s.Process.HealthAddress != "127.0.0.1:8081" {
		t.Errorf("%s %s", s.Proxy.PublicAddress, s.Process.HealthAddress)
	}
	for _, words := range []string{"speaks no TLS", "every address is trusted", "health and metrics are at 127.0.0.1:8081"} {
		if !strings.Contains(strings.Join(s.Warnings, "\n"), words) {
			t.Errorf("no warning says %q: %q", words, s.Warnings)
		}
	}
	if s = must(t, "", []string{"role=proxy", "proxy-protocol=0.0.0.0/0"}); !strings.Contains(strings.Join(s.Warnings, "\n"), "every address is believed") {
		t.Errorf("everybody may write a PROXY header, and no warning says so: %q", s.Warnings)
	}
	if _, _, err := try(t, "", []string{"role=proxy", "health-address=:8080"}, "PORT=8080"); err == nil || !strings.Contains(err.Error(), "environment PORT") {
		t.Error(err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "64KiB": 64 << 10, "16M": 16 << 20, "2 GiB": 2 << 30, "1B": 1} {
		if n, err := ParseSize(text); err != nil || n != want {
			t.Errorf("%s: %d %v", text, n, err)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "1.5M", "9999999999TiB", "1kb", "1Ki", "0x10"} {
		if n, err := ParseSize(text); err == nil {
			t.Errorf("%q is %d", text, n)
		}
	}
}
