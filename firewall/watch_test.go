package firewall

import (
	"fmt"
	"net/netip"
	"testing"

	"sallyport/configs"
)

// TestRefusedIsSaidAgain: an address that was refused is said once in a while,
// and at once when it was allowed in between.
func TestRefusedIsSaidAgain(t *testing.T) {
	var said []string
	s := &watch{Watcher: Watcher{Say: func(_ bool, format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}}
	rules := func(peers ...string) Rules {
		p, err := ParsePeers(peers)
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewRules(configs.RoleProxy, Entry{Peers: p}, 50051)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	with, without := rules("10.0.0.0/24"), rules("192.0.2.1")
	strangers := []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"first", func() { s.refused(without, strangers) }, 2},
		{"again", func() { s.refused(without, strangers) }, 2},
		{"another set without them", func() { s.allowed(without); s.refused(without, strangers) }, 2},
		{"one was allowed in between", func() { s.allowed(with); s.refused(without, strangers) }, 3},
	} {
		if step.do(); len(said) != step.want {
			t.Fatalf("%s: %d lines, want %d: %q", step.name, len(said), step.want, said)
		}
	}
}
