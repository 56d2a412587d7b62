package core

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/firewall"
	"sallyport/roles/control"
)

// peerNotes are what an operator should know of where a component comes from,
// or core at a proxy. Addresses that were observed are suggested, and never
// taken by themselves.
func (c *core) peerNotes(m *control.Component, report *control.PortReport) []string {
	written, err := firewall.ParsePeers(m.GetPeers())
	if err != nil {
		return nil
	}
	who := m.GetRole() + " " + m.GetName()
	var out []string
	switch {
	case m.GetRole() == string(pki.RoleGateway):
		observed := m.GetObservedAddress()
		a, err := netip.ParseAddr(observed)
		switch {
		case err != nil || m.GetState() != "connected":
		case written.IsAny():
			out = append(out, fmt.Sprintf("%s may come from any address, and comes from %s: suggest: sallyport gateway set %s --ip %s", who, observed, m.GetName(), observed))
		case !c.peers.set.View().Owns(ownerOf(key{pki.RoleGateway, m.GetName()}), a): // with --peer-check off
			out = append(out, fmt.Sprintf("%s comes from %s, which is not its address (%s): suggest: sallyport gateway set %s --ip %s", who, observed, strings.Join(m.GetPeers(), ", "), m.GetName(), observed))
		}
		if v := c.peers.set.View(); !v.Untried() && !c.peers.off {
			if names := v.Unresolved(ownerOf(key{pki.RoleGateway, m.GetName()})); len(names) > 0 {
				out = append(out, fmt.Sprintf("%s cannot come from %s: core finds no address of that name; look at core's log and the name server of its host, or name the gateway by its address: sallyport gateway set %s --ip ADDRESS",
					who, strings.Join(names, ", "), m.GetName()))
			}
		}
		out = append(out, c.peers.strayNote(key{pki.RoleGateway, m.GetName()})...)
	case report != nil:
		observed := report.GetObservedAddress()
		if report.GetUnchecked() {
			out = append(out, who+" runs with --peer-check off: its gRPC port is open to every address, and mutual TLS alone decides")
		}
		if own := report.GetCoreIps(); len(own) > 0 {
			out = append(out, fmt.Sprintf("%s was started with --core-ip %s, which wins over what is written here (%s)", who, strings.Join(own, ","), strings.Join(m.GetPeers(), ", ")))
			break
		}
		a, err := netip.ParseAddr(observed)
		switch {
		case err != nil:
		case written.IsAny():
			out = append(out, fmt.Sprintf("%s takes core from any address, and sees it come from %s: suggest: sallyport proxy set %s --core-ip %s", who, observed, m.GetName(), observed))
		case len(written.Names()) == 0 && !written.Allows(a):
			out = append(out, fmt.Sprintf("%s sees core come from %s, which is not among %s: suggest: sallyport proxy set %s --core-ip %s", who, observed, strings.Join(m.GetPeers(), ", "), m.GetName(), observed))
		}
	}
	return out
}

// strayNote says that an identity was used from somewhere else, for a day.
func (p *peers) strayNote(k key) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.strayed[k]
	if s == nil || time.Since(s.last) > strayShown {
		delete(p.strayed, k)
		return nil
	}
	of := ""
	if len(s.whose) > 0 {
		of = ", an address of " + strings.Join(s.whose[:min(len(s.whose), 3)], ", ")
	}
	return []string{fmt.Sprintf("ALARM: %s of %s was used from %s%s, and refused (%d times, last at %s): if it has moved there: sallyport gateway set %s --ip %s; if not: sallyport gateway rm %s, and add it again",
		s.subject, k, s.from, of, s.times, s.last.UTC().Format(time.RFC3339), k.name, s.from, k.name)}
}

// peerWarnings are what concerns the port as a whole.
func (c *core) peerWarnings(components []*control.Component) []string {
	var out []string
	if c.peers.off {
		out = append(out, "--peer-check is off: core's gRPC port is open to every address, and a stolen key is good from everywhere; mutual TLS alone decides")
	}
	c.peers.mu.Lock()
	type refused struct {
		from  netip.Addr
		times uint64
		last  time.Time
	}
	var list []refused
	view := c.peers.set.View()
	for a, s := range c.peers.refused {
		if time.Since(s.last) > refusedShown || view.Contains(a) {
			delete(c.peers.refused, a)
			continue
		}
		list = append(list, refused{a, s.times, s.last})
	}
	c.peers.mu.Unlock()
	slices.SortFunc(list, func(a, b refused) int { return b.last.Compare(a.last) })
	var away []string
	for _, m := range components {
		if m.GetRole() == string(pki.RoleGateway) && m.GetState() != "connected" {
			away = append(away, m.GetName())
		}
	}
	for i, r := range list {
		if i == 5 {
			out = append(out, fmt.Sprintf("%d more addresses were refused at core's gRPC port in the last hour", len(list)-i))
			break
		}
		text := fmt.Sprintf("%s was refused at core's gRPC port, %d times, last at %s: it is no gateway's address", r.from, r.times, r.last.UTC().Format(time.RFC3339))
		switch len(away) {
		case 0:
		case 1:
			text += fmt.Sprintf("; if gateway %s, which is not connected, is there: suggest: sallyport gateway set %s --ip %s", away[0], away[0], r.from)
		default:
			text += fmt.Sprintf("; if one of the gateways that are not connected is there: suggest: sallyport gateway set NAME --ip %s", r.from)
		}
		out = append(out, text)
	}
	return out
}

// keepsCore refuses addresses for a proxy that leave out the one that core is
// seen to come from: the proxy would take them, close its port to this core, and
// nobody could tell it otherwise but on its own host.
func (c *core) keepsCore(ctx context.Context, what, name string, list []string) error {
	m := c.registry.find(key{pki.RoleProxy, name})
	if m == nil {
		return nil
	}
	s := m.current()
	if s == nil {
		return nil
	}
	report := s.Hello.GetPort()
	observed, err := netip.ParseAddr(report.GetObservedAddress())
	if err != nil || len(report.GetCoreIps()) > 0 || report.GetUnchecked() {
		return nil // it is not known, or this is not what decides there
	}
	wish, err := firewall.ParsePeers(list)
	if err != nil {
		return nil // refused elsewhere, with its reason
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	wish, lookup := wish.Resolve(ctx, func(ctx context.Context, name string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	})
	if wish.Allows(observed) {
		return nil
	}
	why := ""
	if lookup != nil {
		why = " (" + clean(lookup.Error()) + ")"
	}
	return status.Errorf(codes.FailedPrecondition, "%s: proxy %s sees core come from %s, which is not among %s%s: it would close its port to this core at once, and only --core-ip on its own host could open it again; name %s too, and take it out when core has moved, or write --force",
		what, name, observed, strings.Join(list, ", "), why, observed)
}

// connectedFrom is where a component's control session comes from; invalid if
// it has none.
func (c *core) connectedFrom(k key) netip.Addr {
	if m := c.registry.find(k); m != nil {
		if s := m.current(); s != nil {
			return s.Peer.Remote.Addr()
		}
	}
	return netip.Addr{}
}

// setNotes are what the answer of a change says beside the change. was is from
// where the component was connected before it; invalid: it was not.
func (c *core) setNotes(row *control.Component, peersGiven bool, was netip.Addr) {
	if !peersGiven {
		return
	}
	if row.GetRole() == string(pki.RoleGateway) {
		// What a name leads to is not known yet.
		written, err := firewall.ParsePeers(row.GetPeers())
		if err == nil && was.IsValid() && !c.peers.off && len(written.Names()) == 0 && !written.Allows(was) {
			row.Notes = append(row.Notes, fmt.Sprintf("gateway %s was connected from %s, which is not among %s: its connections from there end now; if that was not meant: sallyport gateway set %s --ip %s",
				row.GetName(), was, strings.Join(row.GetPeers(), ", "), row.GetName(), was))
		}
		return
	}
	if row.GetState() != "connected" {
		row.Notes = append(row.Notes, fmt.Sprintf("proxy %s is not connected: it hears of the new addresses when core reaches it. If it is core's address that it refuses, start it with --core-ip ADDRESS there", row.GetName()))
	}
}
