package link

import (
	"errors"
	"testing"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// disk is a component's database, which can fail.
type disk struct {
	body []byte
	err  error
}

func (d *disk) save(body []byte, _, _ uint64) error {
	if d.err == nil {
		d.body = body
	}
	return d.err
}
func (d *disk) load() ([]byte, uint64, uint64, error) { return d.body, 0, 0, d.err }
func (d *disk) forget() error                         { d.body = nil; return d.err }

func TestASnapshotCountsWhenItIsOnDisk(t *testing.T) {
	c := newCA(t)
	d := &disk{}
	var used []uint64
	var refuse error
	make1 := func() *Snapshots {
		return &Snapshots{Self: c.self(pki.RoleGateway, "attic"), Save: d.save, Load: d.load, Forget: d.forget,
			Prepare: func(s *control.Snapshot) (func(), error) {
				return func() { used = append(used, s.GetGeneration().GetGeneration()) }, refuse
			}}
	}
	s := make1()
	snapshot := func(n uint64) *control.Snapshot {
		return &control.Snapshot{Generation: &control.Generation{Epoch: 1, Generation: n}, Bundle: c.authority.Bundle().Proto()}
	}
	if err := s.Restore(); err != nil || s.Held() != nil {
		t.Errorf("nothing on disk: %v, holds %v", err, s.Held())
	}
	if err := s.Apply(snapshot(1)); err != nil {
		t.Fatal(err)
	}
	// Each failure leaves the former in force, in memory and on disk.
	onDisk := string(d.body)
	d.err = errors.New("disk full")
	if err := s.Apply(snapshot(2)); err == nil {
		t.Error("a snapshot counts that is not on disk")
	}
	d.err, refuse = nil, errors.New("not understood")
	if err := s.Apply(snapshot(3)); err == nil {
		t.Error("a snapshot counts that was not understood")
	}
	refuse = nil
	bad := snapshot(4)
	bad.Bundle = &control.TrustBundle{TrustDomain: "test.internal", Roots: [][]byte{{1}}}
	if err := s.Apply(bad); err == nil {
		t.Error("a snapshot counts whose trust bundle is rubbish")
	}
	if s.Held().GetGeneration() != 1 || string(d.body) != onDisk || len(used) != 1 {
		t.Errorf("holds %v, used %v", s.Held(), used)
	}

	// After a restart it is there again.
	s = make1()
	if err := s.Restore(); err != nil || s.Held().GetGeneration() != 1 || len(used) != 2 {
		t.Errorf("restored: %v, holds %v", err, s.Held())
	}
	// One that cannot be used any more is forgotten, not fatal.
	refuse = errors.New("from another time")
	s = make1()
	if err := s.Restore(); err != nil || s.Held() != nil || d.body != nil {
		t.Errorf("unusable: %v, holds %v", err, s.Held())
	}
}
