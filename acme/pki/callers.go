package pki

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Imported is what ImportCallers made of a CA.
type Imported struct {
	Issuer   *x509.Certificate // what issues to callers and services from now on
	Direct   bool              // the imported CA itself; else an intermediate of ours under it
	Warnings []string          // for the operator, one sentence each
}

const (
	// maxFormer is how many former issuers of callers stay in the bundle.
	maxFormer = 10
	// shortCA is how much life an imported CA should have left.
	shortCA = 60 * 24 * time.Hour
)

// ImportCallers makes somebody's own CA the issuer for callers and services.
// certPEM holds it and what is above it, keyPEM its key, as openssl writes them.
// A CA that may have others below it signs an intermediate of ours, and its own
// key is not kept; one that may not (pathlen:0) issues itself, and its key is
// sealed with the others. The former issuer stays in the bundle for what it has
// issued. The component hierarchy does not change: no imported CA can make a
// core, proxy or gateway. Nor does a rotation change the imported one.
func (a *Authority) ImportCallers(certPEM, keyPEM []byte, now time.Time) (*Authority, *Imported, error) {
	fail := func(err error) (*Authority, *Imported, error) {
		return nil, nil, fmt.Errorf("import a CA for callers and services: %w", err)
	}
	p, err := a.prepareImport(certPEM, keyPEM, now)
	if err != nil {
		return fail(err)
	}
	result := &Imported{Direct: p.direct, Warnings: p.warnings}
	next, err := a.change(a.secret, now, func(s *state) error {
		by := &callersIssuer{issuer: p.by, above: p.above}
		if !p.direct {
			if by, err = underImported(s.trustDomain, p, now); err != nil {
				return err
			}
		}
		result.Issuer = by.cert
		if err := s.setImported(by); err != nil {
			return err
		}
		warning, err := a.tryImported(s, now)
		if warning != "" {
			result.Warnings = append(result.Warnings, warning)
		}
		return err
	})
	if err != nil {
		return fail(err)
	}
	return next, result, nil
}

// preparedImport is a CA that has passed the checks. Only prepareImport makes
// one.
type preparedImport struct {
	by       issuer
	above    []*x509.Certificate // nearest first
	direct   bool
	end      time.Time // of the shortest life in the chain
	warnings []string
}

func (a *Authority) prepareImport(certPEM, keyPEM []byte, now time.Time) (*preparedImport, error) {
	certs, err := ParseCertificatesPEM(certPEM)
	if err != nil {
		return nil, err
	}
	if len(certs) > maxChain {
		return nil, fmt.Errorf("the file holds %d certificates: put the CA first, then what is above it, and nothing else", len(certs))
	}
	key, err := ParseKeyPEM(keyPEM)
	if err != nil {
		return nil, err
	}
	ca, rest := certs[0], certs[1:]
	p := &preparedImport{by: issuer{ca, key}, end: ca.NotAfter}
	warn := func(format string, args ...any) { p.warnings = append(p.warnings, fmt.Sprintf(format, args...)) }
	name := printable(ca.Subject.String(), 200)
	if !samePublicKey(ca.PublicKey, key.Public()) {
		return nil, refusef(CodeKeyMismatch, "use the key that the CA was made with, and put the CA's certificate first in its file", "the private key does not belong to the certificate %q", name)
	}
	if err := a.mayImport(ca, name); err != nil {
		return nil, err
	}

	// What is above it, as far as it is there.
	for below := ca; !selfSigned(below); {
		i := slices.IndexFunc(rest, func(c *x509.Certificate) bool { return below.CheckSignatureFrom(c) == nil })
		if i < 0 {
			warn("The CA was issued by %q, which is not in the file: other software can verify with this CA's certificate as a partial chain only; put what is above it into the file, up to the root.", printable(below.Issuer.String(), 200))
			break
		}
		below, rest = rest[i], slices.Delete(slices.Clone(rest), i, i+1)
		if err := CheckKey(below.PublicKey); err != nil {
			return nil, fmt.Errorf("%q above it: %w", printable(below.Subject.String(), 200), err)
		}
		if hasPolicy(below, componentPolicy) {
			return nil, a.mayImport(below, printable(below.Subject.String(), 200))
		}
		p.above = append(p.above, below)
		if below.NotAfter.Before(p.end) {
			p.end = below.NotAfter
		}
	}
	for _, c := range rest {
		warn("%q is not above the CA and was left out.", printable(c.Subject.String(), 200))
	}
	for i, c := range slices.Concat([]*x509.Certificate{ca}, p.above) {
		if now.Before(c.NotBefore) || now.After(p.end) {
			return nil, refusef(CodeExpired, "check this machine's clock; else import a CA that is valid", "the CA %q is valid from %s to %s, and the clock of this machine says %s",
				printable(c.Subject.String(), 200), clock(c.NotBefore), clock(p.end), clock(now))
		}
		if c.MaxPathLen < 0 {
			continue
		}
		if c.MaxPathLen < i {
			return nil, refusef(CodePathLength, "import a CA that its own CA allows", "the CA %q may have %d CAs below it and has %d in this chain", printable(c.Subject.String(), 200), c.MaxPathLen, i)
		}
		p.direct = p.direct || c.MaxPathLen == i
	}

	if left := p.end.Sub(now); left < shortCA {
		warn("The CA ends in %s, at %s, and nothing that it issues lasts longer; openssl makes CAs of 30 days where -days is not given: make one with -days 3650.", span(left), clock(p.end))
	}
	if p.direct {
		warn("The CA may not have another below it (path length), so it issues itself: it cannot be rotated here, its key is kept with ours, and whoever has that key elsewhere can make callers of this installation.")
		if !signsCRLs(ca) {
			warn("The CA may not sign revocation lists (key usage): there will be none for its certificates.")
		}
	}
	for use, what := range map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "servers", x509.ExtKeyUsageClientAuth: "clients"} {
		if len(ca.ExtKeyUsage)+len(ca.UnknownExtKeyUsage) > 0 && !slices.Contains(ca.ExtKeyUsage, use) && !slices.Contains(ca.ExtKeyUsage, x509.ExtKeyUsageAny) {
			return nil, refusef(CodeWrongUsage, "import a CA without extended key usages, or with both", "the CA %q may not issue for %s (extended key usage)", name, what)
		}
	}
	return p, nil
}

// mayImport refuses what is no CA, what cannot sign, and what is ours.
func (a *Authority) mayImport(ca *x509.Certificate, name string) error {
	switch {
	case !ca.BasicConstraintsValid || !ca.IsCA:
		return refusef(CodeCACertificate, "import a CA's certificate (basic constraints CA:TRUE)", "the certificate %q is not that of a CA", name)
	case ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCertSign == 0:
		return refusef(CodeWrongKeyUsage, "import a CA with the key usage keyCertSign", "the CA %q may not sign certificates (key usage)", name)
	case len(ca.UnhandledCriticalExtensions) > 0:
		return refusef(CodeCriticalExtension, "make the CA without that extension", "the CA %q has the critical extension %s, which is not understood", name, ca.UnhandledCriticalExtensions[0])
	case hasPolicy(ca, componentPolicy):
		return refusef(CodeWrongIssuer, "import another CA; that of components is always made here", "%q is an issuer of components", name)
	}
	for _, c := range a.Certificates() {
		if samePublicKey(c.Cert.PublicKey, ca.PublicKey) {
			return fmt.Errorf("%q is in force here already, as %s", name, c.What)
		}
	}
	return CheckKey(ca.PublicKey)
}

// underImported makes an intermediate of ours under an imported CA.
func underImported(trustDomain string, p *preparedImport, now time.Time) (*callersIssuer, error) {
	key, err := NewKey("p256")
	if err != nil {
		return nil, err
	}
	t, err := authorityTemplate("Callers CA", trustDomain, key.Public(), now)
	if err != nil {
		return nil, err
	}
	markCallersIssuer(t)
	if p.end.Before(t.NotAfter) {
		t.NotAfter = p.end
	}
	cert, err := signCertificate(t, p.by, key.Public())
	if err != nil {
		return nil, err
	}
	return &callersIssuer{issuer{cert, key}, slices.Concat([]*x509.Certificate{p.by.cert}, p.above)}, nil
}

// setImported puts an imported issuer in force and moves the ones before aside.
func (s *state) setImported(by *callersIssuer) error {
	var former []callersIssuer
	if s.imported != nil {
		former = append(former, *s.imported)
	}
	for _, h := range []*hierarchy{s.issuing(), s.other()} {
		if h == nil || h.callers.cert == nil {
			continue
		}
		if h.used {
			former = append(former, callersIssuer{h.callers, []*x509.Certificate{h.root.cert}})
		}
		h.callers = issuer{}
	}
	if n := len(former) + len(s.former); n > maxFormer {
		return fmt.Errorf("%d former issuers of callers are still trusted: wait until the certificates of the oldest have ended", len(s.former))
	}
	s.imported, s.former = by, slices.Concat(former, s.former)
	return nil
}

// tryImported issues a client certificate that goes nowhere, so that a CA that
// cannot be used is found before it is in force.
func (a *Authority) tryImported(s *state, now time.Time) (warning string, err error) {
	trial, err := newAuthority(a.dir, a.secret, nil, s)
	if err != nil {
		return "", err
	}
	key, err := NewKey("p256")
	if err != nil {
		return "", err
	}
	p, err := trial.prepareLeaf(LeafRequest{ID: ID{s.trustDomain, RoleClient, "trial"}, PublicKey: key.Public(), Client: true, Lifetime: minLifetime}, now)
	if err != nil {
		return "", err
	}
	cert, err := signCertificate(p.template, p.by, p.public)
	if err != nil {
		return "", err
	}
	err = p.verify(slices.Concat([]*x509.Certificate{cert, p.by.cert}, p.above), now)
	if err == nil {
		return "", nil
	}
	r := Explain(err)
	if r.Code == CodeNameConstraint {
		return "The CA is bound to certain names, and client identities (URIs of " + s.trustDomain + ") are not among them: it can issue certificates for servers with those names only.", nil
	}
	return "", &r
}

// PruneCallers drops former issuers of callers whose last certificate has
// ended. lastEnd tells when that is, zero if the issuer has no certificate
// left. If there is nothing to drop, it returns a itself.
func (a *Authority) PruneCallers(now time.Time, lastEnd func(issuer *x509.Certificate) time.Time) (*Authority, error) {
	over := func(c callersIssuer) bool { return now.After(c.cert.NotAfter) || now.After(lastEnd(c.cert)) }
	if !slices.ContainsFunc(a.state.former, over) {
		return a, nil
	}
	next, err := a.change(a.secret, now, func(s *state) error {
		s.former = slices.DeleteFunc(s.former, over)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("drop former issuers of callers: %w", err)
	}
	return next, nil
}

// IssuedBy reports whether a certificate was signed by an issuer, for lastEnd
// of PruneCallers.
func IssuedBy(c, by *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, by.RawSubject) && by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// Current reports whether leaf comes from the issuer of callers and services
// that b believes and whose key has the SHA-256 spki; without spki, from any
// that b believes.
func (b *Bundle) Current(leaf *x509.Certificate, spki []byte) bool {
	return slices.ContainsFunc(b.CallerIntermediates, func(c *x509.Certificate) bool {
		hash := SPKI(c)
		return (len(spki) == 0 || bytes.Equal(hash[:], spki)) && IssuedBy(leaf, c)
	})
}
