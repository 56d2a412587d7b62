package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// KeyKinds are the kinds NewKey makes.
var KeyKinds = []string{"p256", "p384", "ed25519", "rsa2048", "rsa4096"}

// NewKey makes a private key of one of KeyKinds.
func NewKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "rsa2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("key kind %q is unknown: use one of %s", kind, strings.Join(KeyKinds, ", "))
}

// CheckKey accepts the public keys we certify and believe: RSA of 2048 to 8192
// bits, ECDSA on P-256 or P-384, Ed25519.
func CheckKey(pub crypto.PublicKey) error {
	const remedy = "use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits"
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return refusef(CodeWeakKey, remedy, "the RSA key has %d bits", n)
		}
		if k.E < 3 || k.E&1 == 0 {
			return refusef(CodeWeakKey, remedy, "the RSA key has the public exponent %d", k.E)
		}
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return refusef(CodeWeakKey, remedy, "the ECDSA key is on curve %s", k.Curve.Params().Name)
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return nil
		}
	}
	return refusef(CodeWeakKey, remedy, "the key is of a kind that is not supported (%T)", pub)
}

// SPKIHash is the SHA-256 of a public key as certificates carry it: what pins
// compare and what a join token is bound to.
func SPKIHash(pub crypto.PublicKey) ([32]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encode public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// MarshalKeyPEM encodes a private key as PKCS #8, which everything reads.
func MarshalKeyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKeyPEM reads the first private key of a PEM text, in any of the forms
// that openssl writes without a passphrase.
func ParseKeyPEM(text []byte) (crypto.Signer, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("a private key file of %d bytes is too large", len(text))
	}
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, errors.New("no private key found: expected a PEM block that begins with -----BEGIN PRIVATE KEY-----")
		}
		var key any
		var err error
		switch b.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case "EC PRIVATE KEY":
			if strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED") {
				return nil, errEncryptedKey
			}
			key, err = x509.ParseECPrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			if strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED") {
				return nil, errEncryptedKey
			}
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errEncryptedKey
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read private key: %w", err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("read private key: a %T cannot sign", key)
		}
		if err := CheckKey(signer.Public()); err != nil {
			return nil, fmt.Errorf("read private key: %w", err)
		}
		return signer, nil
	}
}

var errEncryptedKey = errors.New("the private key is encrypted with a passphrase: decrypt it with `openssl pkey -in KEY -out PLAIN-KEY` and keep that file 0600")

const maxPEM = 1 << 20

// MarshalCertificatesPEM encodes certificates in the given order.
func MarshalCertificatesPEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// ParseCertificatesPEM reads all certificates of a PEM text; none is an error.
func ParseCertificatesPEM(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("a certificate file of %d bytes is too large", len(text))
	}
	var certs []*x509.Certificate
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate found: expected a PEM block that begins with -----BEGIN CERTIFICATE-----")
	}
	return certs, nil
}

// ParseChain reads certificates in DER as peers send them, within bounds.
func ParseChain(ders [][]byte) ([]*x509.Certificate, error) {
	return parseCertificates(ders, maxChain)
}

func parseCertificates(ders [][]byte, most int) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > most {
		return nil, refusef(CodeBadCertificate, "send the leaf and its intermediates only", "a chain of %d certificates", len(ders))
	}
	chain := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		if len(der) > maxCertificate {
			return nil, refusef(CodeBadCertificate, "send a smaller certificate", "a certificate of %d bytes", len(der))
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refusef(CodeBadCertificate, "make the certificate again", "certificate %d cannot be read: %v", i+1, err)
		}
		chain[i] = c
	}
	return chain, nil
}

const (
	maxChain       = 8
	maxCertificate = 16 << 10
)

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// SPKI is SPKIHash of a certificate's key.
func SPKI(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
