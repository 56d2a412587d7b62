package core

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// maxDescriptors bounds the descriptors in one snapshot, so that what gateways
// announce together can never make it too large to send.
const maxDescriptors = 12 << 20

// compose makes the snapshot of one component, without its generation. The
// same facts make the same bytes.
func (p *publisher) compose(f *facts, r store.ComponentRecord) *control.Snapshot {
	s := &control.Snapshot{Bundle: f.bundle, Revocations: f.revoked, RevocationList: f.list, ComponentIssuer: f.issuer, CallerIssuer: f.callerIssuer, ComponentLifetimeNano: int64(p.lifetime)}
	switch r.Role {
	case pki.RoleProxy:
		s.Crl = f.crl
		s.CoreAddresses = r.Peers
		if mode := p.modeOf(r); mode != link.ModeInternal {
			s.Listener = &control.OutsideCertificate{Mode: mode, ServerName: r.ServerName}
		}
		s.Part = &control.Snapshot_Proxy{Proxy: f.proxyPart}
	case pki.RoleGateway:
		if p.advertise != "" {
			s.CoreAddresses = []string{p.advertise}
		}
		s.Listener = p.listener
		s.CertificateNames = r.CertNames
		s.Part = &control.Snapshot_Gateway{Gateway: composeGateway(f, r)}
	}
	return s
}

func (p *publisher) composeProxy(f *facts) *control.ProxyPart {
	part := &control.ProxyPart{Policy: f.policy.Text(), Descriptors: p.descriptors(f)}
	for _, k := range f.keys {
		if !k.Revoked.IsZero() {
			continue
		}
		row := &control.APIKey{Name: k.Name, Sha256: k.SHA256}
		if !k.Expires.IsZero() {
			row.ExpiresUnix = k.Expires.Unix()
		}
		part.ApiKeys = append(part.ApiKeys, row)
	}
	slices.SortFunc(part.ApiKeys, func(a, b *control.APIKey) int { return bytes.Compare(a.Sha256, b.Sha256) })
	for _, i := range f.issuers {
		if i.Keys != nil {
			part.Issuers = append(part.Issuers, &control.IssuerKeys{Url: i.URL, Jwks: i.Keys.JWKS()})
		}
	}
	available := map[string]bool{}
	for _, s := range f.services {
		if s.State == store.ServiceRouted {
			available[s.Service] = available[s.Service] || p.serves(s)
		}
	}
	for name, up := range available {
		part.Services = append(part.Services, &control.Service{Name: name, Available: up})
	}
	slices.SortFunc(part.Services, func(a, b *control.Service) int { return strings.Compare(a.Name, b.Name) })
	return part
}

// serves reports whether a call of the service could go to its gateway now.
func (p *publisher) serves(s store.ServiceRecord) bool {
	g := p.registry.find(key{pki.RoleGateway, s.Gateway})
	if g == nil || !g.connected.Load() {
		return false
	}
	a := g.announcement()
	return a != nil && a.services[s.Service].serving
}

// descriptors merges the files that gateways with routed services announced.
// Of two files with one name the one of the gateway that has served for longer
// counts, so that a newcomer cannot replace what others showed.
func (p *publisher) descriptors(f *facts) [][]byte {
	since := map[string]int64{}
	for _, s := range f.services {
		if s.State != store.ServiceRouted {
			continue
		}
		if at, ok := since[s.Gateway]; !ok || s.FirstSeen.UnixNano() < at {
			since[s.Gateway] = s.FirstSeen.UnixNano()
		}
	}
	gateways := make([]string, 0, len(since))
	for g := range since {
		gateways = append(gateways, g)
	}
	sort.Slice(gateways, func(i, j int) bool {
		a, b := gateways[i], gateways[j]
		if since[a] != since[b] {
			return since[a] < since[b]
		}
		return a < b
	})
	taken := map[string]bool{}
	var out [][]byte
	total := 0
	for _, name := range gateways {
		g := p.registry.find(key{pki.RoleGateway, name})
		if g == nil {
			continue
		}
		a := g.announcement()
		if a == nil {
			continue
		}
		for _, d := range a.descriptors {
			if taken[d.name] || total+len(d.body) > maxDescriptors {
				continue
			}
			taken[d.name] = true
			total += len(d.body)
			out = append(out, d.body)
		}
	}
	return out
}

// composeGateway is what a gateway needs: the verdict on each service it ever
// announced, and the rows of the policy about those that are routed to it.
func composeGateway(f *facts, r store.ComponentRecord) *control.GatewayPart {
	part := &control.GatewayPart{Serve: r.Serve}
	var routed []string
	for _, s := range f.announced[r.Name] {
		part.Services = append(part.Services, &control.ServiceVerdict{Service: s.Service, Routed: s.State == store.ServiceRouted, Reason: whyNotRouted(s)})
		if s.State == store.ServiceRouted {
			routed = append(routed, s.Service)
		}
	}
	slices.SortFunc(part.Services, func(a, b *control.ServiceVerdict) int { return strings.Compare(a.Service, b.Service) })
	slices.Sort(routed)
	part.Methods = f.policy.RulesFor(routed)
	return part
}

// whyNotRouted says why calls of an announced service do not go to its
// gateway, and the command that changes it; empty when they do.
func whyNotRouted(s store.ServiceRecord) string {
	switch s.State {
	case store.ServiceWaiting:
		holder := "another gateway"
		if s.Holder != "" {
			holder = "gateway " + s.Holder
		}
		return fmt.Sprintf("%s serves it already; to route it here too: sallyport service allow %s %s", holder, s.Service, s.Gateway)
	case store.ServiceRefused:
		return fmt.Sprintf("it is outside of what the gateway may serve (--serve); to widen that: sallyport gateway set %s --serve PATTERN", s.Gateway)
	}
	return ""
}
