package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
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

// alerts maps the texts of TLS alerts to their numbers. crypto/tls gives a
// remote alert a type of its own that is not exported.
var alerts = func() map[string]uint8 {
	m := map[string]uint8{}
	for n := range 256 {
		m[tls.AlertError(n).Error()] = uint8(n)
	}
	return m
}()

const remedyPeerLog = "the other side's log says why"

func explainTLS(err error) (Refusal, bool) {
	var header tls.RecordHeaderError
	if errors.As(err, &header) {
		return explainRecord(header), true
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" && op.Err != nil {
		if n, ok := alerts[op.Err.Error()]; ok {
			return explainAlert(n, op.Err.Error()), true
		}
	}
	text := err.Error()
	for _, known := range []struct {
		part    string
		refusal Refusal
	}{
		{"client didn't provide a certificate", Refusal{CodeCertificateRequired, "the client presented no certificate", "only joined components and callers with a client certificate may connect here"}},
		{"client offered only unsupported versions", noCommonVersion},
		{"server selected unsupported protocol version", noCommonVersion},
		{"no cipher suite supported by both", noCommonCipher},
		{"client requested unsupported application protocols", noCommonProtocol},
		{"server did not select an ALPN protocol", noCommonProtocol},
		{"server selected unadvertised ALPN protocol", noCommonProtocol},
		{"private key does not match public key", Refusal{CodeKeyMismatch, "the private key does not belong to the certificate", "use the key that the certificate was made for"}},
		{"private key type does not match public key type", Refusal{CodeKeyMismatch, "the private key does not belong to the certificate", "use the key that the certificate was made for"}},
		{"first record does not look like a TLS handshake", Refusal{CodePlaintext, "the other side does not speak TLS", remedyPlaintext}},
		{"does not match certificate's public key", Refusal{CodeKeyMismatch, "the private key does not belong to the certificate", "use the key that the certificate was made for"}},
		{"unsupported type of public key", Refusal{CodeWeakKey, "the certificate has a key of a kind that is not supported", "make one with ECDSA P-256"}},
	} {
		if strings.Contains(text, known.part) {
			return known.refusal, true
		}
	}
	return Refusal{}, false
}

const remedyPlaintext = "let both sides speak TLS to this port, and check the port number and any proxy between them"

var (
	noCommonVersion = Refusal{CodeNoCommonVersion, "the two sides have no TLS version in common",
		"components need TLS 1.3, the public port 1.2 or 1.3: update the older side"}
	noCommonCipher = Refusal{CodeNoCommonCipher, "the two sides have no cipher suite in common",
		"enable a modern suite (AES-GCM or ChaCha20-Poly1305) on the other side"}
	noCommonProtocol = Refusal{CodeNoCommonProtocol, "the two sides have no application protocol (ALPN) in common",
		"check the port (callers belong to the public port, components to the gRPC port), and that nothing between the two ends TLS"}
)

func explainRecord(e tls.RecordHeaderError) Refusal {
	start := string(e.RecordHeader[:])
	switch {
	case strings.HasPrefix(start, "PRI"):
		return Refusal{CodePlaintext, "the other side spoke HTTP/2 without TLS", remedyPlaintext}
	case strings.HasPrefix(start, "HTTP") || strings.HasPrefix(start, "GET") || strings.HasPrefix(start, "POST") || strings.HasPrefix(start, "HEAD"):
		return Refusal{CodePlaintext, "the other side spoke HTTP without TLS", remedyPlaintext}
	case start[:3] == "\x00\x00\x12" || start[:2] == "\x00\x00":
		return Refusal{CodePlaintext, "the other side answered with HTTP/2 frames without TLS", remedyPlaintext}
	case strings.HasPrefix(start, "PROXY"):
		return Refusal{CodeNotTLS, "the other side sent a PROXY protocol header", "allow the load balancer's addresses for it, or switch it off there"}
	case strings.HasPrefix(start, "SSH"):
		return Refusal{CodeNotTLS, "the other side is an SSH server", "check the port number"}
	}
	return Refusal{CodePlaintext, "the other side does not speak TLS", remedyPlaintext}
}

// explainAlert explains what the peer said about us when it closed the
// handshake.
func explainAlert(n uint8, text string) Refusal {
	peer := func(code, cause, remedy string) Refusal { return Refusal{code, "the other side " + cause, remedy} }
	switch n {
	case 40:
		return peer(CodeRefusedByPeer, "found no parameters in common (TLS alert: handshake failure)", "update the older side; "+remedyPeerLog)
	case 42, 46:
		return peer(CodeRefusedByPeer, "refused our certificate (TLS alert: "+strings.TrimPrefix(text, "tls: ")+")", remedyPeerLog)
	case 43:
		return peer(CodeWrongUsage, "does not support our kind of certificate", "make one with ECDSA P-256, for this use; "+remedyPeerLog)
	case 44:
		return peer(CodeRevoked, "says that our certificate is revoked", remedyRejoin)
	case 45:
		return peer(CodeExpired, "says that our certificate has expired or is not valid yet", remedyClock)
	case 48:
		return peer(CodeUnknownAuthority, "does not know the CA of our certificate", "give it that CA, or join this component to that core; "+remedyPeerLog)
	case 49:
		return peer(CodeRefusedByPeer, "denied us access (TLS alert)", remedyPeerLog)
	case 70:
		return noCommonVersion
	case 71:
		return noCommonCipher
	case 112:
		return peer(CodeNameMismatch, "serves nothing by the name we asked for", "check the server name")
	case 116:
		return peer(CodeCertificateRequired, "wants a client certificate and got none", "join this component, or give the client a certificate: sallyport cert issue NAME --client")
	case 120:
		return noCommonProtocol
	}
	return peer(CodeRefusedByPeer, "ended the TLS handshake ("+strings.TrimPrefix(text, "tls: ")+")", remedyPeerLog)
}

func explainNetwork(err error) (Refusal, bool) {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return Refusal{CodeNameUnknown, fmt.Sprintf("the name %q has no address: %s", printable(dns.Name, 253), printable(dns.Err, 200)),
			"check its spelling and the name server of this machine"}, true
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refusal{CodeConnectionRefused, "nothing listens there (connection refused)", "check that the other side runs, its address and its port"}, true
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Refusal{CodeNoRoute, "there is no way to that address (no route to host)", "check the address, this machine's network and firewalls that reject"}, true
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT),
		errors.As(err, &timeout) && timeout.Timeout():
		return Refusal{CodeNoAnswer, "there was no answer in time", "a firewall that drops looks like this: check that this machine's address is among the peers of the other side"}, true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Refusal{CodeConnectionClosed, "the other side closed the connection without a word", "look at its log; it may be another kind of server, too busy, or not expect this machine's address"}, true
	}
	return Refusal{}, false
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
