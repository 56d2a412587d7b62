package firewall

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParsePeers(t *testing.T) {
	for _, tc := range []struct {
		in, want string
	}{
		{"10.0.0.7", "10.0.0.7"},
		{" 10.0.0.7 ", "10.0.0.7"},
		{"::ffff:10.0.0.7", "10.0.0.7"},
		{"::ffff:10.0.0.0/104", "10.0.0.0/8"},
		{"::ffff:10.0.0.7/128", "10.0.0.7"},
		{"2001:DB8::1", "2001:db8::1"},
		{"fe80::/10", "fe80::/10"},
		{"10.0.0.7/32", "10.0.0.7"},
		{"10.0.0.0/8,10.1.0.0/16,10.2.3.4", "10.0.0.0/8"},
		{"10.1.0.0/16,10.0.0.0/8", "10.0.0.0/8"},
		{"10.0.0.0/9,10.128.0.0/9", "10.0.0.0/8"},
		{"10.0.0.0,10.0.0.1,10.0.0.2,10.0.0.3", "10.0.0.0/30"},
		{"10.0.0.1,10.0.0.2", "10.0.0.1,10.0.0.2"}, // neighbours, not halves of one network
		{"10.0.0.3,10.0.0.2,10.0.0.3", "10.0.0.2/31"},
		{"0.0.0.0/1,128.0.0.0/1", "0.0.0.0/1,128.0.0.0/1"}, // never /0
		{"::/1,8000::/1", "::/1,8000::/1"},
		{"10.0.0.1,2001:db8::1", "10.0.0.1,2001:db8::1"},
		{"Gw.Example.ORG.,gw.example.org", "gw.example.org"},
		{"localhost,my_host", "localhost,my_host"},
		{"any", "any"},
		{"10.0.0.1,ANY", "any"},
	} {
		p, err := ParsePeers(strings.Split(tc.in, ","))
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if got := strings.Join(p.Strings(), ","); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.in, got, tc.want)
		}
		again, err := ParsePeers(p.Strings())
		if err != nil || !slices.Equal(again.Strings(), p.Strings()) {
			t.Errorf("%s: Strings does not parse to the same set: %v %v", tc.in, again.Strings(), err)
		}
	}
}

func TestParsePeersRefuses(t *testing.T) {
	if _, err := ParsePeers(nil); !errors.Is(err, ErrNoPeers) || !strings.Contains(err.Error(), "any") {
		t.Errorf("no peers: %v", err)
	}
	for in, want := range map[string]string{
		"":                   "empty",
		"fe80::1%eth0":       "zone",
		"fe80::%eth0/10":     "zone",
		"0.0.0.0/0":          "write any",
		"::/0":               "write any",
		"::ffff:0.0.0.0/96":  "write any",
		"::ffff:0:0/95":      "mixes",
		"10.0.0.7/24":        "10.0.0.0/24",
		"10.0.0.0/33":        "not a CIDR",
		"10.0.0.0/8/8":       "not a CIDR",
		"0.0.0.0":            "nobody connects",
		"::":                 "nobody connects",
		"224.0.0.1":          "nobody connects",
		"255.255.255.255":    "nobody connects",
		"10.0.0.300":         "neither",
		"10.0.0":             "neither",
		"*.example.org":      "neither",
		"-a.example.org":     "neither",
		"a..b":               "neither",
		"10.0.0.1:443":       "neither",
		"[::1]":              "neither",
		"exämple.org":        "neither",
		"any; drop":          "neither",
		"a\nb":               "neither",
		"10.0.0.1 10.0.0.2":  "neither",
		"host.example.org\"": "neither",
	} {
		p, err := ParsePeers([]string{in})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want an error with %q", in, p.Strings(), err, want)
		}
		if !p.Empty() {
			t.Errorf("%q: a refused list gave a set", in)
		}
	}
}

func TestAllows(t *testing.T) {
	parse := func(list ...string) Peers {
		t.Helper()
		p, err := ParsePeers(list)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tc := range []struct {
		peers Peers
		addr  string
		want  bool
	}{
		{Peers{}, "10.0.0.1", false},
		{parse("10.0.0.0/24"), "10.0.0.9", true},
		{parse("10.0.0.0/24"), "::ffff:10.0.0.9", true}, // as a dual-stack socket reports it
		{parse("10.0.0.0/24"), "10.0.1.9", false},
		{parse("10.0.0.0/24"), "2001:db8::1", false},
		{parse("::ffff:10.0.0.9"), "10.0.0.9", true},
		{parse("fe80::/10"), "fe80::1%eth0", true},
		{parse("10.0.0.0/9", "10.128.0.0/9"), "10.200.0.1", true},
		{parse("any"), "203.0.113.5", true},
		{parse("gw.example.org"), "10.0.0.1", false}, // not resolved yet
	} {
		if got := tc.peers.Allows(netip.MustParseAddr(tc.addr)); got != tc.want {
			t.Errorf("%v allows %s: got %v", tc.peers.Strings(), tc.addr, got)
		}
	}
	if parse("any").Allows(netip.Addr{}) {
		t.Error("no address at all was allowed")
	}
}

func TestResolve(t *testing.T) {
	p, err := ParsePeers([]string{"gw.example.org", "gone.example.org", "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Resolve(context.Background(), func(_ context.Context, name string) ([]netip.Addr, error) {
		if name == "gone.example.org" {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.0"), netip.MustParseAddr("0.0.0.0")}, nil
	})
	if err == nil || !strings.Contains(err.Error(), "gone.example.org") {
		t.Errorf("the name without an address is not in the error: %v", err)
	}
	if got := strings.Join(r.Strings(), ","); got != "192.0.2.0/31" {
		t.Errorf("got %s", got)
	}
	if got := p.Names(); len(got) != 2 {
		t.Errorf("the set itself changed: %v", got)
	}
}

func FuzzParsePeers(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.0/8,any", "::ffff:1.2.3.4/120", "a.b,fe80::1%1", "0.0.0.0/1,128.0.0.0/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePeers(strings.Split(s, ","))
		if err != nil {
			return
		}
		again, err := ParsePeers(p.Strings())
		if err != nil {
			t.Fatalf("%q gave %q, which does not parse: %v", s, p.Strings(), err)
		}
		if !slices.Equal(again.Strings(), p.Strings()) {
			t.Fatalf("%q: %q became %q", s, p.Strings(), again.Strings())
		}
		for _, prefix := range p.Prefixes() {
			if !p.Allows(prefix.Addr()) || prefix.Bits() == 0 {
				t.Fatalf("%q: %s", s, prefix)
			}
		}
	})
}
