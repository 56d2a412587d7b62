package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// sharedWait is how long opening waits for another process that is bringing
// the schema to its version.
const sharedWait = 30 * time.Second

// openShared opens a database that several processes of one host may have open.
// Each holds its lock shared; who finds it free brings the schema to this
// binary's version first, alone.
func openShared(path string, k kind) (*database, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", k.what, err)
	}
	if err := privateDirectory(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", k.what, err)
	}
	alone, err := lockShared(f, k)
	if err != nil {
		f.Close()
		return nil, err
	}
	d, err := openHeld(path, k, &lock{file: f, settled: !alone})
	if err != nil {
		return nil, err
	}
	if alone {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), d.close())
		}
	}
	return d, nil
}

// lockShared takes the lock alone if nobody has it, else shared.
func lockShared(f *os.File, k kind) (alone bool, err error) {
	for deadline := time.Now().Add(sharedWait); ; time.Sleep(20 * time.Millisecond) {
		for _, how := range []int{unix.LOCK_EX, unix.LOCK_SH} {
			if err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err == nil {
				return how == unix.LOCK_EX, nil
			}
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return false, fmt.Errorf("lock %s: %w", k.what, err)
		}
		if time.Now().After(deadline) {
			return false, fmt.Errorf("%s is %w, which is changing its form", k.what, ErrInUse)
		}
	}
}
