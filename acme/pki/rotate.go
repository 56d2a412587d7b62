package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// Phase is how far a rotation of the CA has come.
type Phase string

const (
	PhaseSteady    Phase = "steady"    // one hierarchy, which issues and is trusted
	PhasePublished Phase = "published" // two are trusted, the old one issues
	PhaseActivated Phase = "activated" // two are trusted, the new one issues
)

// ErrWrongPhase means that a step of a rotation was asked for out of order.
var ErrWrongPhase = errors.New("the rotation of the CA is in another phase")

// Phase is how far the rotation of the CA has come, Since when it came there.
func (a *Authority) Phase() Phase     { return PhaseSteady }
func (a *Authority) Since() time.Time { return time.Time{} }

// Generation is the number of the hierarchy that issues. Every hierarchy that
// is made has a number of its own; the first has 1.
func (a *Authority) Generation() uint64 { return 1 }

// NextGeneration is the number of the other hierarchy during a rotation: the
// one that will issue (published) or has issued before (activated); 0 when
// steady.
func (a *Authority) NextGeneration() uint64 { return 0 }

// GenerationOf is the number of the hierarchy in force that signed a
// component's certificate, 0 if none did.
func (a *Authority) GenerationOf(leaf *x509.Certificate) uint64 { return 0 }

// RotateAt is when 5/6 of the root's life are over, RotateDue whether a
// rotation should begin.
func (a *Authority) RotateAt() time.Time          { return time.Time{} }
func (a *Authority) RotateDue(now time.Time) bool { return false }

func (a *Authority) Publish(now time.Time) (*Authority, error)     { return nil, errors.ErrUnsupported }
func (a *Authority) Activate(now time.Time) (*Authority, error)    { return nil, errors.ErrUnsupported }
func (a *Authority) Retire(now time.Time) (*Authority, error)      { return nil, errors.ErrUnsupported }
func (a *Authority) Rollback(now time.Time) (*Authority, error)    { return nil, errors.ErrUnsupported }
func (a *Authority) Compromised(now time.Time) (*Authority, error) { return nil, errors.ErrUnsupported }
func (a *Authority) Reseal(secret Secret) (*Authority, error)      { return nil, errors.ErrUnsupported }

// RecoveryChain is what core presents on sallyport-renew/1 and
// sallyport-join/1.
func (a *Authority) RecoveryChain(c *Credentials) []*x509.Certificate { return nil }
func (a *Authority) RecoveryTLS(c *Credentials) tls.Certificate       { return tls.Certificate{} }

// RecoveryVerifier is core's on sallyport-renew/1, for Verifier.Recover.
func (a *Authority) RecoveryVerifier(now func() time.Time, revoked func(*x509.Certificate, ID, uint64) bool) *Verifier {
	return nil
}

// CACertificate is a CA certificate and what it is for.
type CACertificate struct {
	What string // "root", "components' issuer", "callers' issuer", "next root", …
	Cert *x509.Certificate
}

// Certificates lists every CA certificate in force, for status and alerts.
func (a *Authority) Certificates() []CACertificate { return nil }
