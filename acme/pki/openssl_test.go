package pki

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestOpenSSL has another implementation judge what we make: chains for both
// uses and by name, keys, requests in both directions.
func TestOpenSSL(t *testing.T) {
	openssl := needTool(t, "openssl")
	dir := t.TempDir()
	run := func(wantOK bool, args ...string) string {
		t.Helper()
		cmd := exec.Command(openssl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if (err == nil) != wantOK {
			t.Errorf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := testAuthority(t)
	at := []string{"-attime", strconv.FormatInt(epoch.Add(time.Minute).Unix(), 10)}
	verify := func(wantOK bool, args ...string) string {
		t.Helper()
		return run(wantOK, append(append([]string{"verify"}, at...), args...)...)
	}
	write("ca.pem", a.Bundle().PEM())
	write("callers.pem", MarshalCertificatesPEM(a.Bundle().CallerIntermediates))
	write("components.pem", MarshalCertificatesPEM(a.Bundle().ComponentIntermediates))

	for _, kind := range KeyKinds {
		key := keyOf(t, kind)
		text, err := MarshalKeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		write(kind+".key", text)
		run(true, "pkey", "-in", kind+".key", "-noout")
		out, err := a.IssueLeaf(LeafRequest{ID: testID(RoleService, "orders"), PublicKey: key.Public(), Server: true, Client: true, DNS: []string{"orders.example.org"}}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		write(kind+".pem", out.PEM())
		for _, purpose := range []string{"sslserver", "sslclient"} {
			verify(true, "-x509_strict", "-CAfile", "ca.pem", "-untrusted", "callers.pem", "-purpose", purpose, "-verify_hostname", "orders.example.org", kind+".pem")
		}
		verify(false, "-CAfile", "ca.pem", "-untrusted", "callers.pem", "-verify_hostname", "stock.example.org", kind+".pem")
		verify(false, "-CAfile", "ca.pem", "-untrusted", "components.pem", kind+".pem")
		if got := run(true, "x509", "-in", kind+".pem", "-noout", "-pubkey"); got != run(true, "pkey", "-in", kind+".key", "-pubout") {
			t.Errorf("%s: the certificate has another key", kind)
		}

		csr, err := NewCSR(key)
		if err != nil {
			t.Fatal(err)
		}
		write(kind+".csr", csr)
		run(true, "req", "-inform", "DER", "-in", kind+".csr", "-noout", "-verify")
	}

	c := issueComponent(t, a, RoleGateway, "office", 1)
	write("office.pem", MarshalCertificatesPEM(c.Chain))
	verify(true, "-x509_strict", "-CAfile", "ca.pem", "-untrusted", "components.pem", "-purpose", "sslserver", "office.pem")
	verify(true, "-x509_strict", "-CAfile", "ca.pem", "-untrusted", "components.pem", "-purpose", "sslclient", "office.pem")
	// The policy that marks components is one that others can ask for too.
	policy := []string{"-policy_check", "-explicit_policy", "-policy", componentPolicy.String(), "-CAfile", "ca.pem"}
	verify(true, append(policy, "-untrusted", "components.pem", "office.pem")...)
	verify(false, append(policy, "-untrusted", "callers.pem", "p256.pem")...)
	// The name constraint keeps the component intermediate in its trust domain.
	leaf := componentTemplate(t, a, RoleGateway, "office", c.Key.Public())
	leaf.URIs[0] = ID{"example.org", RoleGateway, "office"}.URI()
	write("foreign.pem", MarshalCertificatesPEM(append(c.Chain[:0:0], forge(t, a.components, leaf, c.Key.Public()))))
	if out := verify(false, "-CAfile", "ca.pem", "-untrusted", "components.pem", "foreign.pem"); !strings.Contains(out, "permitted subtree") {
		t.Errorf("openssl refuses for another reason: %s", out)
	}

	// Keys and requests that openssl makes are read.
	run(true, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sec1.key")
	run(true, "req", "-new", "-key", "sec1.key", "-subj", "/CN=x", "-outform", "DER", "-out", "x.csr")
	text, err := os.ReadFile(filepath.Join(dir, "sec1.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseKeyPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	der, err := os.ReadFile(filepath.Join(dir, "x.csr"))
	if err != nil {
		t.Fatal(err)
	}
	if csr, err := ParseCSR(der); err != nil || !samePublicKey(csr.PublicKey, key.Public()) {
		t.Errorf("a request by openssl: %v", err)
	}
}
