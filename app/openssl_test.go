package app

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// workshop is a directory in which commands run: openssl's, as guides print
// them, and ours.
type workshop struct {
	t   *testing.T
	dir string
}

func newWorkshop(t *testing.T) *workshop { return &workshop{t, t.TempDir()} }

func (w *workshop) path(name string) string { return filepath.Join(w.dir, name) }

// openssl runs a line as a guide prints it and returns what it printed.
func (w *workshop) openssl(line string) string {
	w.t.Helper()
	out, err := w.tryOpenSSL(line)
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func (w *workshop) tryOpenSSL(line string) (string, error) {
	w.t.Helper()
	needOpenSSL(w.t)
	cmd := exec.CommandContext(w.t.Context(), "/bin/sh", "-c", line)
	cmd.Dir = w.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func needOpenSSL(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err == nil {
		return
	}
	if os.Getenv("SALLYPORT_TEST_REQUIRE") == "all" {
		t.Fatal("openssl is required and not installed")
	}
	t.Skip("openssl is not installed")
}

// sallyport runs a verb; words that begin with @ are files of the workshop.
func (w *workshop) sallyport(wantStatus int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	for i, a := range args {
		if name, ok := strings.CutPrefix(a, "@"); ok {
			args[i] = w.path(name)
		}
	}
	status, out, errs := run(w.t, nil, "", args...)
	if status != wantStatus {
		w.t.Fatalf("sallyport %s: exit status %d\n%s%s", strings.Join(args, " "), status, out, errs)
	}
	return out, errs
}

// TestGuides: the openssl commands that guides give run as written (REQUIREMENTS
// A9), and what they make is usable with our verbs: leaves without EKU, with
// key encipherment only, clients with an OU or a CN and no alternative name, and
// the CA as the issuer of callers and services.
func TestGuides(t *testing.T) {
	w := newWorkshop(t)
	for _, line := range []string{
		`openssl req -x509 -noenc -subj '/CN=example.local' -newkey rsa:4096 -keyout ca.key -out ca.crt`,
		`openssl req -noenc -newkey rsa:4096 -keyout core.key -out core.csr -subj '/CN=core' -addext subjectAltName=DNS:core.example.local`,
		`openssl x509 -req -in core.csr -CA ca.crt -CAkey ca.key -days 365 -out core.crt -copy_extensions copy`,
		`openssl req -noenc -newkey rsa:2048 -keyout proxy.key -out proxy.csr -subj '/CN=proxy' -addext subjectAltName=DNS:proxy.example.local -addext 'keyUsage=keyEncipherment,dataEncipherment'`,
		`openssl x509 -req -in proxy.csr -CA ca.crt -CAkey ca.key -days 365 -out proxy.crt -copy_extensions copy`,
		`openssl req -noenc -newkey rsa:2048 -keyout ou.key -out ou.csr -subj '/OU=client'`,
		`openssl x509 -req -in ou.csr -CA ca.crt -CAkey ca.key -days 365 -out ou.crt`,
		`openssl req -noenc -newkey rsa:2048 -keyout cn.key -out cn.csr -subj '/CN=grpc-client'`,
		`openssl x509 -req -in cn.csr -CA ca.crt -CAkey ca.key -days 365 -out cn.crt`,
	} {
		w.openssl(line)
	}
	for _, good := range [][]string{
		{"@core.crt", "--key", "@core.key", "--name", "core.example.local"},
		{"@proxy.crt", "--key", "@proxy.key", "--name", "proxy.example.local"},
		{"@ou.crt", "--key", "@ou.key", "--purpose", "client"},
		{"@cn.crt", "--key", "@cn.key", "--purpose", "client"},
	} {
		// They are good for 365 days and their CA for 30.
		_, errs := w.sallyport(0, append([]string{"cert", "verify", "--ca", "@ca.crt"}, good...)...)
		if !strings.Contains(errs, "renew the CA first") {
			t.Errorf("%v: it outlives its CA, and nobody says so: %s", good, errs)
		}
	}
	if _, errs := w.sallyport(1, "cert", "verify", "--ca", "@ca.crt", "@cn.crt", "--name", "grpc-client"); !strings.Contains(errs, "fails at name") {
		t.Errorf("a common name counted: %s", errs)
	}

	// The CA becomes the issuer, with a warning about its 30 days.
	w.sallyport(0, "ca", "init", "@pki")
	out, errs := w.sallyport(0, "ca", "import", "@ca.crt", "@ca.key", "--ca-dir", "@pki")
	if !strings.Contains(errs, "30 days") || !strings.Contains(out, "example.local") {
		t.Errorf("ca import said %s%s", out, errs)
	}
	w.sallyport(2, "ca", "import", "@ca.crt", "@core.key", "--ca-dir", "@pki")
	w.sallyport(2, "ca", "import", "@core.crt", "@core.key", "--ca-dir", "@pki")
	w.sallyport(1, "ca", "import", "@ca.key", "@ca.crt", "--ca-dir", "@pki")
	// Who installed that CA alone accepts what is issued from now on; a year was
	// not to be had.
	w.sallyport(0, "cert", "issue", "web", "--server", "--dns", "web.example.local", "--ca-dir", "@pki", "--out", "@new")
	w.openssl(`openssl verify -CAfile ca.crt -untrusted new/web.crt -purpose sslserver -verify_hostname web.example.local new/web.crt`)
	w.openssl(`openssl verify -CAfile new/ca.crt -untrusted new/web.crt new/web.crt`)
	w.sallyport(0, "cert", "sign", "@core.csr", "--keep-names", "--ca-dir", "@pki", "--out", "@signed.crt")
	w.openssl(`openssl verify -CAfile ca.crt -untrusted signed.crt -verify_hostname core.example.local signed.crt`)
	w.sallyport(2, "cert", "issue", "long", "--client", "--validity", "31d", "--ca-dir", "@pki", "--out", "@new")
	if _, err := os.Stat(w.path("new/long.key")); err == nil {
		t.Error("a key was left behind by a verb that failed")
	}
}

// TestIssuedFilesElsewhere: what cert issue writes works unchanged in openssl
// and crypto/tls, in both directions and with client authentication, for every
// kind of key (REQUIREMENTS B1, B4).
func TestIssuedFilesElsewhere(t *testing.T) {
	w := newWorkshop(t)
	w.sallyport(0, "ca", "init", "@pki")
	for _, kind := range pki.KeyKinds {
		t.Run(kind, func(t *testing.T) {
			w := &workshop{t, w.dir}
			dir := "@" + kind
			w.sallyport(0, "cert", "issue", "server", "--server", "--dns", "*.example.org", "--ip", "127.0.0.1", "--key-type", kind, "--ca-dir", "@pki", "--out", dir)
			w.sallyport(0, "cert", "issue", "client", "--client", "--key-type", kind, "--ca-dir", "@pki", "--out", dir)
			handshake(t, w.path(kind))
			for _, name := range []string{"server", "client"} {
				for file, mode := range map[string]os.FileMode{name + ".key": 0o600, name + ".crt": 0o644, "ca.crt": 0o644} {
					if info, err := os.Stat(w.path(kind + "/" + file)); err != nil || info.Mode().Perm() != mode {
						t.Errorf("%s: %v, %v", file, info.Mode(), err)
					}
				}
			}
			w.openssl(`cd ` + kind + ` && openssl verify -x509_strict -CAfile ca.crt -untrusted server.crt -purpose sslserver -verify_hostname api.example.org server.crt`)
			w.openssl(`cd ` + kind + ` && openssl verify -x509_strict -CAfile ca.crt -untrusted client.crt -purpose sslclient client.crt`)
			if out, err := w.tryOpenSSL(`cd ` + kind + ` && openssl verify -CAfile ca.crt -untrusted client.crt -purpose sslserver client.crt`); err == nil {
				t.Errorf("a client's certificate serves: %s", out)
			}
			if out, err := w.tryOpenSSL(`cd ` + kind + ` && openssl verify -CAfile ca.crt -untrusted server.crt -verify_hostname example.com server.crt`); err == nil {
				t.Errorf("it is good for any name: %s", out)
			}
			// The key belongs to the certificate, in openssl's eyes.
			a := w.openssl(`cd ` + kind + ` && openssl pkey -in server.key -pubout`)
			b := w.openssl(`cd ` + kind + ` && openssl x509 -in server.crt -noout -pubkey`)
			if a != b {
				t.Error("key and certificate do not belong together")
			}
		})
	}
	// A revoked one is refused by whoever reads the list.
	w.sallyport(0, "cert", "revoke", "@p256/server.crt", "--ca-dir", "@pki")
	w.sallyport(0, "ca", "crl", "--pem", "-o", "@crl.pem", "--ca-dir", "@pki")
	const check = `openssl verify -crl_check -CAfile p256/ca.crt -CRLfile crl.pem -untrusted p256/client.crt `
	if out, err := w.tryOpenSSL(check + `p256/server.crt`); err == nil || !strings.Contains(out, "revoked") {
		t.Errorf("openssl: %v: %s", err, out)
	}
	w.openssl(check + `p256/client.crt`)
}

// handshake makes a connection between server and client with the files in dir.
func handshake(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatal("ca.crt is no CA file")
	}
	pair := func(name string) []tls.Certificate {
		p, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{p}
	}
	there, here := net.Pipe()
	defer there.Close()
	defer here.Close()
	server := tls.Server(there, &tls.Config{Certificates: pair("server"), ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots})
	client := tls.Client(here, &tls.Config{Certificates: pair("client"), RootCAs: roots, ServerName: "api.example.org"})
	deadline := time.Now().Add(10 * time.Second)
	server.SetDeadline(deadline)
	client.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
