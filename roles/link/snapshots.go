package link

import (
	"fmt"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// Snapshots holds a component's last good snapshot. A snapshot counts in this
// order: it is understood (Prepare), it is on disk (Save), it is believed
// (Self), it is in use. One that fails at any of the first steps leaves the
// former in force.
type Snapshots struct {
	Self *Self
	// Save, Load and Forget are the component's database.
	Save   func(body []byte, epoch, generation uint64) error
	Load   func() (body []byte, epoch, generation uint64, err error)
	Forget func() error
	// Prepare reads the role's part and returns what puts it in use, which
	// cannot fail any more.
	Prepare func(*control.Snapshot) (use func(), err error)

	held atomic.Pointer[control.Snapshot]
}

// Restore puts the snapshot on disk in use, if there is one. One that cannot
// be used any more is forgotten, because core sends a whole one anyway.
func (s *Snapshots) Restore() error {
	body, _, _, err := s.Load()
	if err != nil {
		return fmt.Errorf("read the last snapshot: %w", err)
	}
	if body == nil {
		return nil
	}
	snapshot := new(control.Snapshot)
	err = proto.Unmarshal(body, snapshot)
	if err == nil {
		err = s.apply(snapshot, true, func(*control.Snapshot) error { return nil })
	}
	if err != nil {
		if forget := s.Forget(); forget != nil {
			return fmt.Errorf("forget an unusable snapshot: %w", forget)
		}
	}
	return nil
}

// Apply is what ComponentEnd.Apply asks for.
func (s *Snapshots) Apply(snapshot *control.Snapshot) error {
	return s.apply(snapshot, false, func(snapshot *control.Snapshot) error {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(snapshot)
		if err != nil {
			return err
		}
		return s.Save(body, snapshot.GetGeneration().GetEpoch(), snapshot.GetGeneration().GetGeneration())
	})
}

func (s *Snapshots) apply(snapshot *control.Snapshot, stored bool, save func(*control.Snapshot) error) error {
	if _, err := pki.BundleFromProto(snapshot.GetBundle()); err != nil {
		return fmt.Errorf("trust bundle of the snapshot: %w", err)
	}
	use, err := s.Prepare(snapshot)
	if err != nil {
		return err
	}
	// The newest revocation list goes to disk with it, also when core has lost
	// it and sends an older one.
	put, list, err := s.Self.prepare(snapshot, stored)
	if err != nil {
		return err
	}
	keep := snapshot
	if list != snapshot.GetRevocationList() {
		keep = proto.CloneOf(snapshot)
		keep.RevocationList = list
	}
	if err := save(keep); err != nil {
		return fmt.Errorf("save the snapshot: %w", err)
	}
	put()
	s.held.Store(snapshot)
	use()
	return nil
}

// Held is the generation in force, for Hello; nil if there is none.
func (s *Snapshots) Held() *control.Generation { return s.held.Load().GetGeneration() }

// Snapshot is the one in force, or nil. It must not be changed.
func (s *Snapshots) Snapshot() *control.Snapshot { return s.held.Load() }
