package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// grown is a kind with so many migrations; the last one may be a bad one.
func grown(steps int, bad bool) kind {
	f := fstest.MapFS{}
	for i := 1; i <= steps; i++ {
		sql := fmt.Sprintf("CREATE TABLE t%d (x INTEGER); INSERT INTO t1 (x) VALUES (%d);", i, i)
		if bad && i == steps {
			sql += "INSERT INTO nowhere VALUES (1);"
		}
		f[fmt.Sprintf("%04d_step.sql", i)] = &fstest.MapFile{Data: []byte(sql)}
	}
	return kind{"test database", 4711, f}
}

func rowsOf(t *testing.T, path string, k kind) int {
	t.Helper()
	d, err := open(path, k)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	n, err := one(t.Context(), d.reader, value[int], "SELECT count(*) FROM t1")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMigrateFromEachVersion(t *testing.T) {
	const newest = 4
	for from := range newest + 1 {
		t.Run(fmt.Sprintf("from %d", from), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "x.db")
			if from > 0 {
				if n := rowsOf(t, path, grown(from, false)); n != from {
					t.Fatalf("%d rows at version %d", n, from)
				}
			}
			if n := rowsOf(t, path, grown(newest, false)); n != newest {
				t.Errorf("%d rows after migration", n)
			}
			// A copy of each version that held something, private, openable, as it was.
			for v := range newest + 1 {
				copied := fmt.Sprintf("%s.v%d", path, v)
				info, err := os.Stat(copied)
				if want := from > 0 && v >= from && v < newest; !want {
					if !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("there is a copy of version %d", v)
					}
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				if info.Mode().Perm() != 0o600 {
					t.Errorf("copy of version %d is %v", v, info.Mode().Perm())
				}
				if n := rowsOf(t, copied, grown(v, false)); n != v {
					t.Errorf("copy of version %d has %d rows", v, n)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*.partial")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestAFailedMigrationChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	rowsOf(t, path, grown(2, false))
	if _, err := open(path, grown(3, true)); err == nil || !strings.Contains(err.Error(), "0003_step") {
		t.Fatalf("bad migration: %v", err)
	}
	if n := rowsOf(t, path, grown(2, false)); n != 2 {
		t.Errorf("%d rows", n)
	}
	if n := rowsOf(t, path, grown(3, false)); n != 3 { // an old copy does not stand in the way
		t.Errorf("%d rows", n)
	}
}

func TestANewerDatabaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	c := openCore(t, path)
	if _, err := c.db.writer.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenCore(path)
	if !errors.Is(err, ErrNewerSchema) || !strings.Contains(err.Error(), "schema 99") || !strings.Contains(err.Error(), path) {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("it was changed")
	}
}

func TestAForeignDatabaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	openCore(t, path).Close()
	if _, err := OpenComponent(path); !errors.Is(err, ErrForeign) {
		t.Errorf("a core's database as a component's: %v", err)
	}
	rowsOf(t, path+"2", grown(1, false))
	if _, err := OpenCore(path + "2"); !errors.Is(err, ErrForeign) {
		t.Errorf("another program's database: %v", err)
	}
	if err := os.WriteFile(path+"3", []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCore(path + "3"); err == nil || !strings.Contains(err.Error(), path+"3") {
		t.Errorf("no database at all: %v", err)
	}
}

func TestEmbeddedMigrations(t *testing.T) {
	for _, k := range []kind{coreKind, componentKind} {
		steps, err := fs.Glob(k.migrations, "*")
		if err != nil || len(steps) == 0 {
			t.Fatal(steps, err)
		}
		for i, name := range steps {
			if !strings.HasPrefix(name, fmt.Sprintf("%04d_", i+1)) || !strings.HasSuffix(name, ".sql") {
				t.Errorf("%s: %s is not migration %d", k.what, name, i+1)
			}
		}
		d, err := openMemory(k)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := d.version(context.Background()); err != nil || v != len(steps) {
			t.Errorf("%s: version %d, %v", k.what, v, err)
		}
		d.close()
	}
}
