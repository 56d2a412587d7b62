package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/store"
)

// sameCore refuses the state of another core in the data directory, such as one
// that was started on a fresh host before the backup was restored there: its CA
// is newer than that of the backup, and no component knows it; and what it knows
// of revocations says nothing. The CA that is there (nil: none that can be read)
// has a root of the backup's still, or the database there knows of one.
func sameCore(ctx context.Context, dataDir string, here, backup *pki.Authority) error {
	if here != nil {
		ours := here.Pins()
		for _, pin := range backup.Pins() {
			if slices.Contains(ours, pin) {
				return nil
			}
		}
	}
	path := filepath.Join(dataDir, fileDatabase)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && info.Size() == 0:
		if here == nil {
			return nil
		}
		return notTheSame(dataDir)
	case err != nil:
		return err
	}
	db, err := store.OpenCore(path)
	if err != nil {
		return nil // one that cannot be read is judged by who takes its place
	}
	defer db.Close()
	for _, root := range backup.Bundle().Roots {
		if _, err := db.Recorded(ctx, pki.Serial(root)); err == nil {
			return nil
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return notTheSame(dataDir)
}

func notTheSame(dataDir string) error {
	return fmt.Errorf("%s holds the state of another core than the backup: no root CA of the backup was ever one of it. If that comes of a core that was started on this host before its backup was restored, delete or move away what is in %s, and restore again", dataDir, dataDir)
}

// signed says whether the list of revocations at path is this core's, and not
// left by another one.
func (p *restoration) signed(path string) bool {
	body, err := os.ReadFile(path)
	list := &control.RevocationList{}
	if err != nil || proto.Unmarshal(body, list) != nil {
		return false
	}
	_, err = pki.VerifyRevocations(list, p.roots)
	return err == nil
}
