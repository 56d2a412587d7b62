package pki

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestBackup moves an authority to another host, with another secret, in every
// phase.
func TestBackup(t *testing.T) {
	for name, steps := range map[string][]rotationStep{
		"steady": nil, "published": {stepPublish}, "activated": {stepPublish, stepActivate}, "rotated": {stepPublish, stepActivate, stepRetire},
	} {
		a := walk(t, testAuthority(t), epoch, steps...)
		a, _ = importCA(t, a, foreignCA(t, "example", nil, nil))
		text, err := a.Backup()
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "ca")
		b, err := RestoreAuthority(dir, passphrase("correct horse"), text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		opened, err := OpenAuthority(dir, Secret{Passphrase: "correct horse"})
		if err != nil || !reflect.DeepEqual(opened.state, a.state) || !b.Bundle().Equal(a.Bundle()) {
			t.Errorf("%s: %v", name, err)
		}
		issueComponent(t, b, RoleGateway, "office", 1)
		if sealed, _ := os.ReadFile(filepath.Join(dir, sealedFile)); bytes.Contains(sealed, []byte("components")) {
			t.Errorf("%s: it was restored in the clear", name)
		}
		if _, err := RestoreAuthority(dir, passphrase("correct horse"), text); !errors.Is(err, ErrAuthorityExists) {
			t.Errorf("%s: over one that exists: %v", name, err)
		}
		for at := range 40 {
			bad := bytes.Clone(text)
			bad[at*len(bad)/40] ^= 0x20
			if _, err := RestoreAuthority(filepath.Join(t.TempDir(), "ca"), Secret{}, bad); err == nil {
				t.Errorf("%s: a damaged backup was taken", name)
			}
		}
	}
	if _, err := RestoreAuthority(filepath.Join(t.TempDir(), "ca"), Secret{}, nil); err == nil {
		t.Error("nothing was restored")
	}
}
