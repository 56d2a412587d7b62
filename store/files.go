package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// privateDirectory creates dir as 0700, or closes an existing one of ours to
// everybody else. A shared directory such as /tmp is refused: whoever can
// replace files there can replace the database.
func privateDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create data directory %s: %w", dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if info.Mode()&fs.ModeSticky != 0 {
		return fmt.Errorf("data directory %s is shared by all users of this host: use a directory of its own below it", dir)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("data directory %s is open to other users (%v) and cannot be closed: %w: run chmod 700 %[1]s as its owner", dir, info.Mode().Perm(), err)
	}
	return nil
}

// privateFile creates path as 0600, durably, or closes an existing one to
// everybody else. SQLite gives its -wal and -shm files the same mode.
func privateFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open database file: %w", err)
	}
	defer f.Close()
	for _, beside := range []string{"", "-wal", "-shm"} {
		if err := os.Chmod(path+beside, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("close %s to other users: %w", path+beside, err)
		}
	}
	return syncDirectory(filepath.Dir(path))
}

// syncDirectory makes the names of created and renamed files durable.
func syncDirectory(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// lock is an exclusive lock on a database, held on a file beside it that is
// never removed: who removes a lock file lets two others each hold "the" lock.
type lock struct {
	file    *os.File
	settled bool // another process has the database open too: its schema must not change
}

func acquire(path string, k kind) (*lock, error) {
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", k.what, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		who := strings.TrimSpace(string(holder[:n]))
		if who == "" {
			who = "unknown"
		}
		return nil, fmt.Errorf("%s %s is %w (pid %s): stop that process, or give this one a data directory of its own with --data-dir", k.what, path, ErrInUse, who)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	// Who holds it, for the message above; nothing depends on it.
	if err := f.Truncate(0); err == nil {
		fmt.Fprintln(f, os.Getpid())
	}
	return &lock{file: f}, nil
}

// release is what closing the file does, also when the process dies.
func (l *lock) release() error { return l.file.Close() }
