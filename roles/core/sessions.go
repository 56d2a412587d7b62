package core

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// errSuperseded is why calls end on the links of a process whose identity is
// now used by a newer one.
func errSuperseded(k key) error {
	return fmt.Errorf("core: %s was started anew and its former links were closed", k)
}

// errCut is why calls end on the links of a component that was removed.
func errCut(k key, why *pki.Refusal) error {
	return fmt.Errorf("core: link to %s was closed: %s", k, why.Cause)
}

// refuseRemoved says to a component that it is no longer one.
func refuseRemoved(k key) *pki.Refusal {
	return &pki.Refusal{Code: "removed", Cause: k.String() + " was removed on core",
		Remedy: fmt.Sprintf("to use it again: sallyport %s add %s … on core, and start it with the token that is printed", k.role, k.name)}
}

// refuseDisowned says to a component that the CA it has its certificate from was
// replaced and is not trusted any more.
func refuseDisowned(k key) *pki.Refusal {
	return &pki.Refusal{Code: pki.CodeUnknownAuthority, Cause: "the CA that made the certificate of " + k.String() + " was replaced and is not trusted any more (ca rotate --compromised)",
		Remedy: fmt.Sprintf("remove it and add it again (sallyport %s rm %s, sallyport %s add %s …) and start it with the new token, without its former identity", k.role, k.name, k.role, k.name)}
}

// check judges an identity that proved itself in a handshake: it has to be a
// component that joined, in its present incarnation. One that was invited when
// the backup was made that this core was restored from, and joined after it, is
// as good (the store says so, and its first session makes it joined); one that
// was added after it has to be added again.
func (c *core) check(alpn string, peer link.Peer) *pki.Refusal {
	if peer.ID.IsZero() {
		return nil
	}
	k := key{peer.ID.Role, peer.ID.Name}
	// The handshake may have gone by a CA that was distrusted just now.
	if len(peer.Chain) > 0 && c.ca.get().Disowned(peer.Chain[0]) {
		return refuseDisowned(k)
	}
	r, err := c.db.Component(context.Background(), k.role, k.name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		// The store looks at the key all the same: it may be time for an alarm.
		if refusal := c.judgeKey(context.Background(), peer, false); refusal != nil && refusal.Code == "not_joined" {
			return refusal
		}
		return refuseRemoved(k)
	case err != nil:
		return &pki.Refusal{Code: "core_error", Cause: "core cannot read its registry: " + err.Error(), Remedy: "see core's log; the component tries again by itself"}
	case r.Incarnation != peer.Incarnation:
		return &pki.Refusal{Code: pki.CodeRevoked, Cause: fmt.Sprintf("the certificate is of incarnation %d of %s, which is now in incarnation %d", peer.Incarnation, k, r.Incarnation),
			Remedy: fmt.Sprintf("the component was removed and added again: start it with the new token, or remove and add it once more (sallyport %s rm %s)", k.role, k.name)}
	}
	if refusal := c.checkAddress(context.Background(), k, peer.Remote, "the identity", proofOf(peer)); refusal != nil {
		return refusal
	}
	return c.judgeKey(context.Background(), peer, false)
}

// opened takes a component's new control session: it supersedes the former one,
// and the component is sent what it works by.
func (c *core) opened(s, _ *link.Session) *pki.Refusal {
	k := key{s.Peer.ID.Role, s.Peer.ID.Name}
	if refusal := c.check(link.ALPNControl, s.Peer); refusal != nil {
		return refusal
	}
	// The key of a control session is the one that counts from now on.
	if refusal := c.judgeKey(s.Context(), s.Peer, true); refusal != nil {
		return refusal
	}
	m := c.registry.get(k)
	if !m.begin(s) {
		return refuseRemoved(k)
	}
	// Once more: who removes it from here on finds this session, and who did
	// just before is found here.
	if refusal := c.check(link.ALPNControl, s.Peer); refusal != nil {
		m.cut(refusal)
		c.registry.forget(m)
		return refusal
	}
	c.see(s.Context(), m, s, time.Now())
	c.reported(s, s.Hello.GetCertificates())
	c.overtake(s)
	if held := s.Hello.GetRevocationsHeld(); held == nil || !c.wantRevocations(s, held) {
		c.settle(s.Context(), k) // it holds nothing that core does not know
	}
	c.rotation.kick()
	// A gateway that connects changes what proxies are told.
	if err := c.publisher.publish(s.Context()); err != nil {
		c.log.Error("cannot compose snapshots", "cause", err)
	}
	m.mu.Lock()
	snapshot := m.snapshot
	m.mu.Unlock()
	if snapshot != nil {
		if err := s.Send(snapshot); err != nil {
			c.log.Error("component works on by its former snapshot", "cause", err)
		}
	}
	return nil
}

// closed notes that a session is over.
func (c *core) closed(s *link.Session, cause error) {
	k := key{s.Peer.ID.Role, s.Peer.ID.Name}
	m := c.registry.find(k)
	if m == nil {
		return
	}
	why := "the control session ended"
	if cause != nil {
		why = cause.Error()
	}
	if !m.end(s, clean(why)) {
		return // a newer one has taken its place
	}
	if err := c.publisher.publish(context.Background()); err != nil {
		c.log.Error("cannot compose snapshots", "cause", err)
	}
}

// acknowledged notes which snapshot is in force at a component.
func (c *core) acknowledged(s *link.Session, ack *control.SnapshotAck) {
	m := c.registry.find(key{s.Peer.ID.Role, s.Peer.ID.Name})
	if m == nil {
		return
	}
	g := ack.GetGeneration()
	if why := ack.GetError(); why != "" {
		if m.speak() {
			c.log.Error("component refused its snapshot and works on by the former one", string(m.role), m.name, "generation", g.GetGeneration(), "cause", clean(why))
		}
		return
	}
	m.mu.Lock()
	current := m.session == s && m.snapshot != nil && g.GetEpoch() == m.snapshot.GetGeneration().GetEpoch() && g.GetGeneration() <= m.snapshot.GetGeneration().GetGeneration()
	said, known := m.sent[g.GetGeneration()]
	if current {
		m.acknowledged.Store(g.GetGeneration())
		if known {
			m.enforces.Store(said.sequence)
		}
		for generation := range m.sent {
			if generation < g.GetGeneration() {
				delete(m.sent, generation)
			}
		}
	}
	m.mu.Unlock()
	c.registry.wake()
	if !current || !known {
		return
	}
	ctx := context.WithoutCancel(s.Context())
	err := c.db.AcknowledgeBundle(ctx, m.role, m.name, said.bundle[:])
	if err == nil {
		err = c.db.AcknowledgeRevocations(ctx, m.role, m.name, g.GetEpoch(), said.sequence)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		c.log.Error("cannot note what a component has acknowledged", string(m.role), m.name, "cause", err)
	}
	c.rotation.kick()
}

// overtake begins an epoch above one that a component has seen: core was put
// back to an older state by other means than restore. An epoch is the second in
// which it began, or less, so that a component cannot name one out of reach.
func (c *core) overtake(s *link.Session) {
	held := s.Hello.GetHeld().GetEpoch()
	if held <= c.publisher.epoch.Load() {
		return
	}
	k := key{s.Peer.ID.Role, s.Peer.ID.Name}
	now := time.Now()
	if held > uint64(now.Add(24*time.Hour).Unix()) {
		c.log.Warn("a component says that it has seen an epoch that cannot have been", string(k.role), k.name, "epoch", held)
		return
	}
	epoch, err := c.db.OpenEpoch(context.WithoutCancel(s.Context()), actorCore, held, "a component has seen a newer one than this database has", now)
	if err != nil {
		c.log.Error("a component has seen a newer epoch, and core cannot begin one above it", string(k.role), k.name, "cause", err)
		return
	}
	c.publisher.renumber(epoch)
}

// renewed hears that a component uses its new identity: what core has dialled
// is dialled anew, so that the old certificate is not needed any more.
func (c *core) renewed(s *link.Session) {
	k := key{s.Peer.ID.Role, s.Peer.ID.Name}
	if m := c.registry.find(k); m != nil && k.role == pki.RoleProxy {
		m.replace()
	}
	c.alerts.over(s.Context(), onceRenewal(k))
}

// alerted passes on what a component wants its operator to know.
func (c *core) alerted(s *link.Session, a *control.Alert) {
	k := key{s.Peer.ID.Role, s.Peer.ID.Name}
	label := string(k.role) + "/" + k.name
	once := label + ": " + a.GetCode()
	if a.GetCode() == "renewal_failed" {
		once = onceRenewal(k)
	}
	c.alerts.raise(s.Context(), alert{Code: clean(a.GetCode()), Subject: label, Text: k.String() + ": " + clean(a.GetText()), Remedy: clean(a.GetRemedy()), Once: once, From: label})
}

// flapping is the alarm that two processes use one identity at a time.
func (c *core) flapping(s, former *link.Session) {
	k := key{s.Peer.ID.Role, s.Peer.ID.Name}
	c.alarm(context.Background(), "session.flapping", k, fmt.Sprintf("two processes use the identity of %s and keep superseding each other, from %s and from %s; "+
		"if one of them is a copy, stop it; if you do not know it, its key was stolen: sallyport %s rm %s", k, s.Peer.Remote, former.Peer.Remote, k.role, k.name))
}

// alarm is what an operator must look at: logged as an error and audited.
func (c *core) alarm(ctx context.Context, action string, k key, detail string) {
	c.alerts.raise(ctx, alert{Code: action, Subject: string(k.role) + "/" + k.name, Text: detail, Alarm: true})
	if err := c.db.Audit(ctx, actorCore, store.ActionAlarm+action, string(k.role)+"/"+k.name, detail); err != nil {
		c.log.Error("alarm was not audited", "alarm", action, "cause", err)
	}
}

// see notes in the store that a component was there.
func (c *core) see(ctx context.Context, m *component, s *link.Session, now time.Time) {
	m.mu.Lock()
	due := now.Sub(m.noted) >= 50*time.Second
	if due {
		m.noted = now
	}
	m.mu.Unlock()
	if !due {
		return
	}
	err := c.db.SawComponent(ctx, m.role, m.name, store.Sighting{At: now, Version: s.Hello.GetVersion(), Observed: addressOf(s.Peer.Remote)})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		c.log.Error("cannot note that a component was seen", string(m.role), m.name, "cause", err)
	}
}

// noteSightings notes all that are connected; it is called once a minute.
func (c *core) noteSightings(ctx context.Context, now time.Time) {
	for _, m := range c.registry.list("") {
		if s := m.current(); s != nil {
			c.see(ctx, m, s, now)
		}
	}
	c.publisher.retry(ctx)
}

// instanceAbsence is how long an instance of a reusable gateway may be away
// before it is forgotten.
const instanceAbsence = 24 * time.Hour

// forgetInstances forgets instances of reusable gateways that are long gone.
func (c *core) forgetInstances(ctx context.Context, now time.Time) {
	gone, err := c.db.ForgetInstances(ctx, actorCore, now.Add(-instanceAbsence))
	if err != nil {
		c.log.Error("cannot forget absent instances", "cause", err)
		return
	}
	if len(gone) == 0 {
		return
	}
	for _, r := range gone {
		c.registry.remove(key{r.Role, r.Name}, refuseRemoved(key{r.Role, r.Name}))
	}
	c.log.Info("instances that were away for a day are forgotten", "count", len(gone))
	if err := c.publisher.publish(ctx); err != nil {
		c.log.Error("cannot compose snapshots", "cause", err)
	}
}

// addressOf is the address without its port, which changes every time.
func addressOf(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr().String()
}
