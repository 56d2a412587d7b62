package firewall

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"sallyport/configs"
	"sallyport/firewall/netns"
)

var (
	element  = regexp.MustCompile(`^\t\t\t[0-9a-f:.]+(/[0-9]+)?,?$`)
	ports    = regexp.MustCompile(`^\t\telements = \{ [0-9, ]+ \}$`)
	numbers  = regexp.MustCompile(`[0-9]+`)
	skeleton = map[string]bool{}
)

// shape are the lines of a text with its numbers as 0, without the elements.
func shape(text string) (lines []string) {
	for _, l := range strings.Split(text, "\n") {
		switch {
		case element.MatchString(l):
		case ports.MatchString(l):
		case strings.HasPrefix(l, "#"):
		default:
			lines = append(lines, numbers.ReplaceAllString(l, "0"))
		}
	}
	return lines
}

// FuzzRender: whatever names, addresses and files say, the text has the lines
// that it always has and nft takes it. So nothing can bring in a statement.
func FuzzRender(f *testing.F) {
	for name, list := range goldenRules(f) {
		if name != "both" {
			for _, l := range shape(render(f, list...)) {
				skeleton[l] = true
			}
		}
	}
	f.Add("10.0.0.1,10.1.0.0/16,2001:db8::1", "core", uint64(1), uint16(50055), uint16(443))
	f.Add("any", "proxy", uint64(1<<63), uint16(1), uint16(65535))
	f.Add("a.example.org; flush ruleset,::ffff:1.2.3.4,fe80::/10", "proxy", uint64(0), uint16(1), uint16(1))
	f.Add(`{"version":1,"core":{"generation":1,"any":false,"peers":["10.0.0.0/8","10.1.0.0/16 } ; include \"/etc/shadow\""]}}`, "core", uint64(0), uint16(1), uint16(1))
	f.Add("# \n}\ninclude \"x\"", "core\n}\nflush ruleset", uint64(0), uint16(0), uint16(0))
	nft := func(*testing.T, string) {}
	if _, err := exec.LookPath("nft"); err == nil && os.Geteuid() == 0 {
		host := netns.New(f, "fuzz")
		nft = func(t *testing.T, text string) {
			t.Helper()
			if err := nftOn(host).Check(t.Context(), text); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		}
	} else if os.Getenv("SALLYPORT_TEST_REQUIRE") == "all" {
		netns.Available(f, "nft")
	}
	f.Fuzz(func(t *testing.T, list, role string, generation uint64, port, published uint16) {
		e := Entry{Generation: generation}
		if d, err := ParseData([]byte(list)); err == nil && d.Core != nil {
			e = *d.Core
		} else if p, err := ParsePeers(strings.Split(list, ",")); err == nil {
			e.Peers = Union(p, p)
		}
		r, err := NewRules(configs.Role(role), e, port, published)
		if err != nil {
			return
		}
		text := render(t, r)
		for _, l := range shape(text) {
			if !skeleton[l] {
				t.Fatalf("a line that does not belong there: %q in\n%s", l, text)
			}
		}
		nft(t, text)
		if _, err := RenderJSON(r); err != nil {
			t.Fatal(err)
		}
	})
}
