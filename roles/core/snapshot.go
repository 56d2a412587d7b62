package core

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/store"
)

// publisher makes what was decided true everywhere: it reads the store, puts a
// new ruling in force at core and sends every component what changed for it.
type publisher struct {
	log       *slog.Logger
	db        *store.Core
	ca        *pki.Authority
	self      *link.Self
	registry  *registry
	epoch     uint64
	demo      bool // the default policy opens the built-in service
	advertise string
	ruling    *atomic.Pointer[ruling]

	mu      sync.Mutex // one publication at a time; guards what follows
	version uint64     // of parsed
	parsed  *policy.Policy
	behind  bool // the last publication failed

	gate sync.Mutex // guards next
	next *round     // the publication that has not begun yet; nil: nobody asked
}

// round is one publication and all who wait for it.
type round struct {
	once sync.Once
	err  error
}

// facts is what the store says, read for one publication.
type facts struct {
	components  []store.ComponentRecord
	services    []store.ServiceRecord
	keys        []store.APIKeyRecord
	revocations []store.Revocation
	policy      *policy.Policy

	// What several snapshots share, made once.
	proxyPart *control.ProxyPart
	announced map[string][]store.ServiceRecord // by gateway
	revoked   []*control.Revocation
	bundle    *control.TrustBundle
}

// publish makes the present state of the store, and of what gateways
// announced, the one that decides. When it returns, core decides by it and it
// is on its way to every connected component. A caller that goes away does not
// stop it half way; those who ask while one publication runs share the next.
func (p *publisher) publish(ctx context.Context) error {
	p.gate.Lock()
	if p.next == nil {
		p.next = &round{}
	}
	r := p.next
	p.gate.Unlock()
	r.once.Do(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.gate.Lock()
		p.next = nil // who asks from here on may have changed something that this one has read
		p.gate.Unlock()
		if r.err = p.publishLocked(context.WithoutCancel(ctx)); r.err != nil {
			r.err = fmt.Errorf("publish to components: %w", r.err)
		}
		p.behind = r.err != nil
	})
	return r.err
}

// retry publishes again if the last attempt failed.
func (p *publisher) retry(ctx context.Context) {
	p.mu.Lock()
	behind := p.behind
	p.mu.Unlock()
	if !behind {
		return
	}
	if err := p.publish(ctx); err != nil {
		p.log.Error("components still work by an older state", "cause", err)
	}
}

func (p *publisher) publishLocked(ctx context.Context) error {
	f, err := p.read(ctx)
	if err != nil {
		return err
	}
	f.revoked, f.bundle = revocationsProto(p.ca.TrustDomain(), f.revocations), p.ca.Bundle().Proto()
	p.self.SetRevocations(f.revoked)
	f.announced = map[string][]store.ServiceRecord{}
	for _, s := range f.services {
		f.announced[s.Gateway] = append(f.announced[s.Gateway], s)
	}
	f.proxyPart = p.composeProxy(f)

	var parcels []*parcel
	need := map[*component]uint64{}
	for _, r := range f.components {
		if r.State != store.StateJoined {
			continue
		}
		to := p.registry.get(key{r.Role, r.Name})
		snapshot := p.compose(f, r)
		parcel, err := p.number(ctx, to, snapshot)
		if err != nil {
			return err
		}
		need[to] = snapshot.GetGeneration().GetGeneration()
		if parcel != nil {
			parcels = append(parcels, parcel)
		}
	}
	p.ruling.Store(p.rule(f, need))
	p.registry.wake()
	for _, parcel := range parcels {
		if err := parcel.deliver(); err != nil {
			p.log.Error("component works on by its former snapshot", "cause", err)
		}
	}
	return nil
}

// parcel is a snapshot that a component has to be sent.
type parcel struct {
	to       *component
	snapshot *control.Snapshot
	hash     [32]byte
}

// deliver makes the snapshot the one that its component works by.
func (p *parcel) deliver() error {
	p.to.mu.Lock()
	p.to.snapshot, p.to.hash = p.snapshot, p.hash
	session := p.to.session
	p.to.mu.Unlock()
	if session == nil {
		return nil
	}
	return session.Send(p.snapshot)
}

// number gives a snapshot its generation: the component's last one when the
// content is the same, else the next, in a parcel.
func (p *publisher) number(ctx context.Context, to *component, s *control.Snapshot) (*parcel, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", to.key, err)
	}
	hash := sha256.Sum256(body)
	to.mu.Lock()
	former, formerHash := to.snapshot, to.hash
	to.mu.Unlock()
	if former != nil && formerHash == hash {
		s.Generation = former.Generation
		return nil, nil
	}
	generation, _, err := p.db.Generation(ctx, to.role, to.name, hash[:])
	if err != nil {
		return nil, err
	}
	s.Generation = &control.Generation{Epoch: p.epoch, Generation: generation}
	return &parcel{to, s, hash}, nil
}

// read reads everything that snapshots are made of.
func (p *publisher) read(ctx context.Context) (*facts, error) {
	f := &facts{}
	var err error
	if f.components, err = p.db.Components(ctx, ""); err != nil {
		return nil, err
	}
	if f.services, err = p.db.Services(ctx); err != nil {
		return nil, err
	}
	if f.keys, err = p.db.APIKeys(ctx); err != nil {
		return nil, err
	}
	if f.revocations, err = p.db.Revocations(ctx); err != nil {
		return nil, err
	}
	f.policy, err = p.readPolicy(ctx)
	return f, err
}

// readPolicy parses the policy in force, once per version.
func (p *publisher) readPolicy(ctx context.Context) (*policy.Policy, error) {
	record, err := p.db.Policy(ctx, 0)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if p.parsed == nil || p.version != 0 {
			p.parsed, p.version = policy.Default(p.demo), 0
		}
		return p.parsed, nil
	case err != nil:
		return nil, err
	case p.parsed != nil && p.version == record.Version:
		return p.parsed, nil
	}
	parsed, err := policy.Parse(fmt.Sprintf("policy version %d", record.Version), record.Text)
	if err != nil {
		return nil, fmt.Errorf("the policy in force cannot be read, apply a new one: %w", err)
	}
	p.parsed, p.version = parsed, record.Version
	return parsed, nil
}

func revocationsProto(domain string, rows []store.Revocation) []*control.Revocation {
	out := make([]*control.Revocation, 0, len(rows))
	for _, r := range rows {
		if r.Serial != "" {
			out = append(out, &control.Revocation{Serial: r.Serial})
			continue
		}
		id := pki.ID{TrustDomain: domain, Role: r.Role, Name: r.Name}
		out = append(out, &control.Revocation{Identity: id.String(), Incarnation: r.Incarnation})
	}
	return out
}
