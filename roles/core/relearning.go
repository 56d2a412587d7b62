package core

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// relearning is what a core does that was restored on a fresh host: it may have
// forgotten what was revoked since the backup, so it issues nothing, renews
// nothing and relays nothing until it has heard every component that the backup
// knows, and taken what their signed lists say. A component is heard on its
// control session, or, when its identity has expired, as it asks to recover it:
// core wants its list before it answers. Where the backup knows none but proxies
// and instances that join by reusable tokens, which may be gone, one of them is
// enough, and an instance is heard for the gateway that it is of.
type relearning struct {
	path string
	log  *slog.Logger

	active atomic.Bool

	mu    sync.Mutex
	state relearningState
}

// relearningState is the file that a restoration leaves behind, until it is over.
type relearningState struct {
	Restored time.Time `json:"restored"`
	Awaits   []string  `json:"awaits"` // gateway/orders
	Any      bool      `json:"any,omitempty"`
}

func relearningPath(dataDir string) string { return filepath.Join(dataDir, "restored.json") }

func openRelearning(dataDir string, log *slog.Logger) (*relearning, error) {
	s := &relearning{path: relearningPath(dataDir), log: log}
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s.state)
	}
	if err != nil {
		return nil, fmt.Errorf("%s says what core has to learn after its restoration, and cannot be read: %w; restore again, with --accept-loss if the components are gone", s.path, err)
	}
	s.active.Store(true)
	return s, nil
}

// refusal is why core does not issue; nil if it does.
func (s *relearning) refusal() *pki.Refusal {
	if !s.active.Load() {
		return nil
	}
	return &pki.Refusal{Code: "core_error", Cause: "core was restored from a backup and waits for the revocation lists that its components hold: " + strings.Join(s.awaits(), ", "),
		Remedy: s.need() + "; one that is gone for good can be removed (gateway rm, proxy rm), or restore with --accept-loss"}
}

func (s *relearning) awaits() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.state.Awaits)
}

func (s *relearning) need() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Any {
		return "start one of those components as it was, with the state that it has"
	}
	return "start those components"
}

// holds is why core relays no calls; empty if it does.
func (s *relearning) holds() string {
	if !s.active.Load() {
		return ""
	}
	return "it was restored and waits for what its components know of revocations"
}

func (s *relearning) saveLocked() {
	text, err := json.Marshal(s.state)
	if err == nil {
		err = writeFile(s.path, text)
	}
	if err != nil {
		s.log.Error("what core has learnt after its restoration is not on disk, a restart asks again", "cause", err)
	}
}

// heard says that a component's list is known, or that the component is gone.
// It reports whether that was the last one.
func (s *relearning) heard(k key, gone bool) bool {
	if !s.active.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	label := string(k.role) + "/" + k.name
	before := len(s.state.Awaits)
	s.state.Awaits = slices.DeleteFunc(s.state.Awaits, func(a string) bool { return a == label })
	if s.state.Any && !gone && len(s.state.Awaits) != before {
		s.state.Awaits = nil
	}
	if len(s.state.Awaits) > 0 || !s.active.Load() {
		if len(s.state.Awaits) != before {
			s.saveLocked()
		}
		return false
	}
	if err := os.Remove(s.path); err != nil {
		s.log.Error("core has heard all its components after the restoration, and cannot note it", "cause", err)
	}
	s.active.Store(false)
	return true
}

// restored says whether this core's database was ever restored from a backup.
func (c *core) restored(ctx context.Context) bool {
	at, err := c.db.Restored(ctx)
	return err == nil && !at.IsZero()
}

// mayIssue is why core issues nothing now; nil if it does.
func (c *core) mayIssue() *pki.Refusal { return c.relearning.refusal() }

// wantRevocations asks for the list of every component that holds another one
// than core does.
func (c *core) wantRevocations(s *link.Session, held *control.RevocationListHead) bool {
	own := c.publisher.list.head()
	return own == nil || held.GetSequence() != own.GetSequence() || string(held.GetSha256()) != string(own.GetSha256())
}

// revocationsFrom takes the list of a component on its control session.
func (c *core) revocationsFrom(s *link.Session, p *control.RevocationList) {
	c.hear(context.WithoutCancel(s.Context()), key{s.Peer.ID.Role, s.Peer.ID.Name}, p)
}

// wantRecoveryList asks a component for its list that has an expired identity
// and can be heard nowhere else, if it is one whose key counts.
func (c *core) wantRecoveryList(ctx context.Context, a link.RenewAttempt) bool {
	if !c.relearning.active.Load() {
		return false
	}
	use, err := keyUse(c.ca.get(), a.ID, a.Incarnation, []*x509.Certificate{a.Holder}, a.Begun, addressOf(a.Source))
	if err == nil {
		_, err = c.db.CheckKey(ctx, use, time.Now())
	}
	return err == nil
}

// recoveryList takes the list of a component that recovers.
func (c *core) recoveryList(ctx context.Context, a link.RenewAttempt, p *control.RevocationList) {
	k := key{a.ID.Role, a.ID.Name}
	if len(p.GetPayload()) == 0 {
		c.settle(context.WithoutCancel(ctx), k) // it never had one
		return
	}
	c.hear(context.WithoutCancel(ctx), k, p)
}

// hear takes what a component's signed list says beyond core's. Only core signs
// such lists, so what one says was decided here, and forgotten.
func (c *core) hear(ctx context.Context, k key, p *control.RevocationList) {
	ca := c.ca.get()
	list, err := pki.VerifyRevocations(p, ca.Bundle().Roots)
	if err != nil || list.TrustDomain != ca.TrustDomain() {
		if err == nil {
			err = fmt.Errorf("it is for %s", list.TrustDomain)
		}
		c.log.Warn("the revocation list of a component cannot be taken", string(k.role), k.name, "cause", err)
		return // and it stays unheard
	}
	if err := c.learn(ctx, store.Actor("core, from "+k.String()), list); err != nil {
		c.log.Error("the revocation list of a component could not be taken", string(k.role), k.name, "cause", err)
		return
	}
	c.settle(ctx, k)
}

// learn makes what a list says true here too.
func (c *core) learn(ctx context.Context, actor store.Actor, list *pki.RevocationList) error {
	n, err := c.db.MergeRevocations(ctx, actor, storedRevocations(list), time.Now())
	if err != nil {
		return err
	}
	if list.Epoch > c.publisher.epoch.Load() {
		epoch, err := c.db.OpenEpoch(ctx, actor, list.Epoch, "a component has seen a newer one", time.Now())
		if err != nil {
			return err
		}
		c.publisher.renumber(epoch)
	}
	if n == 0 {
		return nil
	}
	c.log.Warn("core has learnt of revocations that it did not know", "from", string(actor), "count", n)
	if err := c.cutRevoked(ctx); err != nil {
		return err
	}
	keys, err := c.db.APIKeys(ctx)
	if err != nil {
		return err
	}
	ended := map[string]bool{}
	for _, k := range keys { // oldest first: the last of a name says whether it has a key
		ended["apikey:"+k.Name] = !k.Revoked.IsZero()
	}
	c.router.cut(func(p *passage) bool { return ended[p.record.Caller] }, codes.Unauthenticated, "core: the API key was revoked")
	return nil
}

// settle notes that a component was heard after a restoration, and begins to
// issue and to relay after the last one.
func (c *core) settle(ctx context.Context, k key) {
	if !c.relearning.active.Load() {
		return
	}
	r, err := c.db.Component(ctx, k.role, k.name)
	gone := errors.Is(err, store.ErrNotFound)
	if r.Parent != "" {
		k.name = r.Parent
	}
	if !c.relearning.heard(k, gone) {
		return
	}
	c.log.Info("core has the revocation lists of all its components after the restoration: it issues and relays from now on")
	if err := c.publisher.publish(ctx); err != nil {
		c.log.Error("cannot compose snapshots", "cause", err)
	}
}
