package configs

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOutsideCertificateNames walks the names that guides give to the
// certificates of gRPC ports, in every form: flag, our variable, Defguard's
// variable, key of the file, in this order of precedence and for that role
// alone.
func TestOutsideCertificateNames(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	other := file("other")
	flag, own, foreign, key := file("flag"), file("own"), file("foreign"), file("key")
	for _, c := range []struct {
		role, flag, environ, defguard, key, pair string
		read                                     func(*Settings) string
	}{
		{"core", "grpc-cert", "SALLYPORT_GRPC_CERT", "DEFGUARD_GRPC_CERT", "grpc_cert", "grpc-key", func(s *Settings) string { return s.Core.GRPCCert }},
		{"core", "grpc-key", "SALLYPORT_GRPC_KEY", "DEFGUARD_GRPC_KEY", "grpc_key", "grpc-cert", func(s *Settings) string { return s.Core.GRPCKey }},
		{"core", "proxy-grpc-ca", "SALLYPORT_PROXY_GRPC_CA", "DEFGUARD_PROXY_GRPC_CA", "proxy_grpc_ca", "", func(s *Settings) string { return s.Core.ProxyGRPCCA }},
		{"proxy", "grpc-cert", "SALLYPORT_GRPC_CERT", "DEFGUARD_PROXY_GRPC_CERT", "grpc_cert", "grpc-key", func(s *Settings) string { return s.Proxy.GRPCCert }},
		{"proxy", "grpc-key", "SALLYPORT_GRPC_KEY", "DEFGUARD_PROXY_GRPC_KEY", "grpc_key", "grpc-cert", func(s *Settings) string { return s.Proxy.GRPCKey }},
		{"gateway", "grpc-ca", "SALLYPORT_GRPC_CA", "DEFGUARD_GRPC_CA", "grpc_ca", "", func(s *Settings) string { return s.Gateway.GRPCCA }},
	} {
		t.Run(c.role+" "+c.flag, func(t *testing.T) {
			for _, step := range []struct {
				flag, own, foreign, key bool
				want, from              string
			}{
				{true, true, true, true, flag, "flag --" + c.flag},
				{false, true, true, true, own, "environment " + c.environ},
				{false, false, true, true, foreign, "environment " + c.defguard},
				{false, false, false, true, key, "/"},
			} {
				args, environ, text := []string{"role=" + c.role}, []string{}, ""
				if c.pair != "" {
					args = append(args, c.pair+"="+other)
				}
				if step.flag {
					args = append(args, c.flag+"="+flag)
				}
				if step.own {
					environ = append(environ, c.environ+"="+own)
				}
				if step.foreign {
					environ = append(environ, c.defguard+"="+foreign)
				}
				if step.key {
					text = fmt.Sprintf("%s = %q\n", c.key, key)
				}
				s, p, err := try(t, text, args, environ...)
				if err != nil {
					t.Fatal(err)
				}
				if got := c.read(s); got != step.want {
					t.Errorf("got %s, want %s", got, step.want)
				}
				for _, r := range p.Rows() {
					if r.Key == c.key && !strings.HasPrefix(r.From, step.from) {
						t.Errorf("came from %s, want %s", r.From, step.from)
					}
				}
			}
		})
	}

	// Together in one process each role has its own.
	s := must(t, "", []string{"role=core,proxy,gateway"},
		"DEFGUARD_GRPC_CERT="+own, "DEFGUARD_GRPC_KEY="+key, "DEFGUARD_PROXY_GRPC_CERT="+foreign, "DEFGUARD_PROXY_GRPC_KEY="+flag,
		"DEFGUARD_PROXY_GRPC_CA="+other, "DEFGUARD_GRPC_CA=system")
	if s.Core.GRPCCert != own || s.Core.GRPCKey != key || s.Core.GRPCTLS != "files" || s.Core.ProxyGRPCCA != other ||
		s.Proxy.GRPCCert != foreign || s.Proxy.GRPCKey != flag || s.Proxy.GRPCTLS != "files" || s.Gateway.GRPCCA != CASystem {
		t.Errorf("%+v %+v %+v", s.Core, s.Proxy, s.Gateway)
	}
	// And tables of the file tell them apart.
	s = must(t, fmt.Sprintf("role = \"core,proxy\"\n[core]\ngrpc_cert = %q\ngrpc_key = %q\n[proxy]\ngrpc_cert = %q\ngrpc_key = %q\n", own, key, foreign, flag), nil)
	if s.Core.GRPCCert != own || s.Core.GRPCKey != key || s.Proxy.GRPCCert != foreign || s.Proxy.GRPCKey != flag {
		t.Errorf("%+v %+v", s.Core, s.Proxy)
	}
	// A variable of a role that does not run says nothing.
	if s := must(t, "", []string{"role=gateway"}, "DEFGUARD_GRPC_CERT=/nowhere", "DEFGUARD_PROXY_GRPC_CA=/nowhere"); len(s.Warnings) != 0 {
		t.Errorf("%q", s.Warnings)
	}
}

func TestPassphraseSources(t *testing.T) {
	credentials := t.TempDir()
	if err := os.WriteFile(filepath.Join(credentials, credential), []byte("from systemd\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	environ := "CREDENTIALS_DIRECTORY=" + credentials
	file := *write(t, "from a file\n")

	s, p, err := try(t, "", []string{"role=core"}, environ)
	if err != nil || s.Core.CAPassphrase.Reveal() != "from systemd" || s.Core.BackupPassphrase != "" {
		t.Fatalf("%q %q, %v", s.Core.CAPassphrase.Reveal(), s.Core.BackupPassphrase.Reveal(), err)
	}
	from := ""
	for _, r := range p.Rows() {
		if r.Key == "ca_passphrase_file" {
			from = r.From
		}
	}
	if from != "systemd credential sallyport-ca-passphrase" {
		t.Errorf("came from %q", from)
	}
	if s := must(t, "", []string{"role=core", "ca-passphrase-file=" + file}, environ); s.Core.CAPassphrase.Reveal() != "from a file" {
		t.Errorf("the flag does not win over the credential: %q", s.Core.CAPassphrase.Reveal())
	}
	if s := must(t, fmt.Sprintf("role = \"core\"\nca_passphrase_file = %q\n", file), nil, environ); s.Core.CAPassphrase.Reveal() != "from a file" {
		t.Errorf("the settings file does not win over the credential: %q", s.Core.CAPassphrase.Reveal())
	}
	if _, _, err := try(t, "", []string{"role=core", "ca-key-file=/k"}, environ); err == nil || !strings.Contains(err.Error(), "systemd credential") {
		t.Errorf("key file and credential: %v", err)
	}
	// Other units' credentials, and other roles, change nothing.
	if s := must(t, "", []string{"role=core"}, "CREDENTIALS_DIRECTORY="+t.TempDir()); s.Core.CAPassphrase != "" {
		t.Error("a passphrase out of nothing")
	}
	if s := must(t, "", []string{"role=gateway"}, environ); s.Core != nil {
		t.Error(s.Core)
	}

	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if s := must(t, "", []string{"role=core", "ca-passphrase-file=" + file}); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "chmod 600 "+file) {
		t.Errorf("a passphrase that everyone can read: %q", s.Warnings)
	}
}

func TestBackupsBesideTheirData(t *testing.T) {
	pass := *write(t, "p")
	for dir, want := range map[string]int{"/d/backups": 1, "/d": 1, "/data": 0, "/backups": 0} {
		if s := must(t, "", []string{"role=core", "data-dir=/d", "backup-dir=" + dir, "backup-passphrase-file=" + pass}); len(s.Warnings) != want {
			t.Errorf("%s: %q", dir, s.Warnings)
		}
	}
}

// TestSecretsAreNotShown formats settings in every way that a log line or an
// error might.
func TestSecretsAreNotShown(t *testing.T) {
	pass := *write(t, "correct horse")
	s, p, err := try(t, "", []string{"role=core", "ca-passphrase-file=" + pass, "backup-dir=/b", "backup-passphrase-file=" + pass, "alert-webhook=https://h.example/battery"})
	if err != nil {
		t.Fatal(err)
	}
	var log, printed strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("settings", "core", s.Core, "secret", s.Core.CAPassphrase)
	slog.New(slog.NewTextHandler(&log, nil)).Info("settings", "core", *s.Core, "secret", s.Core.CAPassphrase)
	if err := Print(&printed, s, p); err != nil {
		t.Fatal(err)
	}
	marshalled, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := json.Marshal(p.Rows())
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %q %s", s.Core, s.Core, s.Core, s.Core.CAPassphrase, s.Core.AlertWebhook, fmt.Sprint(s.Core.BackupPassphrase)) +
		log.String() + printed.String() + string(marshalled) + string(rows)
	for _, secret := range []string{"correct", "horse", "battery"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is shown in %s", secret, all)
		}
	}
	if !strings.Contains(all, hidden) {
		t.Error("that there is a secret is not shown either: this test looks at the wrong place")
	}
	_, _, err = try(t, "", []string{"role=core", "alert-webhook=ftp://h.example/battery"})
	if err == nil || strings.Contains(err.Error(), "battery") {
		t.Errorf("an error repeats the secret: %v", err)
	}
}
