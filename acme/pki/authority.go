package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

var (
	// ErrNoAuthority means that the directory holds no CA at all.
	ErrNoAuthority = errors.New("there is no certificate authority")
	// ErrAuthorityExists means that CreateAuthority would have had to overwrite.
	ErrAuthorityExists = errors.New("there is something already, and a certificate authority is never overwritten")
)

const (
	// authorityLifetime is that of the root and of both intermediates, which
	// are rotated together.
	authorityYears = 10
	// backdate is how far NotBefore lies before the moment of issuance.
	backdate = time.Minute
)

// The files of an authority. Each is written once.
const (
	rootCertFile       = "root.crt"
	rootKeyFile        = "root.key"
	nextRootKeyFile    = "next-root.key"
	componentsCertFile = "components.crt"
	componentsKeyFile  = "components.key"
	callersCertFile    = "callers.crt"
	callersKeyFile     = "callers.key"
)

// issuer is a CA certificate with its key.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Authority issues certificates. It holds the keys of the two intermediates;
// the keys of the roots stay on disk until a rotation needs them. It is
// immutable and safe for concurrent use.
type Authority struct {
	trustDomain string
	root        *x509.Certificate
	components  issuer
	callers     issuer
	pins        [][32]byte
}

// CreateAuthority makes a CA and stores it in dir, which must not exist or be
// empty. The directory appears whole or not at all: everything is written and
// synced beside it and then renamed.
func CreateAuthority(dir string, secret Secret, trustDomain string, now time.Time) (*Authority, error) {
	if err := ValidTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("create the certificate authority: %w", err)
	}
	files, err := makeAuthority(trustDomain, now)
	if err != nil {
		return nil, fmt.Errorf("create the certificate authority: %w", err)
	}
	if err := writeDir(dir, files); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create the certificate authority in %s: %w; use an empty directory, or remove that one if its certificates are to die", dir, ErrAuthorityExists)
		}
		return nil, fmt.Errorf("create the certificate authority in %s: %w", dir, err)
	}
	return OpenAuthority(dir, secret)
}

// OpenAuthority reads what CreateAuthority stored and checks that keys and
// certificates belong together. A directory with some files missing is an
// error that is not ErrNoAuthority, so that nobody makes a second CA over the
// remains of the first.
func OpenAuthority(dir string, secret Secret) (*Authority, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, fmt.Errorf("open the certificate authority in %s: %w; make one with: sallyport ca init %s", dir, ErrNoAuthority, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open the certificate authority: %w", err)
	}
	a, err := readAuthority(dir)
	if err != nil {
		return nil, fmt.Errorf("open the certificate authority in %s: %w; restore the directory from a backup, do not make a new one over it", dir, err)
	}
	return a, nil
}

func readAuthority(dir string) (*Authority, error) {
	rootCert, rootKey, err := readPair(dir, rootCertFile, rootKeyFile)
	if err != nil {
		return nil, err
	}
	nextKey, err := readKeyFile(filepath.Join(dir, nextRootKeyFile))
	if err != nil {
		return nil, err
	}
	a := &Authority{root: rootCert}
	if a.components.cert, a.components.key, err = readPair(dir, componentsCertFile, componentsKeyFile); err != nil {
		return nil, err
	}
	if a.callers.cert, a.callers.key, err = readPair(dir, callersCertFile, callersKeyFile); err != nil {
		return nil, err
	}
	for _, key := range []crypto.Signer{rootKey, nextKey} {
		pin, err := SPKIHash(key.Public())
		if err != nil {
			return nil, err
		}
		a.pins = append(a.pins, pin)
	}
	if td := a.components.cert.PermittedURIDomains; len(td) == 1 {
		a.trustDomain = td[0]
	}
	if err := a.Bundle().check(); err != nil {
		return nil, err
	}
	for _, c := range []*x509.Certificate{a.components.cert, a.callers.cert} {
		if err := c.CheckSignatureFrom(a.root); err != nil {
			return nil, fmt.Errorf("%s was not signed by this root: %w", c.Subject.CommonName, err)
		}
	}
	return a, nil
}

func readPair(dir, certFile, keyFile string) (*x509.Certificate, crypto.Signer, error) {
	text, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, nil, err
	}
	certs, err := ParseCertificatesPEM(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", certFile, err)
	}
	if len(certs) != 1 {
		return nil, nil, fmt.Errorf("%s holds %d certificates instead of one", certFile, len(certs))
	}
	key, err := readKeyFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, nil, err
	}
	if !samePublicKey(certs[0].PublicKey, key.Public()) {
		return nil, nil, refusef(CodeKeyMismatch, "put the key back that belongs to it", "%s does not belong to %s", keyFile, certFile)
	}
	return certs[0], key, nil
}

// Bundle is what components anchor on.
func (a *Authority) Bundle() *Bundle {
	return &Bundle{
		TrustDomain:            a.trustDomain,
		Roots:                  []*x509.Certificate{a.root},
		ComponentIntermediates: []*x509.Certificate{a.components.cert},
		CallerIntermediates:    []*x509.Certificate{a.callers.cert},
	}
}

// Pins are the SHA-256 of the public keys of the current and of the next root,
// for join tokens.
func (a *Authority) Pins() [][32]byte { return append([][32]byte(nil), a.pins...) }

// TrustDomain is the trust domain of every identity the authority gives.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// makeAuthority makes keys and certificates and returns the files.
func makeAuthority(trustDomain string, now time.Time) (map[string][]byte, error) {
	var keys [4]crypto.Signer // root, next root, components, callers
	for i := range keys {
		var err error
		if keys[i], err = NewKey("p256"); err != nil {
			return nil, err
		}
	}
	rootTemplate, err := authorityTemplate("Root CA", trustDomain, keys[0].Public(), now)
	if err != nil {
		return nil, err
	}
	// Two, not one: during a rotation the old root signs the new one, which
	// signs an intermediate.
	rootTemplate.MaxPathLen = 2
	root, err := signCertificate(rootTemplate, issuer{rootTemplate, keys[0]}, keys[0].Public())
	if err != nil {
		return nil, err
	}

	componentsTemplate, err := authorityTemplate("Components CA", trustDomain, keys[2].Public(), now)
	if err != nil {
		return nil, err
	}
	markComponentIssuer(componentsTemplate, trustDomain)
	components, err := signCertificate(componentsTemplate, issuer{root, keys[0]}, keys[2].Public())
	if err != nil {
		return nil, err
	}

	callersTemplate, err := authorityTemplate("Callers CA", trustDomain, keys[3].Public(), now)
	if err != nil {
		return nil, err
	}
	callersTemplate.MaxPathLenZero = true
	callersTemplate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	callers, err := signCertificate(callersTemplate, issuer{root, keys[0]}, keys[3].Public())
	if err != nil {
		return nil, err
	}

	files := map[string][]byte{
		rootCertFile:       MarshalCertificatesPEM([]*x509.Certificate{root}),
		componentsCertFile: MarshalCertificatesPEM([]*x509.Certificate{components}),
		callersCertFile:    MarshalCertificatesPEM([]*x509.Certificate{callers}),
	}
	for i, name := range []string{rootKeyFile, nextRootKeyFile, componentsKeyFile, callersKeyFile} {
		if files[name], err = MarshalKeyPEM(keys[i]); err != nil {
			return nil, err
		}
	}
	return files, nil
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
