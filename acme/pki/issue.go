package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Issued is a certificate that has passed its self-check.
type Issued struct {
	Chain  []*x509.Certificate // the leaf and what leads from it to the root, without the root
	Serial string              // as Serial writes it
}

// DER is the chain as messages carry it.
func (i *Issued) DER() [][]byte {
	out := make([][]byte, len(i.Chain))
	for n, c := range i.Chain {
		out[n] = c.Raw
	}
	return out
}

// PEM is the chain as files carry it.
func (i *Issued) PEM() []byte { return MarshalCertificatesPEM(i.Chain) }

// IssueComponent makes a component's certificate. It has exactly one URI, its
// identity, serves both ends of TLS, and the incarnation is the serialNumber of
// its subject. Before it leaves it is read back and verified as a peer will.
func (a *Authority) IssueComponent(r ComponentRequest, now time.Time) (*Issued, error) {
	p, err := a.prepareComponent(r, now)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", r.ID, err)
	}
	return issue(p, now)
}

// IssueLeaf makes a certificate for a caller or a service, under the other
// intermediate. No request makes it yield a component's identity.
func (a *Authority) IssueLeaf(r LeafRequest, now time.Time) (*Issued, error) {
	p, err := a.prepareLeaf(r, now)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	return issue(p, now)
}

// issue signs and then distrusts what it has signed.
func issue(p *prepared, now time.Time) (*Issued, error) {
	cert, err := signCertificate(p.template, p.by, p.public)
	if err != nil {
		return nil, err
	}
	chain := append([]*x509.Certificate{cert, p.by.cert}, p.above...)
	if !samePublicKey(cert.PublicKey, p.public) {
		err = errors.New("it holds another key")
	}
	if err == nil {
		err = p.verify(chain, now)
	}
	if err != nil {
		return nil, fmt.Errorf("the certificate just made for %s does not pass our own check and was thrown away; please report this: %w", p.template.Subject, err)
	}
	return &Issued{Chain: chain, Serial: Serial(cert)}, nil
}

const maxCSR = 16 << 10

// ParseCSR reads a certificate request in DER, within bounds, and checks that
// its sender has the private key and that the key is strong enough.
func ParseCSR(der []byte) (*x509.CertificateRequest, error) {
	const remedy = "make a new request with a new key"
	if len(der) == 0 || len(der) > maxCSR {
		return nil, refusef(CodeBadCertificate, remedy, "a certificate request of %d bytes", len(der))
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, refusef(CodeBadCertificate, remedy, "the certificate request cannot be read: %v", err)
	}
	if err := CheckKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, refusef(CodeKeyMismatch, remedy, "the certificate request is not signed by its own key: %v", err)
	}
	return csr, nil
}

// NewCSR is a request that says nothing but its key; names are not the
// requester's to choose.
func NewCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}
