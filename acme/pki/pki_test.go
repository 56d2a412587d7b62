package pki

import (
	"crypto"
	"crypto/x509"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// epoch is the present of these tests. No test looks at the real clock.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const testDomain = "sallyport.internal"

func testAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := CreateAuthority(filepath.Join(t.TempDir(), "ca"), Secret{}, testDomain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func testKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testID(role Role, name string) ID { return ID{TrustDomain: testDomain, Role: role, Name: name} }

// issueComponent makes credentials the ordinary way.
func issueComponent(t testing.TB, a *Authority, role Role, name string, incarnation uint64) *Credentials {
	t.Helper()
	key := testKey(t)
	out, err := a.IssueComponent(ComponentRequest{
		ID: testID(role, name), Incarnation: incarnation, PublicKey: key.Public(),
		DNS: []string{name + ".example.org"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return &Credentials{ID: testID(role, name), Chain: out.Chain, Key: key}
}

// forge signs whatever template says with the given issuer, past all profiles.
func forge(t testing.TB, by issuer, template *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	t.Helper()
	c, err := signCertificate(template, by, pub)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// componentTemplate is what the profile makes for the identity, for tests to
// spoil.
func componentTemplate(t testing.TB, a *Authority, role Role, name string, pub crypto.PublicKey) *x509.Certificate {
	t.Helper()
	p, err := a.prepareComponent(ComponentRequest{ID: testID(role, name), Incarnation: 1, PublicKey: pub}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return p.template
}

func refusalCode(err error) string {
	if r, ok := AsRefusal(err); ok {
		return r.Code
	}
	return ""
}

// needTool skips without the tool, or fails where every test is required.
func needTool(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err == nil {
		return path
	}
	if os.Getenv("SALLYPORT_TEST_REQUIRE") == "all" {
		t.Fatalf("%s is not installed and every test is required", tool)
	}
	t.Skipf("%s is not installed", tool)
	return ""
}

// keyOf makes one key of each kind per run; the large RSA keys take seconds.
func keyOf(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	if key, ok := keysOf.Load(kind); ok {
		return key.(crypto.Signer)
	}
	key, err := NewKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	keysOf.Store(kind, key)
	return key
}

var keysOf sync.Map
