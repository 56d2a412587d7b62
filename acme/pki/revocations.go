package pki

import (
	"crypto/x509"
	"errors"
	"time"

	"sallyport/roles/control"
)

// RevocationEntry revokes one of: an identity up to an incarnation, a
// certificate by its serial number, a public key by its SHA-256.
type RevocationEntry struct {
	Identity    ID // with Incarnation
	Incarnation uint64
	Serial      string // as Serial writes it
	Key         []byte // SHA-256 of the SubjectPublicKeyInfo, 32 bytes
	At          time.Time
	Reason      string
}

// RevocationList is every revocation in the order in which they were made.
type RevocationList struct {
	TrustDomain string
	Epoch       uint64
	Signed      time.Time // set by signing
	Entries     []RevocationEntry
}

// Append adds entries that are not covered yet and reports whether any was.
func (l *RevocationList) Append(entries ...RevocationEntry) bool { return false }

// Encode is the payload; ParseRevocations reads it.
func (l *RevocationList) Encode() ([]byte, error) { return nil, errors.ErrUnsupported }

// ParseRevocations reads a payload. It verifies no signature.
func ParseRevocations(payload []byte) (*RevocationList, error) { return nil, errors.ErrUnsupported }

// Head names the list by number of entries and hash of the payload.
func RevocationsHead(p *control.RevocationList) *control.RevocationListHead { return nil }

// Revocations is the list as snapshots carry it beside the signed one.
func (l *RevocationList) Proto() []*control.Revocation { return nil }

// Extends reports whether l says everything that o says, in the same order,
// and o comes first.
func (l *RevocationList) Extends(o *RevocationList) bool { return false }

// SignRevocations signs a list with the component intermediate.
func (a *Authority) SignRevocations(l *RevocationList, now time.Time) (*control.RevocationList, error) {
	return nil, errors.ErrUnsupported
}

// VerifyRevocations reads a signed list that one of the roots stands behind.
func VerifyRevocations(p *control.RevocationList, roots []*x509.Certificate) (*RevocationList, error) {
	return nil, errors.ErrUnsupported
}

// MergeRevocations is the union of lists of one trust domain.
func MergeRevocations(lists ...*RevocationList) (*RevocationList, error) {
	return nil, errors.ErrUnsupported
}
