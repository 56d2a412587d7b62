package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	"sallyport/acme/pki"
)

// secret is something that may be in its own files alone.
type secret struct {
	what  string
	homes []string // files that may hold it
	forms [][]byte // the bytes to look for
}

func (s *secret) in(text []byte) bool {
	return slices.ContainsFunc(s.forms, func(form []byte) bool { return bytes.Contains(text, form) })
}

// unwrapped is text as it is, and once more without ends of lines, also those
// of a text within JSON, so that base64 that was broken into lines is found.
func unwrapped(text []byte) []byte {
	joined := bytes.ReplaceAll(text, []byte(`\n`), nil)
	joined = bytes.ReplaceAll(joined, []byte("\n"), nil)
	return slices.Concat(text, []byte{0}, joined)
}

// secrets collects what must not be found, each once.
type secrets struct {
	t   *testing.T
	all map[string]*secret
}

// text is a secret that is written as it is.
func (s *secrets) text(what, value string, homes ...string) {
	s.t.Helper()
	if len(value) < 12 {
		s.t.Fatalf("%s is too short to look for", what)
	}
	s.add(what, []byte(value), homes...)
}

// add is a secret of bytes: looked for as they are, in hexadecimal and in
// base64 at each of its three offsets.
func (s *secrets) add(what string, value []byte, homes ...string) {
	if known := s.all[string(value)]; known != nil {
		known.homes = append(known.homes, homes...)
		return
	}
	n := &secret{what: what, homes: homes, forms: [][]byte{value, []byte(hex.EncodeToString(value)), []byte(strings.ToUpper(hex.EncodeToString(value)))}}
	for offset := range 3 {
		if offset > len(value) {
			break
		}
		whole := value[offset : offset+(len(value)-offset)/3*3]
		n.forms = append(n.forms, []byte(base64.StdEncoding.EncodeToString(whole)), []byte(base64.URLEncoding.EncodeToString(whole)))
	}
	s.all[string(value)] = n
}

// key is a private key: what is secret in it, whatever form it is written in.
func (s *secrets) key(what string, key crypto.PrivateKey, homes ...string) {
	s.t.Helper()
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		d, err := k.Bytes()
		if err != nil {
			s.t.Fatal(err)
		}
		s.add(what, d, homes...)
	case ed25519.PrivateKey:
		s.add(what, k.Seed(), homes...)
	case *rsa.PrivateKey:
		s.add(what, k.D.Bytes(), homes...)
		s.add(what, k.Primes[0].Bytes(), homes...)
	default:
		s.t.Fatalf("%s: a key of kind %T", what, key)
	}
}

// keysIn finds the private keys in a text of PEM blocks.
func (s *secrets) keysIn(what string, text []byte, homes ...string) (n int) {
	s.t.Helper()
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			s.t.Fatalf("%s: %v", what, err)
		}
		s.key(what, key, homes...)
		n++
	}
	return n
}

// files collects the keys of every file below dir. A file with a key is an
// identity or what `cert issue` made, and 0600.
func (s *secrets) files(dir string) (n int) {
	s.t.Helper()
	walk(s.t, dir, func(path string, info fs.FileInfo, text []byte) {
		found := s.keysIn(path, text, path)
		if found > 0 && info.Mode().Perm() != 0o600 {
			s.t.Errorf("%s holds a private key and has the mode %v", path, info.Mode())
		}
		if name := filepath.Base(path); found > 0 && name != "identity.pem" && !strings.HasSuffix(name, ".key") {
			s.t.Errorf("%s holds a private key in the clear, and is no file for that", path)
		}
		n += found
	})
	return n
}

func walk(t *testing.T, dir string, f func(path string, info fs.FileInfo, text []byte)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // a temporary file that has got its name meanwhile, a socket
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		f(path, info, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// leaks says which secrets are in text, which came from place.
func (s *secrets) leaks(place string, text []byte) {
	s.t.Helper()
	text = unwrapped(text)
next:
	for _, secret := range s.all {
		for _, home := range secret.homes {
			if home == place {
				continue next
			}
		}
		if secret.in(text) {
			s.t.Errorf("%s is in %s", secret.what, place)
		}
	}
}

// TestSecretsStayWhereTheyBelong: after joins, a removal, certificates, API
// keys, backups and a restore, private keys, seeds of tokens, passphrases and
// API keys are in the 0600 files that are made for them, and nowhere else: not
// in a log, a database, an audit log, an answer of a verb, or a backup.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	s := &secrets{t: t, all: map[string]*secret{}}
	passDir := t.TempDir()
	passphrase := func(name, value string) string {
		file := filepath.Join(passDir, name)
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.text(name, value, file)
		return file
	}
	caPass := passphrase("ca-passphrase", "four sealed words for this authority")
	backupPass := passphrase("backup-passphrase", "other words that seal the backup")

	d := deployLogging(t, "all", strings.Replace(callersPolicy, "[methods]", "[methods]\n\"/grpc.testing.TestService/*\" = [\"public\"]", 1),
		"--ca-passphrase-file", caPass, "--log-level", "debug")
	invited := func(p *process) {
		tok, err := pki.ParseToken(token(t, strings.Join(p.args, " ")))
		if err != nil {
			t.Fatal(err)
		}
		s.text("token of "+p.name, tok.String())
		s.add("seed of the token of "+p.name, tok.Seed[:])
		s.key("bootstrap key of "+p.name, tok.BootstrapKey())
	}
	invited(d.proxy)
	office := func() *process {
		return d.addGateway("office", nil, "SALLYPORT_LOG_LEVEL=debug", "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	}
	first := office()
	invited(first)
	d.waitRouted(testService, "office")

	// The first incarnation's keys are looked for after it is gone, too.
	if n := s.files(d.dir); n < 3 {
		t.Fatalf("%d private keys in the files of three components", n)
	}
	run(t, d.coreEnv, "gateway", "rm", "office")
	waitLog(t, first, "removed")
	first.kill()
	if err := os.RemoveAll(filepath.Join(d.dir, "office")); err != nil {
		t.Fatal(err)
	}
	for _, secret := range s.all {
		secret.homes = slices.DeleteFunc(secret.homes, func(home string) bool { return strings.HasPrefix(home, filepath.Join(d.dir, "office")) })
	}
	second := office()
	invited(second)
	d.waitRouted(testService, "office")

	cert, key, _ := d.issue("billing", "--client")
	d.issue("big", "--server", "--dns", "big.internal", "--key-type", "rsa2048")
	d.issue("modern", "--server", "--dns", "modern.internal", "--key-type", "ed25519")
	apiKey := strings.TrimSpace(run(t, d.coreEnv, "apikey", "create", "ci"))
	apiKeyFile := filepath.Join(d.dir, "ci.apikey")
	if err := os.WriteFile(apiKeyFile, []byte(apiKey), 0o600); err != nil {
		t.Fatal(err)
	}
	s.text("API key", apiKey, apiKeyFile)
	_, part, found := strings.Cut(apiKey, "_")
	if !found {
		t.Fatalf("an API key of another form: %d characters", len(apiKey))
	}
	s.text("API key without its prefix", part, apiKeyFile)

	// The secrets are in use: good and bad calls with them.
	eventually(t, 10*time.Second, "a call with the certificate", func() error {
		return d.direct([]string{"--cert", cert, "--key", key}, "/grpc.testing.TestService/EmptyCall")
	})
	eventually(t, 10*time.Second, "a call with the API key", func() error {
		return d.direct([]string{"--api-key-file", apiKeyFile}, "/grpc.testing.TestService/EmptyCall")
	})
	d.direct([]string{"--api-key-file", apiKeyFile}, "/sallyport.demo.v1.Echo/Count") // refused
	backup := filepath.Join(d.dir, "core.backup")
	run(t, d.coreEnv, "backup", backup, "--passphrase-file", backupPass)
	answers := map[string]string{}
	for _, verb := range [][]string{{"status", "--json"}, {"audit", "ls", "--json"}, {"cert", "ls", "--all", "--json"},
		{"apikey", "ls", "--json"}, {"gateway", "ls", "--json"}, {"proxy", "ls", "--json"}, {"policy", "show"}} {
		answers["sallyport "+strings.Join(verb, " ")] = run(t, d.coreEnv, verb...)
	}
	run(t, d.coreEnv, "apikey", "revoke", "ci")

	// The same host restores it, and goes on.
	d.core.stop(t, 40*time.Second)
	run(t, d.coreEnv, "restore", backup, "--passphrase-file", backupPass, "--ca-passphrase-file", caPass, "--force")
	d.core.start(t)
	client := testgrpc.NewTestServiceClient(d.dial())
	eventually(t, 30*time.Second, "calls go through the restored core", func() error {
		_, err := client.EmptyCall(t.Context(), &testgrpc.Empty{})
		return err
	})

	// The CA's own keys, as its passphrase opens them.
	sealed, err := os.ReadFile(filepath.Join(d.dir, "core", "ca", "authority.age"))
	if err != nil {
		t.Fatal(err)
	}
	identity, err := age.NewScryptIdentity("four sealed words for this authority")
	if err != nil {
		t.Fatal(err)
	}
	opened, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := io.ReadAll(opened)
	if err != nil {
		t.Fatal(err)
	}
	if n := caKeys(s, authority); n < 2 {
		t.Fatalf("%d keys in the sealed authority", n)
	}
	if n := s.files(d.dir); n < 6 {
		t.Errorf("%d private keys in the files of the deployment", n)
	}

	read, controls := 0, 0
	for _, dir := range []string{d.dir, passDir} {
		walk(t, dir, func(path string, info fs.FileInfo, text []byte) {
			read++
			s.leaks(path, text)
			if bytes.Contains(text, []byte("PRIVATE KEY-----")) && info.Mode().Perm() != 0o600 {
				t.Errorf("%s: a private key in a file of mode %v", path, info.Mode())
			}
		})
	}
	for _, p := range []*process{d.core, d.proxy, first, second} {
		s.leaks("log of "+p.name, []byte(p.log.String()))
	}
	for verb, answer := range answers {
		s.leaks("answer of "+verb, []byte(answer))
	}
	t.Logf("%d secrets looked for in %d files, 4 logs and %d answers", len(s.all), read, len(answers))

	// The search finds what is there: each secret in a file that it belongs in.
	for _, secret := range s.all {
		for _, home := range secret.homes {
			text, err := os.ReadFile(home)
			if err == nil && !secret.in(unwrapped(text)) && strings.HasPrefix(home, passDir) {
				t.Errorf("%s is not found in %s", secret.what, home)
			}
			if err == nil && secret.in(unwrapped(text)) {
				controls++
			}
		}
	}
	if controls < 10 {
		t.Errorf("only %d secrets are found where they are", controls)
	}
}

// caKeys collects the keys in the opened state of a CA: PKCS #8 in JSON.
func caKeys(s *secrets, text []byte) (n int) {
	s.t.Helper()
	var state any
	if err := json.Unmarshal(text, &state); err != nil {
		s.t.Fatal(err)
	}
	var visit func(any)
	visit = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, e := range v {
				visit(e)
			}
		case []any:
			for _, e := range v {
				visit(e)
			}
		case string:
			der, err := base64.StdEncoding.DecodeString(v)
			if err != nil {
				return
			}
			if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
				n++
				s.key(fmt.Sprintf("key %d of the CA", n), key)
			}
		}
	}
	visit(state)
	return n
}

// TestKeyOfTheCAStaysInItsFile: without a passphrase the CA is sealed to a key
// in a file of its own, and that is in no backup: what restores it has another.
func TestKeyOfTheCAStaysInItsFile(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	d := issuingCore(t)
	d.issue("billing", "--client")
	home := filepath.Join(d.dir, "core", "ca.key")
	info, err := os.Stat(home)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has the mode %v", home, info.Mode())
	}
	text, err := os.ReadFile(home)
	if err != nil {
		t.Fatal(err)
	}
	s := &secrets{t: t, all: map[string]*secret{}}
	for line := range strings.SplitSeq(string(text), "\n") {
		if strings.HasPrefix(line, "AGE-SECRET-KEY-") {
			s.text("key of the CA", strings.TrimSpace(line), home)
		}
	}
	if len(s.all) != 1 {
		t.Fatalf("%d keys in %s", len(s.all), home)
	}
	pass := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(pass, []byte("words that seal the backup\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(d.dir, "core.backup")
	run(t, d.coreEnv, "backup", backup, "--passphrase-file", pass)
	fresh := filepath.Join(d.dir, "fresh")
	run(t, []string{"SALLYPORT_DATA_DIR=" + fresh}, "restore", backup, "--passphrase-file", pass)
	walk(t, d.dir, func(path string, _ fs.FileInfo, text []byte) { s.leaks(path, text) })
	s.leaks("log of core", []byte(d.core.log.String()))
}
