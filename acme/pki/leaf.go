package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

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
func rawURIs(c *x509.Certificate) ([]string, error) { return rawNames(c.Extensions) }

func rawNames(extensions []pkix.Extension) ([]string, error) {
	var uris []string
	for _, ext := range extensions {
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

// ParseSerial reads a serial number as people copy it (openssl prints it in
// capitals, browsers with colons) and returns it as Serial writes it.
func ParseSerial(s string) (string, error) {
	text := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(strings.TrimSpace(s), "serial="), ":", ""))
	text = strings.TrimPrefix(text, "0x")
	n, ok := new(big.Int).SetString(text, 16)
	if !ok || n.Sign() <= 0 || len(text) > 64 || text[0] == '+' || strings.Contains(text, "_") {
		return "", fmt.Errorf("%q is not a serial number: copy the hexadecimal one that `cert ls` or `cert show` prints", printable(s, 80))
	}
	return n.Text(16), nil
}
