package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/configs/fault"
	"sallyport/roles/control"
	"sallyport/store"
)

// rotation leads the CA from one root to the next:
//
//	steady ── publish ──▶ published ── activate ──▶ activated ── retire ──▶ steady
//
// Published waits until every component has acknowledged the trust bundle with
// both roots, activated until every component has a certificate of the new one
// in use. Who is away blocks, and is named, until the operator skips it or the
// wait is over; it is led over later, by recovery. A step is intended in the
// store, done in the CA's files, settled in the store: a core that is killed in
// between goes on where it was.
//
// Taking an activation back takes two steps too. The first lets the old root
// issue again; then the intent to roll back stays in the store, until nobody
// has a certificate of the new one any more.
type rotation struct {
	core   *core
	log    *slog.Logger
	kicked chan struct{}
	locked chan struct{} // held while a step is decided and done

	intended atomic.Bool // a step may be intended while the CA is steady
}

// rotationEvery is how often a rotation looks at the clock at the least;
// acknowledgements wake it at once, and so does the end of its waiting.
const rotationEvery = time.Minute

func newRotation(c *core) *rotation {
	return &rotation{core: c, log: c.log, kicked: make(chan struct{}, 1), locked: make(chan struct{}, 1)}
}

// kick lets run look at once.
func (r *rotation) kick() {
	select {
	case r.kicked <- struct{}{}:
	default:
	}
}

func (r *rotation) lock(ctx context.Context) error {
	select {
	case r.locked <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *rotation) unlock() { <-r.locked }

// start makes the store agree with the CA's files.
func (r *rotation) start(ctx context.Context) error {
	state, err := r.core.db.SettleRotation(ctx, actorCore, stateOf(r.core.ca.get()), time.Now())
	r.intended.Store(state.Intent != "")
	return err
}

func stateOf(ca *pki.Authority) store.CAState {
	return store.CAState{Phase: string(ca.Phase()), Root: issuingRoot(ca), Since: ca.Since()}
}

// run goes on with the rotation whenever it can, until ctx ends.
func (r *rotation) run(ctx context.Context) error {
	said := ""
	for {
		if err := r.advance(ctx, time.Now()); err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			r.log.Error("the CA's rotation cannot go on; it is tried again", "cause", err)
		} else if err == nil {
			said = ""
		}
		look := time.NewTimer(r.untilDeadline(ctx))
		select {
		case <-ctx.Done():
		case <-look.C:
		case <-r.kicked:
		}
		look.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// untilDeadline is how long to wait before looking at the clock again.
func (r *rotation) untilDeadline(ctx context.Context) time.Duration {
	if r.core.ca.get().Phase() == pki.PhaseSteady {
		return rotationEvery
	}
	state, err := r.core.db.Rotation(ctx)
	if err != nil || state.Deadline.IsZero() {
		return rotationEvery
	}
	return nextLook(time.Until(state.Deadline), time.Second)
}

// advance takes the steps that can be taken now.
func (r *rotation) advance(ctx context.Context, now time.Time) error {
	if r.core.relearning.active.Load() {
		return nil
	}
	if r.core.ca.get().Phase() == pki.PhaseSteady && !r.core.ca.get().RotateDue(now) && !r.intended.Load() {
		return nil
	}
	if err := r.lock(ctx); err != nil {
		return err
	}
	defer r.unlock()
	return r.advanceLocked(ctx, now)
}

func (r *rotation) advanceLocked(ctx context.Context, now time.Time) error {
	for range 8 { // more steps than there are between one steady phase and the next
		state, err := r.core.db.Rotation(ctx)
		if err != nil {
			return err
		}
		step := state.Intent
		if step == "" {
			if step, err = r.due(ctx, &state, now); err != nil || step == "" {
				return err
			}
			if err := r.core.db.IntendRotation(ctx, actorCore, step, 0, now); err != nil {
				return err
			}
		}
		if step == store.StepRollback && state.Phase == store.PhasePublished {
			blockers, err := r.heldByNext(ctx)
			if err != nil || len(blockers) > 0 && (state.Deadline.IsZero() || now.Before(state.Deadline)) {
				return err
			}
		}
		if err := r.do(ctx, step, now); err != nil {
			return err
		}
		r.intended.Store(false) // a second step back is taken from published, where run looks in any case
	}
	return nil
}

// due is the step that is to be taken without anybody asking; empty: none.
func (r *rotation) due(ctx context.Context, state *store.Rotation, now time.Time) (string, error) {
	next := ""
	switch state.Phase {
	case store.PhaseSteady:
		if r.core.ca.get().RotateDue(now) {
			return store.StepPublish, nil
		}
		return "", nil
	case store.PhasePublished:
		next = store.StepActivate
	case store.PhaseActivated:
		next = store.StepRetire
	}
	blockers, err := r.blockers(ctx, state)
	if err != nil {
		return "", err
	}
	if len(blockers) == 0 {
		return next, nil
	}
	if state.Deadline.IsZero() || now.Before(state.Deadline) {
		return "", nil
	}
	r.log.Warn("the CA's rotation goes on without those that did not come in time; they are led over when they come", "phase", state.Phase, "step", next, "without", strings.Join(blockers, "; "))
	return next, nil
}

// blockers are the components that the phase waits for, and why.
func (r *rotation) blockers(ctx context.Context, state *store.Rotation) ([]string, error) {
	progress, err := r.core.db.Progress(ctx)
	if err != nil {
		return nil, err
	}
	bundle := bundleHash(r.core.ca.get().Bundle().Proto())
	var out []string
	for _, p := range progress {
		if !state.Blocks(p, bundle[:]) {
			continue
		}
		why := "has not acknowledged the new root yet"
		if state.Phase == store.PhaseActivated {
			why = "has no certificate of the new root in use yet"
		}
		out = append(out, p.Label()+": "+r.away(p)+why)
	}
	return out, nil
}

// away says since when a component that blocks has not been there.
func (r *rotation) away(p store.Progress) string {
	if m := r.core.registry.find(key{p.Role, p.Name}); m != nil && m.connected.Load() {
		return ""
	}
	if p.LastSeen.IsZero() {
		return "is not connected; it "
	}
	return "is not connected (last seen " + p.LastSeen.UTC().Format(time.RFC3339) + "); it "
}

// heldByNext are the components that have, or are about to have, a certificate
// of the root that is to be dropped.
func (r *rotation) heldByNext(ctx context.Context) ([]string, error) {
	progress, err := r.core.db.Progress(ctx)
	if err != nil {
		return nil, err
	}
	root := issuingRoot(r.core.ca.get())
	var out []string
	for _, p := range progress {
		if p.Reusable || p.Skipped {
			continue
		}
		keys, err := r.core.db.Keys(ctx, p.Role, p.Name)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if (k.State == store.KeyConfirmed || k.State == store.KeyPending) && len(k.Root) > 0 && !bytes.Equal(k.Root, root) {
				out = append(out, p.Label()+": "+r.away(p)+"has a certificate of the new root")
				break
			}
		}
	}
	return out, nil
}

// do takes one step that is intended: in the CA's files, in the store, then
// everywhere.
func (r *rotation) do(ctx context.Context, step string, now time.Time) error {
	c := r.core
	fault.Point(step, "intended")
	ca, err := c.ca.change(func(ca *pki.Authority) (*pki.Authority, error) {
		switch step {
		case store.StepPublish:
			return ca.Publish(now)
		case store.StepActivate:
			return ca.Activate(now)
		case store.StepRetire:
			return ca.Retire(now)
		case store.StepRollback:
			return ca.Rollback(now)
		case store.StepCompromised:
			return ca.Compromised(now)
		}
		return nil, fmt.Errorf("%q is no step of a rotation", step)
	})
	if errors.Is(err, pki.ErrWrongPhase) {
		// The files are ahead of the store: settling it says where they are.
		ca, err = c.ca.get(), nil
	}
	if err != nil {
		return fmt.Errorf("ca %s: %w", step, err)
	}
	if err := recordAuthority(ctx, c.db, ca); err != nil {
		c.log.Error("the CA's new certificates are not listed", "cause", err)
	}
	if _, err := c.db.SettleRotation(ctx, actorCore, stateOf(ca), now); err != nil {
		return err
	}
	fault.Point(step, "settled")
	c.log.Info("the CA's rotation has taken a step", "step", step, "phase", ca.Phase())
	if step == store.StepCompromised {
		r.disown()
	}
	c.backupSoon() // an older backup's CA is not believed any more after a while
	// Before others are told what to believe, core shows what they believe already.
	if err := c.refreshIdentity(ctx, now); err != nil {
		return err
	}
	return c.publisher.publish(ctx)
}

// disown cuts everybody off: nothing that the old root has signed is believed
// any more.
func (r *rotation) disown() {
	why := &pki.Refusal{Code: pki.CodeUnknownAuthority, Cause: "the CA was replaced because its key may be known to others (ca rotate --compromised)",
		Remedy: "remove this component and add it again on core, and start it with the new token, without its former identity"}
	for _, m := range r.core.registry.list("") {
		if s := m.current(); s != nil {
			s.Close(why)
			m.end(s, why.Cause)
		}
		m.close(errCut(m.key, why))
	}
}

// RotateCA begins a rotation, goes on with it, takes it back, or says how far
// it is.
func (a *admin) RotateCA(ctx context.Context, in *control.RotateCARequest) (*control.RotateCAResponse, error) {
	r := a.core.rotation
	if in.GetWaitSeconds() < 0 || in.GetWaitSeconds() > int64(maxTokenLifetime/time.Second) {
		return nil, wrong("ca rotate: --wait is at most %d days", maxTokenLifetime/(24*time.Hour))
	}
	if in.GetAction() != control.RotateCARequest_ACTION_STATUS {
		if refusal := a.core.mayIssue(); refusal != nil {
			return nil, status.Error(codes.FailedPrecondition, "ca rotate: "+refusal.Error())
		}
		if err := r.lock(ctx); err != nil {
			return nil, refusal(err)
		}
		err := r.act(context.WithoutCancel(ctx), actor(ctx), in)
		r.unlock()
		if errors.Is(err, store.ErrRotation) {
			return nil, status.Error(codes.FailedPrecondition, err.Error()+": see sallyport ca rotate --status")
		}
		if err != nil {
			return nil, refusal(err)
		}
		r.kick()
	}
	out, err := r.describe(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	return out, nil
}

// act decides what the operator asks for, and does what can be done at once.
func (r *rotation) act(ctx context.Context, by store.Actor, in *control.RotateCARequest) error {
	c, now := r.core, time.Now()
	wait := time.Duration(in.GetWaitSeconds()) * time.Second
	state, err := c.db.Rotation(ctx)
	if err != nil {
		return err
	}
	intend := func(step string) error {
		if err := c.db.IntendRotation(ctx, by, step, wait, now); err != nil {
			return err
		}
		r.intended.Store(step != "")
		return r.advanceLocked(ctx, now)
	}
	switch in.GetAction() {
	case control.RotateCARequest_ACTION_UNSPECIFIED:
		if state.Phase == store.PhaseSteady {
			return intend(store.StepPublish)
		}
		if wait > 0 {
			if err := c.db.ExtendRotation(ctx, by, wait, now); err != nil {
				return err
			}
		}
		if state.Intent == store.StepRollback { // it goes forward again
			return intend("")
		}
		return r.advanceLocked(ctx, now)
	case control.RotateCARequest_ACTION_SKIP:
		role, name, ok := strings.Cut(in.GetSkip(), "/")
		if !ok {
			return wrong("ca rotate --skip %q: write gateway/NAME or proxy/NAME", clean(in.GetSkip()))
		}
		of, err := roleOf(role)
		if err != nil {
			return err
		}
		if err := c.db.SkipInRotation(ctx, by, of, name); err != nil {
			return err
		}
		return r.advanceLocked(ctx, now)
	case control.RotateCARequest_ACTION_ROLLBACK:
		return intend(store.StepRollback)
	case control.RotateCARequest_ACTION_COMPROMISED:
		return intend(store.StepCompromised)
	}
	return wrong("ca rotate: that action is not known to this version")
}

// describe says how far the rotation is, who blocks it, and what comes next.
func (r *rotation) describe(ctx context.Context) (*control.RotateCAResponse, error) {
	state, err := r.core.db.Rotation(ctx)
	if err != nil {
		return nil, err
	}
	ca := r.core.ca.get()
	out := &control.RotateCAResponse{Phase: string(ca.Phase()), SinceUnix: seconds(ca.Since()), DeadlineUnix: seconds(state.Deadline), Skipped: slices.Clone(state.Skipped)}
	back := state.Intent == store.StepRollback
	if back {
		out.Blockers, err = r.heldByNext(ctx)
	} else {
		out.Blockers, err = r.blockers(ctx, &state)
	}
	if err != nil {
		return nil, err
	}
	when := "now"
	if len(out.Blockers) > 0 && !state.Deadline.IsZero() {
		when = "when nothing blocks it, or without those that block at " + state.Deadline.UTC().Format(time.RFC3339)
	}
	if out.Warnings, err = r.core.estranged(ctx); err != nil {
		return nil, err
	}
	switch {
	case ca.Phase() == pki.PhaseSteady:
		out.Next = "the next rotation begins by itself at " + ca.RotateAt().UTC().Format(time.RFC3339)
	case back:
		out.Next = "the new root is dropped: " + when
	case ca.Phase() == pki.PhasePublished:
		out.Next = "the new root begins to issue: " + when
	default:
		out.Next = "the old root is retired: " + when
	}
	return out, nil
}
