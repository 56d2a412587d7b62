package policy

import (
	"slices"
	"sort"
)

// compile turns what was read into what Decide looks things up in. It adds the
// rows that need not be written: health, which only a row for the service
// itself closes, because probes have no credentials; and reflection, which any
// row that covers it closes. Reflection may be open because it shows each
// caller what he may call and nothing else.
func (p *Policy) compile() {
	rows := map[string]*row{}
	for _, r := range p.rows {
		rows[r.pattern] = r
	}
	for _, own := range edge {
		pattern := "/" + own.Service + "/*"
		covered := rows[pattern] != nil
		for _, w := range wider(pattern) {
			covered = covered || rows[w] != nil && own.Service != HealthService
		}
		if !covered {
			r := &row{pattern: pattern, needs: []string{public}, public: true, builtIn: true}
			rows[pattern] = r
			p.rows = append(p.rows, r)
		}
	}

	numbers := map[string]int{}
	number := func(permission string) int {
		n, ok := numbers[permission]
		if !ok {
			n = len(numbers)
			numbers[permission] = n
		}
		return n
	}
	var given bits
	for _, g := range p.grants {
		for _, perm := range g.permissions {
			given.add(number(perm))
		}
	}
	for _, r := range p.rows {
		for _, need := range r.needs {
			r.set.add(number(need))
		}
		r.held = r.public || r.set.meets(given) || p.claimed(r.needs)
	}

	treats := map[string]*treatment{}
	patterns := make([]string, 0, len(rows)+len(p.treats))
	for _, t := range p.treats {
		treats[t.match] = t
		patterns = append(patterns, t.match)
	}
	limits := map[string]*Limits{}
	for _, l := range p.limits {
		if limits[l.Match] == nil {
			limits[l.Match] = &Limits{}
		}
		*limits[l.Match].slot(l) = l
		patterns = append(patterns, l.Match)
	}
	for pattern := range rows {
		patterns = append(patterns, pattern)
	}
	sort.Strings(patterns)
	patterns = slices.Compact(patterns)
	p.entries = make([]entry, len(patterns))
	for i, pattern := range patterns {
		e := &p.entries[i]
		e.pattern = pattern
		treated := false
		for _, w := range wider(pattern) {
			if e.row == nil {
				e.row = rows[w]
			}
			if t := treats[w]; t != nil && !treated {
				e.treatment, treated = t.Treatment, true
			}
			if l := limits[w]; l != nil {
				e.limits = e.limits.under(l)
			}
		}
		p.index.add(pattern, e)
	}
	p.hold(number)
}

// claimed says whether a token of some issuer may give one of the permissions.
func (p *Policy) claimed(needs []string) bool {
	for i := range p.issuers {
		for _, need := range needs {
			if p.issuers[i].Grants(need) {
				return true
			}
		}
	}
	return false
}

// under is l with what it says nothing of taken from wider rows. Neither is
// changed.
func (l *Limits) under(wider *Limits) *Limits {
	if l == nil {
		return wider
	}
	out := *l
	for _, row := range []*Limit{wider.CallsPerSource, wider.MessagesPerSource, wider.CallsPerCaller, wider.MessagesPerCaller} {
		if row != nil && *out.slot(row) == nil {
			*out.slot(row) = row
		}
	}
	return &out
}

// hold gathers what every caller holds, by whose word.
func (p *Policy) hold(number func(string) int) {
	p.holders = map[holderKey]*holder{}
	extend := func(h *holding, g *grant) *holding {
		if h == nil {
			h = &holding{}
		}
		for _, perm := range g.permissions {
			if n := number(perm); !h.set.has(n) {
				h.set.add(n)
				h.permissions = append(h.permissions, perm)
			}
		}
		h.grants = append(h.grants, g.name)
		return h
	}
	for _, g := range p.grants {
		h := p.holders[g.key]
		if h == nil {
			h = &holder{proxies: map[string]*holding{}, gateways: map[string]*holding{}, listeners: map[string]*holding{}}
			p.holders[g.key] = h
		}
		if g.listener != "" {
			h.listeners[g.listener] = extend(h.listeners[g.listener], g)
			continue
		}
		if g.key.kind != Certificate {
			h.direct = extend(h.direct, g)
			continue
		}
		for _, name := range slices.Compact(slices.Sorted(slices.Values(g.viaProxy))) {
			h.proxies[name] = extend(h.proxies[name], g)
		}
		for _, name := range slices.Compact(slices.Sorted(slices.Values(g.viaGateway))) {
			h.gateways[name] = extend(h.gateways[name], g)
		}
	}
	for _, g := range p.grants { // what needs no listener holds by each
		if h := p.holders[g.key]; g.key.kind == Gateway && g.listener == "" {
			for label, one := range h.listeners {
				h.listeners[label] = extend(one, g)
			}
		}
	}
	for _, h := range p.holders {
		for _, list := range []map[string]*holding{{"": h.direct}, h.proxies, h.gateways, h.listeners} {
			for _, one := range list {
				if one != nil {
					sort.Strings(one.permissions)
				}
			}
		}
	}
}
