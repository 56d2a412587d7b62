package pki

import (
	"crypto/x509"
	"errors"
	"time"
)

// SignRequest asks for a certificate for the key of a CSR. PublicKey of the
// LeafRequest is ignored.
type SignRequest struct {
	LeafRequest
	CSR       *x509.CertificateRequest
	KeepNames bool                    // also the subject and the alternative names the CSR asks for
	Allow     func(name string) error // asked about each of those names; nil allows
}

// SignCSR makes a certificate for a request that somebody brought.
func (a *Authority) SignCSR(r SignRequest, now time.Time) (*Issued, error) {
	return nil, errors.ErrUnsupported
}
