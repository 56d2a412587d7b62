package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzSettingsFile reads any bytes as a settings file. Whatever is accepted
// is printed and reads back; whatever is refused is refused with a place.
func FuzzSettingsFile(f *testing.F) {
	examples, err := filepath.Glob("examples/*.toml")
	if err != nil || len(examples) == 0 {
		f.Fatal(examples, err)
	}
	for _, e := range examples {
		text, err := os.ReadFile(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, s := range []string{
		"role = \"all\"\n[core]\n[proxy]\ntls = \"internal\"",
		"role = [\"core\", \"gateway\"]\n[gateway]\nupstream = [{ address = \"127.0.0.1:1\" }, \"a=unix:///x\"]",
		"role = \"gateway\"\ngateway.core = \"x\"\ngateway.allow = ['/a.*']",
		"a.b.c = 1\n[[a.d]]\n[a.d.e]\nf = [[[1]], {g = 1979-05-27}]",
		"core = \"x\"\n[[core]]\n",
		"role = \"\"\"\ncore\"\"\"",
		"role = \"core\"\nbackup_dir = \"/b\"\nbackup_keep = 3\nbackup_passphrase_file = \"/etc/hostname\"\nalert_webhook = \"https://a/b\"",
		"role = \"proxy\"\nclient_ca = [\"a=/etc/hostname\"]\nrenew_before = \"1h\"\nmax_link_age = \"2h\"",
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		path, again := filepath.Join(dir, "in.toml"), filepath.Join(dir, "out.toml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		src := Sources{Environ: []string{"HOME=/h"}, UID: 1, ReadSecret: func(string) (string, error) { return "", nil }}
		s, p, err := Load(Flags{Config: &path}, src)
		if err != nil {
			if !strings.Contains(err.Error(), path+":") && !strings.Contains(err.Error(), "--role") && !strings.Contains(err.Error(), "--data-dir") {
				t.Fatalf("no place in: %v", err)
			}
			return
		}
		var b strings.Builder
		if err := Print(&b, s, p); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(again, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Load(Flags{Config: &again}, src); err != nil {
			t.Fatalf("%v in:\n%s", err, b.String())
		}
	})
}
