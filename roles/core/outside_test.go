package core

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// outsideCA is somebody else's CA and a certificate of it, in files.
type outsideCA struct{ ca, cert, key string }

func newOutsideCA(t testing.TB) outsideCA {
	t.Helper()
	dir := t.TempDir()
	authority, err := pki.CreateAuthority(filepath.Join(dir, "ca"), pki.Secret{}, "outside.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := authority.IssueLeaf(pki.LeafRequest{PublicKey: key.Public(), DNS: []string{"core.example"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Server: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.MarshalKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	out := outsideCA{ca: filepath.Join(dir, "ca.pem"), cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	for path, body := range map[string][]byte{out.ca: authority.Bundle().PEM(), out.cert: issued.PEM(), out.key: keyPEM} {
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}
