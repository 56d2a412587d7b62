package core

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/firewall"
	"sallyport/roles/link"
	"sallyport/store"
)

// peers is who may come to core's gRPC port. Before the first byte an address
// counts that is any gateway's, joined or invited; once an identity, or a join
// token, has been proven, only an address of that very gateway does. So a key
// that was stolen from one gateway is of no use on the host of another, and its
// use there is an alarm.
type peers struct {
	log *slog.Logger
	off bool // --peer-check off
	set firewall.Set

	parsed map[string]firewall.Peers // guarded by the publisher's lock

	port      atomic.Pointer[link.Port] // nil before core listens
	elsewhere atomic.Uint64             // identities and tokens refused for their address
	alarms    *rates

	mu      sync.Mutex // guards what follows
	refused map[netip.Addr]*sighting
	strayed map[key]*stray
}

// sighting is an address that was turned away.
type sighting struct {
	times uint64
	last  time.Time
}

// stray is an identity that was used from an address that is not its own.
type stray struct {
	sighting
	from    netip.Addr
	whose   []string // of the others, whose address it is
	subject string
}

const (
	maxRefusedShown = 64
	strayShown      = 24 * time.Hour
	refusedShown    = time.Hour
	wrongEvery      = time.Minute
	wrongBurst      = 5
)

func newPeers(log *slog.Logger, off bool) *peers {
	return &peers{log: log, off: off, set: firewall.Set{Log: log}, parsed: map[string]firewall.Peers{}, alarms: newRates(wrongEvery, wrongBurst),
		refused: map[netip.Addr]*sighting{}, strayed: map[key]*stray{}}
}

// ownerOf is a component's name in the set.
func ownerOf(k key) string { return string(k.role) + " " + k.name }

// follow takes the peers of all gateways as the store has them. The publisher
// calls it, one publication after the other.
func (p *peers) follow(components []store.ComponentRecord) {
	owners, parsed := map[string]firewall.Peers{}, map[string]firewall.Peers{}
	for _, r := range components {
		if r.Role != pki.RoleGateway {
			continue
		}
		k := key{r.Role, r.Name}
		text := strings.Join(r.Peers, " ")
		set, ok := p.parsed[text]
		if !ok {
			var err error
			if set, err = firewall.ParsePeers(r.Peers); err != nil {
				p.log.Error("a gateway's addresses cannot be read, and nobody may come from them", "gateway", r.Name, "cause", err, "remedy", "sallyport gateway set "+r.Name+" --ip …")
				set = firewall.Peers{}
			}
		}
		parsed[text], owners[ownerOf(k)] = set, set
	}
	p.parsed = parsed
	p.set.Put(owners)
}

// admit judges an address before the first byte.
func (p *peers) admit(remote netip.AddrPort) *pki.Refusal {
	if p.off || p.set.View().Contains(remote.Addr()) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.refused[remote.Addr()]
	if s == nil {
		if len(p.refused) >= maxRefusedShown {
			p.forgetOldest()
		}
		s = &sighting{}
		p.refused[remote.Addr()] = s
	}
	s.times, s.last = s.times+1, time.Now()
	return &pki.Refusal{Code: link.CodeAddress, Cause: fmt.Sprintf("a connection from %s, which is no gateway's address", remote.Addr()),
		Remedy: fmt.Sprintf("if a gateway lives there: sallyport gateway set NAME --ip %s", remote.Addr())}
}

func (p *peers) forgetOldest() {
	var oldest netip.Addr
	for a, s := range p.refused {
		if !oldest.IsValid() || s.last.Before(p.refused[oldest].last) {
			oldest = a
		}
	}
	delete(p.refused, oldest)
}

// judge says why a gateway is not to be believed at an address; nil if it is.
// alarm: it is news that an operator has to hear.
func (p *peers) judge(k key, from netip.Addr, what string) (r *pki.Refusal, alarm bool) {
	if p.off || k.role != pki.RoleGateway {
		return nil, false // core has dialled the others, at the address that it was told
	}
	v := p.set.View()
	owner := ownerOf(k)
	if v.Owns(owner, from) {
		return nil, false
	}
	own := strings.Join(v.Of(owner).Strings(), ", ")
	r = &pki.Refusal{Code: link.CodeAddress, Cause: fmt.Sprintf("%s of %s was used from %s, which is not its address (%s)", what, k, from, own),
		Remedy: fmt.Sprintf("if it has moved there: sallyport gateway set %s --ip %s; if not, its key is in wrong hands: sallyport gateway rm %s, and add it again", k.name, from, k.name)}
	if others := p.others(v, owner, from); others != "" {
		r.Cause = fmt.Sprintf("%s of %s was used from %s, which is an address of %s and not one of %s (%s)", what, k, from, others, k, own)
	}
	switch unresolved := v.Unresolved(owner); {
	case !v.Knows(owner):
		return &pki.Refusal{Code: "core_error", Cause: fmt.Sprintf("core does not know yet from where %s may come", k), Remedy: "it tries again by itself; if it persists, see core's log"}, false
	case len(unresolved) > 0:
		r.Cause += fmt.Sprintf("; but core could not find the addresses of %s", strings.Join(unresolved, ", "))
		r.Remedy = "check that name and the name server of core's host, or name the gateway by its address: sallyport gateway set " + k.name + " --ip " + from.String()
		return r, false
	}
	return r, true
}

// others are the other gateways whose address it is, as a sentence names them.
func (p *peers) others(v *firewall.View, owner string, from netip.Addr) string {
	list := slices.DeleteFunc(v.OwnersOf(from), func(o string) bool { return o == owner })
	if len(list) > 3 {
		list = append(list[:3:3], fmt.Sprintf("%d more", len(list)-3))
	}
	return strings.Join(list, ", ")
}

// checkAddress refuses an identity, or the holder of a join token, that comes
// from an address that is not its own. proof is what it has proven, as a hash;
// the alarm is raised once for each such proof and source.
func (c *core) checkAddress(ctx context.Context, k key, from netip.AddrPort, what string, proof []byte) *pki.Refusal {
	refusal, alarm := c.peers.judge(k, from.Addr(), what)
	if refusal == nil {
		return nil
	}
	c.peers.elsewhere.Add(1)
	if alarm {
		c.peers.noteStray(k, from.Addr(), what)
		c.alarmOfAddress(ctx, k, from.Addr(), refusal, proof)
	}
	return refusal
}

// noteStray remembers what status shows.
func (p *peers) noteStray(k key, from netip.Addr, what string) {
	v := p.set.View()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.strayed[k]
	if s == nil {
		s = &stray{}
		p.strayed[k] = s
	}
	s.times, s.last = s.times+1, time.Now()
	s.from, s.subject = from, what
	s.whose = slices.DeleteFunc(v.OwnersOf(from), func(o string) bool { return o == ownerOf(k) })
}

// alarmOfAddress raises the alarm: log, audit, webhook. Whoever has a key could
// raise one from each address that is open to him, so there is an end to them.
func (c *core) alarmOfAddress(ctx context.Context, k key, from netip.Addr, refusal *pki.Refusal, proof []byte) {
	const code = "wrong_address"
	ctx = context.WithoutCancel(ctx)
	subject := string(k.role) + "/" + k.name
	once := fmt.Sprintf("%s %s %s %x", code, subject, link.SourcePrefix(from), proof)
	if known, err := c.db.AlertKnown(ctx, onceKey(once)); err == nil && known || !c.peers.alarms.allow(subject) {
		return
	}
	c.alerts.raise(ctx, alert{Code: code, Subject: subject, Text: refusal.Cause, Remedy: refusal.Remedy, Alarm: true, Once: once})
	if err := c.db.Audit(ctx, actorCore, store.ActionAlarm+code, subject, refusal.Cause); err != nil {
		c.log.Error("alarm was not audited", "alarm", code, "cause", err)
	}
}

// proofOf is what a peer with an identity has proven, as a hash.
func proofOf(peer link.Peer) []byte {
	if len(peer.Chain) == 0 {
		return nil
	}
	spki := pki.SPKI(peer.Chain[0])
	return spki[:]
}

// cutElsewhere ends what is open with gateways at addresses that are not theirs
// any more. They are told. Those that were removed hear it from who removes them.
func (c *core) cutElsewhere(v *firewall.View) {
	for _, m := range c.registry.list(pki.RoleGateway) {
		if !v.Knows(ownerOf(m.key)) {
			continue
		}
		m.cutIf(func(peer link.Peer) *pki.Refusal {
			r, _ := c.peers.judge(m.key, peer.Remote.Addr(), "the identity")
			if r != nil {
				r = &pki.Refusal{Code: link.CodeAddress, Cause: fmt.Sprintf("%s is no address of %s any more", peer.Remote.Addr(), m.key),
					Remedy: fmt.Sprintf("if it is to come from there: sallyport gateway set %s --ip %s", m.name, peer.Remote.Addr())}
			}
			return r
		})
	}
}

// keepPeers keeps the set, what is open, and the data file in line.
func (c *core) keepPeers(ctx context.Context, port *link.Port, file *firewall.File) error {
	if c.peers.off {
		c.log.Warn("--peer-check is off: the gRPC port is open to every address, and a stolen key is good from everywhere; mutual TLS alone decides")
	}
	f := firewall.Follower{Set: &c.peers.set, Role: configs.RoleCore, File: file, Log: c.log, Enforce: c.cutElsewhere,
		Close: func() {
			if n := port.Recheck(); n > 0 {
				c.log.Info("connections were closed: their addresses are no gateway's any more", "connections", n)
			}
		}}
	return f.Run(ctx)
}
