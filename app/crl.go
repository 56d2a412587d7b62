package app

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// caCRL is the revocation lists for software that is not ours.
type caCRL struct {
	PEM    bool   `name:"pem" help:"In PEM, and the lists of all issuers; else in DER, that of callers and services."`
	Output string `short:"o" placeholder:"FILE" type:"path" help:"Write it there instead of stdout."`
	Force  bool   `help:"Replace FILE."`
	caFlags
	jsonFlag
}

func (caCRL) Help() string {
	return `When nginx, openssl or another program has to know what was revoked. Our own links need no list: they hear of a revocation within a second. A list is good for a day; the proxies serve it at /.well-known/sallyport/ca.crl.

Example:

    sallyport ca crl --pem -o ca.crl --force`
}

func (v *caCRL) Run(c *cli) error {
	if !v.PEM && !v.JSON && v.Output == "" && isTerminal(c.out) {
		return wrong("ca crl: a list in DER is nothing for a terminal", "give --pem, or -o FILE")
	}
	return v.authority(c, func(ctx context.Context, by issuer) error {
		answer, err := by.GetCRL(ctx, &control.GetCRLRequest{})
		if err != nil {
			return err
		}
		ders := answer.GetCrls()
		if len(ders) == 0 {
			return failed("there is no revocation list: the issuer of callers and services may not sign any (its key usage lacks cRLSign)", "import a CA that may, or rely on short lifetimes")
		}
		if v.JSON {
			return c.revoked(ders)
		}
		text := ders[0]
		if v.PEM {
			text = pki.MarshalCRLsPEM(ders)
		}
		if v.Output == "" {
			_, err = c.out.Write(text)
			return err
		}
		if err := writeFiles(v.Force, file{v.Output, text, 0o644}); err != nil {
			return err
		}
		c.say("wrote %s", v.Output)
		return nil
	})
}

// revoked prints what revocation lists say.
func (c *cli) revoked(ders [][]byte) error {
	lists := []object{}
	for _, der := range ders {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return err
		}
		entries := []object{}
		for _, e := range list.RevokedCertificateEntries {
			entries = append(entries, object{{"serial", e.SerialNumber.Text(16)}, {"revoked", e.RevocationTime.UTC().Format(time.RFC3339)}, {"reason_code", e.ReasonCode}})
		}
		lists = append(lists, object{
			{"issuer", list.Issuer.String()}, {"number", list.Number.String()},
			{"this_update", list.ThisUpdate.UTC().Format(time.RFC3339)}, {"next_update", list.NextUpdate.UTC().Format(time.RFC3339)},
			{"revoked", entries},
		})
	}
	return c.printJSON(lists)
}

// revocationLists reads a file of lists, PEM or DER.
func revocationLists(text []byte) ([]*x509.RevocationList, error) {
	if list, err := x509.ParseRevocationList(text); err == nil {
		return []*x509.RevocationList{list}, nil
	}
	var lists []*x509.RevocationList
	for block, rest := pem.Decode(bytes.TrimSpace(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			continue
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
	return lists, nil
}
