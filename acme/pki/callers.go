package pki

import (
	"crypto/x509"
	"errors"
	"time"
)

// Imported is what ImportCallers made of a CA.
type Imported struct {
	Issuer   *x509.Certificate // what issues to callers and services from now on
	Direct   bool              // the imported CA itself; else an intermediate of ours under it
	Warnings []string          // for the operator, one sentence each
}

// ImportCallers makes somebody's own CA the issuer for callers and services.
func (a *Authority) ImportCallers(certPEM, keyPEM []byte, now time.Time) (*Authority, *Imported, error) {
	return nil, nil, errors.ErrUnsupported
}

// PruneCallers drops former issuers of callers whose last certificate has
// ended. lastEnd tells when, zero if the issuer has no certificate left. If
// there is nothing to drop, it returns a itself.
func (a *Authority) PruneCallers(now time.Time, lastEnd func(issuer *x509.Certificate) time.Time) (*Authority, error) {
	return nil, errors.ErrUnsupported
}
