package app

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFilesAllOrNone(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	content := func(name string) string {
		text, err := os.ReadFile(path(name))
		if errors.Is(err, fs.ErrNotExist) {
			return "(none)"
		}
		return string(text)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(writeFiles(false, file{path("a.key"), []byte("1"), 0o600}, file{path("a.crt"), []byte("2"), 0o644}, file{path("ca.crt"), []byte("ca"), 0o644}))
	for name, mode := range map[string]fs.FileMode{"a.key": 0o600, "a.crt": 0o644} {
		info, err := os.Stat(path(name))
		must(err)
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v", name, info.Mode().Perm())
		}
	}

	// One that exists stops it all; one that says the same does not.
	if err := writeFiles(false, file{path("b.key"), []byte("3"), 0o600}, file{path("a.crt"), []byte("4"), 0o644}); err == nil {
		t.Error("a.crt was replaced")
	}
	if content("b.key") != "(none)" || content("a.crt") != "2" {
		t.Errorf("b.key is %s, a.crt is %s", content("b.key"), content("a.crt"))
	}
	must(writeFiles(false, file{path("b.key"), []byte("3"), 0o600}, file{path("ca.crt"), []byte("ca"), 0o644}))
	must(writeFiles(true, file{path("a.crt"), []byte("4"), 0o644}))
	if content("a.crt") != "4" {
		t.Errorf("a.crt is %s", content("a.crt"))
	}

	// A place that cannot be written leaves nothing behind.
	if err := writeFiles(false, file{path("c.key"), []byte("5"), 0o600}, file{path("no/c.crt"), []byte("6"), 0o644}); err == nil {
		t.Error("wrote into a folder that is not there")
	}
	entries, err := os.ReadDir(dir)
	must(err)
	if len(entries) != 4 {
		t.Errorf("left behind: %v", entries)
	}
}

// TestNameNeverReplaces: a file that came there in the meantime stays.
func TestNameNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	temporary, path := filepath.Join(dir, "t"), filepath.Join(dir, "f")
	for _, p := range []string{temporary, path} {
		if err := os.WriteFile(p, []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := name(temporary, path, false); err == nil {
		t.Error("it was replaced")
	}
	if text, _ := os.ReadFile(path); string(text) != path {
		t.Errorf("it says %s", text)
	}
}
