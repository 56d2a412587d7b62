package app

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// certIssue makes a key here and has core certify it; the key never travels.
type certIssue struct {
	Name     string   `arg:"" help:"Its name: becomes spiffe://TRUST-DOMAIN/client/NAME or …/service/NAME."`
	Client   bool     `help:"For a caller: it authenticates at the edge."`
	Server   bool     `help:"For a service: clients verify it. With --client, both."`
	DNS      []string `name:"dns" placeholder:"NAME" help:"DNS name, also *.example.org. Repeatable."`
	IP       []string `name:"ip" placeholder:"IP" help:"IP address. Repeatable."`
	URI      []string `name:"uri" placeholder:"URI" help:"Further URI. Repeatable."`
	Subject  string   `placeholder:"DN" help:"Distinguished name, such as CN=billing,O=Acme (default CN=NAME)."`
	KeyType  string   `enum:"p256,p384,ed25519,rsa2048,rsa4096" default:"p256" placeholder:"KIND" help:"p256, p384, ed25519, rsa2048 or rsa4096 (default p256)."`
	Validity period   `placeholder:"365d" help:"How long it is good for, at most as long as the CA (default 365d)."`
	Out      string   `type:"path" default:"." placeholder:"DIR" help:"Where the files go (default: here)."`
	Force    bool     `help:"Replace files that exist."`
	coreFlags
	jsonFlag
}

func (certIssue) Help() string {
	return `When a caller or a service of yours needs a certificate. Writes NAME.key (0600), NAME.crt with its chain, and ca.crt, as gRPC in any language, openssl and nginx take them. What a client may call is said by a [[grant]] with its spiffe:// name in the policy.

Examples:

    sallyport cert issue billing --client
    sallyport cert issue orders --server --dns orders.internal --ip 10.0.0.7 --out /etc/orders`
}

func (v *certIssue) Run(c *cli) error {
	if err := pki.ValidName(v.Name); err != nil {
		return wrong("cert issue: "+asProblem(err).What, "write lower-case letters, digits and dashes")
	}
	if !v.Client && !v.Server {
		return wrong("cert issue "+v.Name+": what it is for was not said", "give --client for a caller, --server for a service, or both")
	}
	if v.Server && len(v.DNS) == 0 && len(v.IP) == 0 {
		c.say("note: without --dns or --ip clients can only verify this certificate by its URI")
	}
	key, err := pki.NewKey(v.KeyType)
	if err != nil {
		return err
	}
	keyPEM, err := pki.MarshalKeyPEM(key)
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return err
	}
	files := []file{
		{filepath.Join(v.Out, v.Name+".key"), keyPEM, 0o600},
		{filepath.Join(v.Out, v.Name+".crt"), nil, 0o644},
		{filepath.Join(v.Out, caFile), nil, 0o644},
	}
	if err := free(v.Force, files[0].path, files[1].path); err != nil {
		return err
	}
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		issued, err := core.IssueCertificate(ctx, &control.IssueCertificateRequest{
			Csr: csr, Name: v.Name, Client: v.Client, Server: v.Server,
			Dns: v.DNS, Ips: v.IP, Uris: v.URI, Subject: v.Subject, LifetimeSeconds: v.Validity.seconds(),
		})
		if err != nil {
			return err
		}
		chain, err := pki.ParseChain(issued.GetChain())
		if err != nil {
			return err
		}
		roots, err := pki.ParseChain(issued.GetRoots())
		if err != nil {
			return err
		}
		files[1].text = pki.MarshalCertificatesPEM(chain)
		files[2].text = pki.MarshalCertificatesPEM(roots)
		if err := writeFiles(v.Force, files...); err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(object{
				{"identity", issued.GetIdentity()},
				{"key", files[0].path}, {"certificate", files[1].path}, {"ca", files[2].path},
				{"not_after", rfc3339(chain[0].NotAfter.Unix())},
			})
		}
		for _, f := range files {
			fmt.Fprintln(c.out, f.path)
		}
		c.say("%s, good until %s", issued.GetIdentity(), clock(chain[0].NotAfter.Unix()))
		if v.Client {
			c.say("What it may call is said by the policy: [[grant]] caller = %q", strings.TrimSpace(issued.GetIdentity()))
		}
		return nil
	})
}
