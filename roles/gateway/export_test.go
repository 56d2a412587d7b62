package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/configs"
)

// TestExportedPair: the pair is there, is read whole at every moment while it
// is renewed, follows the names, and is kept over a restart.
func TestExportedPair(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.part, core.names, core.exportLife = demoPart(), []string{"orders.internal"}, 10*time.Second
	data, dir := t.TempDir(), filepath.Join(t.TempDir(), "pair")
	g := runGateway(t, configs.Gateway{DataDir: data, Join: core.token(), Demo: true, ExportCert: dir})
	g.until(true)
	cert, key, ca := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")
	// The three belong together while nobody turns the link: read what it
	// points to, as a service that opens the directory does.
	load := func() *x509.Certificate {
		now, err := filepath.EvalSymlinks(filepath.Join(dir, exportCurrent))
		if err != nil {
			return nil
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(now, "tls.crt"), filepath.Join(now, "tls.key"))
		if os.IsNotExist(err) {
			return nil // replaced meanwhile
		}
		if err != nil {
			t.Fatalf("half a pair: %v", err)
		}
		return pair.Leaf
	}
	seen := map[string]bool{}
	for began := time.Now(); len(seen) < 3; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 25*time.Second {
			t.Fatalf("%d pairs in 25 s", len(seen))
		}
		if leaf := load(); leaf != nil {
			seen[leaf.SerialNumber.String()] = true
			if !slices.Equal(leaf.DNSNames, []string{"orders.internal"}) {
				t.Fatalf("names %q", leaf.DNSNames)
			}
		}
	}
	for file, mode := range map[string]os.FileMode{cert: 0o644, key: 0o600, ca: 0o644} {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %o", file, info.Mode(), err, mode)
		}
	}
	text, err := os.ReadFile(ca)
	if err != nil || string(text) != string(core.authority.Bundle().PEM()) {
		t.Errorf("the CA file is not the CA: %v", err)
	}

	// Another name, from the next snapshot on; and a life that a test does not see the end of.
	core.mu.Lock()
	core.names, core.exportLife = []string{"orders.internal", "orders.example"}, time.Hour
	core.mu.Unlock()
	core.rule(core.part)
	var leaf *x509.Certificate
	for began := time.Now(); leaf == nil || len(leaf.DNSNames) != 2; leaf = load() {
		if time.Since(began) > 10*time.Second {
			t.Fatal("the new name was not followed")
		}
		time.Sleep(5 * time.Millisecond)
	}
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) { // all but the last former pair go once the new one is in place
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) <= 6 {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Errorf("former pairs are left: %v, %v", entries, err)
			break
		}
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	g = runGateway(t, configs.Gateway{DataDir: data, Demo: true, ExportCert: dir})
	g.until(true)
	if again := load(); again == nil || again.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
		t.Error("a restart replaced a good pair")
	}
}

func TestExportLeavesFilesOfOthersAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tls.key"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openExporter(&exporter{dir: dir}); err == nil || !strings.Contains(err.Error(), "tls.key") {
		t.Errorf("%v, want an error that names the file", err)
	}
}

// TestWhoReadsAPairMayFinish: the directory that ..current led to is whole after
// the pair was replaced, until the next one.
func TestWhoReadsAPairMayFinish(t *testing.T) {
	e := &exporter{dir: t.TempDir()}
	pair := func(name string) *exported {
		return &exported{leaf: &x509.Certificate{}, cert: []byte(name + " cert"), key: []byte(name + " key"), ca: []byte("ca")}
	}
	var resolved []string
	for _, name := range []string{"first", "second", "third"} {
		if err := e.place(pair(name)); err != nil {
			t.Fatal(err)
		}
		dir, err := filepath.EvalSymlinks(filepath.Join(e.dir, exportCurrent))
		if err != nil {
			t.Fatal(err)
		}
		resolved = append(resolved, dir)
		for i, want := range []string{"first", "second", "third"}[:len(resolved)] {
			cert, certErr := os.ReadFile(filepath.Join(resolved[i], exportCert))
			key, keyErr := os.ReadFile(filepath.Join(resolved[i], exportKey))
			switch {
			case i < len(resolved)-2:
				if certErr == nil {
					t.Errorf("%s is still there after %s", want, name)
				}
			case certErr != nil || keyErr != nil || string(cert) != want+" cert" || string(key) != want+" key":
				t.Errorf("%s after %s: %q %q %v %v", want, name, cert, key, certErr, keyErr)
			}
		}
	}
}
