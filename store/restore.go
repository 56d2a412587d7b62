package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sallyport/configs/fault"
)

// Restoration is what a restored database has to know.
type Restoration struct {
	Made        time.Time    // when the snapshot was taken; zero: at its newest audit row
	Epoch       uint64       // the newest epoch that is known to have been in use; 0: none is
	Revocations []Revocation // what the components' signed lists say

	// AcceptLoss goes on although a database that is there cannot be read,
	// and with it what was revoked since the backup. It is kept beside the
	// restored one as core.db.unreadable.
	AcceptLoss bool
}

// RestoreCore puts a snapshot in the place of the database at path and returns
// the epoch that begins. What it puts there is prepared to take over:
//
//   - a new epoch, above every one that is known and never one that was used,
//     since it is at least the seconds since 1970; generations begin anew in it;
//   - revocations are merged: those of the database that was there before, its
//     revoked API keys too, and those of the components' signed lists;
//   - what was issued after the backup can be told from what was never issued,
//     so that components which have renewed since connect, see [Core.SawKey].
//
// Nothing else is forgotten. All of it happens beside the database; the last act
// is one rename, so that a crash leaves the old database or the new one, whole.
// It fails with [ErrInUse] while core runs.
func RestoreCore(ctx context.Context, actor Actor, snapshot, path string, r Restoration, now time.Time) (epoch uint64, err error) {
	if actor == "" {
		return 0, ErrNoActor
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore %s: %w", path, err)
		}
	}()
	if path, err = filepath.Abs(path); err != nil {
		return 0, err
	}
	if err := privateDirectory(filepath.Dir(path)); err != nil {
		return 0, err
	}
	held, err := acquire(path, coreKind)
	if err != nil {
		return 0, err
	}
	defer held.release()
	before, err := readFormer(ctx, path)
	if err != nil && !r.AcceptLoss {
		return 0, fmt.Errorf("the database that is there cannot be read, and what was revoked since the backup is in it (--accept-loss goes on without): %w", err)
	}
	unreadable := err != nil

	staged := path + ".restoring"
	if err := removeDatabase(staged); err != nil {
		return 0, err
	}
	defer removeDatabase(staged)
	if err := copyFile(snapshot, staged); err != nil {
		return 0, err
	}
	fault.Point("restore", "copied")
	if epoch, err = prepare(ctx, actor, staged, r, before, now); err != nil {
		return 0, err
	}
	if unreadable {
		if err := setAside(path); err != nil {
			return 0, err
		}
	}
	fault.Point("restore", "prepared")
	if err := os.Rename(staged, path); err != nil {
		return 0, err
	}
	return epoch, syncDirectory(filepath.Dir(path))
}

// former is what a restored database has to learn from the one that it replaces.
type former struct {
	epoch       uint64
	revocations []Revocation
	keys        []APIKeyRecord
}

// readFormer reads the database that is there, if there is one, and leaves it
// without a log of its own: the log would be taken for that of the file which
// comes in its place.
func readFormer(ctx context.Context, path string) (f former, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	db, err := openHeld(path, coreKind, nil)
	if err != nil {
		return f, err
	}
	c := &Core{Now: time.Now, db: db}
	defer func() { err = errors.Join(err, c.Close(), withoutLog(path)) }()
	if f.epoch, err = c.Epoch(ctx); err != nil {
		return f, err
	}
	entries, err := c.RevocationEntries(ctx, 0)
	for _, e := range entries {
		f.revocations = append(f.revocations, e.Revocation)
	}
	if err != nil {
		return f, err
	}
	f.keys, err = c.APIKeys(ctx)
	return f, err
}

// withoutLog fails when a database has a log beside it.
func withoutLog(path string) error {
	if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
		return fmt.Errorf("%s-wal is still there: is another program reading the database?", path)
	}
	return nil
}

// prepare makes a staged copy ready to take over.
func prepare(ctx context.Context, actor Actor, staged string, r Restoration, before former, now time.Time) (epoch uint64, err error) {
	db, err := openHeld(staged, coreKind, nil)
	if err != nil {
		return 0, fmt.Errorf("the snapshot: %w", err)
	}
	c := &Core{Now: func() time.Time { return now }, db: db}
	defer func() { err = errors.Join(err, c.Close(), withoutLog(staged)) }()
	sound, err := one(ctx, c.db.writer, value[string], "PRAGMA integrity_check(1)")
	if err == nil && sound != "ok" {
		err = fmt.Errorf("the snapshot is damaged: %s", sound)
	}
	if err == nil {
		err = c.VerifyAudit(ctx)
	}
	if err != nil {
		return 0, err
	}
	err = c.decide(ctx, actor, func(t *tx) (err error) {
		epoch, err = t.takeOverFrom(r, before)
		return err
	})
	return epoch, err
}

func (t *tx) takeOverFrom(r Restoration, before former) (epoch uint64, err error) {
	if epoch, err = t.beginEpoch(max(before.epoch, r.Epoch)); err != nil {
		return 0, err
	}
	if r.Made.IsZero() {
		newest, err := one(t.ctx, t.sql, value[int64], "SELECT coalesce(max(time), 0) FROM audit")
		if err != nil {
			return 0, err
		}
		r.Made = moment(newest)
	}
	earlier, err := one(t.ctx, t.sql, scanGap, "SELECT made, restored FROM state")
	if err != nil {
		return 0, err
	}
	if !earlier.made.IsZero() && earlier.restored.After(t.now.Add(-recovery)) {
		r.Made = earlier.made // of two restorations soon after each other, both gaps
	}
	if _, err := t.exec("UPDATE state SET made = ?, restored = ?", nanos(r.Made), nanos(t.now)); err != nil {
		return 0, err
	}
	// A step of the CA that was about to be done then is not done by surprise now.
	if _, err := t.exec("UPDATE rotation SET intent = '', intended = 0 WHERE intent <> ''"); err != nil {
		return 0, err
	}
	merged, err := t.mergeRevocations(append(before.revocations, r.Revocations...))
	if err != nil {
		return 0, err
	}
	keys := 0
	for _, k := range before.keys {
		if k.Revoked.IsZero() {
			continue
		}
		n, err := t.exec("UPDATE api_keys SET revoked = ? WHERE sha256 = ? AND revoked = 0", nanos(k.Revoked), k.SHA256)
		if err != nil {
			return 0, err
		}
		keys += int(n)
	}
	return epoch, t.audit("core.restore", "core", fmt.Sprintf("from a backup made at %s: epoch %d, %d revocations and %d revoked API keys merged",
		r.Made.UTC().Format(time.RFC3339), epoch, merged, keys))
}

// Restored is when this database was restored last; zero if it never was.
func (c *Core) Restored(ctx context.Context) (time.Time, error) {
	g, err := one(ctx, c.db.reader, scanGap, "SELECT made, restored FROM state")
	if err != nil {
		return time.Time{}, fmt.Errorf("read when this database was restored: %w", err)
	}
	return g.restored, nil
}

// OpenEpoch begins an epoch above one that a component has seen, unless the
// present one is. It returns the epoch that holds.
func (c *Core) OpenEpoch(ctx context.Context, actor Actor, above uint64, why string, now time.Time) (epoch uint64, err error) {
	err = c.decide(ctx, actor, func(t *tx) error {
		t.now = now
		if epoch, err = one(t.ctx, t.sql, value[uint64], "SELECT epoch FROM state"); err != nil || epoch > above {
			return err
		}
		if epoch, err = t.beginEpoch(above); err != nil {
			return err
		}
		return t.audit("core.epoch", "core", fmt.Sprintf("epoch %d: %s", epoch, why))
	})
	if err != nil {
		return 0, fmt.Errorf("begin an epoch above %d: %w", above, err)
	}
	return epoch, nil
}

// maxEpoch is the largest that is stored.
const maxEpoch = 1<<63 - 1

// beginEpoch begins one above the present one and another, in which generations
// and acknowledgements begin anew.
func (t *tx) beginEpoch(above uint64) (uint64, error) {
	epoch, err := one(t.ctx, t.sql, value[uint64], "SELECT epoch FROM state")
	if err != nil {
		return 0, err
	}
	if epoch = max(epoch, above); epoch >= maxEpoch {
		return 0, fmt.Errorf("epoch %d cannot be: there is none above it", epoch)
	}
	epoch = max(epoch+1, uint64(max(t.now.Unix(), 0)))
	if _, err := t.exec("UPDATE state SET epoch = ?", epoch); err != nil {
		return 0, err
	}
	if _, err := t.exec("DELETE FROM generations"); err != nil {
		return 0, err
	}
	_, err = t.exec("UPDATE acknowledgements SET bundle = NULL, epoch = 0, revocations = 0")
	return epoch, err
}

// copyFile copies a database file, durably, to one of ours.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("the snapshot: %w", err)
	}
	defer in.Close()
	if err := privateFile(to); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// setAside keeps a database that cannot be read, without its log, which must not
// stay beside the one that comes in its place.
func setAside(path string) error {
	kept := path + ".unreadable"
	if err := removeDatabase(kept); err != nil {
		return err
	}
	if err := os.Link(path, kept); err != nil {
		return err
	}
	for _, beside := range []string{"-wal", "-shm"} {
		if err := os.Rename(path+beside, kept+beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeDatabase removes what is of a database at path, the copies that its
// migration made as well.
func removeDatabase(path string) error {
	copies, err := filepath.Glob(path + ".v*")
	if err != nil {
		return err
	}
	for _, file := range append(copies, path, path+"-wal", path+"-shm") {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
