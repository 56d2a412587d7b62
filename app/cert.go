package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// certNoun is certificates for callers and services, and looking at any.
type certNoun struct {
	Issue  certIssue  `cmd:"" help:"Issue a key and certificate for a caller or a service."`
	Sign   certSign   `cmd:"" help:"Issue a certificate for a key that stays where it is (CSR)."`
	Renew  certRenew  `cmd:"" help:"Renew components now, or issue a file's certificate again with a new key."`
	Show   certShow   `cmd:"" help:"Show a certificate as a person reads it."`
	Verify certVerify `cmd:"" help:"Verify a chain, and say why it fails."`
	Ls     certLs     `cmd:"" help:"List what the CA has issued."`
	Revoke certRevoke `cmd:"" help:"Make certificates worthless at once."`
}

type certShow struct {
	File  string `arg:"" help:"PEM or DER; - is stdin. With --ca-dir also the serial number of one that CA has issued."`
	CADir string `name:"ca-dir" type:"path" placeholder:"DIR" help:"Look for the serial number in the CA that ca init made in DIR."`
	jsonFlag
}

func (certShow) Help() string {
	return `When you have a certificate and want to know what it is: issuer, names, key, usages, validity, fingerprint. Works with nothing running.

Example:

    sallyport cert show billing.crt`
}

func (v *certShow) Run(c *cli) error {
	from := v.File
	if serial, err := pki.ParseSerial(from); err == nil && v.CADir != "" {
		if _, err := os.Stat(from); err != nil {
			from = (&standalone{dir: v.CADir}).issued(serial)
		}
	}
	chain, err := c.certificates(from)
	if err != nil {
		return err
	}
	if v.JSON {
		list := []object{}
		for _, cert := range chain {
			list = append(list, certificate(cert))
		}
		return c.printJSON(list)
	}
	now := time.Now()
	for i, cert := range chain {
		if i > 0 {
			fmt.Fprintln(c.out)
		}
		if len(chain) > 1 {
			fmt.Fprintf(c.out, "certificate %d of %d\n", i+1, len(chain))
		}
		pki.Describe(c.out, cert, now)
	}
	return nil
}

// certificates reads the certificates of a file in PEM or DER.
func (c *cli) certificates(file string) ([]*x509.Certificate, error) {
	text, err := c.read(file)
	if err != nil {
		return nil, failed(err.Error(), "")
	}
	if cert, err := x509.ParseCertificate(text); err == nil {
		return []*x509.Certificate{cert}, nil
	}
	chain, err := pki.ParseCertificatesPEM(text)
	if err == nil {
		return chain, nil
	}
	remedy := "give a certificate in PEM or DER"
	switch {
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		remedy = "this is a private key: give the .crt or .pem file that belongs to it"
	case bytes.Contains(text, []byte("CERTIFICATE REQUEST-----")):
		remedy = "this is a request for a certificate (CSR), not a certificate"
	}
	return nil, failed(file+": "+err.Error(), remedy)
}

// certificate is one as JSON.
func certificate(cert *x509.Certificate) object {
	ips, uris := []string{}, []string{}
	for _, ip := range cert.IPAddresses {
		ips = append(ips, ip.String())
	}
	for _, u := range cert.URIs {
		uris = append(uris, u.String())
	}
	identity := any(nil)
	if id, err := pki.CertificateID(cert); err == nil {
		identity = id.String()
	}
	print := sha256.Sum256(cert.Raw)
	dns := append([]string{}, cert.DNSNames...)
	return object{
		{"subject", cert.Subject.String()},
		{"issuer", cert.Issuer.String()},
		{"identity", identity},
		{"serial", pki.Serial(cert)},
		{"not_before", cert.NotBefore.UTC().Format(time.RFC3339)},
		{"not_after", cert.NotAfter.UTC().Format(time.RFC3339)},
		{"ca", cert.IsCA},
		{"dns", dns},
		{"ips", ips},
		{"uris", uris},
		{"key", cert.PublicKeyAlgorithm.String()},
		{"signature", cert.SignatureAlgorithm.String()},
		{"usages", usages(cert)},
		{"sha256", hex.EncodeToString(print[:])},
	}
}

// usages are the extended key usages that matter here.
func usages(cert *x509.Certificate) []string {
	list := []string{}
	for _, u := range cert.ExtKeyUsage {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			list = append(list, "server")
		case x509.ExtKeyUsageClientAuth:
			list = append(list, "client")
		case x509.ExtKeyUsageAny:
			list = append(list, "any")
		default:
			list = append(list, fmt.Sprintf("other(%d)", u))
		}
	}
	return list
}

type certLs struct {
	All bool `help:"Expired and superseded ones too."`
	caFlags
	jsonFlag
}

func (certLs) Help() string {
	return `When you want to know what is out there, and what expires next.

Example:

    sallyport cert ls`
}

func (v *certLs) Run(c *cli) error {
	return v.authority(c, func(ctx context.Context, by issuer) error {
		list, err := by.ListCertificates(ctx, &control.ListCertificatesRequest{All: v.All})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(list)
		}
		now := time.Now()
		t := c.table("KIND", "IDENTITY", "SUBJECT", "HELD BY", "EXPIRES", "STATE", "SERIAL")
		for _, r := range list.GetCertificates() {
			expires, state := standing(r, now)
			t.row(r.GetKind(), r.GetIdentity(), r.GetSubject(), r.GetHolder(), expires, state, r.GetSerial())
		}
		return t.flush("nothing has been issued yet")
	})
}

// standing is how long a certificate is good, and what there is to say of it.
func standing(r *control.CertificateRow, now time.Time) (expires, state string) {
	expires, state = left(r.GetNotAfterUnix(), now), "good"
	if r.GetAlert() != "" {
		state, _, _ = strings.Cut(r.GetAlert(), ": ")
	}
	if expires == "expired" {
		state = "expired"
	}
	if r.GetRevokedUnix() != 0 {
		state = "revoked"
	}
	return expires, state
}
