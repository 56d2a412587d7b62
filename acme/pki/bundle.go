package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"sallyport/roles/control"
)

// Bundle is what a component anchors on: component links on the component
// intermediates alone, callers on the caller intermediates, joining and
// renewal on the roots.
type Bundle struct {
	TrustDomain            string
	Roots                  []*x509.Certificate
	ComponentIntermediates []*x509.Certificate
	CallerIntermediates    []*x509.Certificate
	CallerRoots            []*x509.Certificate // beside Roots, what other software needs to verify callers and services; anchors of nothing here
}

// maxBundle bounds each list of a bundle. Former issuers of callers make most
// of the longest.
const maxBundle = 16

// ComponentVerifier verifies identities on component links.
func (b *Bundle) ComponentVerifier(now func() time.Time, revoked func(*x509.Certificate, ID, uint64) bool) *Verifier {
	return &Verifier{TrustDomain: b.TrustDomain, Anchors: b.ComponentIntermediates, Now: now, Revoked: revoked}
}

// RootVerifier verifies component identities where only the roots are known:
// on renewal.
func (b *Bundle) RootVerifier(now func() time.Time, revoked func(*x509.Certificate, ID, uint64) bool) *Verifier {
	return &Verifier{TrustDomain: b.TrustDomain, Anchors: b.Roots, Now: now, Revoked: revoked}
}

// CallerVerifier verifies client certificates of callers.
func (b *Bundle) CallerVerifier(now func() time.Time, revoked func(*x509.Certificate, ID, uint64) bool) *Verifier {
	return &Verifier{TrustDomain: b.TrustDomain, Anchors: b.CallerIntermediates, Now: now, Revoked: revoked}
}

// PEM is the CA file that other software is given: the roots, and those of
// imported or former issuers of callers and services.
func (b *Bundle) PEM() []byte {
	return MarshalCertificatesPEM(slices.Concat(b.Roots, b.CallerRoots))
}

// RootPool is what PEM holds, for crypto/tls, to verify services and callers.
func (b *Bundle) RootPool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range slices.Concat(b.Roots, b.CallerRoots) {
		pool.AddCert(c)
	}
	return pool
}

// Pins are the SHA-256 of the roots' public keys.
func (b *Bundle) Pins() [][32]byte {
	var pins [][32]byte
	for _, c := range b.Roots {
		pins = append(pins, sha256.Sum256(c.RawSubjectPublicKeyInfo))
	}
	return pins
}

// Equal reports whether both bundles say the same.
func (b *Bundle) Equal(o *Bundle) bool {
	if b == nil || o == nil {
		return b == o
	}
	same := func(x, y []*x509.Certificate) bool {
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			if !bytes.Equal(x[i].Raw, y[i].Raw) {
				return false
			}
		}
		return true
	}
	return b.TrustDomain == o.TrustDomain && same(b.Roots, o.Roots) &&
		same(b.ComponentIntermediates, o.ComponentIntermediates) && same(b.CallerIntermediates, o.CallerIntermediates) && same(b.CallerRoots, o.CallerRoots)
}

// Proto is the bundle as it travels.
func (b *Bundle) Proto() *control.TrustBundle {
	raw := func(certs []*x509.Certificate) [][]byte {
		var out [][]byte
		for _, c := range certs {
			out = append(out, c.Raw)
		}
		return out
	}
	return &control.TrustBundle{
		TrustDomain:            b.TrustDomain,
		Roots:                  raw(b.Roots),
		ComponentIntermediates: raw(b.ComponentIntermediates),
		CallerIntermediates:    raw(b.CallerIntermediates),
		CallerRoots:            raw(b.CallerRoots),
	}
}

// BundleFromProto reads a bundle and refuses one that a component could not
// live with or that would let callers in as components.
func BundleFromProto(p *control.TrustBundle) (*Bundle, error) {
	if p == nil {
		return nil, errors.New("the trust bundle is missing")
	}
	b := &Bundle{TrustDomain: p.GetTrustDomain()}
	for _, part := range []struct {
		to  *[]*x509.Certificate
		der [][]byte
	}{{&b.Roots, p.GetRoots()}, {&b.ComponentIntermediates, p.GetComponentIntermediates()}, {&b.CallerIntermediates, p.GetCallerIntermediates()}, {&b.CallerRoots, p.GetCallerRoots()}} {
		if len(part.der) == 0 {
			continue
		}
		certs, err := parseCertificates(part.der, maxBundle)
		if err != nil {
			return nil, fmt.Errorf("trust bundle: %w", err)
		}
		*part.to = certs
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	return b, nil
}

// check holds for every bundle that we make or take. The issuer of callers may
// be a CA that somebody imported, so little is asked of it, except that it is
// not the component hierarchy.
func (b *Bundle) check() error {
	if err := ValidTrustDomain(b.TrustDomain); err != nil {
		return fmt.Errorf("trust bundle: %w", err)
	}
	if len(b.Roots) == 0 || len(b.ComponentIntermediates) == 0 {
		return errors.New("trust bundle: it needs at least one root and one component intermediate")
	}
	for _, part := range [][]*x509.Certificate{b.Roots, b.ComponentIntermediates, b.CallerIntermediates, b.CallerRoots} {
		for _, c := range part {
			if !c.BasicConstraintsValid || !c.IsCA {
				return fmt.Errorf("trust bundle: %s is not a CA certificate", printable(c.Subject.String(), 200))
			}
			if err := CheckKey(c.PublicKey); err != nil {
				return fmt.Errorf("trust bundle: %s: %w", printable(c.Subject.String(), 200), err)
			}
		}
	}
	for _, c := range b.Roots {
		if hasPolicy(c, componentPolicy) {
			return fmt.Errorf("trust bundle: %s stands among the roots and is a component intermediate", printable(c.Subject.String(), 200))
		}
	}
	for _, c := range b.ComponentIntermediates {
		if !isComponentIssuer(c) {
			return fmt.Errorf("trust bundle: %s stands among the component intermediates and is not marked as one", printable(c.Subject.String(), 200))
		}
		signed := false
		for _, root := range b.Roots {
			signed = signed || c.CheckSignatureFrom(root) == nil
		}
		if !signed {
			return fmt.Errorf("trust bundle: no root in it has signed %s", printable(c.Subject.String(), 200))
		}
	}
	for _, c := range slices.Concat(b.CallerIntermediates, b.CallerRoots) {
		if hasPolicy(c, componentPolicy) {
			return fmt.Errorf("trust bundle: %s stands among the callers' issuers and is a component intermediate", printable(c.Subject.String(), 200))
		}
		for _, m := range b.ComponentIntermediates {
			if samePublicKey(c.PublicKey, m.PublicKey) {
				return errors.New("trust bundle: callers and components have the same issuer key")
			}
		}
	}
	return nil
}
