package store

import (
	"context"
	"errors"
	"time"
)

// Snapshot writes a consistent copy of the database to a file that must not
// exist, while core runs.
func (c *Core) Snapshot(ctx context.Context, path string) error { return errors.ErrUnsupported }

// Restoration is what a restored database has to know.
type Restoration struct {
	Made        time.Time    // when the snapshot was taken
	Epoch       uint64       // the newest epoch that is known to have been in use; 0: none is
	Revocations []Revocation // what the components' signed lists say
}

// RestoreCore puts a snapshot in the place of the database at path, prepared to
// take over: a new epoch, revocations merged, those of the database that was
// there before as well. The last act is one rename. It returns the new epoch.
func RestoreCore(ctx context.Context, actor Actor, snapshot, path string, r Restoration, now time.Time) (uint64, error) {
	return 0, errors.ErrUnsupported
}

// OpenEpoch begins an epoch above one that a component has seen, when that is
// not older than the present one.
func (c *Core) OpenEpoch(ctx context.Context, actor Actor, above uint64, why string, now time.Time) (uint64, error) {
	return 0, errors.ErrUnsupported
}
