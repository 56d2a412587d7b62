package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"sallyport/configs"
)

// FileName is what the data file is called in a data directory.
const FileName = "firewall.json"

// File is the data file as the roles of one process write it. They share one
// File, so that neither erases the other's set.
type File struct {
	path string

	mu      sync.Mutex
	data    Data
	written []byte // what lies in the file; nil: not known
}

// NewFile makes a File of a path. What is in it about the given roles, those
// that run here, stays until Put; it is dropped about others. A file that is
// not there or cannot be read counts as empty. Nothing is written yet.
func NewFile(path string, roles ...configs.Role) *File {
	f := &File{path: path}
	old, err := ReadData(path)
	if err != nil {
		return f
	}
	for _, role := range roles {
		f.data = f.data.With(role, old.Of(role))
	}
	return f
}

// Path is where the file lies.
func (f *File) Path() string { return f.path }

// Put writes the set of a role beside that of the other one, and nothing when
// the file says so already. A file that somebody removed or changed meanwhile is
// written again only with the next change.
func (f *File) Put(role configs.Role, e Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.data.With(role, &e)
	if next.Of(role) == nil {
		return fmt.Errorf("firewall data: %q has no port to limit", role)
	}
	text, err := next.Encode()
	if err != nil {
		return err
	}
	if bytes.Equal(text, f.written) {
		return nil
	}
	if err := writeFile(f.path, text); err != nil {
		return fmt.Errorf("write firewall data: %w", err)
	}
	f.data, f.written = next, text
	return nil
}

// WriteData replaces a data file as a whole: a reader finds the former text or
// the new one, also after a crash. It is world-readable, since the one who
// reads it may be root without the right to overlook modes; who may reach it is
// the directory's to say.
func WriteData(path string, d Data) error {
	text, err := d.Encode()
	if err != nil {
		return err
	}
	return writeFile(path, text)
}

func writeFile(path string, text []byte) (err error) {
	t, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(t.Name())
		}
	}()
	_, err = t.Write(text)
	if err = errors.Join(err, t.Chmod(0o644), t.Sync(), t.Close()); err != nil {
		return err
	}
	if err = os.Rename(t.Name(), path); err != nil {
		return err
	}
	if dir, bad := os.Open(filepath.Dir(path)); bad == nil {
		dir.Sync() // some file systems cannot; the file itself is on the disk
		dir.Close()
	}
	return nil
}

// ReadData reads a data file. The directory may belong to somebody who is not
// trusted, so the last part of the path is never followed as a link, and
// whatever is no regular file is refused, unread.
func ReadData(path string) (Data, error) {
	text, err := readRegular(path, MaxDataSize)
	if err != nil {
		return Data{}, err
	}
	d, err := ParseData(text)
	if err != nil {
		return Data{}, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

func readRegular(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, and is not followed", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return text, err
}
