package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sallyport/acme/pki"
)

// caInit makes a CA without a core.
type caInit struct {
	Dir         string  `arg:"" type:"path" help:"Where it shall lie: a new directory, or an empty one."`
	TrustDomain string  `default:"sallyport.internal" placeholder:"DOMAIN" help:"Trust domain of the identities it gives (default sallyport.internal)."`
	InitSeal    sealing `embed:""`
	jsonFlag
}

// sealing is sealFlags where a CA is made.
type sealing struct {
	CAPassphraseFile string `name:"ca-passphrase-file" type:"path" from:"env" placeholder:"FILE" help:"Seal its private keys with the passphrase in FILE."`
	CAKeyFile        string `name:"ca-key-file" type:"path" from:"env" placeholder:"FILE" help:"Seal them with the key in FILE, which is made if it is not there (default DIR.key)."`
}

func (caInit) Help() string {
	return `When you want certificates and no core: a CA in a directory, for cert issue, sign, ls and revoke with --ca-dir DIR. A core makes its own CA by itself. The private keys are sealed; keep what opens them, the passphrase or DIR.key, away from copies of DIR. DIR/ca.crt is the root for whoever verifies.

Example:

    sallyport ca init pki
    sallyport cert issue orders --server --dns orders.internal --ca-dir pki`
}

func (v *caInit) Run(c *cli) error {
	domain := v.TrustDomain
	if err := pki.ValidTrustDomain(domain); err != nil {
		return wrong("ca init: --trust-domain: "+asProblem(err).What, "give a DNS name in lower case, such as example.org")
	}
	secret, err := sealFlags(v.InitSeal).secret()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(v.Dir), 0o755); err != nil {
		return failed(err.Error(), "")
	}
	ca, err := pki.CreateAuthority(v.Dir, secret, domain, time.Now())
	if errors.Is(err, pki.ErrAuthorityExists) {
		return failed(v.Dir+": "+asProblem(err).What, "give a directory that does not exist yet; to look at what is there: sallyport ca show --ca-dir "+v.Dir)
	}
	if err != nil {
		return err
	}
	root := ca.Bundle().Roots[0]
	opens := v.InitSeal.CAKeyFile
	if opens == "" {
		opens = pki.KeyFileBeside(v.Dir)
	}
	if secret.Passphrase != "" {
		opens = v.InitSeal.CAPassphraseFile
	}
	export := filepath.Join(v.Dir, caFile)
	if v.JSON {
		return c.printJSON(object{
			{"trust_domain", domain}, {"directory", v.Dir}, {"ca", export}, {"opened_by", opens},
			{"root", certificate(root)},
		})
	}
	fmt.Fprintln(c.out, export)
	c.say("The CA for %s is in %s, good until %s.", domain, v.Dir, clock(root.NotAfter.Unix()))
	c.say("Its private keys open with %s. Keep that elsewhere too: without it the CA is lost.", opens)
	return nil
}
