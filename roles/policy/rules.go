package policy

import (
	"fmt"
	"strings"
	"time"

	"sallyport/configs"
	"sallyport/roles/control"
)

// RulesFor is the slice of the policy that a gateway with these services
// (full names or patterns) needs to check calls by itself. Rules come in the
// order of their patterns, so that equal policies give equal slices.
func (p *Policy) RulesFor(services []string) []*control.MethodRule {
	var rules []*control.MethodRule
	for _, e := range p.entries {
		concerns := false
		for _, s := range services {
			concerns = concerns || overlap(e.pattern, s)
		}
		if !concerns {
			continue
		}
		rules = append(rules, &control.MethodRule{
			Match:                e.pattern,
			Allow:                e.row != nil && e.row.held,
			ForwardAuthorization: e.treatment.ForwardAuthorization,
			MaxMessageBytes:      e.treatment.MaxMessage,
			MaxDeadlineNano:      int64(e.treatment.MaxDeadline),
		})
	}
	return rules
}

// overlap says whether a pattern of methods and one of services have a
// service in common.
func overlap(method, service string) bool {
	name := strings.TrimPrefix(method, "/")
	if slash := strings.IndexByte(name, '/'); slash >= 0 {
		return configs.MatchService(service, name[:slash])
	}
	pkg := strings.TrimSuffix(name, "*")
	if other, wild := strings.CutSuffix(service, "*"); wild {
		return strings.HasPrefix(other, pkg) || strings.HasPrefix(pkg, other)
	}
	return strings.HasPrefix(service, pkg)
}

// Rules is such a slice, compiled, at the gateway. The most specific rule
// decides, alone; what no rule covers is denied. A nil Rules denies all.
type Rules struct{ index matcher[rule] }

type rule struct {
	allow     bool
	treatment Treatment
}

// NewRules compiles what RulesFor made.
func NewRules(rules []*control.MethodRule) (*Rules, error) {
	r := &Rules{}
	for _, m := range rules {
		if err := configs.MethodPattern(m.GetMatch()); err != nil {
			return nil, fmt.Errorf("rule of the snapshot: %w", err)
		}
		r.index.add(m.GetMatch(), rule{m.GetAllow(), Treatment{
			ForwardAuthorization: m.GetForwardAuthorization(),
			MaxMessage:           m.GetMaxMessageBytes(),
			MaxDeadline:          time.Duration(max(m.GetMaxDeadlineNano(), 0)),
		}})
	}
	return r, nil
}

// Match says how a method is treated, and whether it may be called at all.
func (r *Rules) Match(path string) (t Treatment, allowed bool) {
	if r == nil {
		return Treatment{}, false
	}
	if _, ok := ParseMethod(path); !ok {
		return Treatment{}, false
	}
	found, ok := r.index.find(path)
	return found.treatment, ok && found.allow
}

// Patterns is a set of method patterns: a gateway's --allow ceiling.
type Patterns struct {
	index matcher[struct{}]
	all   bool
}

// ParsePatterns compiles patterns. None at all match everything: no ceiling.
func ParsePatterns(patterns []string) (*Patterns, error) {
	p := &Patterns{all: len(patterns) == 0}
	for _, s := range patterns {
		if err := configs.MethodPattern(s); err != nil {
			return nil, err
		}
		p.index.add(s, struct{}{})
	}
	return p, nil
}

// Match says whether a method is under the ceiling.
func (p *Patterns) Match(path string) bool {
	if _, ok := ParseMethod(path); !ok {
		return false
	}
	if p.all {
		return true
	}
	_, ok := p.index.find(path)
	return ok
}
