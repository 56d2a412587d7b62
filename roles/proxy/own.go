package proxy

import (
	"sallyport/roles/builtin"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// newOwn makes the proxy's own services, health and reflection.
func newOwn(p *proxy) *builtin.Services {
	return &builtin.Services{Log: p.log, Hop: p.hop, Look: p.look, Status: p.statusOf, Changed: p.state.wait,
		Options: func() *relay.Options { return &relay.Options{Metrics: p.frames, Budget: p.deps.Budget, Log: p.log} }}
}

// look returns what tells what the caller may see by the policy in force then;
// between changes of the policy it is worked out once.
func (p *proxy) look(caller policy.Caller) func() *builtin.Excerpt {
	var last *view
	e := builtin.Nothing()
	return func() *builtin.Excerpt {
		if v := p.view.Load(); v != last {
			last, e = v, v.excerpt(caller)
		}
		return e
	}
}
