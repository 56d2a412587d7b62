package pki

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/roles/control"
)

var (
	// ErrNoCredentials means that the component has not joined yet.
	ErrNoCredentials = errors.New("this component has no credentials: it has not joined yet")
	// ErrNoPendingKey means that no CSR is under way.
	ErrNoPendingKey = errors.New("there is no pending key")
)

// Credentials are who a component is: its certificate chain (leaf first,
// without the root) and key.
type Credentials struct {
	ID    ID
	Chain []*x509.Certificate
	Key   crypto.Signer
}

// TLS is what links present.
func (c *Credentials) TLS() tls.Certificate {
	t := tls.Certificate{PrivateKey: c.Key, Leaf: c.Chain[0]}
	for _, cert := range c.Chain {
		t.Certificate = append(t.Certificate, cert.Raw)
	}
	return t
}

// JoinTLS is what core presents to newcomers: its chain and then the roots,
// among which the newcomer looks for the one that its token pins.
func (c *Credentials) JoinTLS(b *Bundle) tls.Certificate {
	t := c.TLS()
	for _, root := range b.Roots {
		t.Certificate = append(t.Certificate, root.Raw)
	}
	return t
}

// String and GoString name the owner, so that no %v or %#v prints the key.
func (c *Credentials) String() string   { return "credentials of " + c.ID.String() }
func (c *Credentials) GoString() string { return c.String() }

// LogValue keeps the key out of logs.
func (c *Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Incarnation is that of the certificate, 0 if it has none.
func (c *Credentials) Incarnation() uint64 {
	n, _ := Incarnation(c.Chain[0])
	return n
}

// NotAfter is when the certificate ends.
func (c *Credentials) NotAfter() time.Time { return c.Chain[0].NotAfter }

// check finds whether key, chain and bundle belong together. An expired
// certificate passes: its owner has to be able to present it to recover.
func (c *Credentials) check(b *Bundle) error {
	if len(c.Chain) == 0 || c.Key == nil {
		return errors.New("the credentials are not complete")
	}
	if !samePublicKey(c.Chain[0].PublicKey, c.Key.Public()) {
		return refuse(CodeKeyMismatch, "the private key does not belong to the certificate", remedyRejoin)
	}
	v := b.ComponentVerifier(func() time.Time { return c.Chain[0].NotAfter }, nil)
	id, err := v.Identity(c.Chain, nil)
	if err != nil {
		return err
	}
	if id != c.ID {
		return fmt.Errorf("the certificate is that of %s, not of %s", id, c.ID)
	}
	return nil
}

const (
	identityFile   = "identity.pem"
	pendingKeyFile = "pending.key"
	bundleBlock    = "SALLYPORT TRUST BUNDLE"
)

// SaveCredentials stores key, chain and bundle in dir as one file, so that no
// crash can part them: afterwards, and after a power cut at any moment, there
// is the former file or this one. A pending key that has become the identity's
// is removed.
func SaveCredentials(dir string, c *Credentials, b *Bundle) error {
	if err := c.check(b); err != nil {
		return fmt.Errorf("save the credentials of %s: %w", c.ID, err)
	}
	text, err := MarshalKeyPEM(c.Key)
	if err != nil {
		return err
	}
	bundle, err := proto.MarshalOptions{Deterministic: true}.Marshal(b.Proto())
	if err != nil {
		return fmt.Errorf("save the credentials of %s: %w", c.ID, err)
	}
	text = append(text, MarshalCertificatesPEM(c.Chain)...)
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: bundleBlock, Bytes: bundle})...)
	if err := mkdirSynced(dir); err != nil {
		return fmt.Errorf("save the credentials of %s: %w", c.ID, err)
	}
	path := filepath.Join(dir, identityFile)
	removeTemps(path)
	if err := replaceFile(path, text); err != nil {
		return fmt.Errorf("save the credentials of %s: %w", c.ID, err)
	}
	if pending, err := PendingKey(dir); err == nil && samePublicKey(pending.Public(), c.Key.Public()) {
		return DropPendingKey(dir)
	}
	return nil
}

// LoadCredentials reads what SaveCredentials stored; ErrNoCredentials if there
// is nothing. Credentials that do not belong together are an error and stay
// where they are. Expired ones are returned.
func LoadCredentials(dir string) (*Credentials, *Bundle, error) {
	path := filepath.Join(dir, identityFile)
	text, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, ErrNoCredentials
	}
	if err != nil {
		return nil, nil, fmt.Errorf("load the credentials: %w", err)
	}
	c, b, err := parseCredentials(text)
	if err != nil {
		return nil, nil, fmt.Errorf("load the credentials from %s: %w", path, err)
	}
	return c, b, nil
}

func parseCredentials(text []byte) (*Credentials, *Bundle, error) {
	key, err := ParseKeyPEM(text)
	if err != nil {
		return nil, nil, err
	}
	c := &Credentials{Key: key}
	if c.Chain, err = ParseCertificatesPEM(text); err != nil {
		return nil, nil, err
	}
	var block *pem.Block
	for rest := text; ; {
		if block, rest = pem.Decode(rest); block == nil {
			return nil, nil, errors.New("the trust bundle is missing from the file")
		}
		if block.Type == bundleBlock {
			break
		}
	}
	p := &control.TrustBundle{}
	if err := proto.Unmarshal(block.Bytes, p); err != nil {
		return nil, nil, fmt.Errorf("trust bundle: %w", err)
	}
	b, err := BundleFromProto(p)
	if err != nil {
		return nil, nil, err
	}
	if c.ID, err = CertificateID(c.Chain[0]); err != nil {
		return nil, nil, err
	}
	if err := c.check(b); err != nil {
		return nil, nil, err
	}
	return c, b, nil
}

// SaveKey stores a new key durably, before its CSR leaves: an answer that is
// lost, or a crash after it, then costs nothing, because the same key asks
// again. A key that is pending already is not replaced; drop it first.
func SaveKey(dir string, key crypto.Signer) error {
	if old, err := PendingKey(dir); err == nil {
		if samePublicKey(old.Public(), key.Public()) {
			return nil
		}
		return errors.New("save a new key: another one is pending, whose certificate may be on its way")
	} else if !errors.Is(err, ErrNoPendingKey) {
		return err
	}
	text, err := MarshalKeyPEM(key)
	if err != nil {
		return err
	}
	if err := mkdirSynced(dir); err != nil {
		return fmt.Errorf("save a new key: %w", err)
	}
	path := filepath.Join(dir, pendingKeyFile)
	removeTemps(path)
	if err := replaceFile(path, bytes.TrimSpace(text)); err != nil {
		return fmt.Errorf("save a new key: %w", err)
	}
	return nil
}

// PendingKey is the key whose certificate has been asked for and not stored
// yet; ErrNoPendingKey if there is none.
func PendingKey(dir string) (crypto.Signer, error) {
	key, err := readKeyFile(filepath.Join(dir, pendingKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoPendingKey
	}
	if err != nil {
		return nil, fmt.Errorf("read the pending key: %w", err)
	}
	return key, nil
}

// DropPendingKey forgets the pending key. None is no error.
func DropPendingKey(dir string) error {
	path := filepath.Join(dir, pendingKeyFile)
	removeTemps(path)
	if err := os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("drop the pending key: %w", err)
	}
	return syncDir(dir)
}
