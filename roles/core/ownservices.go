package core

import (
	"bytes"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"

	"sallyport/roles/builtin"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// newOwn makes health and reflection for the apps beside gateways: core knows what
// is served and who may call it. Proxies answer their callers themselves.
func (c *core) newOwn() *builtin.Services {
	r := c.router
	return &builtin.Services{Log: c.log, Hop: func() string { return "core" }, Look: r.look, Status: r.statusOf, Changed: c.registry.waiter,
		Options: func() *relay.Options {
			return &relay.Options{Metrics: c.relayed, Budget: c.budget, Log: c.log}
		}}
}

// serveOwn answers a call of ours.
func (p *passage) serveOwn() {
	p.mu.Lock()
	p.ownID = relay.NewRequestID() // the one that came is the gateway's choice
	id := p.ownID
	p.mu.Unlock()
	mark := p.mark()
	if !p.router.own.Serve(p.call, p.who, id, func(header []relay.Field) []relay.Field { return append(header, mark) }) {
		p.call.Reject(codes.Unavailable, "core is starting", mark)
	}
}

// look returns what tells what the caller may see, by the ruling in force then.
func (r *router) look(caller policy.Caller) func() *builtin.Excerpt {
	var last *ruling
	e := builtin.Nothing()
	return func() *builtin.Excerpt {
		if now := r.ruling.Load(); now != last {
			last, e = now, now.catalog().Shown(now.served, now.policy, caller)
		}
		return e
	}
}

// statusOf is what health says of a service now.
func (r *router) statusOf(service string) builtin.Status {
	ready := r.held() == ""
	if service == "" || builtin.Own("/"+service+"/") {
		if ready {
			return builtin.Serving
		}
		return builtin.NotServing
	}
	s := r.ruling.Load().services[service]
	if s == nil {
		return builtin.Unknown
	}
	for i := range s.targets {
		if t := &s.targets[i]; ready && t.known && t.serving && t.gateway.connected.Load() {
			return builtin.Serving
		}
	}
	return builtin.NotServing
}

// shared is the catalog of some descriptors, read when somebody asks for it.
type shared struct {
	descriptors [][]byte
	read        func() *builtin.Catalog
}

// catalogOf returns the former catalog while the descriptors are the same. p.mu is
// held.
func (p *publisher) catalogOf(descriptors [][]byte) func() *builtin.Catalog {
	if p.catalog == nil || !slices.EqualFunc(p.catalog.descriptors, descriptors, bytes.Equal) {
		p.catalog = &shared{descriptors, sync.OnceValue(func() *builtin.Catalog { return builtin.NewCatalog(descriptors) })}
	}
	return p.catalog.read
}
