package store

import (
	"context"
	"errors"
	"time"
)

// Renewal is a component's request for its next certificate.
type Renewal struct {
	Holder  KeyUse // the certificate that asks, its chain verified
	NewSPKI []byte // SHA-256 of the SubjectPublicKeyInfo of the certificate request: another key each time

	// Stale says of a pending certificate that it is of no use any more and
	// is to be issued again, for the same key: after the CA has changed. One
	// that has lived six tenths of its life is stale in any case.
	Stale func(CertificateRecord) bool

	// Issue makes the certificate and its chain, as [Adoption.Issue] does.
	Issue func(ComponentRecord) (CertificateRecord, [][]byte, error)
}

// Renewed is the answer to a renewal.
type Renewed struct {
	Component ComponentRecord
	Serial    string
	Chain     [][]byte // DER, leaf first
	Again     bool     // the same key asked again and gets what it got
}

// Renew issues the next certificate of a component, pending until a control
// session runs with it.
func (c *Core) Renew(ctx context.Context, actor Actor, r Renewal, now time.Time) (Renewed, error) {
	return Renewed{}, errors.ErrUnsupported
}
