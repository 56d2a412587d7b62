package proxy

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"sallyport/roles/builtin"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/policy/token"
)

// view is what a snapshot says to this proxy, ready for use. It is immutable;
// calls and streams hold on to the one they began with only as long as one
// decision takes.
type view struct {
	policy   *policy.Policy
	keys     *policy.Keys
	tokens   *token.Set
	callers  *callers                // how client certificates are judged
	services map[string]bool         // served behind core: is it available
	catalog  *builtin.Catalog        // what reflection knows
	crl      []byte                  // what the callers' issuer has revoked, DER; nil: not known
	public   func() *builtin.Excerpt // what strangers may see of it, worked out once
}

// excerpt is what reflection shows to caller.
func (v *view) excerpt(caller policy.Caller) *builtin.Excerpt {
	if caller.Kind == policy.Anonymous {
		return v.public()
	}
	return v.shown(caller)
}

// shown is worked out for each caller: what he may call of what is served.
func (v *view) shown(caller policy.Caller) *builtin.Excerpt {
	return v.catalog.Shown(v.services, v.policy, caller)
}

// prepare reads the proxy's part of a snapshot. What it returns puts it in use.
func (p *proxy) prepare(s *control.Snapshot) (func(), error) {
	part := s.GetProxy()
	if part == nil {
		return nil, errors.New("the snapshot has no part for a proxy")
	}
	v := &view{services: make(map[string]bool, len(part.GetServices()))}
	var err error
	if v.policy, err = policy.Parse("policy of the snapshot", part.GetPolicy()); err != nil {
		return nil, fmt.Errorf("policy of the snapshot: %w", err)
	}
	if v.keys, err = policy.KeysFromProto(part.GetApiKeys()); err != nil {
		return nil, fmt.Errorf("API keys of the snapshot: %w", err)
	}
	core, err := p.peers.parse(s.GetCoreAddresses())
	if err != nil {
		return nil, err
	}
	if v.tokens, err = p.tokens(v.policy, part.GetIssuers()); err != nil {
		return nil, err
	}
	for _, service := range part.GetServices() {
		v.services[service.GetName()] = v.services[service.GetName()] || service.GetAvailable()
	}
	if crl := s.GetCrl(); len(crl) > 0 {
		v.crl = crl
	}
	v.catalog = builtin.NewCatalog(part.GetDescriptors())
	v.public = sync.OnceValue(func() *builtin.Excerpt { return v.shown(policy.Caller{}) })
	p.compareMode(s.GetListener().GetMode())
	return func() {
		p.peers.take(core)
		// The bundle and the revocations are in force by now.
		components := p.self.Verifier()
		v.callers = &callers{own: p.self.Bundle().CallerVerifier(components.Now, components.Revoked), domain: p.self.Bundle().TrustDomain}
		p.viewing.Lock()
		v.callers.foreign = p.foreignAnchors()
		p.view.Store(v)
		p.viewing.Unlock()
		p.changedView()
		if p.issued != nil {
			p.issued.Kick()
		}
		p.state.changed()
	}, nil
}

// tokens makes what verifies tokens: the policy's issuers, with the keys that
// core knows. What was verified before is kept while neither has changed.
func (p *proxy) tokens(in *policy.Policy, known []*control.IssuerKeys) (*token.Set, error) {
	keys := make(map[string]*token.Keys, len(known))
	for _, k := range known {
		parsed, err := token.ParseKeys(k.GetJwks())
		if err != nil {
			return nil, fmt.Errorf("keys of an issuer of the snapshot: %w", err)
		}
		keys[k.GetUrl()] = parsed
	}
	var issuers []token.Issuer
	for _, i := range in.Issuers() {
		issuers = append(issuers, token.Issuer{Issuer: i, Keys: keys[i.URL]})
	}
	var former *token.Set
	if v := p.view.Load(); v != nil {
		former = v.tokens
	}
	return token.NewSet(issuers, former), nil
}

// foreignAnchors are the client CAs of others as they are now.
func (p *proxy) foreignAnchors() []foreignAnchors {
	var list []foreignAnchors
	for _, f := range p.foreign {
		pool := x509.NewCertPool()
		for _, c := range f.file.Certificates() {
			pool.AddCert(c)
		}
		list = append(list, foreignAnchors{f.name, pool})
	}
	return list
}

// refreshView takes changed client CAs into the view in force.
func (p *proxy) refreshView() {
	p.viewing.Lock()
	defer p.viewing.Unlock()
	former := p.view.Load()
	if former == nil {
		return
	}
	next := *former
	next.callers = &callers{own: former.callers.own, domain: former.callers.domain, foreign: p.foreignAnchors()}
	p.view.Store(&next)
	p.changedView()
}

// compareMode says when core expects another certificate on the gRPC port than
// this proxy shows: links that are up stay, and none comes after them.
func (p *proxy) compareMode(expected string) {
	expected, own := cmp.Or(expected, link.ModeInternal), cmp.Or(p.settings.GRPCTLS, link.ModeInternal)
	// Whoever dials verifies acme and files alike.
	same := (expected == link.ModeInternal) == (own == link.ModeInternal)
	if former := p.expects.Swap(&expected); same || former != nil && *former == expected {
		return
	}
	p.log.Warn("core expects another certificate on the gRPC port than this proxy shows, and cannot dial it anew", "expects", expected, "shows", own,
		"remedy", "start this proxy with --grpc-tls "+expected+", or run on core: sallyport proxy set "+p.name()+" --grpc-tls "+own)
}
