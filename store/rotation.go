package store

import (
	"context"
	"errors"
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

// ErrRotation refuses a step that the CA's phase does not allow.
var ErrRotation = errors.New("the CA's rotation is not at a point where this can be done")

// CAState is what the CA's own files say.
type CAState struct {
	Phase string
	Root  []byte // SHA-256 of the SubjectPublicKeyInfo of the root that issues
	Since time.Time
}

// Rotation is how far a rotation of the CA is.
type Rotation struct {
	CAState
	Wait     time.Duration // how long each phase waits for absent components
	Deadline time.Time     // when they stop blocking this phase; zero: the CA is steady
	Intent   string        // the step that was decided and is not done; empty: none
	Intended time.Time
	Skipped  []string // components that this rotation does not wait for: "gateway/orders"
}

// Rotation returns how far the CA's rotation is.
func (c *Core) Rotation(ctx context.Context) (Rotation, error) {
	return Rotation{}, errors.ErrUnsupported
}

// IntendRotation records the next step before the CA's files change. wait counts
// for publish alone. An empty step gives up what was intended.
func (c *Core) IntendRotation(ctx context.Context, actor Actor, step string, wait time.Duration, now time.Time) error {
	return errors.ErrUnsupported
}

// SettleRotation makes the store agree with the CA's files: at every start and
// after every step.
func (c *Core) SettleRotation(ctx context.Context, actor Actor, ca CAState, now time.Time) (Rotation, error) {
	return Rotation{}, errors.ErrUnsupported
}

// SkipInRotation lets the rotation go on without a component.
func (c *Core) SkipInRotation(ctx context.Context, actor Actor, role pki.Role, name string) error {
	return errors.ErrUnsupported
}

// Progress is what a component that has joined has acknowledged.
type Progress struct {
	Role        pki.Role
	Name        string
	Instance    bool   // of a reusable component: it never blocks a rotation
	Bundle      []byte // SHA-256 of the newest trust bundle it acknowledged; nil: none
	Root        []byte // of its confirmed certificate; nil: not known
	Epoch       uint64 // of Revocations
	Revocations uint64 // how many entries of the revocation list it enforces
	Skipped     bool
	LastSeen    time.Time
}

// Progress returns what every component that has joined has acknowledged, by
// role and name.
func (c *Core) Progress(ctx context.Context) ([]Progress, error) {
	return nil, errors.ErrUnsupported
}

// AcknowledgeBundle notes that a component has a trust bundle, by the SHA-256 of
// its content.
func (c *Core) AcknowledgeBundle(ctx context.Context, role pki.Role, name string, bundle []byte) error {
	return errors.ErrUnsupported
}

// AcknowledgeRevocations notes how many entries of the list a component enforces.
func (c *Core) AcknowledgeRevocations(ctx context.Context, role pki.Role, name string, epoch, sequence uint64) error {
	return errors.ErrUnsupported
}
