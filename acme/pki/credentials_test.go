package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCredentialsRoundTrip(t *testing.T) {
	a := testAuthority(t)
	dir := filepath.Join(t.TempDir(), "gateway")
	if _, _, err := LoadCredentials(dir); !errors.Is(err, ErrNoCredentials) {
		t.Errorf("before joining: %v", err)
	}
	c := issueComponent(t, a, RoleGateway, "office", 4)
	if err := SaveCredentials(dir, c, a.Bundle()); err != nil {
		t.Fatal(err)
	}
	got, b, err := LoadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != c.ID || got.Incarnation() != 4 || len(got.Chain) != 2 || !samePublicKey(got.Key.Public(), c.Key.Public()) || !b.Equal(a.Bundle()) {
		t.Errorf("%+v came back as %+v", c, got)
	}
	if err := got.TLS().Leaf.VerifyHostname("office.example.org"); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, identityFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
}

// TestCredentialsExpired: an expired identity is still what its owner recovers
// with.
func TestCredentialsExpired(t *testing.T) {
	a := testAuthority(t) // its certificates ended long before the real clock's present, or will
	dir := t.TempDir()
	if err := SaveCredentials(dir, issueComponent(t, a, RoleProxy, "dmz1", 1), a.Bundle()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadCredentials(dir); err != nil {
		t.Error(err)
	}
}

func TestSaveCredentialsRefuses(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	good := issueComponent(t, a, RoleGateway, "office", 1)
	for name, tc := range map[string]struct {
		c *Credentials
		b *Bundle
	}{
		"another key":    {&Credentials{good.ID, good.Chain, testKey(t)}, a.Bundle()},
		"another name":   {&Credentials{testID(RoleGateway, "depot"), good.Chain, good.Key}, a.Bundle()},
		"another bundle": {good, other.Bundle()},
		"no chain":       {&Credentials{good.ID, nil, good.Key}, a.Bundle()},
		"no key":         {&Credentials{good.ID, good.Chain, nil}, a.Bundle()},
	} {
		dir := t.TempDir()
		if err := SaveCredentials(dir, tc.c, tc.b); err == nil {
			t.Errorf("%s: saved", name)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

// TestCredentialsOldOrNew stops a replacement at every point at which a killed
// process can have left the directory, and looks at what the next start finds.
func TestCredentialsOldOrNew(t *testing.T) {
	a := testAuthority(t)
	first, second := issueComponent(t, a, RoleGateway, "office", 1), issueComponent(t, a, RoleGateway, "office", 1)
	whole := func() []byte {
		dir := t.TempDir()
		if err := SaveCredentials(dir, second, a.Bundle()); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, identityFile))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}()
	saved := func(dir string) *Credentials {
		t.Helper()
		c, _, err := LoadCredentials(dir)
		if err != nil {
			t.Fatalf("neither old nor new: %v", err)
		}
		return c
	}
	temp := tempPrefix + identityFile + "-42"
	for _, n := range []int{0, 1, len(whole) / 3, len(whole) - 1, len(whole)} { // written so far
		dir := t.TempDir()
		if err := SaveKey(dir, second.Key); err != nil {
			t.Fatal(err)
		}
		if err := SaveCredentials(dir, first, a.Bundle()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, temp), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if c := saved(dir); !samePublicKey(c.Key.Public(), first.Key.Public()) {
			t.Fatalf("%d bytes: half a new identity was taken", n)
		}
		pending, err := PendingKey(dir)
		if err != nil || !samePublicKey(pending.Public(), second.Key.Public()) {
			t.Fatalf("%d bytes: the pending key is gone: %v", n, err)
		}
		// The same answer, asked for again, goes through and cleans up.
		if err := SaveCredentials(dir, second, a.Bundle()); err != nil {
			t.Fatal(err)
		}
		if c := saved(dir); !samePublicKey(c.Key.Public(), second.Key.Public()) {
			t.Fatal("the new identity was not taken")
		}
		if _, err := PendingKey(dir); !errors.Is(err, ErrNoPendingKey) {
			t.Errorf("the key is not pending any more: %v", err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%d bytes: left over: %v", n, left)
		}
	}

	// After the rename and before the pending key was dropped.
	dir := t.TempDir()
	if err := SaveKey(dir, second.Key); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if c := saved(dir); !samePublicKey(c.Key.Public(), second.Key.Public()) {
		t.Error("the new identity was not taken")
	}
	if err := SaveCredentials(dir, second, a.Bundle()); err != nil {
		t.Error(err)
	}
	if _, err := PendingKey(dir); !errors.Is(err, ErrNoPendingKey) {
		t.Error(err)
	}
}

// TestCredentialsDamaged: what cannot be read is an error of its own, so that
// nobody joins over it, and it stays.
func TestCredentialsDamaged(t *testing.T) {
	a := testAuthority(t)
	dir := t.TempDir()
	path := filepath.Join(dir, identityFile)
	if err := SaveCredentials(dir, issueComponent(t, a, RoleGateway, "office", 1), a.Bundle()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	strip := func(block string) []byte {
		begin, rest, _ := strings.Cut(string(whole), "-----BEGIN "+block)
		_, end, _ := strings.Cut(rest, "-----END "+block+"-----\n")
		return []byte(begin + end)
	}
	for name, text := range map[string][]byte{
		"empty":          {},
		"half":           whole[:len(whole)/2],
		"without key":    strip("PRIVATE KEY"),
		"without leaf":   strip("CERTIFICATE"),
		"without bundle": strip(bundleBlock),
	} {
		os.WriteFile(path, text, 0o600)
		if _, _, err := LoadCredentials(dir); err == nil || errors.Is(err, ErrNoCredentials) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	os.WriteFile(path, whole, 0o600)
	os.Chmod(path, 0o644)
	if _, _, err := LoadCredentials(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
}

func TestPendingKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "proxy")
	if _, err := PendingKey(dir); !errors.Is(err, ErrNoPendingKey) {
		t.Errorf("none yet: %v", err)
	}
	if err := DropPendingKey(dir); err != nil {
		t.Errorf("dropping none: %v", err)
	}
	key := testKey(t)
	for range 2 { // saving it again is no error
		if err := SaveKey(dir, key); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, pendingKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := SaveKey(dir, testKey(t)); err == nil {
		t.Error("a pending key was replaced")
	}
	if got, err := PendingKey(dir); err != nil || !samePublicKey(got.Public(), key.Public()) {
		t.Errorf("%v", err)
	}
	if err := DropPendingKey(dir); err != nil {
		t.Error(err)
	}
	if _, err := PendingKey(dir); !errors.Is(err, ErrNoPendingKey) {
		t.Errorf("dropped: %v", err)
	}
	os.WriteFile(filepath.Join(dir, pendingKeyFile), []byte("-----BEGIN PRIV"), 0o600)
	if _, err := PendingKey(dir); err == nil || errors.Is(err, ErrNoPendingKey) {
		t.Errorf("damaged: %v", err)
	}
}
