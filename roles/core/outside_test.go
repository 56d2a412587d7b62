package core

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
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

// foreignCA is a CA and its key, as openssl makes them.
func foreignCA(t testing.TB) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "example.local"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if keyPEM, err = pki.MarshalKeyPEM(key); err != nil {
		t.Fatal(err)
	}
	return pki.MarshalCertificatesPEM([]*x509.Certificate{cert}), keyPEM
}
