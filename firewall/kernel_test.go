package firewall

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sallyport/configs"
)

// TestKernelExpiring: who was refused is listed with what is left of its time;
// its last second reads 0 and is no difference.
func TestKernelExpiring(t *testing.T) {
	k, err := parseKernel([]byte(`{"nftables":[{"metainfo":{"version":"1.0.6"}},
		{"table":{"family":"inet","name":"sallyport_core","handle":1}},
		{"set":{"family":"inet","name":"refused4","table":"sallyport_core","type":"ipv4_addr","handle":5,"size":64,"flags":["timeout","dynamic"],"timeout":120,
		 "elem":[{"elem":{"val":"10.0.0.9","timeout":120,"expires":0}},{"elem":{"val":"10.0.0.8","expires":119}}]}},
		{"set":{"family":"inet","name":"peers4","table":"sallyport_core","type":"ipv4_addr","flags":"interval","elem":[{"elem":{"val":"10.0.0.7","timeout":60,"expires":5}},{"range":["10.0.0.9","10.0.0.3"]}]}}]}`))
	if err != nil || Listed(k.Refused()) != "10.0.0.9, 10.0.0.8" {
		t.Fatal(k.Refused(), err)
	}
	drift := rules(t, configs.RoleCore, Entry{}, 1).Drift(k)
	for _, l := range drift {
		if strings.HasPrefix(l, "core: set refused4 has an element") {
			t.Error(l)
		}
	}
	for _, want := range []string{
		"core: set peers4 has an element that does not belong there: 10.0.0.7",
		`core: set peers4 has an element that does not belong there: {"range":["10.0.0.9","10.0.0.3"]}`,
		"core: chain port is missing",
	} {
		if !slices.Contains(drift, want) {
			t.Errorf("no %q in %q", want, drift)
		}
	}
	for _, bad := range []string{"", "[]", `{"nftables":[7]}`, `{"nftables":[{"chain":{"prio":"x"}}]}`} {
		if _, err := parseKernel([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestWithout compares the difference of ranges with one that looks at every
// address.
func TestWithout(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	some := func() (list []addrRange) {
		for range r.IntN(6) {
			from := r.IntN(60)
			list = append(list, addrRange{at(from), at(from + r.IntN(8))})
		}
		return join(list)
	}
	in := func(list []addrRange, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(r addrRange) bool { return r.from.Compare(a) <= 0 && a.Compare(r.to) <= 0 })
	}
	for range 5000 {
		a, b := some(), some()
		got := without(a, b)
		for i := range 80 {
			if in(got, at(i)) != (in(a, at(i)) && !in(b, at(i))) {
				t.Fatalf("%v without %v is not %v: %s", a, b, got, at(i))
			}
		}
	}
}
