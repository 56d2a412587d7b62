package pki

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// passphrase is cheap to try, unlike those that Secret makes by itself.
func passphrase(s string) Secret { return Secret{Passphrase: s, work: 8} }

func TestSecretPassphrase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := CreateAuthority(dir, passphrase("correct horse"), testDomain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(KeyFileBeside(dir)); err == nil {
		t.Error("a key file was made beside a passphrase")
	}
	b, err := OpenAuthority(dir, Secret{Passphrase: "correct horse"})
	if err != nil || !b.Bundle().Equal(a.Bundle()) {
		t.Fatalf("%v", err)
	}
	for name, tc := range map[string]struct {
		secret Secret
		want   string
	}{
		"another passphrase": {Secret{Passphrase: "battery staple"}, "another one"},
		"nothing":            {Secret{}, "--ca-passphrase-file"},
		"a key file":         {Secret{KeyFile: filepath.Join(t.TempDir(), "x.key")}, "--ca-passphrase-file"},
	} {
		if _, err := OpenAuthority(dir, tc.secret); !errors.Is(err, ErrWrongSecret) || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrNoAuthority) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenAuthority(dir, Secret{Passphrase: "x", KeyFile: "y"}); err == nil || !strings.Contains(err.Error(), "give one") {
		t.Errorf("two secrets: %v", err)
	}
	if _, err := CreateAuthority(filepath.Join(t.TempDir(), "ca"), Secret{Passphrase: "short"}, testDomain, epoch); err == nil {
		t.Error("a passphrase of 5 characters passed")
	}
}

// TestSecretWork: what makes guessing expensive is in the file.
func TestSecretWork(t *testing.T) {
	if testing.Short() {
		t.Skip("deriving keys from passphrases takes long under the race detector; not with -short")
	}
	sealed, err := Secret{Passphrase: "correct horse"}.seal([]byte("x"))
	if err != nil || !bytes.Contains(sealed, fmt.Appendf(nil, " %d\n", scryptWork)) {
		t.Errorf("%q %v", sealed[:80], err)
	}
}

func TestSecretKeyFile(t *testing.T) {
	parent := t.TempDir()
	dir, file := filepath.Join(parent, "ca"), filepath.Join(parent, "elsewhere", "sallyport.key")
	if _, err := CreateAuthority(dir, Secret{KeyFile: filepath.Join(dir, "x.key")}, testDomain, epoch); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("in the CA's own directory: %v", err)
	}
	a, err := CreateAuthority(dir, Secret{KeyFile: file}, testDomain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir, Secret{}); !errors.Is(err, ErrWrongSecret) || !strings.Contains(err.Error(), "--ca-key-file") {
		t.Errorf("the default path: %v", err)
	}
	if _, err := OpenAuthority(dir, passphrase("correct horse")); !errors.Is(err, ErrWrongSecret) || !strings.Contains(err.Error(), "--ca-key-file") {
		t.Errorf("a passphrase: %v", err)
	}
	key, _ := os.ReadFile(file)
	// A second CA may use the same key file, and does not replace it: it may
	// have been made by a CreateAuthority that was killed, or by the operator.
	if _, err := CreateAuthority(filepath.Join(parent, "two"), Secret{KeyFile: file}, testDomain, epoch); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(file); !bytes.Equal(key, again) {
		t.Error("a key file was replaced")
	}
	if b, err := OpenAuthority(dir, Secret{KeyFile: file}); err != nil || !b.Bundle().Equal(a.Bundle()) {
		t.Errorf("%v", err)
	}
	// Over an authority no key file is made.
	if _, err := CreateAuthority(dir, Secret{}, testDomain, epoch); !errors.Is(err, ErrAuthorityExists) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(KeyFileBeside(dir)); err == nil {
		t.Error("a key file was made beside a CA that exists")
	}
}

func TestReseal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := CreateAuthority(dir, Secret{}, testDomain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Reseal(passphrase("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir, Secret{}); !errors.Is(err, ErrWrongSecret) {
		t.Errorf("with the former secret: %v", err)
	}
	// The former value would write with the former secret, and must not.
	if _, err := a.Publish(epoch); !errors.Is(err, ErrAuthorityChanged) {
		t.Errorf("the former value still writes: %v", err)
	}
	if b, err = b.Publish(epoch); err != nil {
		t.Fatal(err)
	}
	c, err := OpenAuthority(dir, Secret{Passphrase: "correct horse"})
	if err != nil || c.Phase() != PhasePublished || !c.Bundle().Equal(b.Bundle()) {
		t.Fatalf("%v", err)
	}
	other := filepath.Join(filepath.Dir(dir), "new.key")
	if _, err := c.Reseal(Secret{KeyFile: other}); err != nil {
		t.Fatal(err)
	}
	if c, err = OpenAuthority(dir, Secret{KeyFile: other}); err != nil || c.Phase() != PhasePublished {
		t.Fatalf("%v", err)
	}
}

// TestKeysStaySealed looks for the private keys, in every form in which they
// could lie around, in all files of the CA and in all that is printed of it.
func TestKeysStaySealed(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "ca")
	a, err := CreateAuthority(dir, passphrase("correct horse"), testDomain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = a.Publish(epoch); err != nil {
		t.Fatal(err)
	}
	var secrets [][]byte
	for _, h := range []*hierarchy{&a.state.base, a.state.next} {
		for _, i := range []issuer{h.root, h.components, h.callers} {
			text, err := MarshalKeyPEM(i.key)
			if err != nil {
				t.Fatal(err)
			}
			der := bytes.SplitN(text, []byte("\n"), 3)[1] // a line of base64
			secrets = append(secrets, der[len(der)-40:])
		}
	}
	plain, err := a.state.encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets { // or the test would look for the wrong thing
		raw, _ := base64.StdEncoding.DecodeString(string(s))
		if raw = raw[:len(raw)-1]; len(raw) < 16 {
			t.Fatalf("nothing to look for in %q", s)
		}
		secrets = append(secrets, raw)
	}
	secrets = append(secrets, []byte("correct horse"), []byte("next_root_key"), []byte("components"), []byte("PRIVATE"))
	if !bytes.Contains(plain, []byte("components")) {
		t.Fatal("the state is not what this test takes it for")
	}
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	log.Info("x", "authority", a, "secret", a.secret, "in", struct {
		A *Authority
		S Secret
	}{a, a.secret})
	fmt.Fprintf(&out, "%v %+v %#v %s %q %d %v %+v %#v %s", a, a, a, a, a, a, a.secret, a.secret, a.secret, a.secret)
	texts := map[string][]byte{"what is printed": bytes.ReplaceAll(out.Bytes(), []byte("components'"), nil)}
	filepath.WalkDir(parent, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			texts[path], _ = os.ReadFile(path)
		}
		return nil
	})
	if len(texts) != 3 {
		t.Errorf("%d files", len(texts)-1)
	}
	for where, text := range texts {
		for _, s := range secrets {
			if bytes.Contains(text, s) {
				t.Errorf("%s holds %q", where, s)
			}
		}
	}
}
