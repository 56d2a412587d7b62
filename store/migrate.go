package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// migrate brings the schema to the version of this binary. Before each step of
// a database that was there before, a copy is put beside it, named after the
// version it has: core.db.v1.
func (d *database) migrate(ctx context.Context) error {
	steps, err := fs.Glob(d.kind.migrations, "*.sql") // sorted: 0001_first.sql is version 1
	if err != nil {
		return err
	}
	version, err := d.version(ctx)
	if err != nil {
		return err
	}
	if version > len(steps) {
		return fmt.Errorf("%s %s was %w (schema %d, this one knows %d): run that version again, or restore a backup made before it",
			d.kind.what, d.path, ErrNewerSchema, version, len(steps))
	}
	if d.lock != nil && d.lock.settled && version < len(steps) {
		return fmt.Errorf("%s %s is %w of an older version of this program: stop that one first", d.kind.what, d.path, ErrInUse)
	}
	for v := version; v < len(steps); v++ {
		script, err := fs.ReadFile(d.kind.migrations, steps[v])
		if err != nil {
			return err
		}
		if version > 0 {
			if err := d.copyTo(ctx, fmt.Sprintf("%s.v%d", d.path, v)); err != nil {
				return err
			}
		}
		if err := d.step(ctx, v+1, string(script)); err != nil {
			return fmt.Errorf("%s %s: migration %s: %w", d.kind.what, d.path, strings.TrimSuffix(steps[v], ".sql"), err)
		}
	}
	return nil
}

// version reads the schema's version and checks that the file is one of ours.
func (d *database) version(ctx context.Context) (int, error) {
	var version int
	var application int64
	err := d.writer.QueryRowContext(ctx, "SELECT u.user_version, a.application_id FROM pragma_user_version u, pragma_application_id a").Scan(&version, &application)
	if err != nil {
		return 0, fmt.Errorf("read %s %s: %w", d.kind.what, d.path, err)
	}
	tables, err := one(ctx, d.writer, value[int], "SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return 0, fmt.Errorf("read %s %s: %w", d.kind.what, d.path, err)
	}
	if fresh := version == 0 && tables == 0 && application == 0; !fresh && application != d.kind.applicationID {
		return 0, fmt.Errorf("%s is %w: it is no %s of this program; choose another file or data directory", d.path, ErrForeign, d.kind.what)
	}
	return version, nil
}

// step runs one migration: its statements and the new version are one
// transaction.
func (d *database) step(ctx context.Context, version int, script string) error {
	return d.update(ctx, func(t *tx) error {
		if _, err := t.sql.ExecContext(ctx, "PRAGMA defer_foreign_keys = 1;\n"+script); err != nil {
			return err
		}
		broken, err := all(ctx, t.sql, func(row func(...any) error) (string, error) {
			var table, parent string
			var id sql.NullInt64
			var key int
			err := row(&table, &id, &parent, &key)
			return fmt.Sprintf("%s row %d has no %s", table, id.Int64, parent), err
		}, "PRAGMA foreign_key_check")
		if err != nil {
			return err
		}
		if len(broken) > 0 {
			return errors.New(strings.Join(broken, ", "))
		}
		_, err = t.sql.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d", version, d.kind.applicationID))
		return err
	})
}

// copyTo keeps a copy of the database as it is before a migration.
func (d *database) copyTo(ctx context.Context, path string) error {
	if d.path == "" {
		return nil
	}
	if err := copyInto(ctx, d.writer, path); err != nil {
		return fmt.Errorf("copy %s before migrating it: %w: make room and start again", d.kind.what, err)
	}
	return nil
}

// copyInto writes a consistent copy of a database, complete or not at all.
func copyInto(ctx context.Context, from *sql.DB, path string) error {
	partial := path + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := privateFile(partial); err != nil { // SQLite fills an empty file and keeps its mode
		return err
	}
	// The name of the file system layer: a database in memory has another.
	to := url.URL{Scheme: "file", Path: partial, RawQuery: "vfs=unix"}
	if _, err := from.ExecContext(ctx, "VACUUM INTO ?", to.String()); err != nil {
		os.Remove(partial)
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.OpenFile(partial, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(partial, path)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDirectory(filepath.Dir(path))
}
