package pki

import (
	"crypto/x509"
	"time"
)

// MaxRecovery is for how long after its end a certificate recovers its owner.
const MaxRecovery = 30 * 24 * time.Hour

// Recover is Component for a certificate that may have expired: it is verified
// as of its end, if that was at most MaxRecovery ago. What it proves is good
// for one thing, to get the next certificate, and core still has to look which
// key counts. Revocation is looked at as always.
func (v *Verifier) Recover(chain []*x509.Certificate, want Expect) (ID, error) {
	late, err := v.late(chain)
	if err != nil {
		return ID{}, err
	}
	return late.Component(chain, want)
}

// RecoverIdentity is Recover for a component of any role, as Identity is to
// Component.
func (v *Verifier) RecoverIdentity(chain []*x509.Certificate, judge func(ID) *Refusal) (ID, error) {
	late, err := v.late(chain)
	if err != nil {
		return ID{}, err
	}
	return late.Identity(chain, judge)
}

// late is the verifier with its clock set back to the end of an expired
// certificate.
func (v *Verifier) late(chain []*x509.Certificate) (*Verifier, error) {
	leaf, now, err := v.begin(chain)
	if err != nil {
		return nil, err
	}
	if !now.After(leaf.NotAfter) {
		return v, nil
	}
	if ago := now.Sub(leaf.NotAfter); ago > MaxRecovery {
		return nil, refusef(CodeExpiredTooLong, remedyRejoin, "the certificate (%s) expired at %s, %s before the clock of the machine that checked it, and recovers its owner for %d days only",
			whose(leaf), clock(leaf.NotAfter), span(ago), MaxRecovery/(24*time.Hour))
	}
	late := *v
	late.Now = func() time.Time { return leaf.NotAfter }
	return &late, nil
}
