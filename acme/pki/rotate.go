package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
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

const (
	// maxCross is how many rotations a component may sleep through and still
	// be led over.
	maxCross = 3
	// recoveryTime is for how long the certificates of a retired issuer of
	// components may recover their owners: the longest validity, and then
	// MaxRecovery.
	recoveryTime = 90*24*time.Hour + MaxRecovery
)

// Phase is how far the rotation of the CA has come.
func (a *Authority) Phase() Phase { return a.state.phase }

// Since is when the phase began.
func (a *Authority) Since() time.Time { return a.state.since }

// Generation is the number of the hierarchy that issues. Every hierarchy that
// is made has a number of its own, counted from 1.
func (a *Authority) Generation() uint64 { return a.state.issuing().number }

// NextGeneration is the number of the other hierarchy during a rotation: the
// one that will issue (published) or has issued before (activated); 0 when
// steady.
func (a *Authority) NextGeneration() uint64 {
	if o := a.state.other(); o != nil {
		return o.number
	}
	return 0
}

// GenerationOf is the number of the hierarchy in force that signed a
// component's certificate, 0 if none did.
func (a *Authority) GenerationOf(leaf *x509.Certificate) uint64 {
	for _, h := range []*hierarchy{a.state.issuing(), a.state.other()} {
		if h != nil && leaf != nil && leaf.CheckSignatureFrom(h.components.cert) == nil {
			return h.number
		}
	}
	return 0
}

// RotateAt is when 5/6 of the life of the root that issues are over.
func (a *Authority) RotateAt() time.Time {
	return a.root.NotBefore.Add(a.root.NotAfter.Sub(a.root.NotBefore) / 6 * 5)
}

// RotateDue reports whether a rotation should begin by itself.
func (a *Authority) RotateDue(now time.Time) bool {
	return a.state.phase == PhaseSteady && !now.Before(a.RotateAt())
}

// Publish begins a rotation. The next root, whose key exists and is pinned by
// tokens already, gets its certificate, new intermediates under it, and a
// certificate by the old root that leads over who will have slept through the
// rotation. From then on the bundle holds both; the old one issues.
func (a *Authority) Publish(now time.Time) (*Authority, error) {
	return a.step("publish the next root", now, []Phase{PhaseSteady}, func(s *state) error {
		s.made++
		next, err := newHierarchy(s.trustDomain, s.made, s.nextRootKey, s.imported == nil, now)
		if err != nil {
			return err
		}
		cross, err := crossCertificate(s.base.root, next.root.cert)
		if err != nil {
			return err
		}
		s.phase, s.next, s.nextRootKey = PhasePublished, next, nil
		s.cross = slices.Insert(s.cross, 0, cross)
		s.cross = s.cross[:min(len(s.cross), maxCross)]
		return nil
	})
}

// Activate lets the new hierarchy issue, once every component holds a bundle
// in which it stands.
func (a *Authority) Activate(now time.Time) (*Authority, error) {
	return a.step("issue from the next root", now, []Phase{PhasePublished}, func(s *state) error {
		s.phase, s.next.used = PhaseActivated, true
		return nil
	})
}

// Retire ends a rotation, once every component has a certificate of the new
// hierarchy. The keys of the old root and of its issuer of components are gone;
// its issuer of callers stays in the bundle for the certificates it has given,
// see PruneCallers. The key of the root after next is made.
func (a *Authority) Retire(now time.Time) (*Authority, error) {
	return a.step("retire the old root", now, []Phase{PhaseActivated}, func(s *state) error {
		key, err := NewKey("p256")
		if err != nil {
			return err
		}
		s.lay(s.base, now)
		s.phase, s.base, s.next, s.nextRootKey = PhaseSteady, *s.next, nil, key
		return nil
	})
}

// Rollback takes the last step back. After Activate, the old hierarchy issues
// again and both stay trusted (published); after Publish, and once every
// component has a certificate of the old hierarchy again, the new one is
// dropped (steady) and only the key of its root is kept, which tokens pin.
func (a *Authority) Rollback(now time.Time) (*Authority, error) {
	return a.step("roll the rotation back", now, []Phase{PhasePublished, PhaseActivated}, func(s *state) error {
		if s.phase == PhaseActivated {
			s.phase = PhasePublished
			return nil
		}
		if s.next.used {
			s.lay(*s.next, now)
		}
		s.phase, s.nextRootKey, s.next = PhaseSteady, s.next.root.key, nil
		s.cross = s.cross[1:]
		return nil
	})
}

// Compromised makes the CA anew, in any phase: new keys throughout, that of the
// next root included, no certificate from the old to the new, and no trust in
// anything that was. An imported issuer of callers is dropped too, because its
// key lay beside the others. Everybody joins again.
func (a *Authority) Compromised(now time.Time) (*Authority, error) {
	return a.step("make the CA anew", now, []Phase{PhaseSteady, PhasePublished, PhaseActivated}, func(s *state) error {
		fresh, err := newState(s.trustDomain, s.made+1, now)
		if err != nil {
			return err
		}
		fresh.revision = s.revision
		*s = *fresh
		return nil
	})
}

// step changes the state if it is in one of the phases.
func (a *Authority) step(what string, now time.Time, from []Phase, edit func(s *state) error) (*Authority, error) {
	if !slices.Contains(from, a.state.phase) {
		return nil, fmt.Errorf("%s: %w (%s)", what, ErrWrongPhase, a.state.phase)
	}
	next, err := a.change(a.secret, now, func(s *state) error {
		s.since = now.UTC().Truncate(time.Second)
		return edit(s)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return next, nil
}

// lay moves what is still needed of a hierarchy aside: its issuer of callers
// with its key, for revocation lists, and of its issuer of components the
// certificate, for recovery.
func (s *state) lay(h hierarchy, now time.Time) {
	if h.callers.cert != nil {
		s.former = slices.Insert(s.former, 0, callersIssuer{h.callers, []*x509.Certificate{h.root.cert}})
		s.former = s.former[:min(len(s.former), maxFormer)] // the oldest, after ten rotations in its certificates' life
	}
	s.recovery = slices.Insert(s.recovery, 0, retired{h.components.cert, now.Add(recoveryTime).UTC().Truncate(time.Second)})
}

// crossCertificate is a new root's certificate as the old root signs it.
func crossCertificate(old issuer, root *x509.Certificate) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            root.RawSubject,
		NotBefore:             root.NotBefore,
		NotAfter:              root.NotAfter,
		KeyUsage:              root.KeyUsage,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            root.MaxPathLen,
		SubjectKeyId:          root.SubjectKeyId,
	}
	if old.cert.NotAfter.Before(t.NotAfter) {
		t.NotAfter = old.cert.NotAfter
	}
	return signCertificate(t, old, root.PublicKey)
}

// RecoveryChain is what core presents on sallyport-renew/1 and
// sallyport-join/1: its chain, the certificates that lead from older roots to
// the present one, and the roots. Who anchors on a root that has been retired
// since, or holds a token that pins one, finds its way.
func (a *Authority) RecoveryChain(c *Credentials) []*x509.Certificate {
	return slices.Concat(c.Chain, a.state.cross, a.Bundle().Roots)
}

// RecoveryTLS is RecoveryChain for crypto/tls.
func (a *Authority) RecoveryTLS(c *Credentials) tls.Certificate {
	t := tls.Certificate{PrivateKey: c.Key, Leaf: c.Chain[0]}
	for _, cert := range a.RecoveryChain(c) {
		t.Certificate = append(t.Certificate, cert.Raw)
	}
	return t
}

// RecoveryVerifier is core's on sallyport-renew/1, for Verifier.Recover: it
// also anchors on issuers of components that were retired lately, whose keys
// are gone and whose last certificates may still recover their owners.
func (a *Authority) RecoveryVerifier(now func() time.Time, revoked func(*x509.Certificate, ID, uint64) bool) *Verifier {
	v := a.Bundle().ComponentVerifier(now, revoked)
	at := v.clock()
	for _, r := range a.state.recovery {
		if !at.After(r.until) {
			v.Anchors = append(v.Anchors, r.cert)
		}
	}
	return v
}

// Disowned says of a component's certificate that none of the issuers that are
// trusted, or were retired lately, has made it: the CA was made anew since, by
// [Authority.Compromised]. A connection that was verified just before has to be
// judged once more.
func (a *Authority) Disowned(leaf *x509.Certificate) bool {
	issuers := slices.Clone(a.Bundle().ComponentIntermediates)
	for _, r := range a.state.recovery {
		issuers = append(issuers, r.cert)
	}
	return !slices.ContainsFunc(issuers, func(issuer *x509.Certificate) bool { return leaf.CheckSignatureFrom(issuer) == nil })
}

// Anew is the present root, if nothing leads over to it from the one before it:
// at the beginning, or by [Authority.Compromised]. A join token of before pins
// roots that are no more. Nil for one that was rotated to.
func (a *Authority) Anew() *x509.Certificate {
	if slices.ContainsFunc(a.state.cross, func(c *x509.Certificate) bool {
		return bytes.Equal(c.RawSubjectPublicKeyInfo, a.root.RawSubjectPublicKeyInfo)
	}) {
		return nil
	}
	return a.root
}

// leadOver is the certificate that lets who has installed the root before the
// present one verify what issues now, if there is one in force.
func (a *Authority) leadOver(now time.Time) []*x509.Certificate {
	for _, c := range a.state.cross {
		if bytes.Equal(c.RawSubjectPublicKeyInfo, a.root.RawSubjectPublicKeyInfo) && now.Before(c.NotAfter) {
			return []*x509.Certificate{c}
		}
	}
	return nil
}
