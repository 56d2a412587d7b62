package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Snapshot writes a consistent copy of the database to a file that must not
// exist, complete or not at all, while core runs: neither readers nor the writer
// wait for it, except in memory. The copy holds everything that the database
// does.
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
	from := c.db.writer // in memory one has to wait for it anyway
	if c.db.path != "" {
		// Of its own: the readers' connections write nothing, not even this.
		if from, err = connect(c.db.at, options()); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		defer from.Close()
	}
	if err := copyInto(ctx, from, path); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}
