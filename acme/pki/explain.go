package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Explain turns an error of crypto/tls, crypto/x509 or the network into cause
// and remedy, in the words that every part of the product uses. An error that
// is a Refusal already is returned as it is; one that is not known keeps its
// text.
func Explain(err error) Refusal {
	if err == nil {
		return Refusal{}
	}
	if r, ok := AsRefusal(err); ok {
		return *r
	}
	var verification *tls.CertificateVerificationError
	if errors.As(err, &verification) {
		return explainCertificate(verification.Err, verification.UnverifiedCertificates, time.Time{})
	}
	if r, ok := explainX509(err, nil, time.Time{}); ok {
		return r
	}
	if r, ok := explainTLS(err); ok {
		return r
	}
	if r, ok := explainNetwork(err); ok {
		return r
	}
	return Refusal{Code: CodeOther, Cause: printable(err.Error(), 1024)}
}

// explainCertificate explains why a chain did not verify. now is the time it
// was verified at, zero if it was the present.
func explainCertificate(err error, chain []*x509.Certificate, now time.Time) Refusal {
	if r, ok := AsRefusal(err); ok {
		return *r
	}
	if r, ok := explainX509(err, chain, now); ok {
		return r
	}
	return Refusal{Code: CodeBadCertificate, Cause: "the certificate does not verify: " + printable(err.Error(), 1024),
		Remedy: "look at it with: sallyport cert show FILE"}
}

func explainX509(err error, chain []*x509.Certificate, now time.Time) (Refusal, bool) {
	var (
		unknown    x509.UnknownAuthorityError
		invalid    x509.CertificateInvalidError
		hostname   x509.HostnameError
		critical   x509.UnhandledCriticalExtension
		insecure   x509.InsecureAlgorithmError
		constraint x509.ConstraintViolationError
		roots      x509.SystemRootsError
	)
	switch {
	case errors.As(err, &unknown):
		return explainUnknown(unknown, chain), true
	case errors.As(err, &invalid):
		return explainInvalid(invalid, now), true
	case errors.As(err, &hostname):
		return explainHostname(hostname), true
	case errors.As(err, &critical):
		return Refusal{CodeCriticalExtension, "the certificate, or one of its chain, has a critical extension that is not understood",
			"make the certificate without that extension"}, true
	case errors.As(err, &insecure):
		return Refusal{CodeWeakSignature, "the certificate is signed with an algorithm that is no longer safe: " + printable(err.Error(), 200),
			"make it again with SHA-256"}, true
	case errors.As(err, &constraint):
		return Refusal{CodeCACertificate, "the certificate was signed by one that is not a CA",
			"sign it with a CA certificate (basic constraints CA:TRUE, key usage certSign)"}, true
	case errors.As(err, &roots):
		return Refusal{CodeUnknownAuthority, "this machine has no CA certificates: " + printable(err.Error(), 200),
			"install the package ca-certificates, or name a CA file"}, true
	}
	return Refusal{}, false
}

func explainUnknown(e x509.UnknownAuthorityError, chain []*x509.Certificate) Refusal {
	c := e.Cert
	if c == nil && len(chain) > 0 {
		c = chain[0]
	}
	if c == nil {
		return Refusal{CodeUnknownAuthority, "the certificate was made by a CA that is not trusted here", "name its CA file"}
	}
	issuer := printable(c.Issuer.String(), 200)
	selfSigned := string(c.RawIssuer) == string(c.RawSubject)
	switch {
	case selfSigned && !c.IsCA:
		return Refusal{CodeUnknownAuthority, fmt.Sprintf("the certificate %q is signed by itself and not trusted here", issuer),
			"name it, or better the CA of a proper one, as the CA file of the side that connects"}
	case !selfSigned && len(c.IssuingCertificateURL) > 0:
		return Refusal{CodeIntermediateMissing, fmt.Sprintf("the intermediate %q is missing from the chain that was sent", issuer),
			"give the server the whole chain: fullchain.pem, not cert.pem"}
	case !selfSigned && !c.IsCA && len(chain) == 1:
		return Refusal{CodeUnknownAuthority, fmt.Sprintf("the certificate was made by %q, which is not trusted here, and nothing else was sent", issuer),
			"name the CA file of that issuer; if the issuer is an intermediate, let the server send it too (fullchain.pem, not cert.pem)"}
	}
	return Refusal{CodeUnknownAuthority, fmt.Sprintf("the certificate was made by %q, which is not trusted here", issuer),
		"it is that of another CA: name the right CA file, or join this component to the core it talks to"}
}

func explainInvalid(e x509.CertificateInvalidError, now time.Time) Refusal {
	c := e.Cert
	if now.IsZero() {
		now = checkedAt(e.Detail)
	}
	switch e.Reason {
	case x509.Expired:
		if c == nil {
			break
		}
		if now.Before(c.NotBefore) {
			return Refusal{CodeNotYetValid, fmt.Sprintf("the certificate (%s) is valid from %s, and the clock of the machine that checked it says %s, %s earlier",
				whose(c), clock(c.NotBefore), clock(now), span(c.NotBefore.Sub(now))), remedyClock}
		}
		return Refusal{CodeExpired, fmt.Sprintf("the certificate (%s) expired at %s, and the clock of the machine that checked it says %s, %s later",
			whose(c), clock(c.NotAfter), clock(now), span(now.Sub(c.NotAfter))), remedyClock}
	case x509.NotAuthorizedToSign:
		return Refusal{CodeCACertificate, "the certificate was signed by one that is not a CA", "sign it with a CA certificate (basic constraints CA:TRUE)"}
	case x509.CANotAuthorizedForThisName, x509.UnconstrainedName, x509.CANotAuthorizedForExtKeyUsage, x509.TooManyConstraints, x509.NameConstraintsWithoutSANs:
		if e.Reason == x509.CANotAuthorizedForExtKeyUsage {
			break
		}
		return Refusal{CodeNameConstraint, "the CA may not issue for the names in the certificate (name constraints): " + printable(e.Detail, 300),
			"use names that the CA allows, or another CA"}
	case x509.TooManyIntermediates:
		return Refusal{CodePathLength, "there are more intermediates in the chain than its CA allows (path length)", "sign the certificate with a CA that may"}
	case x509.IncompatibleUsage:
		return Refusal{CodeWrongUsage, "the certificate is not made for this use (extended key usage)", "make one for servers, clients or both: sallyport cert issue NAME --server --client"}
	case x509.NameMismatch:
		return Refusal{CodeUnknownAuthority, "the issuer's name and the name in the certificate differ", "put the chain together again, leaf first"}
	}
	if e.Reason == x509.CANotAuthorizedForExtKeyUsage {
		return Refusal{CodeWrongUsage, "the CA may not issue for this use (extended key usage)", "use another CA"}
	}
	return Refusal{CodeBadCertificate, "the certificate does not verify: " + printable(e.Error(), 300), "look at it with: sallyport cert show FILE"}
}

// checkedAt finds the time of a verification in what crypto/x509 says about it
// ("current time 2026-03-01T12:00:00Z is after …"), else takes the present.
func checkedAt(detail string) time.Time {
	if _, rest, ok := strings.Cut(detail, "current time "); ok {
		text, _, _ := strings.Cut(rest, " ")
		if t, err := time.Parse(time.RFC3339, text); err == nil {
			return t
		}
	}
	return time.Now()
}

func explainHostname(e x509.HostnameError) Refusal {
	c := e.Certificate
	host := printable(e.Host, 253)
	if c == nil {
		return Refusal{CodeNameMismatch, fmt.Sprintf("the certificate is not for %q", host), "use a name that it is for"}
	}
	if len(c.DNSNames)+len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) == 0 {
		return Refusal{CodeCommonNameOnly, fmt.Sprintf("the certificate has a common name (%q) and no alternative names, and common names are not looked at", printable(c.Subject.CommonName, 200)),
			fmt.Sprintf("make it again with the name %q among the alternative names (-addext subjectAltName=DNS:%s, or sallyport cert issue)", host, host)}
	}
	names := strings.Join(altNames(c), ", ")
	return Refusal{CodeNameMismatch, fmt.Sprintf("the certificate is for %s, not for %q", printable(names, 300), host),
		"use one of its names, name the expected one with --server-name, or make a certificate for this name too"}
}

// altNames lists a certificate's alternative names as people read them.
func altNames(c *x509.Certificate) []string {
	var names []string
	names = append(names, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	return append(names, c.EmailAddresses...)
}

// span writes a duration in at most two units.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d < time.Second:
		return "less than a second"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh %dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	days := d / (24 * time.Hour)
	return fmt.Sprintf("%dd %dh", days, d%(24*time.Hour)/time.Hour)
}
