package core

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/policy/token"
	"sallyport/store"
)

// publisher makes what was decided true everywhere: it reads the store, puts a
// new ruling in force at core and sends every component what changed for it.
type publisher struct {
	log       *slog.Logger
	db        *store.Core
	ca        *authority
	list      *revocationList
	crls      *crls
	self      *link.Self
	registry  *registry
	epoch     atomic.Uint64
	lifetime  time.Duration               // of components' certificates
	listener  *control.OutsideCertificate // how the gRPC port presents itself; nil: internal
	modeOf    func(store.ComponentRecord) string
	demo      bool // the default policy opens the built-in service
	advertise string
	ruling    *atomic.Pointer[ruling]
	peers     *peers
	ruled     func() // a new ruling is in force
	issuers   *issuers

	mu      sync.Mutex // one publication at a time; guards what follows
	version uint64     // of parsed
	parsed  *policy.Policy
	grounds *grounds // of the last ruling
	catalog *shared  // likewise
	behind  bool     // the last publication failed

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
	issuers     []token.Issuer
	ca          *pki.Authority

	// What several snapshots share, made once.
	proxyPart *control.ProxyPart
	announced map[string][]store.ServiceRecord // by gateway
	revoked   []*control.Revocation
	bundle    *control.TrustBundle
	list      *control.RevocationList
	sequence  uint64 // of the newest entry of the list, in the store
	crl       []byte // of the callers' issuer
	issuer    []byte // SHA-256 of the key of the intermediate that issues components

	callerIssuer []byte // likewise callers and services
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
	p.peers.follow(f.components)
	if err := p.readAuthority(ctx, f); err != nil {
		return err
	}
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
		parcel, err := p.number(ctx, f, to, snapshot)
		if err != nil {
			return err
		}
		need[to] = snapshot.GetGeneration().GetGeneration()
		if parcel != nil {
			parcels = append(parcels, parcel)
		}
	}
	p.ruling.Store(p.rule(f, need))
	p.ruled()
	p.registry.wake()
	for _, parcel := range parcels {
		if err := parcel.deliver(); err != nil {
			p.log.Error("component works on by its former snapshot", "cause", err)
		}
	}
	return nil
}

// readAuthority adds what the CA says: whom to believe, and whom not any more.
func (p *publisher) readAuthority(ctx context.Context, f *facts) (err error) {
	f.ca = p.ca.get()
	f.bundle = f.ca.Bundle().Proto()
	f.revoked = revocationsProto(f.ca.TrustDomain(), f.revocations)
	if f.list, f.sequence, err = p.list.current(ctx, p.epoch.Load()); err != nil {
		return err
	}
	components, callers := pki.SPKI(issuerOf(f.ca, "components' issuer")), pki.SPKI(issuerOf(f.ca, "callers' issuer"))
	f.issuer, f.callerIssuer = components[:], callers[:]
	lists, err := p.crls.current(ctx, time.Now())
	if err != nil {
		return err
	}
	if len(lists) > 0 {
		f.crl = lists[0]
	}
	return nil
}

// content is what a snapshot says of the CA, for its acknowledgement.
type content struct {
	bundle   [32]byte // SHA-256 of the trust bundle
	sequence uint64   // of the newest revocation
}

func bundleHash(b *control.TrustBundle) [32]byte {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(body)
}

// renumber begins another epoch: every snapshot gets a generation of it.
func (p *publisher) renumber(epoch uint64) {
	if p.epoch.Swap(epoch) != epoch {
		p.log.Warn("a new epoch begins", "epoch", epoch)
	}
}

// parcel is a snapshot that a component has to be sent.
type parcel struct {
	to       *component
	snapshot *control.Snapshot
	hash     [32]byte
	content  content
}

// maxSent bounds the snapshots whose acknowledgement may be outstanding.
const maxSent = 64

// deliver makes the snapshot the one that its component works by.
func (p *parcel) deliver() error {
	p.to.mu.Lock()
	if p.to.snapshot.GetGeneration().GetEpoch() != p.snapshot.GetGeneration().GetEpoch() || len(p.to.sent) >= maxSent {
		p.to.sent = nil
	}
	p.to.snapshot, p.to.hash = p.snapshot, p.hash
	if p.to.sent == nil {
		p.to.sent = map[uint64]content{}
	}
	p.to.sent[p.snapshot.GetGeneration().GetGeneration()] = p.content
	session := p.to.session
	p.to.mu.Unlock()
	if session == nil {
		return nil
	}
	return session.Send(p.snapshot)
}

// number gives a snapshot its generation: the component's last one when the
// content is the same, else the next, in a parcel.
func (p *publisher) number(ctx context.Context, f *facts, to *component, s *control.Snapshot) (*parcel, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", to.key, err)
	}
	hash := sha256.Sum256(body)
	to.mu.Lock()
	former, formerHash := to.snapshot, to.hash
	to.mu.Unlock()
	epoch := p.epoch.Load()
	if former != nil && formerHash == hash && former.GetGeneration().GetEpoch() == epoch {
		s.Generation = former.Generation
		return nil, nil
	}
	generation, _, err := p.db.Generation(ctx, to.role, to.name, hash[:])
	if err != nil {
		return nil, err
	}
	s.Generation = &control.Generation{Epoch: epoch, Generation: generation}
	return &parcel{to, s, hash, content{bundleHash(s.GetBundle()), f.sequence}}, nil
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
	if f.policy, err = p.readPolicy(ctx); err != nil {
		return nil, err
	}
	f.issuers = p.issuers.follow(f.policy.Issuers())
	return f, nil
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
		if r.Role == "" {
			if r.Serial != "" {
				out = append(out, &control.Revocation{Serial: r.Serial})
			}
			if len(r.SPKI) == 32 {
				out = append(out, &control.Revocation{Key: r.SPKI})
			}
			continue
		}
		id := pki.ID{TrustDomain: domain, Role: r.Role, Name: r.Name}
		out = append(out, &control.Revocation{Identity: id.String(), Incarnation: r.Incarnation})
	}
	return out
}
