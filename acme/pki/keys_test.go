package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
)

func TestKeyPEM(t *testing.T) {
	for _, kind := range KeyKinds {
		key := keyOf(t, kind)
		text, err := MarshalKeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseKeyPEM(append([]byte("a comment\n"), text...))
		if err != nil || !samePublicKey(key.Public(), back.Public()) {
			t.Errorf("%s: %v", kind, err)
		}
		csr, err := NewCSR(key)
		if err != nil {
			t.Fatal(err)
		}
		if req, err := ParseCSR(csr); err != nil || !samePublicKey(req.PublicKey, key.Public()) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, err := NewKey("rsa1024"); err == nil || !strings.Contains(err.Error(), "p256") {
		t.Errorf("%v", err)
	}
	key := keyOf(t, "rsa2048")
	old := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key.(*rsa.PrivateKey))})
	if _, err := ParseKeyPEM(old); err != nil {
		t.Errorf("PKCS #1: %v", err)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":         {"", "no private key"},
		"a certificate":   {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no private key"},
		"encrypted":       {"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "openssl pkey"},
		"encrypted, old":  {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", "openssl pkey"},
		"garbage":         {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "read private key"},
		"larger than any": {strings.Repeat("x", maxPEM+1), "too large"},
	} {
		if _, err := ParseKeyPEM([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckKeyRefuses(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, pub := range map[string]any{
		"nothing":      nil,
		"P-521":        p521.Public(),
		"RSA of 2047":  &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2046), E: 65537},
		"RSA of 16384": &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 16383), E: 65537},
		"exponent 1":   &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 1},
	} {
		if err := CheckKey(pub); refusalCode(err) != CodeWeakKey {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseCSRRefuses(t *testing.T) {
	der, err := NewCSR(testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	unsigned := bytes.Clone(der)
	unsigned[len(unsigned)-1] ^= 1
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, small)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		der  []byte
		code string
	}{
		"nothing":           {nil, CodeBadCertificate},
		"cut":               {der[:len(der)-1], CodeBadCertificate},
		"longer":            {append(bytes.Clone(der), 0), CodeBadCertificate},
		"larger than a CSR": {make([]byte, maxCSR+1), CodeBadCertificate},
		"another signature": {unsigned, CodeKeyMismatch},
		"a weak key":        {weak, CodeWeakKey},
	} {
		if _, err := ParseCSR(tc.der); refusalCode(err) != tc.code {
			t.Errorf("%s: code %q, want %q: %v", name, refusalCode(err), tc.code, err)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	der, err := NewCSR(testKey(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if csr, err := ParseCSR(der); err == nil && CheckKey(csr.PublicKey) != nil {
			t.Fatal("a weak key passed")
		}
	})
}

func TestParseID(t *testing.T) {
	for _, s := range []string{"spiffe://sallyport.internal/core/core", "spiffe://a.b-c.org/gateway/office-1", "spiffe://example/client/0"} {
		id, err := ParseID(s)
		if err != nil || id.String() != s || id.URI().String() != s {
			t.Errorf("%s: %v %v", s, id, err)
		}
	}
	for _, s := range []string{
		"", "spiffe://", "spiffe://sallyport.internal", "spiffe://sallyport.internal/", "spiffe://sallyport.internal/core",
		"spiffe://sallyport.internal/core/", "spiffe://sallyport.internal/core/a/b", "spiffe://sallyport.internal//core/a",
		"spiffe://sallyport.internal/Core/a", "spiffe://sallyport.internal/core/A", "spiffe://sallyport.internal/core/a_b",
		"spiffe://sallyport.internal/core/-a", "spiffe://sallyport.internal/core/a-", "spiffe://sallyport.internal/core/a.b",
		"spiffe://Sallyport.internal/core/a", "spiffe://sallyport.internal:1/core/a", "spiffe://u@sallyport.internal/core/a",
		"spiffe://sallyport.internal/core/a?b", "spiffe://sallyport.internal/core/a#b", "spiffe://sallyport.internal/core/%61",
		"spiffe://10.0.0.1/core/a", "spiffe://a..b/core/a", "spiffe://a_b/core/a", "https://sallyport.internal/core/a",
		"SPIFFE://sallyport.internal/core/a", " spiffe://sallyport.internal/core/a", "spiffe://sallyport.internal/core/a\n",
		"spiffe://sallyport.internal/core/" + strings.Repeat("a", 64), "spiffe://" + strings.Repeat("a", 65) + "/core/a",
		"spiffe://sallyport.internal/other/a",
	} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("%q was read as %+v", s, id)
		}
	}
	if got := (ID{}).String(); got != "" {
		t.Errorf("nobody is written %q", got)
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://sallyport.internal/core/core")
	f.Add("spiffe://a/client/%2e")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if id.String() != s || id.URI().String() != s || id.Validate() != nil {
			t.Fatalf("%q is %+v", s, id)
		}
	})
}
