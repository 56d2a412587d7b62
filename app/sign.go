package app

import (
	"bytes"
	"context"
	"encoding/pem"
	"path/filepath"
	"strings"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// certSign certifies a key that somebody else holds.
type certSign struct {
	CSR       string   `arg:"" name:"csr" help:"The request, PEM or DER; - is stdin."`
	KeepNames bool     `help:"Give it the subject and the DNS names, IP addresses and URIs that it asks for."`
	Name      string   `placeholder:"NAME" help:"Identity: spiffe://TRUST-DOMAIN/client/NAME or …/service/NAME. Without it the certificate has names and no identity."`
	Client    bool     `help:"For a caller."`
	Server    bool     `help:"For a service. Without both: what the request asks for."`
	DNS       []string `name:"dns" placeholder:"NAME" help:"DNS name, also *.example.org. Repeatable."`
	IP        []string `name:"ip" placeholder:"IP" help:"IP address. Repeatable."`
	URI       []string `name:"uri" placeholder:"URI" help:"Further URI. Repeatable."`
	Subject   string   `placeholder:"DN" help:"Distinguished name, such as CN=billing,O=Acme."`
	Validity  period   `placeholder:"365d" help:"How long it is good for, at most as long as the CA (default 365d, or what is left of the CA)."`
	Out       string   `short:"o" type:"path" placeholder:"FILE" help:"The certificate's file (default: the request's name with .crt)."`
	Force     bool     `help:"Replace files that exist."`
	caFlags
	jsonFlag
}

func (certSign) Help() string {
	return `When the key is made where it is used and only a request (CSR) comes here. Of the request its key is taken, and its names with --keep-names. An identity is never taken from a request: give --name. Who verifies needs the CA file that ca export prints.

Example:

    sallyport cert sign orders.csr --keep-names --server`
}

func (v *certSign) Run(c *cli) error {
	der, err := c.request(v.CSR)
	if err != nil {
		return err
	}
	if v.Name != "" {
		if err := pki.ValidName(v.Name); err != nil {
			return wrong("cert sign: --name: "+asProblem(err).What, "write lower-case letters, digits and dashes")
		}
	}
	if v.Server && !v.KeepNames && len(v.DNS)+len(v.IP) == 0 {
		return wrong("cert sign: a server certificate needs the DNS names or IP addresses by which clients call the server", "give --keep-names to take those that the request asks for, or --dns and --ip")
	}
	out := v.Out
	if out == "" {
		if v.CSR == "-" {
			return wrong("cert sign: where the certificate of a request on stdin shall go was not said", "give --out FILE")
		}
		out = strings.TrimSuffix(v.CSR, filepath.Ext(v.CSR)) + ".crt"
	}
	if filepath.Base(out) == caFile {
		return wrong("cert sign: "+out+" is what CA files are called here", "give another name with --out FILE")
	}
	if err := free(v.Force, out); err != nil {
		return err
	}
	return v.authority(c, func(ctx context.Context, by issuer) error {
		issued, err := by.IssueCertificate(ctx, &control.IssueCertificateRequest{
			Csr: der, KeepCsrNames: v.KeepNames, Name: v.Name, Client: v.Client, Server: v.Server,
			Dns: v.DNS, Ips: v.IP, Uris: v.URI, Subject: v.Subject, LifetimeSeconds: v.Validity.seconds(),
		})
		if err != nil {
			return err
		}
		return c.handOut(issued, v.Force, v.JSON, []file{{out, nil, 0o644}})
	})
}

// request reads a certificate request in PEM or DER, as DER.
func (c *cli) request(path string) ([]byte, error) {
	text, err := c.read(path)
	if err != nil {
		return nil, failed(err.Error(), "")
	}
	der := text
	if bytes.Contains(text, []byte("-----BEGIN ")) {
		der = nil
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") { // also NEW CERTIFICATE REQUEST
				der = block.Bytes
				break
			}
		}
		if der == nil {
			return nil, failed(path+" holds no certificate request", "make one with: openssl req -new -newkey rsa:2048 -noenc -keyout name.key -out name.csr -addext subjectAltName=DNS:…")
		}
	}
	if _, err := pki.ParseCSR(der); err != nil {
		return nil, failed(path+": "+asProblem(err).What, asProblem(err).Remedy)
	}
	return der, nil
}
