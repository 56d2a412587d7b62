package store

import (
	"context"
	"errors"
	"time"
)

// RevokeRequest names what to revoke: a certificate by its serial number, or
// everything that an identity has had until now. Exactly one is set.
type RevokeRequest struct {
	Serial   string // hexadecimal, lower case
	Identity string // SPIFFE ID
	Reason   string // for people, and for the CRL if it is a name of RFC 5280: keyCompromise, superseded, …

	// Unrecorded revokes a serial number also when no certificate of that
	// number is known here: issued with --ca-dir, or lost with a database.
	Unrecorded bool
}

// Revoked is what a [RevokeRequest] came to.
type Revoked struct {
	Serials    []string          // revoked just now
	Components []ComponentRecord // removed just now, as they were
	Sequence   uint64            // of the newest entry of the list: what components have to acknowledge
}

// RevokeCertificate revokes.
func (c *Core) RevokeCertificate(ctx context.Context, actor Actor, r RevokeRequest, now time.Time) (Revoked, error) {
	return Revoked{}, errors.ErrUnsupported
}

// RevokedCertificate is an entry of a CRL.
type RevokedCertificate struct {
	Serial   string
	Kind     string // of the certificate, tells whose CRL it belongs to; empty when it was never recorded
	At       time.Time
	Reason   string
	NotAfter time.Time // zero: not known
}

// RevokedCertificates returns what a CRL of now has to list.
func (c *Core) RevokedCertificates(ctx context.Context, now time.Time) ([]RevokedCertificate, error) {
	return nil, errors.ErrUnsupported
}

// RevocationEntry is an entry of the list of revocations, which only grows.
type RevocationEntry struct {
	Sequence uint64 // from 1, without gaps
	Revocation
}

// RevocationEntries returns the entries after a sequence number, 0 for all, in
// the order in which they were made.
func (c *Core) RevocationEntries(ctx context.Context, after uint64) ([]RevocationEntry, error) {
	return nil, errors.ErrUnsupported
}

// MergeRevocations adds what another list has and this database does not, and
// returns how many entries that were.
func (c *Core) MergeRevocations(ctx context.Context, actor Actor, entries []Revocation, now time.Time) (int, error) {
	return 0, errors.ErrUnsupported
}
