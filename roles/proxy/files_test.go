package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair makes a self-signed certificate and its key in PEM form.
func pair(t *testing.T, name string, until time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: until.Add(-48 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func servedName(t *testing.T, f *files) string {
	t.Helper()
	c, err := f.current()
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf.DNSNames[0]
}

func TestChangedFilesAreTakenIntoService(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	later := time.Now().Add(24 * time.Hour)
	cert, key := pair(t, "one.example", later)
	write(t, certFile, cert)
	write(t, keyFile, key)
	var log bytes.Buffer
	changes := 0
	f, err := openFiles(certFile, keyFile, slog.New(slog.NewTextHandler(&log, nil)), func() { changes++ })
	if err != nil {
		t.Fatal(err)
	}
	f.look()
	if changes != 0 || log.Len() != 0 {
		t.Errorf("nothing changed, and yet %d changes and %q", changes, log.String())
	}

	// The certificate first, the key a moment later: the pair in between does not fit and is no news.
	cert, key = pair(t, "two.example", later)
	write(t, certFile, cert)
	f.look()
	if log.Len() != 0 || servedName(t, f) != "one.example" {
		t.Errorf("in between: serves %s, log %q", servedName(t, f), log.String())
	}
	write(t, keyFile, key)
	f.look()
	if servedName(t, f) != "two.example" || changes != 1 {
		t.Errorf("serves %s after %d changes", servedName(t, f), changes)
	}

	// What stays bad is reported, once, and the former stays in service.
	for _, bad := range []struct {
		what string
		make func()
		want string
	}{
		{"another key", func() { _, other := pair(t, "x.example", later); write(t, keyFile, other) }, "key"},
		{"rubbish", func() { write(t, certFile, []byte("rubbish")) }, "PEM"},
		{"no file", func() { os.Remove(certFile) }, "no such file"},
		{"expired", func() {
			cert, key := pair(t, "old.example", time.Now().Add(-time.Hour))
			write(t, certFile, cert)
			write(t, keyFile, key)
		}, "expired"},
	} {
		log.Reset()
		bad.make()
		for range 4 {
			f.look()
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), bad.want) {
			t.Errorf("%s: %d lines, want one about %q: %s", bad.what, n, bad.want, log.String())
		}
		if servedName(t, f) != "two.example" {
			t.Errorf("%s: serves %s", bad.what, servedName(t, f))
		}
	}
}

func TestSymbolicLinkSwap(t *testing.T) {
	// As Kubernetes does it: ..data points to a directory and is renamed over.
	dir := t.TempDir()
	later := time.Now().Add(24 * time.Hour)
	for _, name := range []string{"one.example", "two.example"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		cert, key := pair(t, name, later)
		write(t, filepath.Join(dir, name, "tls.crt"), cert)
		write(t, filepath.Join(dir, name, "tls.key"), key)
	}
	data := filepath.Join(dir, "..data")
	for _, link := range [][2]string{{"one.example", data}, {"..data/tls.crt", filepath.Join(dir, "tls.crt")}, {"..data/tls.key", filepath.Join(dir, "tls.key")}} {
		if err := os.Symlink(link[0], link[1]); err != nil {
			t.Fatal(err)
		}
	}
	f, err := openFiles(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), logTo(t), func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("two.example", data+".tmp"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(data+".tmp", data); err != nil {
		t.Fatal(err)
	}
	f.look()
	if servedName(t, f) != "two.example" {
		t.Errorf("serves %s", servedName(t, f))
	}
}

func TestBadFilesAtStart(t *testing.T) {
	dir := t.TempDir()
	cert, _ := pair(t, "one.example", time.Now().Add(time.Hour))
	_, key := pair(t, "two.example", time.Now().Add(time.Hour))
	write(t, filepath.Join(dir, "cert.pem"), cert)
	write(t, filepath.Join(dir, "key.pem"), key)
	if _, err := openFiles(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), logTo(t), func() {}); err == nil || !strings.Contains(err.Error(), "cert.pem") {
		t.Errorf("%v, want an error that names the file", err)
	}
}
