package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Describe prints a certificate as a person reads it.
func Describe(w io.Writer, c *x509.Certificate, now time.Time) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", label, printable(fmt.Sprintf(format, args...), 4096))
	}
	if id, err := CertificateID(c); err == nil {
		if n, err := Incarnation(c); err == nil && id.Role.Component() {
			line("Identity", "%s, incarnation %d", id, n)
		} else {
			line("Identity", "%s", id)
		}
	}
	line("Subject", "%s", orNone(c.Subject.String()))
	if string(c.RawSubject) == string(c.RawIssuer) {
		line("Issuer", "itself")
	} else {
		line("Issuer", "%s", orNone(c.Issuer.String()))
	}
	for i, n := range describeNames(c) {
		if i == 0 {
			line("Names", "%s", n)
		} else {
			line("", "%s", n)
		}
	}
	line("Kind", "%s", describeKind(c))
	line("Usages", "%s", describeUsages(c))
	line("Key", "%s", KeyName(c.PublicKey))
	line("Signed with", "%s", c.SignatureAlgorithm)
	line("Valid from", "%s", clock(c.NotBefore))
	line("Valid until", "%s (%s)", clock(c.NotAfter), describeRemaining(c, now))
	line("Serial", "%s", Serial(c))
	print := sha256.Sum256(c.Raw)
	line("SHA-256", "%s", hex.EncodeToString(print[:]))
	spki := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	line("Key SHA-256", "%s", hex.EncodeToString(spki[:]))
	tw.Flush()
}

// KeyName names a public key's kind as people do.
func KeyName(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("unknown (%T)", pub)
}

func describeNames(c *x509.Certificate) []string {
	var names []string
	for _, n := range c.DNSNames {
		names = append(names, "DNS "+n)
	}
	for _, ip := range c.IPAddresses {
		names = append(names, "IP "+ip.String())
	}
	id, _ := CertificateID(c) // has a line of its own
	for _, u := range c.URIs {
		if u.String() != id.String() {
			names = append(names, "URI "+u.String())
		}
	}
	for _, m := range c.EmailAddresses {
		names = append(names, "mail "+m)
	}
	if len(names) == 0 && !c.IsCA && len(c.URIs) == 0 {
		names = append(names, "none (clients do not look at the common name)")
	}
	return names
}

func describeKind(c *x509.Certificate) string {
	switch {
	case isComponentIssuer(c):
		return "CA, for components of " + strings.Join(c.PermittedURIDomains, ", ")
	case c.IsCA && c.MaxPathLen == 0 && c.MaxPathLenZero:
		return "CA, for end entities only"
	case c.IsCA && c.MaxPathLen > 0:
		return fmt.Sprintf("CA, with up to %d CAs below it", c.MaxPathLen)
	case c.IsCA:
		return "CA"
	}
	return "end entity"
}

func describeUsages(c *x509.Certificate) string {
	var uses []string
	for _, u := range c.ExtKeyUsage {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			uses = append(uses, "server")
		case x509.ExtKeyUsageClientAuth:
			uses = append(uses, "client")
		case x509.ExtKeyUsageAny:
			uses = append(uses, "any")
		default:
			uses = append(uses, u.String())
		}
	}
	for _, oid := range c.UnknownExtKeyUsage {
		uses = append(uses, oid.String())
	}
	if len(uses) == 0 {
		uses = append(uses, "not limited")
	}
	var bits []string
	for _, b := range []struct {
		bit  x509.KeyUsage
		name string
	}{
		{x509.KeyUsageDigitalSignature, "digital signature"}, {x509.KeyUsageContentCommitment, "content commitment"},
		{x509.KeyUsageKeyEncipherment, "key encipherment"}, {x509.KeyUsageDataEncipherment, "data encipherment"},
		{x509.KeyUsageKeyAgreement, "key agreement"}, {x509.KeyUsageCertSign, "certificate signing"}, {x509.KeyUsageCRLSign, "CRL signing"},
	} {
		if c.KeyUsage&b.bit != 0 {
			bits = append(bits, b.name)
		}
	}
	if len(bits) > 0 {
		return strings.Join(uses, ", ") + " (" + strings.Join(bits, ", ") + ")"
	}
	return strings.Join(uses, ", ")
}

func describeRemaining(c *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(c.NotBefore):
		return "not valid yet, begins in " + span(c.NotBefore.Sub(now))
	case now.After(c.NotAfter):
		return "expired " + span(now.Sub(c.NotAfter)) + " ago"
	}
	return span(c.NotAfter.Sub(now)) + " left"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
