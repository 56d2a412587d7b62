package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"
)

const (
	// authorityYears is the life of the root and of its intermediates, which
	// are rotated together.
	authorityYears = 10
	// backdate is how far NotBefore lies before the moment of issuance.
	backdate = time.Minute
)

// issuer is a CA certificate with its key.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// hierarchy is a root with the intermediates under it, which live and die
// together.
type hierarchy struct {
	number     uint64
	root       issuer
	components issuer
	callers    issuer // none where an imported CA issues to callers
	used       bool   // it has issued, so somebody may hold its certificates
}

// newState is that of a CA that has nothing behind it.
func newState(trustDomain string, number uint64, now time.Time) (*state, error) {
	rootKey, err := NewKey("p256")
	if err != nil {
		return nil, err
	}
	next, err := NewKey("p256")
	if err != nil {
		return nil, err
	}
	h, err := newHierarchy(trustDomain, number, rootKey, true, now)
	if err != nil {
		return nil, err
	}
	h.used = true
	return &state{trustDomain: trustDomain, phase: PhaseSteady, since: now.UTC().Truncate(time.Second), made: number, base: *h, nextRootKey: next}, nil
}

// newHierarchy makes the root of a key and new intermediates under it.
func newHierarchy(trustDomain string, number uint64, rootKey crypto.Signer, callers bool, now time.Time) (*hierarchy, error) {
	t, err := authorityTemplate("Root CA", trustDomain, rootKey.Public(), now)
	if err != nil {
		return nil, err
	}
	// An intermediate, and the roots after this one: each is signed by the one
	// before it, to lead over who slept through a rotation.
	t.MaxPathLen = 1 + maxCross
	h := &hierarchy{number: number}
	h.root.key = rootKey
	if h.root.cert, err = signCertificate(t, issuer{t, rootKey}, rootKey.Public()); err != nil {
		return nil, err
	}
	below := func(kind string, shape func(t *x509.Certificate)) (issuer, error) {
		key, err := NewKey("p256")
		if err != nil {
			return issuer{}, err
		}
		t, err := authorityTemplate(kind, trustDomain, key.Public(), now)
		if err != nil {
			return issuer{}, err
		}
		shape(t)
		cert, err := signCertificate(t, h.root, key.Public())
		return issuer{cert, key}, err
	}
	if h.components, err = below("Components CA", func(t *x509.Certificate) { markComponentIssuer(t, trustDomain) }); err != nil {
		return nil, err
	}
	if callers {
		if h.callers, err = below("Callers CA", markCallersIssuer); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// markCallersIssuer turns a CA template into that of an intermediate for
// callers and services.
func markCallersIssuer(t *x509.Certificate) {
	t.MaxPathLenZero = true
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
}

// authorityTemplate is what all CA certificates have in common. The key's hash
// is part of the name, so that a rotated CA never shares a name with the old.
func authorityTemplate(kind, trustDomain string, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	hash, err := SPKIHash(pub)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			Organization: []string{trustDomain},
			CommonName:   "Sallyport " + kind + " " + hex.EncodeToString(hash[:4]),
		},
		NotBefore:             now.Add(-backdate).UTC().Truncate(time.Second),
		NotAfter:              now.AddDate(authorityYears, 0, 0).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          hash[:20],
	}, nil
}

// signCertificate signs and reads back what was signed.
func signCertificate(template *x509.Certificate, by issuer, pub crypto.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, pub, by.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the certificate just signed: %w", err)
	}
	return cert, nil
}

// newSerial is 128 random bits, never zero.
func newSerial() (*big.Int, error) {
	for {
		var b [16]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, fmt.Errorf("draw a serial number: %w", err)
		}
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n, nil
		}
	}
}
