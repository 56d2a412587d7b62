package pki

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strconv"
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
		return ID{}, refuse(CodeWrongIssuer, "this is the certificate of a component, which is no caller", "make a client certificate with: sallyport cert issue NAME --client")
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
	now := time.Now()
	if v.Now != nil {
		now = v.Now()
	}
	return chain[0], now, nil
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

// componentLeaf checks the form of a component's certificate and returns whom
// it names.
func componentLeaf(c *x509.Certificate, trustDomain string) (ID, uint64, error) {
	bad := func(code, format string, args ...any) (ID, uint64, error) {
		return ID{}, 0, refusef(code, remedyRejoin, "the certificate (%s) %s", whose(c), fmt.Sprintf(format, args...))
	}
	switch {
	case c.IsCA:
		return ID{}, 0, refuseCA(c)
	case c.Version != 3 || !c.BasicConstraintsValid:
		return bad(CodeCACertificate, "does not say that it is not a CA's (no basic constraints)")
	case c.KeyUsage != x509.KeyUsageDigitalSignature:
		return bad(CodeWrongKeyUsage, "has another key usage than digital signature alone")
	case len(c.UnknownExtKeyUsage) > 0 || len(c.ExtKeyUsage) != 2 ||
		!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return bad(CodeWrongUsage, "has other extended key usages than server and client authentication")
	case !hasPolicy(c, componentPolicy):
		return bad(CodeWrongIssuer, "is not marked as a component's")
	case c.SerialNumber.Sign() <= 0:
		return bad(CodeBadCertificate, "has no positive serial number")
	}
	id, err := CertificateID(c)
	if errors.Is(err, ErrNoIdentity) {
		return bad(CodeNoIdentity, "carries no identity (no spiffe:// URI among its alternative names)")
	}
	if err != nil {
		return ID{}, 0, err
	}
	if len(c.URIs) != 1 {
		return bad(CodeManyIdentities, "has %d URIs instead of one", len(c.URIs))
	}
	if err := checkTrustDomain(id, trustDomain); err != nil {
		return ID{}, 0, err
	}
	if !id.Role.Component() {
		return bad(CodeWrongRole, "is that of a %s, not of a component", id.Role)
	}
	incarnation, err := Incarnation(c)
	if err != nil {
		return bad(CodeBadIdentity, "%v", err)
	}
	return id, incarnation, nil
}

func checkTrustDomain(id ID, trustDomain string) error {
	if id.TrustDomain != trustDomain {
		return refusef(CodeWrongTrustDomain, "use a certificate of this installation; each has its own trust domain", "the certificate is that of %s, and this is the trust domain %s", id, trustDomain)
	}
	return nil
}

// CertificateID is the identity a certificate claims: its only spiffe:// URI.
// It verifies nothing else. Alternative names of kinds that we never issue
// (e-mail, other names) are refused, because they are not looked at.
func CertificateID(c *x509.Certificate) (ID, error) {
	uris, err := rawURIs(c)
	if err != nil {
		return ID{}, refusef(CodeBadIdentity, remedyRejoin, "the certificate's alternative names: %v", err)
	}
	ids := slices.DeleteFunc(uris, func(u string) bool { return !isSPIFFE(u) })
	switch len(ids) {
	case 0:
		r := *ErrNoIdentity.(*Refusal)
		return ID{}, &r
	case 1:
	default:
		return ID{}, refusef(CodeManyIdentities, "make a certificate with one identity", "the certificate carries %d identities instead of one", len(ids))
	}
	id, err := ParseID(ids[0])
	if err != nil {
		return ID{}, refusef(CodeBadIdentity, "make the certificate again", "%v", err)
	}
	return id, nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// rawURIs reads the URI names as they are written in the certificate. The
// parsed form of the standard library may spell them differently, and it
// passes over kinds of names that it does not know.
func rawURIs(c *x509.Certificate) ([]string, error) {
	var uris []string
	for _, ext := range c.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var seq asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &seq); err != nil || len(rest) > 0 || seq.Tag != asn1.TagSequence {
			return nil, errors.New("they cannot be read")
		}
		for rest := seq.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			var err error
			if rest, err = asn1.Unmarshal(rest, &name); err != nil || name.Class != asn1.ClassContextSpecific {
				return nil, errors.New("they cannot be read")
			}
			switch name.Tag {
			case 2, 7: // DNS name, IP address
			case 6:
				uris = append(uris, string(name.Bytes))
			default:
				return nil, fmt.Errorf("a name of kind %d, which is neither DNS name, IP address nor URI", name.Tag)
			}
		}
	}
	return uris, nil
}

// Incarnation is which life of its identity a certificate belongs to: the only
// serialNumber of its subject.
func Incarnation(c *x509.Certificate) (uint64, error) {
	count := 0
	for _, n := range c.Subject.Names {
		if n.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 5}) {
			count++
		}
	}
	s := c.Subject.SerialNumber
	n, err := strconv.ParseUint(s, 10, 64)
	if count != 1 || err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, errors.New("has no incarnation number in its subject")
	}
	return n, nil
}

// Serial is a certificate's serial number in lower-case hexadecimal, as
// revocations and listings write it.
func Serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

func isComponentIssuer(c *x509.Certificate) bool {
	return c.IsCA && c.MaxPathLen == 0 && c.MaxPathLenZero && hasPolicy(c, componentPolicy)
}

func hasPolicy(c *x509.Certificate, want x509.OID) bool {
	return slices.ContainsFunc(c.Policies, want.Equal)
}

// whose names a certificate in a message, by what it claims.
func whose(c *x509.Certificate) string {
	if id, err := CertificateID(c); err == nil {
		return id.String()
	}
	if s := c.Subject.String(); s != "" {
		return printable(s, 200)
	}
	return "serial " + Serial(c)
}
