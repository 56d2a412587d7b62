package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sallyport/acme/pki"
)

// Phases of the CA, as its own files say them.
const (
	PhaseSteady    = "steady"
	PhasePublished = "published" // the next root is known to components; the old one issues
	PhaseActivated = "activated" // the next root issues; the old one is still trusted
)

// Steps that lead from one phase to another.
const (
	StepPublish     = "publish"
	StepActivate    = "activate"
	StepRetire      = "retire"
	StepRollback    = "rollback"
	StepCompromised = "compromised"
)

// stepsFrom is what each phase allows.
var stepsFrom = map[string][]string{
	PhaseSteady:    {StepPublish, StepCompromised},
	PhasePublished: {StepActivate, StepRollback, StepCompromised},
	PhaseActivated: {StepRetire, StepRollback, StepCompromised},
}

// DefaultRotationWait is how long a phase waits for absent components unless
// somebody said otherwise.
const DefaultRotationWait = 7 * 24 * time.Hour

// ErrRotation refuses a step that the CA's phase does not allow.
var ErrRotation = errors.New("the CA's rotation is not at a point where this can be done")

// CAState is what the CA's own files say.
type CAState struct {
	Phase string
	Root  []byte // SHA-256 of the SubjectPublicKeyInfo of the root that issues
	Since time.Time
}

func (s *CAState) equal(o CAState) bool { return s.Phase == o.Phase && bytes.Equal(s.Root, o.Root) }

// Rotation is how far a rotation of the CA is.
//
// The CA's files are the truth, and the store holds what core means to do with
// them. A step is intended here, then done there, then settled here; whatever
// point a crash comes at, settling at the next start finds either that the step
// was done, or that it is still intended and is to be done now.
//
// Taking an activation back is two steps of one intent: after the first, which
// leads to published, [StepRollback] is still intended.
type Rotation struct {
	CAState
	Wait     time.Duration // how long each phase waits for absent components
	Deadline time.Time     // when they stop blocking this phase; zero: the CA is steady
	Intent   string        // the step that was decided and is not done; empty: none
	Intended time.Time
	Skipped  []string // components that this rotation does not wait for: "gateway/orders"
}

func scanRotation(row func(...any) error) (r Rotation, err error) {
	var since, deadline, intended int64
	err = row(&r.Phase, &r.Root, &since, &r.Wait, &deadline, &r.Intent, &intended)
	r.Since, r.Deadline, r.Intended = moment(since), moment(deadline), moment(intended)
	return r, err
}

func rotation(ctx context.Context, from source) (Rotation, error) {
	r, err := one(ctx, from, scanRotation, "SELECT phase, root, since, wait, deadline, intent, intended FROM rotation")
	if err != nil {
		return r, fmt.Errorf("read the CA's rotation: %w", err)
	}
	r.Skipped, err = all(ctx, from, value[string], "SELECT role || '/' || name FROM acknowledgements WHERE skipped <> 0 ORDER BY role, name")
	if err != nil {
		return r, fmt.Errorf("read the CA's rotation: %w", err)
	}
	return r, nil
}

// Rotation returns how far the CA's rotation is.
func (c *Core) Rotation(ctx context.Context) (Rotation, error) {
	return rotation(ctx, c.db.reader)
}

// IntendRotation records the next step before the CA's files change. wait is how
// long each phase of this rotation waits for absent components, 0 for
// [DefaultRotationWait]; it counts for [StepPublish] alone. An empty step gives
// up what was intended. [ErrRotation] when the phase does not allow it.
func (c *Core) IntendRotation(ctx context.Context, actor Actor, step string, wait time.Duration, now time.Time) error {
	return c.decide(ctx, actor, func(t *tx) error {
		t.now = now
		r, err := rotation(t.ctx, t.sql)
		if err != nil {
			return err
		}
		action := "ca." + step
		switch {
		case step == "" && r.Intent == "":
			return nil
		case step == "":
			action = "ca.give_up"
		case !slices.Contains(stepsFrom[r.Phase], step):
			return fmt.Errorf("%w: %s, while it is %s", ErrRotation, step, r.Phase)
		case wait < 0:
			return fmt.Errorf("a rotation cannot wait for %s", wait)
		case step == StepPublish && wait == 0:
			wait = DefaultRotationWait
		}
		if step != StepPublish {
			wait = r.Wait
		}
		if _, err := t.exec("UPDATE rotation SET intent = ?, intended = ?, wait = ?", step, nanos(now), int64(wait)); err != nil {
			return err
		}
		detail := "intended"
		if step == "" {
			detail = r.Intent + " is not intended any more"
		} else if step == StepPublish {
			detail = fmt.Sprintf("intended; waits %s for absent components", wait)
		}
		return t.audit(action, "ca", detail)
	})
}

// ExtendRotation moves the deadline of the phase, and of those that follow, to
// wait from now. [ErrRotation] when no rotation is under way.
func (c *Core) ExtendRotation(ctx context.Context, actor Actor, wait time.Duration, now time.Time) error {
	return c.decide(ctx, actor, func(t *tx) error {
		t.now = now
		r, err := rotation(t.ctx, t.sql)
		if err != nil {
			return err
		}
		if r.Deadline.IsZero() || wait <= 0 {
			return fmt.Errorf("%w: wait %s, while it is %s", ErrRotation, wait, r.Phase)
		}
		if _, err := t.exec("UPDATE rotation SET wait = ?, deadline = ?", int64(wait), nanos(now.Add(wait))); err != nil {
			return err
		}
		return t.audit("ca.wait", "ca", r.Phase+": waits for absent components "+until(now.Add(wait)))
	})
}

// SettleRotation makes the store agree with the CA's files: at every start and
// after every step. When they have changed, the intent is done and the phase's
// time begins; when they have not, an intent is still there and is to be carried
// out. So it is after the first step back from activated.
func (c *Core) SettleRotation(ctx context.Context, actor Actor, ca CAState, now time.Time) (Rotation, error) {
	var r Rotation
	err := c.decide(ctx, actor, func(t *tx) (err error) {
		t.now = now
		if r, err = rotation(t.ctx, t.sql); err != nil {
			return err
		}
		if stepsFrom[ca.Phase] == nil {
			return fmt.Errorf("settle the CA's rotation: %q is no phase", ca.Phase)
		}
		if err := keyHash("settle the CA's rotation: root", ca.Root); err != nil {
			return err
		}
		if r.equal(ca) {
			return nil
		}
		detail := "found in the CA's files"
		if r.Intent != "" {
			detail = "by " + r.Intent
		}
		if r.Phase != "" {
			detail += ", was " + r.Phase
		}
		halfBack := r.Intent == StepRollback && r.Phase == PhaseActivated && ca.Phase == PhasePublished
		if r.CAState = ca; ca.Since.IsZero() {
			r.Since = now.UTC()
		}
		r.Deadline = time.Time{}
		if !halfBack {
			r.Intent, r.Intended = "", time.Time{}
		}
		if ca.Phase == PhaseSteady {
			r.Wait, r.Skipped = 0, nil
			if _, err := t.exec("UPDATE acknowledgements SET skipped = 0 WHERE skipped <> 0"); err != nil {
				return err
			}
		} else {
			if r.Wait == 0 {
				r.Wait = DefaultRotationWait
			}
			r.Deadline = now.Add(r.Wait).UTC()
		}
		if _, err := t.exec("UPDATE rotation SET phase = ?, root = ?, since = ?, wait = ?, deadline = ?, intent = ?, intended = ?",
			r.Phase, r.Root, nanos(r.Since), int64(r.Wait), nanos(r.Deadline), r.Intent, nanos(r.Intended)); err != nil {
			return err
		}
		return t.audit("ca.phase", "ca", fmt.Sprintf("%s %s; issues under root %x", r.Phase, detail, r.Root))
	})
	return r, err
}

// SkipInRotation lets the rotation go on without a component that has joined.
// [ErrRotation] when none is under way.
func (c *Core) SkipInRotation(ctx context.Context, actor Actor, role pki.Role, name string) error {
	err := c.decide(ctx, actor, func(t *tx) error {
		r, err := rotation(t.ctx, t.sql)
		if err != nil {
			return err
		}
		if r.Deadline.IsZero() {
			return ErrRotation
		}
		if slices.Contains(r.Skipped, label(role, name)) {
			return nil
		}
		if err := t.acknowledge(role, name, "skipped = 1"); err != nil {
			return err
		}
		return t.audit("ca.skip", label(role, name), r.Phase)
	})
	if err != nil {
		return fmt.Errorf("skip %s %s in the CA's rotation: %w", role, name, err)
	}
	return nil
}

// Blocks says whether a phase of the CA has to wait for the component: while
// published until it has acknowledged bundle, while activated until its
// confirmed certificate is of the root that issues.
func (r *Rotation) Blocks(p Progress, bundle []byte) bool {
	switch {
	case p.Reusable || p.Skipped:
		return false
	case r.Phase == PhasePublished:
		return !bytes.Equal(p.Bundle, bundle)
	case r.Phase == PhaseActivated:
		return !bytes.Equal(p.Root, r.Root)
	}
	return false
}
