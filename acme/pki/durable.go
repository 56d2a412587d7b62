package pki

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"sallyport/configs/fault"
)

const tempPrefix = ".tmp-"

// writeDir creates a directory with the given files, all or nothing: it is
// filled and synced under another name beside dir and then renamed to it. If
// dir exists and is not empty, the error is fs.ErrExist.
func writeDir(dir string, files map[string][]byte) error {
	dir = filepath.Clean(dir)
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fs.ErrExist
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := mkdirSynced(parent); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(parent, tempPrefix+filepath.Base(dir)+"-") // 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) // after the rename there is nothing by that name
	for name, data := range files {
		mode := os.FileMode(0o644)
		if filepath.Ext(name) != ".crt" {
			mode = 0o600
		}
		if err := writeSynced(filepath.Join(temp, name), data, mode); err != nil {
			return err
		}
	}
	if err := syncDir(temp); err != nil {
		return err
	}
	// Remove takes an empty directory only, and Rename refuses to replace any,
	// so whatever somebody put there meanwhile survives.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(temp, dir); err != nil {
		return err
	}
	return syncDir(parent)
}

// replaceFile gives path a new content, durably and at once: readers and a
// power cut see the old file or the new one. Files are 0600.
func replaceFile(path string, data []byte) error {
	return placeFile(path, data, 0o600, os.Rename)
}

// createFile is replaceFile where nothing may be replaced: fs.ErrExist.
func createFile(path string, data []byte) error {
	return placeFile(path, data, 0o600, func(temp, path string) error {
		if err := os.Link(temp, path); err != nil {
			return err
		}
		return os.Remove(temp)
	})
}

// placeFile writes and syncs a file beside path and lets place bring it there.
func placeFile(path string, data []byte, mode os.FileMode, place func(temp, path string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix+filepath.Base(path)+"-") // 0600
	if err != nil {
		return err
	}
	temp := f.Name()
	_, err = f.Write(data)
	if err == nil && mode != 0o600 {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		fault.Point(filepath.Base(path), "written")
		err = place(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	fault.Point(filepath.Base(path), "placed")
	return syncDir(dir)
}

// lockDir keeps other processes that ask alike out of dir until unlock.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// removeTemps removes what a killed process left of replaceFile for path.
func removeTemps(path string) {
	dir, prefix := filepath.Dir(path), tempPrefix+filepath.Base(path)+"-"
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// mkdirSynced makes dir, 0700, and what is missing above it, durably: a file
// in a directory that a power cut takes away is gone too.
func mkdirSynced(dir string) error {
	dir = filepath.Clean(dir)
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := mkdirSynced(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func writeSynced(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("make %s durable: %w", dir, err)
	}
	return nil
}

// readPrivate reads a file that nobody but its owner may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s holds a private key and others may read it (mode %04o): run `chmod 600 %s`, and consider the key known", path, mode, path)
	}
	if info.Size() > maxPEM {
		return nil, fmt.Errorf("%s is too large (%d bytes)", path, info.Size())
	}
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n < len(data) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

func readKeyFile(path string) (crypto.Signer, error) {
	text, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	key, err := ParseKeyPEM(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return key, nil
}
