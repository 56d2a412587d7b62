package link

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"sallyport/acme/pki"
)

// The identity preface is what the listener sends first on every ALPN but h2:
// two bytes of length, big-endian, then as many bytes of preface.
//
// In mode internal the length is zero: the TLS certificate was the identity,
// and nothing is left to prove. In mode files or acme TLS has shown a
// certificate for the world, and the preface proves the identity (before
// joining: the bootstrap key):
//
//	number of certificates, one byte
//	each certificate, leaf first: two bytes of length, DER
//	signature: two bytes of length, and as many bytes
//
// The signature, by the leaf's key, is over [prefaceMessage]. What is signed
// contains a secret of this very TLS session, so that a preface is worth
// nothing in another: who has the outside certificate's key, and stands in the
// middle, has two sessions with two secrets.
const (
	maxPreface      = 16 << 10
	maxPrefaceChain = 12
	prefaceTime     = 5 * time.Second
	prefaceContext  = "sallyport-identity-v1"
	prefaceExporter = "EXPORTER-sallyport-identity"
)

// acceptPreface is that of mode internal.
var acceptPreface = []byte{0, 0}

// prefaceMessage is what the listener of a role signs on a connection of alpn
// whose TLS certificate was outside.
func prefaceMessage(cs *tls.ConnectionState, alpn string, role pki.Role, outside []byte) ([]byte, error) {
	secret, err := cs.ExportKeyingMaterial(prefaceExporter, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("derive the secret of the identity preface: %w", err)
	}
	sum := sha256.Sum256(outside)
	var m bytes.Buffer
	for _, part := range [][]byte{[]byte(prefaceContext), []byte(alpn), []byte(role), sum[:], secret} {
		m.WriteByte(byte(len(part)))
		m.Write(part)
	}
	return m.Bytes(), nil
}

// makePreface is the whole preface, its length included.
func makePreface(cs *tls.ConnectionState, alpn string, role pki.Role, outside []byte, identity *tls.Certificate) ([]byte, error) {
	message, err := prefaceMessage(cs, alpn, role, outside)
	if err != nil {
		return nil, err
	}
	key, ok := identity.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the identity's key cannot sign")
	}
	signature, err := signPreface(key, message)
	if err != nil {
		return nil, fmt.Errorf("sign the identity preface: %w", err)
	}
	return encodePreface(identity.Certificate, signature)
}

func encodePreface(chain [][]byte, signature []byte) ([]byte, error) {
	b := []byte{0, 0, byte(len(chain))}
	for _, der := range chain {
		if len(der) > maxPreface {
			return nil, errors.New("a certificate of the identity is too large for the preface")
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(der))), der...)
	}
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(signature))), signature...)
	if len(chain) > maxPrefaceChain || len(b)-2 > maxPreface {
		return nil, fmt.Errorf("the identity's chain has %d certificates and takes %d bytes, the preface has room for %d", len(chain), len(b)-2, maxPreface)
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return b, nil
}

func signPreface(key crypto.Signer, message []byte) ([]byte, error) {
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	case *rsa.PublicKey:
		sum := sha256.Sum256(message)
		return key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	case *ecdsa.PublicKey:
		sum, hash := digestFor(public, message)
		return key.Sign(rand.Reader, sum, hash)
	}
	return nil, fmt.Errorf("a key of kind %T is not used for identities", key.Public())
}

// digestFor: SHA-384 for P-384, SHA-256 for P-256.
func digestFor(key *ecdsa.PublicKey, message []byte) ([]byte, crypto.Hash) {
	if key.Curve.Params().BitSize > 256 {
		sum := sha512.Sum384(message)
		return sum[:], crypto.SHA384
	}
	sum := sha256.Sum256(message)
	return sum[:], crypto.SHA256
}

func checkPrefaceSignature(public crypto.PublicKey, message, signature []byte) bool {
	switch public := public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(public, message, signature)
	case *rsa.PublicKey:
		sum := sha256.Sum256(message)
		return public.N.BitLen() >= 2048 && rsa.VerifyPSS(public, crypto.SHA256, sum[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case *ecdsa.PublicKey:
		sum, _ := digestFor(public, message)
		return ecdsa.VerifyASN1(public, sum, signature)
	}
	return false
}

// identityPreface is one that was read; nothing of it is proven yet.
type identityPreface struct {
	chain     []*x509.Certificate
	signature []byte
}

// parsePreface reads a preface without its length. Every byte is accounted for.
func parsePreface(b []byte) (*identityPreface, error) {
	if len(b) == 0 || len(b) > maxPreface {
		return nil, fmt.Errorf("it has %d bytes", len(b))
	}
	n, b := int(b[0]), b[1:]
	if n == 0 || n > maxPrefaceChain {
		return nil, fmt.Errorf("it has %d certificates", n)
	}
	next := func() ([]byte, error) {
		if len(b) < 2 {
			return nil, errors.New("it is cut short")
		}
		size := int(binary.BigEndian.Uint16(b))
		if size == 0 || size > len(b)-2 {
			return nil, errors.New("it is cut short")
		}
		part := b[2 : 2+size]
		b = b[2+size:]
		return part, nil
	}
	var p identityPreface
	for range n {
		der, err := next()
		if err != nil {
			return nil, err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("a certificate in it cannot be read: %w", err)
		}
		p.chain = append(p.chain, c)
	}
	var err error
	if p.signature, err = next(); err != nil {
		return nil, err
	}
	if len(b) > 0 {
		return nil, errors.New("something follows its signature")
	}
	return &p, nil
}

// proves checks that the owner of the preface's leaf is at the other end of
// this connection.
func (p *identityPreface) proves(cs *tls.ConnectionState, alpn string, role pki.Role) *pki.Refusal {
	message, err := prefaceMessage(cs, alpn, role, cs.PeerCertificates[0].Raw)
	if err != nil {
		return refusalOf(err)
	}
	if !checkPrefaceSignature(p.chain[0].PublicKey, message, p.signature) {
		return &pki.Refusal{Code: "preface_signature",
			Cause:  "the other side's identity preface is not signed for this connection: whoever answers has the outside certificate, and not the identity it claims",
			Remedy: "somebody may stand in between with a stolen certificate: find out who answers at this address before anything else"}
	}
	return nil
}

// readPreface waits for the listener's word that it accepts this side; nil
// when it proves no identity with it.
func readPreface(tc *tls.Conn) (*identityPreface, error) {
	tc.SetReadDeadline(time.Now().Add(prefaceTime))
	var head [2]byte
	if _, err := io.ReadFull(tc, head[:]); err != nil {
		return nil, &prefaceError{err}
	}
	var p *identityPreface
	if n := int(binary.BigEndian.Uint16(head[:])); n > 0 {
		if n > maxPreface {
			return nil, refuseProtocol(fmt.Sprintf("its identity preface would have %d bytes", n))
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(tc, b); err != nil {
			return nil, &prefaceError{err}
		}
		var err error
		if p, err = parsePreface(b); err != nil {
			return nil, refuseProtocol("its identity preface cannot be read: " + clip(err.Error(), 256))
		}
	}
	return p, tc.SetReadDeadline(time.Time{})
}

// prefaceError: the handshake was done, the acceptance did not come.
type prefaceError struct{ err error }

func (e *prefaceError) Error() string { return e.err.Error() }
func (e *prefaceError) Unwrap() error { return e.err }

// refuseMode: a dialler never guesses how a listener presents itself.
func refuseMode(outside bool) *pki.Refusal {
	if outside {
		return &pki.Refusal{Code: "listener_mode",
			Cause:  "the other side shows its internal identity, and a certificate of its own (mode files) was expected",
			Remedy: "if it was switched to internal on purpose, tell this side: a new join token, or the next snapshot, carries the mode"}
	}
	return &pki.Refusal{Code: "listener_mode",
		Cause:  "the other side's port shows a certificate of its own (mode files), and its internal identity was expected",
		Remedy: "if it was switched to files on purpose, tell this side: a new join token, or the next snapshot, carries the mode, and --grpc-ca or --proxy-grpc-ca names its CA"}
}
