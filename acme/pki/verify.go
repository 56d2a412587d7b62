package pki

import (
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

// Expect is who a peer has to be. The role is required; Name "" is any.
type Expect struct {
	Role Role
	Name string
}

// Verifier decides whose certificate a chain is. It has no defaults that
// accept: without anchors, trust domain or expected role it refuses. All its
// errors are *Refusal.
type Verifier struct {
	TrustDomain string
	Anchors     []*x509.Certificate // component intermediates, roots, or caller intermediates
	Now         func() time.Time    // nil: time.Now
	// Revoked is asked last, about a certificate that is otherwise good.
	Revoked func(cert *x509.Certificate, id ID, incarnation uint64) bool
}

const (
	remedyRejoin = "remove the component and add it again, and start it with the new token"
	remedyClock  = "compare the clocks of both machines; if they are right, renew the certificate or join again"
)

// Component verifies the chain of a component (leaf first, as TLS delivers it)
// and that it is the one expected.
func (v *Verifier) Component(chain []*x509.Certificate, want Expect) (ID, error) {
	if !want.Role.Component() {
		return ID{}, refusef(CodeOther, "report this as a mistake in the program", "the verifier was asked for role %q, which no component has", string(want.Role))
	}
	id, err := v.Identity(chain, func(id ID) *Refusal {
		if id.Role != want.Role {
			return refusef(CodeWrongRole, "give each component its own data directory and join it with a token of its own role",
				"this is the certificate of %s %s, and a %s is expected here", id.Role, id.Name, want.Role)
		}
		if want.Name != "" && id.Name != want.Name {
			return refusef(CodeWrongName, "check the address that was dialled, and that two components do not share one",
				"this is the certificate of %s %s, and %s is expected here", id.Role, id.Name, want.Name)
		}
		return nil
	})
	return id, err
}

// Identity verifies the chain of a component of any role. The optional function
// judges the identity before revocation is looked at.
func (v *Verifier) Identity(chain []*x509.Certificate, judge func(ID) *Refusal) (ID, error) {
	leaf, now, err := v.begin(chain)
	if err != nil {
		return ID{}, err
	}
	paths, err := v.paths(chain, now)
	if err != nil {
		return ID{}, err
	}
	// The issuer has to be marked as one of components. Under a root there may
	// be other intermediates; nothing they sign counts.
	paths = slices.DeleteFunc(paths, func(p []*x509.Certificate) bool {
		return len(p) < 2 || !isComponentIssuer(p[1])
	})
	if len(paths) == 0 {
		if leaf.IsCA {
			return ID{}, refuseCA(leaf)
		}
		return ID{}, refuseIssuer(leaf)
	}
	if err := checkPath(paths[0], x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth); err != nil {
		return ID{}, err
	}
	id, incarnation, err := componentLeaf(leaf, v.TrustDomain)
	if err != nil {
		return ID{}, err
	}
	if judge != nil {
		if r := judge(id); r != nil {
			return ID{}, r
		}
	}
	if v.Revoked != nil && v.Revoked(leaf, id, incarnation) {
		return ID{}, refusef(CodeRevoked, remedyRejoin, "the certificate of %s (incarnation %d, serial %s) is revoked", id, incarnation, Serial(leaf))
	}
	return id, nil
}

// Caller verifies the client certificate of a caller and returns its identity,
// which has the role client. errors.Is(err, ErrNoIdentity) tells a certificate
// that is good but names nobody.
func (v *Verifier) Caller(chain []*x509.Certificate) (ID, error) {
	leaf, now, err := v.begin(chain)
	if err != nil {
		return ID{}, err
	}
	paths, err := v.paths(chain, now)
	if r, ok := AsRefusal(err); ok && r.Code == CodeWrongIssuer {
		return ID{}, refuseCallersIssuer(leaf)
	}
	if err != nil {
		return ID{}, err
	}
	paths = slices.DeleteFunc(paths, func(p []*x509.Certificate) bool {
		return len(p) < 2 || isComponentIssuer(p[1])
	})
	if len(paths) == 0 {
		if leaf.IsCA {
			return ID{}, refuseCA(leaf)
		}
		return ID{}, refuseCallersIssuer(leaf)
	}
	if leaf.IsCA {
		return ID{}, refuseCA(leaf)
	}
	if err := checkPath(paths[0], x509.ExtKeyUsageClientAuth); err != nil {
		return ID{}, err
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return ID{}, refuse(CodeWrongUsage, "the certificate is not made for clients (no clientAuth among its extended key usages)", "make one with: sallyport cert issue NAME --client")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return ID{}, refuse(CodeWrongKeyUsage, "the certificate's key usage does not allow signing, which TLS needs", "make one with: sallyport cert issue NAME --client")
	}
	id, err := CertificateID(leaf)
	if err != nil {
		return ID{}, err
	}
	if err := checkTrustDomain(id, v.TrustDomain); err != nil {
		return ID{}, err
	}
	if id.Role != RoleClient {
		return ID{}, refusef(CodeWrongRole, "make a client certificate with: sallyport cert issue NAME --client", "this is the certificate of %s %s, and only clients are callers", id.Role, id.Name)
	}
	if v.Revoked != nil {
		incarnation, _ := Incarnation(leaf) // callers may have none
		if v.Revoked(leaf, id, incarnation) {
			return ID{}, refusef(CodeRevoked, "issue a new certificate if the caller may have one", "the certificate of %s (serial %s) is revoked", id, Serial(leaf))
		}
	}
	return id, nil
}

// begin refuses what cannot be verified at all.
func (v *Verifier) begin(chain []*x509.Certificate) (*x509.Certificate, time.Time, error) {
	if len(v.Anchors) == 0 || v.TrustDomain == "" {
		return nil, time.Time{}, refuse(CodeUnknownAuthority, "there is no CA yet to verify certificates with", "join this component first")
	}
	if len(chain) == 0 || chain[0] == nil {
		return nil, time.Time{}, refuse(CodeCertificateRequired, "the peer presented no certificate", "only joined components and callers with a client certificate may connect here")
	}
	if len(chain) > maxChain {
		return nil, time.Time{}, refusef(CodeBadCertificate, "send the leaf and its intermediates only", "a chain of %d certificates", len(chain))
	}
	return chain[0], v.clock(), nil
}

func (v *Verifier) clock() time.Time {
	if v.Now != nil {
		return v.Now()
	}
	return time.Now()
}

// paths finds the ways from the leaf to an anchor.
func (v *Verifier) paths(chain []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range v.Anchors {
		anchors.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         anchors,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // checkPath is stricter
	})
	if err == nil {
		return paths, nil
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) && v.sameFamily(chain) {
		return nil, refuseIssuer(chain[0])
	}
	r := explainCertificate(err, chain, now)
	return nil, &r
}

// sameFamily guesses, for the sake of the message only, that a chain that did
// not verify comes from another intermediate of our own CA.
func (v *Verifier) sameFamily(chain []*x509.Certificate) bool {
	if id, err := CertificateID(chain[0]); err == nil && id.TrustDomain == v.TrustDomain && id.Role.Leaf() {
		return true
	}
	for _, c := range chain[1:] {
		for _, anchor := range v.Anchors {
			if len(c.AuthorityKeyId) > 0 && string(c.AuthorityKeyId) == string(anchor.AuthorityKeyId) && !c.Equal(anchor) {
				return true
			}
		}
	}
	return false
}

func refuseIssuer(leaf *x509.Certificate) *Refusal {
	return refusef(CodeWrongIssuer, "present the certificate that the component got when it joined; certificates of `cert issue` are for callers and services",
		"the certificate (%s) was not made by the issuer that this port trusts, but by another of the same CA, as callers and services have", whose(leaf))
}

// refuseCallersIssuer refuses what does not come from an issuer of callers in
// force: a component, or a caller of a CA that was replaced.
func refuseCallersIssuer(leaf *x509.Certificate) *Refusal {
	const remedy = "make a client certificate with: sallyport cert issue NAME --client"
	if id, err := CertificateID(leaf); err == nil && id.Role.Leaf() {
		return refusef(CodeWrongIssuer, remedy, "the certificate (%s) was not made by an issuer of callers that is trusted here: the CA was replaced since, or it is that of another core", whose(leaf))
	}
	return refuse(CodeWrongIssuer, "this is the certificate of a component, which is no caller", remedy)
}

func refuseCA(c *x509.Certificate) *Refusal {
	return refusef(CodeCACertificate, "present an end-entity certificate and keep the CA's key away from this machine",
		"the certificate %q is that of a CA, which nobody may use to connect", printable(c.Subject.String(), 200))
}

// checkPath checks what the standard library leaves open along a path: key
// strength, and that every issuer that limits usages allows all of ours.
func checkPath(path []*x509.Certificate, uses ...x509.ExtKeyUsage) error {
	for i, c := range path {
		if err := CheckKey(c.PublicKey); err != nil {
			r, _ := AsRefusal(err)
			return refusef(CodeWeakKey, r.Remedy, "certificate %q: %s", printable(c.Subject.String(), 200), r.Cause)
		}
		if i == 0 || len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
			continue
		}
		for _, use := range uses {
			if !slices.Contains(c.ExtKeyUsage, use) {
				return refusef(CodeWrongUsage, "use the CA that belongs to this installation", "the issuer %q may not issue for this use", printable(c.Subject.String(), 200))
			}
		}
	}
	return nil
}
