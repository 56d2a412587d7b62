package core

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/store"
)

// Bounds on what one gateway may announce.
const (
	maxMethodBytes     = 32 << 10 // names of one service's methods
	maxUpstreams       = 200
	maxFiles           = 5000
	maxAnnouncedFiles  = 8 << 20 // bytes of descriptors
	maxAnnouncedString = 255
)

// announcement is what a gateway last said of itself, checked.
type announcement struct {
	services    map[string]announcedService
	descriptors []descriptor
	upstreams   []*control.UpstreamState
}

type announcedService struct {
	upstream string
	serving  bool
	methods  []string
}

type descriptor struct {
	name string
	body []byte
}

// why says why an upstream does not serve.
func (a *announcement) why(upstream string) string {
	for _, u := range a.upstreams {
		if u.GetName() == upstream && u.GetError() != "" {
			return u.GetError()
		}
	}
	return "it does not serve now"
}

// complete reports whether the gateway knows all that is behind it: what it
// does not announce then is not there.
func (a *announcement) complete() bool {
	for _, u := range a.upstreams {
		if !u.GetUp() {
			return false
		}
	}
	return len(a.upstreams) > 0
}

// readAnnouncement takes from a gateway's announcement what is well formed and
// within bounds, and says what was left out.
func readAnnouncement(in *control.Announcement) (*announcement, []string) {
	a := &announcement{services: map[string]announcedService{}}
	var left []string
	for _, s := range in.GetServices() {
		name := s.GetName()
		switch {
		case len(a.services) >= store.MaxServices:
			left = append(left, fmt.Sprintf("services after the first %d", store.MaxServices))
		case strings.HasPrefix(name, "grpc.reflection.") || strings.HasPrefix(name, "grpc.health."):
			continue // the proxy's own, for all gateways together
		case !validService(name):
			left = append(left, fmt.Sprintf("service %q, which is no service name", clean(name)))
			continue
		default:
			a.services[name] = announcedService{upstream: clean(s.GetUpstream()), serving: s.GetServing(), methods: readMethods(name, s.GetMethods())}
			continue
		}
		break
	}
	total, parts := 0, link.MaxDescriptorParts
	for _, body := range in.GetDescriptors() {
		if total += len(body); total > maxAnnouncedFiles || len(a.descriptors) >= maxFiles {
			left = append(left, "descriptors beyond 8 MiB or 5000 files")
			break
		}
		file, err := link.ReadDescriptor(body, &parts)
		if parts < 0 {
			left = append(left, "descriptors: "+err.Error())
			break
		}
		if err != nil || file.GetName() == "" {
			left = append(left, "a descriptor that cannot be read")
			continue
		}
		a.descriptors = append(a.descriptors, descriptor{name: file.GetName(), body: body})
	}
	for _, u := range in.GetUpstreams() {
		if len(a.upstreams) >= maxUpstreams {
			left = append(left, fmt.Sprintf("upstreams after the first %d", maxUpstreams))
			break
		}
		a.upstreams = append(a.upstreams, &control.UpstreamState{Name: clean(u.GetName()), Address: clean(u.GetAddress()), Up: u.GetUp(), Error: clean(u.GetError())})
	}
	return a, left
}

// readMethods keeps the names of methods that are some, sorted, within bounds.
func readMethods(service string, names []string) []string {
	service = strings.TrimSuffix(service, ".*")
	var out []string
	total := 0
	for _, m := range names {
		if total += len(m); total > maxMethodBytes {
			break
		}
		if _, ok := policy.ParseMethod("/" + service + "/" + m); ok {
			out = append(out, m)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// validService accepts full names of services and patterns ending in .*.
func validService(name string) bool {
	if len(name) > maxAnnouncedString {
		return false
	}
	m, ok := policy.ParseMethod("/" + strings.TrimSuffix(name, ".*") + "/M")
	return ok && m.Name == "M"
}

// announced takes a gateway's announcement: it remembers new services, decides
// whether they are routed, tells the operator of those that wait, and lets the
// new state take effect.
func (c *core) announced(s *link.Session, in *control.Announcement) {
	if s.Peer.ID.Role != pki.RoleGateway {
		return
	}
	g := c.registry.get(key{pki.RoleGateway, s.Peer.ID.Name})
	a, left := readAnnouncement(in)
	if len(left) > 0 && g.speak() {
		c.log.Warn("gateway announced what cannot be taken", "gateway", g.name, "left_out", strings.Join(left[:min(len(left), 10)], "; "))
	}
	former := g.announcement()
	c.observe(s.Context(), g, a, former)
	g.mu.Lock()
	current := g.session == s
	if current {
		g.announce = a
	}
	g.mu.Unlock()
	if !current || former.equal(a) {
		return
	}
	if err := c.publisher.publish(s.Context()); err != nil {
		c.log.Error("announcement is not in effect yet", "gateway", g.name, "cause", err)
	}
}

// observe records the services that are new in a gateway's announcement and,
// once, tells the operator what to do about those whose calls do not go there.
func (c *core) observe(ctx context.Context, g *component, a, former *announcement) {
	var news []store.Announced
	for name, s := range a.services {
		if former != nil {
			if f, ok := former.services[name]; ok && slices.Equal(f.methods, s.methods) {
				continue
			}
		}
		news = append(news, store.Announced{Service: name, Methods: s.methods})
	}
	if len(news) == 0 {
		return
	}
	slices.SortFunc(news, func(a, b store.Announced) int { return strings.Compare(a.Service, b.Service) })
	rows, err := c.db.ObserveServices(ctx, g.name, news)
	if err != nil {
		if g.speak() {
			c.log.Error("services cannot be recorded and are not routed", "gateway", g.name, "services", len(news), "cause", err)
		}
		return
	}
	for _, row := range rows {
		c.tell(g, row)
	}
}

// tell tells the operator of a service that is not routed, once per gateway
// and reason.
func (c *core) tell(g *component, row store.ServiceRecord) {
	if why := whyNotRouted(row); why != "" && g.once(row.State+" "+row.Service) {
		c.log.Warn("gateway announced a service that is not routed to it", "gateway", g.name, "service", row.Service, "why", why)
	}
}

// equal reports whether nothing changed that matters to anybody.
func (a *announcement) equal(b *announcement) bool {
	if a == nil || b == nil || len(a.services) != len(b.services) || len(a.descriptors) != len(b.descriptors) || len(a.upstreams) != len(b.upstreams) {
		return false
	}
	for name, s := range a.services {
		o, ok := b.services[name]
		if !ok || s.serving != o.serving || s.upstream != o.upstream || !slices.Equal(s.methods, o.methods) {
			return false
		}
	}
	for i := range a.descriptors {
		if !bytes.Equal(a.descriptors[i].body, b.descriptors[i].body) {
			return false
		}
	}
	for i := range a.upstreams {
		if !proto.Equal(a.upstreams[i], b.upstreams[i]) {
			return false
		}
	}
	return true
}

// counter counts the calls of one service that are in flight at the gateway.
func (c *component) counter(service string) *atomic.Int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.calls[service]
	if n == nil {
		if c.calls == nil {
			c.calls = map[string]*atomic.Int64{}
		}
		n = new(atomic.Int64)
		c.calls[service] = n
	}
	return n
}
