package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

// Snapshot writes a consistent copy of the database to a file that must not
// exist, complete or not at all, while core runs: neither readers nor the writer
// wait for it. The copy holds everything that the database does.
func (c *Core) Snapshot(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("snapshot %s %w: choose another name", path, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("snapshot: %w", err)
	}
	// Of its own: the readers' connections write nothing, not even this.
	from, err := connect(c.db.at, c.db.copying())
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer from.Close()
	if err := copyInto(ctx, from, path); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// copying are the options of a connection that copies the database.
func (d *database) copying() url.Values {
	v := options()
	if d.path == "" {
		v.Set("vfs", "memdb")
	}
	return v
}
