package app

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// file is one that a verb writes.
type file struct {
	path string
	text []byte
	mode fs.FileMode
}

// writeFiles writes all files or none. Every one is whole and on the disk
// before it gets its name. One that exists stops it all, unless it says the
// same already or force is set.
func writeFiles(force bool, files ...file) error {
	var put []file
	for _, f := range files {
		old, err := os.ReadFile(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			put = append(put, f)
		case err != nil:
			return failed(err.Error(), "")
		case bytes.Equal(old, f.text):
		case !force:
			return failed(f.path+" exists already, and is not replaced", "give another place, or --force to replace it")
		default:
			put = append(put, f)
		}
	}
	temporary := make([]string, 0, len(put))
	defer func() {
		for _, t := range temporary {
			os.Remove(t)
		}
	}()
	for _, f := range put {
		t, err := writeTemporary(f)
		if err != nil {
			return failed(err.Error(), "")
		}
		temporary = append(temporary, t)
	}
	for i, f := range put {
		err := name(temporary[i], f.path, force)
		if err == nil {
			continue
		}
		if !force {
			for _, done := range put[:i] {
				os.Remove(done.path)
			}
		}
		return failed(err.Error(), "")
	}
	for _, f := range put {
		syncDir(filepath.Dir(f.path))
	}
	return nil
}

func writeTemporary(f file) (path string, err error) {
	t, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)+".*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.Remove(t.Name())
		}
	}()
	_, err = t.Write(f.text)
	err = errors.Join(err, t.Chmod(f.mode), t.Sync(), t.Close())
	return t.Name(), err
}

// name gives a finished file its name. Without force a file that came there
// meanwhile stays: a link, unlike a rename, never replaces.
func name(temporary, path string, force bool) error {
	if force {
		return os.Rename(temporary, path)
	}
	err := os.Link(temporary, path)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s has just been made by somebody else", path)
	}
	if err != nil { // a file system without links
		if _, exists := os.Lstat(path); exists == nil {
			return fmt.Errorf("%s has just been made by somebody else", path)
		}
		return os.Rename(temporary, path)
	}
	return nil
}

func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		d.Sync() // some file systems cannot; the file itself is on the disk
		d.Close()
	}
}

// free makes sure, before any work is done, that files can be made, and makes
// the directory they are to lie in.
func free(force bool, paths ...string) error {
	for _, p := range paths {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return failed("cannot make the directory for "+p+": "+err.Error(), "give another --out")
		}
		if _, err := os.Lstat(p); err == nil && !force {
			return failed(p+" exists already, and is not replaced", "give another place, or --force to replace it")
		}
	}
	return nil
}
