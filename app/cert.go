package app

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// certNoun is certificates for callers and services, and looking at any.
type certNoun struct {
	Issue  certIssue  `cmd:"" help:"Issue a key and certificate for a caller or a service."`
	Show   certShow   `cmd:"" help:"Show a certificate as a person reads it."`
	Verify certVerify `cmd:"" help:"Verify a chain, and say why it fails."`
	Ls     certLs     `cmd:"" help:"List what the CA has issued."`
}

type certShow struct {
	File string `arg:"" help:"PEM or DER; - is stdin."`
	jsonFlag
}

func (certShow) Help() string {
	return `When you have a certificate and want to know what it is: issuer, names, key, usages, validity, fingerprint. Works with nothing running.

Example:

    sallyport cert show billing.crt`
}

func (v *certShow) Run(c *cli) error {
	chain, err := c.certificates(v.File)
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

type certVerify struct {
	File    string `arg:"" help:"The chain, leaf first: PEM or DER; - is stdin."`
	CA      string `name:"ca" placeholder:"FILE" type:"path" help:"Roots, or an intermediate taken as one. Default: the system's."`
	Name    string `placeholder:"NAME" help:"DNS name or IP address it has to be good for."`
	Purpose string `enum:"any,server,client" default:"any" placeholder:"any|server|client" help:"What it has to be good for (default any; server with --name)."`
	Key     string `placeholder:"FILE" type:"path" help:"Private key that has to belong to it."`
	jsonFlag
}

func (certVerify) Help() string {
	return `When a peer refuses a certificate and you want to know why: the first thing that is wrong, and its remedy. Works with nothing running.

Example:

    sallyport cert verify server.crt --ca ca.crt --name api.example.org`
}

func (v *certVerify) Run(c *cli) error {
	chain, err := c.certificates(v.File)
	if err != nil {
		return err
	}
	path, err := v.verify(c, chain)
	if v.JSON {
		answer := object{{"valid", err == nil}, {"code", nil}, {"cause", nil}, {"remedy", nil}}
		if err != nil {
			r := pki.Explain(err)
			answer = object{{"valid", false}, {"code", r.Code}, {"cause", r.Cause}, {"remedy", r.Remedy}}
		}
		if err := c.printJSON(answer); err != nil {
			return err
		}
		if err != nil {
			return quietly(1)
		}
		return nil
	}
	if err != nil {
		r := pki.Explain(err)
		return failed(v.File+": "+r.Cause, r.Remedy)
	}
	for i, cert := range path {
		fmt.Fprintf(c.out, "%s%s, until %s\n", strings.Repeat("  ", i), cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	c.say("%s is valid.", v.File)
	return nil
}

// verify checks the chain and returns the path to the root that it found.
func (v *certVerify) verify(c *cli, chain []*x509.Certificate) ([]*x509.Certificate, error) {
	leaf := chain[0]
	if v.Key != "" {
		text, err := c.read(v.Key)
		if err != nil {
			return nil, failed("--key: "+err.Error(), "")
		}
		key, err := pki.ParseKeyPEM(text)
		if err != nil {
			return nil, failed("--key "+v.Key+": "+asProblem(err).What, "give a private key in PEM")
		}
		if public, ok := leaf.PublicKey.(interface{ Equal(x crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
			return nil, &pki.Refusal{Code: pki.CodeKeyMismatch, Cause: "the key " + v.Key + " does not belong to the certificate", Remedy: "find the key that was made with this certificate, or issue both anew"}
		}
	}
	options := x509.VerifyOptions{Intermediates: x509.NewCertPool(), DNSName: v.Name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if v.CA != "" {
		roots, err := c.certificates(v.CA)
		if err != nil {
			return nil, err
		}
		options.Roots = x509.NewCertPool()
		for _, r := range roots {
			options.Roots.AddCert(r)
		}
	}
	for _, i := range chain[1:] {
		options.Intermediates.AddCert(i)
	}
	switch {
	case v.Purpose == "client":
		options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case v.Purpose == "server" || v.Name != "":
		options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	paths, err := leaf.Verify(options)
	if err != nil {
		return nil, err
	}
	return paths[0], nil
}

type certLs struct {
	All bool `help:"Expired and superseded ones too."`
	coreFlags
	jsonFlag
}

func (certLs) Help() string {
	return `When you want to know what is out there, and what expires next.

Example:

    sallyport cert ls`
}

func (v *certLs) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		list, err := core.ListCertificates(ctx, &control.ListCertificatesRequest{All: v.All})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(list)
		}
		now := time.Now()
		t := c.table("KIND", "IDENTITY", "SUBJECT", "EXPIRES", "STATE", "SERIAL")
		for _, r := range list.GetCertificates() {
			expires, state := left(r.GetNotAfterUnix(), now), "good"
			if expires == "expired" {
				state = "expired"
			}
			if r.GetRevokedUnix() != 0 {
				state = "revoked"
			}
			t.row(r.GetKind(), r.GetIdentity(), r.GetSubject(), expires, state, r.GetSerial())
		}
		return t.flush("nothing has been issued yet")
	})
}
