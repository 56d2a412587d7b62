package core

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"sort"
	"strings"
	"sync/atomic"

	"sallyport/acme/pki"
	"sallyport/roles/builtin"
	"sallyport/roles/policy"
	"sallyport/roles/policy/token"
	"sallyport/store"
)

// ruling is what decides about calls, at one moment. It is immutable.
type ruling struct {
	policy   *policy.Policy
	version  uint64 // of the policy, 0: built in
	keys     *policy.Keys
	tokens   *token.Set
	grounds  *grounds
	services map[string]*service
	patterns []*service // names ending in .*, longest first

	served  map[string]bool         // the names of services
	catalog func() *builtin.Catalog // what reflection knows of them
}

// grounds is what a ruling judges callers by. Rulings that differ only in who
// serves what have the same: no open call has to be judged again.
type grounds struct {
	policy *policy.Policy
	rows   []store.APIKeyRecord
	keys   *policy.Keys
	tokens *token.Set
}

// ground returns the grounds that facts give, the former ones if they do not
// differ.
func (p *publisher) ground(f *facts) *grounds {
	former := p.grounds
	if former == nil {
		former = &grounds{}
	}
	tokens := token.NewSet(f.issuers, former.tokens)
	same := func(a, b store.APIKeyRecord) bool {
		return a.Name == b.Name && a.Revoked.Equal(b.Revoked) && a.Expires.Equal(b.Expires) && bytes.Equal(a.SHA256, b.SHA256)
	}
	if p.grounds == nil || former.policy != f.policy || former.tokens != tokens || !slices.EqualFunc(former.rows, f.keys, same) {
		p.grounds = &grounds{policy: f.policy, rows: f.keys, keys: keysOf(f.keys), tokens: tokens}
	}
	return p.grounds
}

// service is who may serve a service.
type service struct {
	name    string
	targets []target
}

// target is one gateway that may serve a service.
type target struct {
	gateway  *component
	need     uint64 // the generation that tells the gateway what decided
	known    bool   // the gateway has said what it serves, since it last started
	serving  bool   // its upstream answers
	upstream string
	why      string // why it does not serve
	inFlight *atomic.Int64
}

// rule makes the ruling of facts. need is the generation of each component's
// snapshot.
func (p *publisher) rule(f *facts, need map[*component]uint64) *ruling {
	g := p.ground(f)
	r := &ruling{policy: g.policy, version: p.version, keys: g.keys, tokens: g.tokens, grounds: g, services: map[string]*service{},
		served: map[string]bool{}, catalog: p.catalogOf(f.proxyPart.GetDescriptors())}
	for _, row := range f.services {
		if row.State != store.ServiceRouted {
			continue
		}
		g := p.registry.find(key{pki.RoleGateway, row.Gateway})
		if g == nil || need[g] == 0 {
			continue
		}
		t := target{gateway: g, need: need[g], inFlight: g.counter(row.Service)}
		if a := g.announcement(); a != nil {
			s, announced := a.services[row.Service]
			switch {
			case announced && s.serving:
				t.serving = true
			case announced:
				t.why = "upstream " + s.upstream + " is down: " + a.why(s.upstream)
			case a.complete():
				continue // it served this once, and does not any more
			default:
				t.why = "its upstreams do not all answer, and none that does has " + row.Service
			}
			t.known, t.upstream = true, s.upstream
		}
		s := r.services[row.Service]
		if s == nil {
			s = &service{name: row.Service}
			r.services[row.Service], r.served[row.Service] = s, true
			if strings.HasSuffix(row.Service, ".*") {
				r.patterns = append(r.patterns, s)
			}
		}
		s.targets = append(s.targets, t)
	}
	sort.Slice(r.patterns, func(i, j int) bool { return len(r.patterns[i].name) > len(r.patterns[j].name) })
	return r
}

// find returns who may serve a service, nil for nobody. A service announced by
// its own name goes before every pattern that covers it.
func (r *ruling) find(name string) *service {
	if s := r.services[name]; s != nil {
		return s
	}
	for _, s := range r.patterns {
		if strings.HasPrefix(name, s.name[:len(s.name)-1]) {
			return s
		}
	}
	return nil
}

// target is the place of a service at a gateway, nil if it has none.
func (r *ruling) target(name string, g *component) *target {
	if s := r.services[name]; s != nil {
		for i := range s.targets {
			if s.targets[i].gateway == g {
				return &s.targets[i]
			}
		}
	}
	return nil
}

func keysOf(rows []store.APIKeyRecord) *policy.Keys {
	var keys []policy.Key
	for _, k := range rows {
		if !k.Revoked.IsZero() || len(k.SHA256) != sha256.Size {
			continue
		}
		keys = append(keys, policy.Key{Name: k.Name, SHA256: [sha256.Size]byte(k.SHA256), Expires: k.Expires})
	}
	return policy.NewKeys(keys)
}
