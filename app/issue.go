package app

import (
	"context"
	"fmt"
	"path/filepath"

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
	Validity period   `placeholder:"365d" help:"How long it is good for, at most as long as the CA (default 365d, or what is left of the CA)."`
	Out      string   `type:"path" default:"." placeholder:"DIR" help:"Where the files go (default: here)."`
	Force    bool     `help:"Replace files that exist."`
	caFlags
	jsonFlag
}

func (certIssue) Help() string {
	return `When a caller or a service of yours needs a certificate. Writes NAME.key (0600), NAME.crt with its chain, and ca.crt, as gRPC in any language, openssl and nginx take them. What a client may call is said by a [[grant]] with its spiffe:// name in the policy.

Examples:

    sallyport cert issue billing --client
    sallyport cert issue orders --server --dns orders.internal --ip 10.0.0.7 --out /etc/orders
    sallyport cert issue web --server --dns '*.example.org' --key-type rsa4096 --validity 90d --ca-dir pki`
}

func (v *certIssue) Run(c *cli) error {
	if err := pki.ValidName(v.Name); err != nil {
		return wrong("cert issue: "+asProblem(err).What, "write lower-case letters, digits and dashes")
	}
	if v.Name+".crt" == caFile {
		return wrong("cert issue: "+caFile+" is the CA's own file, so a certificate cannot be called that", "give another name")
	}
	if !v.Client && !v.Server {
		return wrong("cert issue "+v.Name+": what it is for was not said", "give --client for a caller, --server for a service, or both")
	}
	if v.Server && len(v.DNS) == 0 && len(v.IP) == 0 {
		return wrong("cert issue "+v.Name+": a service needs the names its clients call it by, and none was given", "give --dns NAME or --ip ADDRESS; common names are ignored by every modern client")
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
	return v.authority(c, func(ctx context.Context, by issuer) error {
		issued, err := by.IssueCertificate(ctx, &control.IssueCertificateRequest{
			Csr: csr, Name: v.Name, Client: v.Client, Server: v.Server,
			Dns: v.DNS, Ips: v.IP, Uris: v.URI, Subject: v.Subject, LifetimeSeconds: v.Validity.seconds(),
		})
		if err != nil {
			return err
		}
		return c.handOut(issued, v.Force, v.JSON, files)
	})
}

// handOut writes a new certificate and, where it was issued and not signed, its
// key and the CA file beside it, and says what it is.
func (c *cli) handOut(issued *control.IssueCertificateResponse, force, json bool, files []file) error {
	chain, err := pki.ParseChain(issued.GetChain())
	if err != nil {
		return err
	}
	roots, err := pki.ParseChain(issued.GetRoots())
	if err != nil {
		return err
	}
	leaf, whose := chain[0], issued.GetIdentity()
	answer := object{{"identity", any(whose)}, {"serial", pki.Serial(leaf)}}
	if whose == "" {
		whose, answer[0].value = leaf.Subject.String(), nil
	}
	for i, f := range files {
		switch {
		case filepath.Base(f.path) == caFile:
			files[i].text = pki.MarshalCertificatesPEM(roots)
			answer = append(answer, member{"ca", f.path})
		case f.text == nil:
			files[i].text = pki.MarshalCertificatesPEM(chain)
			answer = append(answer, member{"certificate", f.path})
		default:
			answer = append(answer, member{"key", f.path})
		}
	}
	if err := writeFiles(force, files...); err != nil {
		return err
	}
	if json {
		return c.printJSON(append(answer, member{"not_after", rfc3339(leaf.NotAfter.Unix())}))
	}
	for _, f := range files {
		fmt.Fprintln(c.out, f.path)
	}
	c.say("%s, good until %s", whose, clock(leaf.NotAfter.Unix()))
	if id, err := pki.CertificateID(leaf); err == nil && id.Role == pki.RoleClient {
		c.say("What it may call is said by the policy: [[grant]] caller = %q", id.String())
	}
	return nil
}
