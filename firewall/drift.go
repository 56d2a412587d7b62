package firewall

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// shownPeers bounds how many addresses a comparison names, for each direction.
const shownPeers = 20

// Drift compares the table that the kernel has with the one that the rules
// make, and says every difference in a line of its own; none means that the
// kernel does what was meant. k is nil where the kernel has no table.
func (r Rules) Drift(k *KernelTable) []string {
	d := &drift{role: string(r.role)}
	if k == nil {
		d.say("table inet %s is missing: the kernel limits nothing", Table(r.role))
		return d.lines
	}
	if k.flags {
		d.say("the table has flags: a dormant one does nothing")
	}
	for _, o := range k.others {
		d.say("%s does not belong there", o)
	}
	d.counters(r, k)
	d.sets(r, k)
	d.chains(r, k)
	return d.lines
}

// CounterOf are the packets that the kernel refused since the rules were loaded.
func (k *KernelTable) CounterOf() (refused, stray Counter) {
	if k == nil {
		return
	}
	return k.counters[counterRefused], k.counters[counterStray]
}

// Listed are addresses as a sentence has them, not too many.
func Listed(list []netip.Addr) string {
	var words []string
	for _, a := range list[:min(len(list), shownPeers)] {
		words = append(words, a.String())
	}
	text := strings.Join(words, ", ")
	if more := len(list) - len(words); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

type drift struct {
	role  string
	lines []string
}

func (d *drift) say(format string, args ...any) {
	d.lines = append(d.lines, d.role+": "+fmt.Sprintf(format, args...))
}

func (d *drift) counters(r Rules, k *KernelTable) {
	want := r.counters()
	for _, name := range want {
		if _, there := k.counters[name]; !there {
			d.say("counter %s is missing", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.counters)) {
		if !slices.Contains(want, name) {
			d.say("counter %s does not belong there", name)
		}
	}
}

func (d *drift) sets(r Rules, k *KernelTable) {
	known := map[string]bool{"ports": true}
	d.set(k, "ports", "inet_service", false)
	have := k.sets["ports"].ports
	for _, p := range have {
		if !slices.Contains(r.ports, p) {
			d.say("port %d is limited and should not be", p)
		}
	}
	for _, p := range r.ports {
		if !slices.Contains(have, p) {
			d.say("port %d is not limited", p)
		}
	}
	if !r.peers.any {
		want := map[string][]addrRange{}
		for _, p := range r.peers.prefixes {
			name := "peers4"
			if p.Addr().Is6() {
				name = "peers6"
			}
			want[name] = append(want[name], rangeOf(p))
		}
		for _, f := range [][2]string{{"peers4", "ipv4_addr"}, {"peers6", "ipv6_addr"}} {
			known[f[0]] = true
			d.set(k, f[0], f[1], true)
			want, have := join(want[f[0]]), k.sets[f[0]].ranges
			d.peers(without(have, want), "is allowed and should not be")
			d.peers(without(want, have), "should be allowed and is missing")
		}
		for _, f := range [][2]string{{setRefused4, "ipv4_addr"}, {setRefused6, "ipv6_addr"}} {
			known[f[0]] = true
			d.set(k, f[0], f[1], false)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.sets)) {
		if !known[name] {
			d.say("set %s does not belong there", name)
		}
	}
}

func (d *drift) set(k *KernelTable, name, kind string, interval bool) {
	s, there := k.sets[name]
	if !there {
		d.say("set %s is missing", name)
		return
	}
	if s.kind != kind || s.interval != interval {
		d.say("set %s has another type: %s", name, oneLine(s.kind))
	}
	if name != setRefused4 && name != setRefused6 {
		for _, a := range s.passing {
			d.say("set %s has an element that does not belong there: %s", name, a)
		}
	}
	for _, e := range s.odd {
		d.say("set %s has an element that does not belong there: %s", name, oneLine(e))
	}
}

func (d *drift) peers(list []addrRange, what string) {
	for i, r := range list {
		if i == shownPeers {
			d.say("and %d more: each %s", len(list)-i, what)
			return
		}
		d.say("%s %s", r, what)
	}
}

func (d *drift) chains(r Rules, k *KernelTable) {
	known := map[string]bool{}
	for _, want := range r.chains() {
		known[want.name] = true
		have, there := k.chains[want.name]
		if !there {
			d.say("chain %s is missing", want.name)
			continue
		}
		if have.hook != want.hook {
			d.say("chain %s has hook %s instead of %s", want.name, none(have.hook), none(want.hook))
		}
		if want.hook != "" && have.hook != "" {
			if have.kind != "filter" {
				d.say("chain %s has type %s instead of filter", want.name, oneLine(have.kind))
			}
			if have.priority != mangle {
				d.say("chain %s has priority %d instead of %d (mangle)", want.name, have.priority, mangle)
			}
			if have.policy != "accept" {
				d.say("chain %s has policy %s instead of accept", want.name, oneLine(have.policy))
			}
		}
		d.rules(want, have)
	}
	for _, name := range slices.Sorted(maps.Keys(k.chains)) {
		if !known[name] {
			d.say("chain %s does not belong there", name)
		}
	}
}

// rules names the first rule that differs: those behind it have moved.
func (d *drift) rules(want chain, have kernelChain) {
	for i, rule := range want.rules {
		if i >= len(have.rules) {
			d.say("chain %s ends before its rule %d, %s", want.name, i+1, rule.text)
			return
		}
		if have.rules[i] != canonical(json.RawMessage(rule.json)) {
			d.say("chain %s has another rule %d instead of %s: %s", want.name, i+1, rule.text, oneLine(have.rules[i]))
			return
		}
	}
	if more := len(have.rules) - len(want.rules); more > 0 {
		d.say("chain %s has %d rules too many: %s", want.name, more, oneLine(have.rules[len(want.rules)]))
	}
}

func none(s string) string {
	if s == "" {
		return "none"
	}
	return oneLine(s)
}

// oneLine bounds what somebody else wrote into the table.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
