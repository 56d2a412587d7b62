package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"time"
)

const (
	bootstrapInfo = "sallyport join bootstrap key v1\x00"
	bootstrapName = "sallyport bootstrap"
)

// BootstrapKey is the key that both sides derive from the token: HKDF-SHA256
// over the seed, with every other field in its info, as the seed of an Ed25519
// key.
func (t Token) BootstrapKey() ed25519.PrivateKey {
	seed, err := hkdf.Key(sha256.New, t.Seed[:], nil, bootstrapInfo+string(t.public()), ed25519.SeedSize)
	if err != nil {
		panic(fmt.Sprintf("derive the bootstrap key: %v", err)) // fails for impossible lengths only
	}
	return ed25519.NewKeyFromSeed(seed)
}

// PublicKey is the half of the bootstrap key that core stores.
func (t Token) PublicKey() ed25519.PublicKey {
	return t.BootstrapKey().Public().(ed25519.PublicKey)
}

// BootstrapCertificate carries the bootstrap key into a TLS handshake: a
// gateway presents it when it dials core, a proxy serves it when core dials. It
// says nothing, and only its key is looked at.
func (t Token) BootstrapCertificate(now time.Time) (tls.Certificate, error) {
	key := t.BootstrapKey()
	serial, err := newSerial()
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: bootstrapName},
		NotBefore:             now.Add(-24 * time.Hour).UTC().Truncate(time.Second),
		NotAfter:              now.Add(24 * time.Hour).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the bootstrap certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the bootstrap certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// BootstrapPublicKey is the key of a newcomer's bootstrap certificate. That the
// peer holds it, TLS has proved; whether it belongs to a token, core looks up.
// Validity times are not compared: a newcomer's clock may be wrong.
func BootstrapPublicKey(chain []*x509.Certificate) (ed25519.PublicKey, error) {
	const remedy = "join with the token that `gateway add` or `proxy add` printed on core; a component that has joined already needs no other"
	if len(chain) != 1 {
		return nil, refusef(CodeCertificateRequired, remedy, "joining takes the one certificate that a join token makes, and %d were presented", len(chain))
	}
	c := chain[0]
	key, ok := c.PublicKey.(ed25519.PublicKey)
	if !ok || c.IsCA || !bytes.Equal(c.RawSubject, c.RawIssuer) || len(c.URIs) > 0 {
		return nil, refusef(CodeBadCertificate, remedy, "the certificate (%s) was not made by a join token", whose(c))
	}
	if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return nil, refuse(CodeBadCertificate, "the bootstrap certificate is not signed by its own key", remedy)
	}
	return key, nil
}

// VerifyCore decides whether the chain that the other side presented is that of
// the core which made the token. The chain has to contain a root that the token
// pins; that one, and nothing else, is believed, and the leaf has to be a core
// under its component intermediate.
func (t Token) VerifyCore(chain []*x509.Certificate, now time.Time) (ID, error) {
	if len(chain) == 0 {
		return ID{}, refuse(CodeCertificateRequired, "the other side presented no certificate", "check the address: it has to be core's gRPC port")
	}
	if len(chain) > maxChain {
		return ID{}, refusef(CodeBadCertificate, "check the address: it has to be core's gRPC port", "a chain of %d certificates", len(chain))
	}
	var roots []*x509.Certificate
	for _, c := range chain[1:] {
		pinned := slices.Contains(t.Pins, sha256.Sum256(c.RawSubjectPublicKeyInfo))
		// Signed by itself, so that its limits are the root's own words.
		if pinned && c.CheckSignatureFrom(c) == nil {
			roots = append(roots, c)
		}
	}
	if len(roots) == 0 {
		return ID{}, refusef(CodePinMismatch,
			"if the token is from another installation, or the CA was made anew or rotated twice since, remove the component, add it again and use the new token; if not, something between the two answers in core's place",
			"the other side (%s) is not under the root CA that the join token pins", whose(chain[0]))
	}
	id, err := CertificateID(chain[0])
	if err != nil {
		return ID{}, err
	}
	// The trust domain is the root's to tell: the intermediate is bound to it.
	v := &Verifier{TrustDomain: id.TrustDomain, Anchors: roots, Now: func() time.Time { return now }}
	return v.Component(chain, Expect{Role: RoleCore})
}
