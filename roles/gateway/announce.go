package gateway

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"sallyport/roles/control"
)

// routes says which upstream serves a service.
type routes struct {
	exact    map[string]*upstream
	patterns []route // services listed by hand as package.*, longest first
}

type route struct {
	prefix   string // with the final dot
	upstream *upstream
}

// find returns the upstream of a service, or nil.
func (r *routes) find(service string) *upstream {
	if u := r.exact[service]; u != nil {
		return u
	}
	for _, p := range r.patterns {
		if strings.HasPrefix(service, p.prefix) {
			return p.upstream
		}
	}
	return nil
}

// announce makes what core is told and what calls are routed by from the
// states of all upstreams. A service that two upstreams offer belongs to the
// one that was configured first.
func announce(upstreams []*upstream) (*control.Announcement, *routes) {
	a := &control.Announcement{}
	r := &routes{exact: make(map[string]*upstream)}
	files := make(map[string]bool)
	patterns := make(map[string]bool)
	size := 0
	for _, u := range upstreams {
		state := u.current()
		a.Upstreams = append(a.Upstreams, &control.UpstreamState{Name: u.name(), Address: u.address, Up: state.up, Error: state.problem})
		if state.up && state.notServing[""] {
			a.Upstreams[len(a.Upstreams)-1].Error = "it reports NOT_SERVING by grpc.health.v1"
		}
		if state.offer == nil {
			continue
		}
		for _, s := range state.offer.services {
			prefix, pattern := strings.CutSuffix(s.name, "*")
			if r.exact[s.name] != nil || patterns[s.name] {
				continue
			}
			if pattern {
				patterns[s.name] = true
				r.patterns = append(r.patterns, route{prefix, u})
			} else {
				r.exact[s.name] = u
			}
			a.Services = append(a.Services, &control.AnnouncedService{Name: s.name, Upstream: u.name(), Serving: state.serving(s.name), Methods: s.methods})
		}
		for _, f := range state.offer.files {
			if files[f.GetName()] {
				continue
			}
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(f)
			if err != nil || size+len(raw) > 2*maxDescriptorBytes {
				continue // the service is announced all the same, without its description
			}
			size += len(raw)
			files[f.GetName()] = true
			a.Descriptors = append(a.Descriptors, raw)
		}
	}
	slices.SortStableFunc(r.patterns, func(x, y route) int { return len(y.prefix) - len(x.prefix) })
	return a, r
}

// keepAnnounced tells core whenever a state changed, until ctx ends.
func (g *gateway) keepAnnounced(ctx context.Context) {
	var last *control.Announcement
	for {
		a, r := announce(g.upstreams)
		g.routes.Store(r)
		if last == nil || !proto.Equal(a, last) {
			last = a
			g.end.Announce(a)
		}
		select {
		case <-g.changed:
		case <-ctx.Done():
			return
		}
	}
}
