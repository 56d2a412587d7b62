package app

import (
	"context"
	"fmt"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// caImport hands a CA of the operator's own to core.
type caImport struct {
	Cert string `arg:"" help:"Its certificate in PEM, with what is above it, if anything."`
	Key  string `arg:"" help:"Its private key in PEM, not encrypted."`
	caFlags
	jsonFlag
}

func (caImport) Help() string {
	return `When your clients and services trust a CA of your own already, such as one that openssl made: certificates of callers and services come from it from now on. One that may have CAs below it signs an intermediate, and its key is not kept; one with pathlen:0 issues by itself. Components stay under the embedded root. What was issued before stays valid.

Example:

    sallyport ca import ca.crt ca.key`
}

func (v *caImport) Run(c *cli) error {
	chain, err := c.read(v.Cert)
	if err != nil {
		return failed(err.Error(), "")
	}
	if _, err := pki.ParseCertificatesPEM(chain); err != nil {
		return failed("ca import: "+v.Cert+": "+asProblem(err).What, "give the CA's certificate in PEM first, then its key")
	}
	key, err := c.read(v.Key)
	if err != nil {
		return failed(err.Error(), "")
	}
	if _, err := pki.ParseKeyPEM(key); err != nil {
		return failed("ca import: "+v.Key+": "+asProblem(err).What, "give the private key in PEM; one with a passphrase is opened by: openssl pkey -in "+v.Key+" -out plain.key")
	}
	return v.authority(c, func(ctx context.Context, by issuer) error {
		ca, err := by.ImportCA(ctx, &control.ImportCARequest{ChainPem: chain, KeyPem: key})
		if err != nil {
			return err
		}
		issuing, err := pki.ParseChain([][]byte{ca.GetCallersIssuer()})
		if err != nil {
			return err
		}
		if v.JSON {
			err = c.printJSON(object{{"issuer", certificate(issuing[0])}, {"warnings", append([]string{}, ca.GetWarnings()...)}})
		} else {
			fmt.Fprintln(c.out, "issuer of callers and services from now on")
			pki.Describe(c.out, issuing[0], time.Now())
		}
		for _, w := range ca.GetWarnings() {
			c.say("%s", c.warning("attention: "+oneLine(w)))
		}
		c.say("Give the CA file that others verify with out again: sallyport ca export")
		return err
	})
}
