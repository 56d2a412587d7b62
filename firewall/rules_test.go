package firewall

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/configs"
)

var update = flag.Bool("update", false, "rewrite the golden files with what is rendered now")

func rules(t testing.TB, role configs.Role, e Entry, ports ...uint16) Rules {
	t.Helper()
	r, err := NewRules(role, e, ports...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func render(t testing.TB, list ...Rules) string {
	t.Helper()
	text, err := Render(list...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// goldenRules are the states that a person may meet, by the name of their file.
func goldenRules(t testing.TB) map[string][]Rules {
	core := rules(t, configs.RoleCore, Entry{12, peers(t, "10.0.0.128/25", "192.0.2.1", "10.0.0.0/25", "::ffff:192.0.2.9", "2001:db8::7", "fe80::/10", "10.0.0.7")}, 50055)
	proxy := rules(t, configs.RoleProxy, Entry{3, peers(t, "198.51.100.4")}, 8051, 50051, 8051)
	return map[string][]Rules{
		"core":       {core},
		"proxy":      {proxy}, // and a published port
		"both":       {core, proxy},
		"nobody":     {rules(t, configs.RoleCore, Entry{}, 50055)},
		"any":        {rules(t, configs.RoleProxy, Entry{4, peers(t, "any")}, 50051)},
		"everyvalue": {rules(t, configs.RoleCore, Entry{1<<64 - 1, peers(t, "0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")}, 1, 65535)},
	}
}

func TestRenderGolden(t *testing.T) {
	for name, list := range goldenRules(t) {
		group, err := RenderJSON(list...)
		if err != nil {
			t.Fatal(err)
		}
		for file, got := range map[string]string{name + ".nft": render(t, list...), name + ".json": string(group)} {
			path := filepath.Join("testdata", file)
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v (go test ./firewall -update writes it)", err)
			}
			if got != string(want) {
				t.Errorf("%s differs from what is rendered now (go test ./firewall -update rewrites it):\n%s", path, got)
			}
		}
	}
}

func TestNewRulesRefuses(t *testing.T) {
	good := Entry{1, peers(t, "10.0.0.1")}
	for name, make := range map[string]func() (Rules, error){
		"only core and proxy": func() (Rules, error) { return NewRules(configs.RoleGateway, good, 1) },
		"a port":              func() (Rules, error) { return NewRules(configs.RoleCore, good) },
		"from 1 to":           func() (Rules, error) { return NewRules(configs.RoleCore, good, 50055, 0) },
		"too many": func() (Rules, error) {
			return NewRules(configs.RoleCore, good, slices.Repeat([]uint16{1}, MaxPorts+1)...)
		},
		"not resolved": func() (Rules, error) { return NewRules(configs.RoleCore, Entry{1, peers(t, "gw.example.org")}, 1) },
	} {
		if _, err := make(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Render(); err == nil {
		t.Error("no rules at all were rendered")
	}
	r := rules(t, configs.RoleCore, good, 1)
	if _, err := Render(r, r); err == nil {
		t.Error("one table twice")
	}
}

// mixed are peers of all kinds: single addresses, networks, IPv4 written as
// IPv6, some inside others.
func mixed(t testing.TB, n int, seed uint64) []string {
	r := rand.New(rand.NewPCG(seed, 1))
	var list []string
	for len(list) < n {
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[0] = 0x20
		four := netip.AddrFrom4([4]byte{10, b[1], b[2], b[3]})
		switch r.IntN(6) {
		case 0, 1:
			list = append(list, four.String())
		case 2:
			list = append(list, netip.PrefixFrom(four, 18+r.IntN(14)).Masked().String())
		case 3:
			list = append(list, netip.AddrFrom16(b).String())
		case 4:
			list = append(list, netip.PrefixFrom(netip.AddrFrom16(b), 24+r.IntN(100)).Masked().String())
		default:
			list = append(list, "::ffff:"+four.String())
		}
	}
	return list
}

// mixedPeers is their union, however many there are: the list of one component
// is bounded, that of all is not.
func mixedPeers(t testing.TB, list []string) Peers {
	var sets []Peers
	for part := range slices.Chunk(list, 1000) {
		sets = append(sets, peers(t, part...))
	}
	return Union(sets...)
}

// TestRenderIsOneText: who came first does not show.
func TestRenderIsOneText(t *testing.T) {
	list := mixed(t, 2000, 7)
	want := render(t, rules(t, configs.RoleCore, Entry{1, mixedPeers(t, list)}, 50055, 443))
	for seed := range uint64(20) {
		rand.New(rand.NewPCG(seed, 2)).Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		if got := render(t, rules(t, configs.RoleCore, Entry{1, mixedPeers(t, list)}, 443, 50055, 443)); got != want {
			t.Fatalf("another order gave another text (seed %d)", seed)
		}
	}
}
