package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// opensslDir runs openssl in a directory of its own.
type opensslDir struct {
	t    *testing.T
	path string
	dir  string
}

func newOpenSSL(t *testing.T) *opensslDir {
	return &opensslDir{t, needTool(t, "openssl"), t.TempDir()}
}

func (o *opensslDir) run(wantOK bool, args ...string) string {
	o.t.Helper()
	cmd := exec.Command(o.path, args...)
	cmd.Dir = o.dir
	out, err := cmd.CombinedOutput()
	if (err == nil) != wantOK {
		o.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// line runs a command line as a guide prints it.
func (o *opensslDir) line(line string) {
	o.t.Helper()
	cmd := exec.Command("/bin/sh", "-c", line)
	cmd.Dir = o.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		o.t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

func (o *opensslDir) read(name string) []byte {
	o.t.Helper()
	text, err := os.ReadFile(filepath.Join(o.dir, name))
	if err != nil {
		o.t.Fatal(err)
	}
	return text
}

func (o *opensslDir) certs(name string) []*x509.Certificate {
	o.t.Helper()
	certs, err := ParseCertificatesPEM(o.read(name))
	if err != nil {
		o.t.Fatal(err)
	}
	return certs
}

func (o *opensslDir) write(name string, text []byte) {
	o.t.Helper()
	if err := os.WriteFile(filepath.Join(o.dir, name), text, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// TestGuidesCommands runs the commands of the guides as they stand. The CA
// becomes the issuer of callers and services; the leaves verify for what they
// are used for, without EKU, with key encipherment only, with a CN alone.
func TestGuidesCommands(t *testing.T) {
	o := newOpenSSL(t)
	for _, line := range []string{
		`openssl req -x509 -noenc -subj '/CN=example.local' -newkey rsa:4096 -keyout ca.key -out ca.crt`,
		`openssl req -noenc -newkey rsa:2048 -keyout core.key -out core.csr -subj '/CN=core' -addext subjectAltName=DNS:core.example.local`,
		`openssl x509 -req -in core.csr -CA ca.crt -CAkey ca.key -days 365 -out core.crt -copy_extensions copy`,
		`openssl req -noenc -newkey rsa:2048 -keyout proxy.key -out proxy.csr -subj '/CN=proxy' -addext subjectAltName=DNS:proxy.example.local -addext 'keyUsage=keyEncipherment,dataEncipherment'`,
		`openssl x509 -req -in proxy.csr -CA ca.crt -CAkey ca.key -days 365 -out proxy.crt -copy_extensions copy`,
		`openssl req -noenc -newkey rsa:2048 -keyout client.key -out client.csr -subj '/OU=client'`,
		`openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -days 365 -out client.crt`,
		`openssl req -noenc -newkey rsa:2048 -keyout named.key -out named.csr -subj '/CN=grpc-client'`,
		`openssl x509 -req -in named.csr -CA ca.crt -CAkey ca.key -days 365 -out named.crt`,
	} {
		o.line(line)
	}
	now := time.Now()
	ca := o.certs("ca.crt")
	for _, tc := range []struct {
		file, name string
		purpose    Purpose
		fails      string
	}{
		{"core.crt", "core.example.local", PurposeServer, ""},
		{"proxy.crt", "proxy.example.local", PurposeServer, ""},
		{"client.crt", "", PurposeClient, ""},
		{"named.crt", "", PurposeClient, ""},
		{"core.crt", "proxy.example.local", PurposeServer, StepName},
		{"named.crt", "grpc-client", PurposeServer, StepName},
	} {
		v := Verify(o.certs(tc.file), ca, tc.name, tc.purpose, now)
		if f := v.Failed(); (f == nil) != (tc.fails == "") || f != nil && f.Name != tc.fails {
			t.Errorf("%s for %q: %v", tc.file, tc.name, v.Err())
		}
		if s := Outlives(v.Path); !strings.Contains(s, "example.local") {
			t.Errorf("%s lives longer than its CA: %q", tc.file, s)
		}
		key, err := ParseKeyPEM(o.read(strings.TrimSuffix(tc.file, "crt") + "key"))
		if err != nil || !samePublicKey(key.Public(), o.certs(tc.file)[0].PublicKey) {
			t.Errorf("the key of %s: %v", tc.file, err)
		}
	}

	a, err := CreateAuthority(filepath.Join(t.TempDir(), "ca"), Secret{}, testDomain, now)
	if err != nil {
		t.Fatal(err)
	}
	b, imported, err := a.ImportCallers(o.read("ca.crt"), o.read("ca.key"), now)
	if err != nil {
		t.Fatal(err)
	}
	if imported.Direct || len(imported.Warnings) != 1 || !strings.Contains(imported.Warnings[0], "30 days") {
		t.Errorf("direct %v, warnings %q", imported.Direct, imported.Warnings)
	}
	// The CSRs of the guide are signed with the names that they ask for, and
	// openssl verifies the answer with the CA alone.
	block, err := decodePEM(o.read("core.csr"))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(block)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := b.SignCSR(SignRequest{CSR: csr, KeepNames: true}, now)
	if err != nil {
		t.Fatal(err)
	}
	o.write("signed.pem", signed.PEM())
	o.write("roots.pem", b.Bundle().PEM())
	o.run(true, "verify", "-CAfile", "ca.crt", "-untrusted", "signed.pem", "-purpose", "sslserver", "-verify_hostname", "core.example.local", "signed.pem")
	o.run(true, "verify", "-CAfile", "roots.pem", "-untrusted", "signed.pem", "-purpose", "sslclient", "signed.pem")
	client, err := b.IssueLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: testKey(t).Public(), Client: true}, now)
	if err != nil {
		t.Fatal(err)
	}
	if client.Chain[0].NotAfter.After(ca[0].NotAfter) {
		t.Error("a certificate outlives the imported CA")
	}
	if id, err := b.Bundle().CallerVerifier(nil, nil).Caller(client.Chain); err != nil || id.Name != "billing" {
		t.Error(err)
	}
	// Nothing that the CA's owner makes beside us is a caller or a component.
	for _, file := range []string{"core.crt", "client.crt", "named.crt"} {
		if id, err := b.Bundle().CallerVerifier(nil, nil).Caller(o.certs(file)); err == nil {
			t.Errorf("%s is taken for %s", file, id)
		}
	}

	// A CA of the same kind that may have none below it issues directly.
	o.line(`openssl req -x509 -noenc -subj '/CN=example.local last' -newkey rsa:2048 -keyout last.key -out last.crt -days 3650 -addext basicConstraints=critical,CA:true,pathlen:0`)
	now = time.Now()
	c, imported, err := b.ImportCallers(o.read("last.crt"), o.read("last.key"), now)
	if err != nil {
		t.Fatal(err)
	}
	if !imported.Direct || len(imported.Warnings) != 1 {
		t.Errorf("direct %v, warnings %q", imported.Direct, imported.Warnings)
	}
	direct, err := c.IssueLeaf(LeafRequest{PublicKey: testKey(t).Public(), Server: true, DNS: []string{"orders.example.org"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	o.write("direct.pem", direct.PEM())
	o.run(true, "verify", "-CAfile", "last.crt", "-purpose", "sslserver", "-verify_hostname", "orders.example.org", "direct.pem")
	// Both former issuers are trusted on.
	if _, err := c.Bundle().CallerVerifier(nil, nil).Caller(client.Chain); err != nil {
		t.Error(err)
	}
	// openssl reads its revocation list.
	ders, err := c.CRLs([]CRLEntry{CRLEntryOf(direct.Chain[0], now, "superseded")}, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	o.write("crl.pem", MarshalCRLsPEM(ders[:1]))
	if out := o.run(false, "verify", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "last.crt", "direct.pem"); !strings.Contains(out, "revoked") {
		t.Errorf("%s", out)
	}
}

// TestOpenSSLRotation: openssl follows the cross-certificate, and checks
// revocation lists of our own issuers.
func TestOpenSSLRotation(t *testing.T) {
	o := newOpenSSL(t)
	now := time.Now()
	a, err := CreateAuthority(filepath.Join(t.TempDir(), "ca"), Secret{}, testDomain, now)
	if err != nil {
		t.Fatal(err)
	}
	b := rotate(t, a, now)
	out, err := b.IssueLeaf(LeafRequest{PublicKey: testKey(t).Public(), Server: true, DNS: []string{"orders.example.org"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := b.IssueLeaf(LeafRequest{PublicKey: testKey(t).Public(), Server: true, DNS: []string{"orders.example.org"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	o.write("old.pem", a.Bundle().PEM())
	o.write("new.pem", MarshalCertificatesPEM(b.Bundle().Roots))
	o.write("chain.pem", out.PEM())
	o.write("kept.pem", kept.PEM())
	for _, ca := range []string{"old.pem", "new.pem"} {
		o.run(true, "verify", "-x509_strict", "-CAfile", ca, "-untrusted", "chain.pem", "-purpose", "sslserver", "chain.pem")
	}
	core, err := b.IssueComponent(ComponentRequest{ID: testID(RoleCore, "core"), Incarnation: 1, PublicKey: testKey(t).Public()}, now)
	if err != nil {
		t.Fatal(err)
	}
	o.write("core.pem", MarshalCertificatesPEM(b.RecoveryChain(&Credentials{Chain: core.Chain})))
	o.run(true, "verify", "-x509_strict", "-CAfile", "old.pem", "-untrusted", "core.pem", "core.pem")

	ders, err := b.CRLs([]CRLEntry{CRLEntryOf(out.Chain[0], now, "key-compromise")}, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	o.write("crl.der", ders[0])
	o.write("crl.pem", MarshalCRLsPEM(ders[:1]))
	o.write("callers.pem", MarshalCertificatesPEM(b.Bundle().CallerIntermediates))
	if text := o.run(true, "crl", "-inform", "DER", "-in", "crl.der", "-CAfile", "callers.pem", "-noout", "-text"); !strings.Contains(text, "verify OK") || !strings.Contains(text, "Key Compromise") || !strings.Contains(text, "X509v3 CRL Number") {
		t.Errorf("%s", text)
	}
	check := []string{"verify", "-x509_strict", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "new.pem", "-untrusted", "callers.pem"}
	if text := o.run(false, append(slices.Clone(check), "chain.pem")...); !strings.Contains(text, "revoked") {
		t.Errorf("%s", text)
	}
	o.run(true, append(slices.Clone(check), "kept.pem")...)
}

func decodePEM(text []byte) ([]byte, error) {
	b, _ := pem.Decode(text)
	if b == nil {
		return nil, errors.New("no PEM block")
	}
	return b.Bytes, nil
}
