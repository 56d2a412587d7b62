package pki

import (
	"crypto/x509"
	"errors"
	"time"
)

// CRLEntry is one revoked certificate.
type CRLEntry struct {
	Serial   string    // as Serial writes it
	Revoked  time.Time // when
	Reason   string    // one of CRLReasons, "" unspecified
	NotAfter time.Time // of the certificate; zero: unknown, stays listed
	Issuer   []byte    // its authority key id; empty: unknown, stands in every list
}

// CRLEntryOf is the entry of a certificate.
func CRLEntryOf(c *x509.Certificate, revoked time.Time, reason string) CRLEntry {
	return CRLEntry{}
}

// CRLs makes the revocation lists (DER) of every issuer in force: that of
// callers first, then former ones, then those of components.
func (a *Authority) CRLs(entries []CRLEntry, number uint64, now time.Time) ([][]byte, error) {
	return nil, errors.ErrUnsupported
}

// MarshalCRLsPEM encodes lists in the given order.
func MarshalCRLsPEM(crls [][]byte) []byte { return nil }
