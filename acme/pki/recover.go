package pki

import (
	"crypto/x509"
	"errors"
	"time"
)

// MaxRecovery is for how long after its end a certificate recovers its owner.
const MaxRecovery = 30 * 24 * time.Hour

// Recover is Component for a certificate that may have expired, at most
// MaxRecovery ago.
func (v *Verifier) Recover(chain []*x509.Certificate, want Expect) (ID, error) {
	return ID{}, errors.ErrUnsupported
}
