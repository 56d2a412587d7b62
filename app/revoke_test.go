package app

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/roles/control"
)

// TestEnforced: the answer of a revocation says how far it has come; one that
// somebody has not heard of is a failure that names him.
func TestEnforced(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer *control.RevokeCertificateResponse
		out    string
		fails  string
	}{
		{"all", &control.RevokeCertificateResponse{Enforced: 3, Components: 3, ElapsedNano: 41_400_000}, "3 of 3 enforced after 41ms\n", ""},
		{"not all", &control.RevokeCertificateResponse{Enforced: 2, Components: 3, ElapsedNano: int64(3*time.Second + 4*time.Millisecond), Missing: []string{"gateway/or\x1bders"}},
			"2 of 3 enforced after 3s\n", "gateway/or ders"},
		{"an older core", nil, "", ""},
	} {
		var out, errs bytes.Buffer
		c := &cli{out: &out, err: &errs}
		err := c.enforced(tc.answer)
		if out.String() != tc.out {
			t.Errorf("%s: printed %q", tc.name, out.String())
		}
		if (err != nil) != (tc.fails != "") || err != nil && (!strings.Contains(err.Error(), tc.fails) || c.report(err) != 1) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// TestRotationPage: the phase, who blocks it, and what comes next.
func TestRotationPage(t *testing.T) {
	var out bytes.Buffer
	c := &cli{out: &out, err: io.Discard}
	now := time.Now()
	c.rotation(&control.RotateCAResponse{Phase: "published", SinceUnix: now.Add(-2 * time.Hour).Unix(),
		Blockers: []string{"gateway/orders: away since 3h"}, Skipped: []string{"gateway/attic"}, DeadlineUnix: 1_800_000_000,
		Next: "everything is issued anew"}, now)
	want := `published: the next root is trusted too; the present one issues still (since 2h0m ago)
  waits for gateway/orders: away since 3h
  does not wait for gateway/attic
  waits until ` + clock(1_800_000_000) + ` at most
next: everything is issued anew
`
	if out.String() != want {
		t.Errorf("printed\n%s", out.String())
	}
}

// TestWriteStream: a file that comes as a stream has its name when all of it is
// there, and otherwise nothing is left behind.
func TestWriteStream(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "core.backup")
	entries := func() int {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	half := func(w io.Writer) error {
		io.WriteString(w, "half of")
		if text, _ := os.ReadFile(path); strings.HasPrefix(string(text), "half") {
			t.Error("it has its name before all of it is there")
		}
		return errors.New("core went away")
	}
	whole := func(w io.Writer) error { _, err := io.WriteString(w, "all"); return err }
	if _, err := writeStream(false, file{path: path, mode: 0o600}, half); err == nil || entries() != 0 {
		t.Errorf("%v, %d files", err, entries())
	}
	if n, err := writeStream(false, file{path: path, mode: 0o600}, whole); err != nil || n != 3 {
		t.Errorf("%d, %v", n, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := writeStream(true, file{path: path, mode: 0o600}, half); err == nil || entries() != 1 {
		t.Errorf("%v, %d files", err, entries())
	}
	if _, err := writeStream(false, file{path: path, mode: 0o600}, whole); err == nil {
		t.Error("it was replaced without being asked for")
	}
	if text, _ := os.ReadFile(path); string(text) != "all" || entries() != 1 {
		t.Errorf("it says %q, %d files", text, entries())
	}
}
