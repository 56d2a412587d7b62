package firewall

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// KernelTable is a table as `nft -j list table` gives it.
type KernelTable struct {
	flags    bool // any at all: a dormant table does nothing
	chains   map[string]kernelChain
	sets     map[string]kernelSet
	counters map[string]Counter
	others   []string // kinds and names of objects that do not belong there
}

// Counter is what a counter has counted since its table was loaded.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

type kernelChain struct {
	kind, hook, policy string
	priority           int
	rules              []string // expressions, canonical JSON
}

type kernelSet struct {
	kind     string
	interval bool
	odd      []string    // elements that are no plain address, network, range or port
	ranges   []addrRange // of addresses, joined, in order
	ports    []uint16
	passing  []netip.Addr // elements that end by themselves
}

// addrRange is from one address to another, both included.
type addrRange struct{ from, to netip.Addr }

func (r addrRange) String() string {
	if r.from == r.to {
		return r.from.String()
	}
	for bits := range r.from.BitLen() {
		if p := netip.PrefixFrom(r.from, bits); p.Masked() == p && lastOf(p) == r.to {
			return p.String()
		}
	}
	return r.from.String() + "-" + r.to.String()
}

// nftObject is one element of the list that nft prints; only one field is set.
type nftObject struct {
	Table *struct {
		Flags json.RawMessage `json:"flags"`
	} `json:"table"`
	Chain *struct {
		Name   string `json:"name"`
		Type   string `json:"type"`
		Hook   string `json:"hook"`
		Prio   int    `json:"prio"`
		Policy string `json:"policy"`
	} `json:"chain"`
	Rule *struct {
		Chain string          `json:"chain"`
		Expr  json.RawMessage `json:"expr"`
	} `json:"rule"`
	Set *struct {
		Name  string            `json:"name"`
		Type  json.RawMessage   `json:"type"`
		Flags json.RawMessage   `json:"flags"`
		Elem  []json.RawMessage `json:"elem"`
	} `json:"set"`
	Counter *struct {
		Name string `json:"name"`
		Counter
	} `json:"counter"`
}

func parseKernel(text []byte) (*KernelTable, error) {
	var list struct {
		Nftables []json.RawMessage `json:"nftables"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("what nft -j list says cannot be read: %w", err)
	}
	k := &KernelTable{chains: map[string]kernelChain{}, sets: map[string]kernelSet{}, counters: map[string]Counter{}}
	for _, raw := range list.Nftables {
		var o nftObject
		if err := json.Unmarshal(raw, &o); err != nil {
			return nil, fmt.Errorf("what nft -j list says cannot be read: %w", err)
		}
		switch {
		case o.Table != nil:
			k.flags = len(o.Table.Flags) > 0
		case o.Chain != nil:
			k.chains[o.Chain.Name] = kernelChain{kind: o.Chain.Type, hook: o.Chain.Hook, policy: o.Chain.Policy, priority: o.Chain.Prio, rules: k.chains[o.Chain.Name].rules}
		case o.Rule != nil:
			c := k.chains[o.Rule.Chain]
			c.rules = append(c.rules, canonical(o.Rule.Expr))
			k.chains[o.Rule.Chain] = c
		case o.Set != nil:
			k.sets[o.Set.Name] = parseSet(o.Set.Type, o.Set.Flags, o.Set.Elem)
		case o.Counter != nil:
			k.counters[o.Counter.Name] = o.Counter.Counter
		default:
			k.other(raw)
		}
	}
	return k, nil
}

// other keeps what is neither expected nor harmless.
func (k *KernelTable) other(raw json.RawMessage) {
	var o map[string]struct {
		Name string `json:"name"`
	}
	json.Unmarshal(raw, &o) // whatever it is, it is reported
	for kind, v := range o {
		if kind != "metainfo" {
			k.others = append(k.others, kind+" "+v.Name)
		}
	}
}

// Refused are the addresses that the kernel refused of late, as far as it has
// room for them.
func (k *KernelTable) Refused() []netip.Addr {
	if k == nil {
		return nil
	}
	return append(slices.Clone(k.sets[setRefused4].passing), k.sets[setRefused6].passing...)
}

func parseSet(kind, flags json.RawMessage, elements []json.RawMessage) kernelSet {
	s := kernelSet{}
	if json.Unmarshal(kind, &s.kind) != nil {
		s.kind = string(kind)
	}
	s.interval = slices.Contains([]string{`["interval"]`, `"interval"`}, canonical(flags))
	for _, raw := range elements {
		var (
			text  string
			port  uint16
			shape struct {
				Prefix *struct {
					Addr string `json:"addr"`
					Len  int    `json:"len"`
				} `json:"prefix"`
				Range []json.RawMessage `json:"range"`
				Elem  *struct {
					Val netip.Addr `json:"val"`
				} `json:"elem"`
			}
		)
		switch {
		case json.Unmarshal(raw, &port) == nil:
			s.ports = append(s.ports, port)
			continue
		case json.Unmarshal(raw, &text) == nil:
			if a, err := netip.ParseAddr(text); err == nil {
				s.ranges = append(s.ranges, addrRange{a, a})
				continue
			}
		case json.Unmarshal(raw, &shape) == nil && shape.Prefix != nil:
			if p, err := netip.ParsePrefix(shape.Prefix.Addr + "/" + strconv.Itoa(shape.Prefix.Len)); err == nil {
				s.ranges = append(s.ranges, rangeOf(p))
				continue
			}
		case shape.Elem != nil && shape.Elem.Val.IsValid():
			s.passing = append(s.passing, shape.Elem.Val)
			continue
		case len(shape.Range) == 2:
			var from, to netip.Addr
			if json.Unmarshal(shape.Range[0], &from) == nil && json.Unmarshal(shape.Range[1], &to) == nil && from.Compare(to) <= 0 {
				s.ranges = append(s.ranges, addrRange{from, to})
				continue
			}
		}
		s.odd = append(s.odd, canonical(raw))
	}
	slices.Sort(s.ports)
	s.ranges = join(s.ranges)
	return s
}

func rangeOf(p netip.Prefix) addrRange { return addrRange{p.Masked().Addr(), lastOf(p)} }

// lastOf is the last address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// join sorts ranges and makes one of those that touch, as the kernel may.
func join(list []addrRange) []addrRange {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b addrRange) int { return a.from.Compare(b.from) })
	var out []addrRange
	for _, r := range list {
		n := len(out)
		if n > 0 && out[n-1].from.BitLen() == r.from.BitLen() && (r.from.Compare(out[n-1].to) <= 0 || out[n-1].to.Next() == r.from) {
			if out[n-1].to.Compare(r.to) < 0 {
				out[n-1].to = r.to
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// without is what is in a and not in b; both are joined.
func without(a, b []addrRange) []addrRange {
	var out []addrRange
	for _, r := range a {
		i, _ := slices.BinarySearchFunc(b, r.from, func(o addrRange, from netip.Addr) int {
			if o.from.BitLen() < from.BitLen() || o.from.BitLen() == from.BitLen() && o.to.Compare(from) < 0 {
				return -1
			}
			return 1
		})
		whole := true
		for ; i < len(b) && b[i].from.BitLen() == r.from.BitLen() && b[i].from.Compare(r.to) <= 0; i++ {
			if b[i].from.Compare(r.from) > 0 {
				out = append(out, addrRange{r.from, b[i].from.Prev()})
			}
			if b[i].to.Compare(r.to) >= 0 {
				whole = false
				break
			}
			r.from = b[i].to.Next()
		}
		if whole {
			out = append(out, r)
		}
	}
	return out
}

// canonical is JSON in one form: keys in order, no space, and flags that a
// version of nft writes as one text as the list that others write.
func canonical(raw json.RawMessage) string {
	if len(raw) == 0 {
		return ""
	}
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return string(raw)
	}
	text, _ := json.Marshal(listed(v))
	return string(text)
}

func listed(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = listed(v[i])
		}
	case map[string]any:
		for k := range v {
			if one, ok := v[k].(string); ok && k == "flags" {
				v[k] = []any{one}
			}
			v[k] = listed(v[k])
		}
	}
	return v
}
