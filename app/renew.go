package app

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// certRenew lets components renew before they are due, and issues the
// certificates of other software again.
type certRenew struct {
	What     []string `arg:"" optional:"" name:"what" help:"Components (gateway/NAME, proxy/NAME), or certificate files that this CA issued."`
	All      bool     `help:"All components that are connected."`
	Wait     period   `placeholder:"30s" help:"How long each component is waited for (default 30s)."`
	Validity period   `placeholder:"365d" help:"Of files: how long the new one is good for (default: as long as the one before)."`
	Out      string   `type:"path" placeholder:"DIR" help:"Of files: where the new ones go, under the same names (default: beside the old ones, which needs --force)."`
	Force    bool     `help:"Of files: replace them, key and certificate."`
	caFlags
	jsonFlag
}

func (certRenew) Help() string {
	return `Components renew by themselves: this is for when you do not want to wait, such as before a maintenance of core. Their links are replaced without a failed call.

Of a file that cert issue wrote, a new key and a certificate with the same names are made, beside its .key file, for software that somebody else reloads. Nothing that exists is replaced without --force.

Examples:

    sallyport cert renew gateway/orders
    sallyport cert renew --all
    sallyport cert renew /etc/orders/orders.crt --force
    sallyport cert renew web.crt --out next --ca-dir pki`
}

func (v *certRenew) Run(c *cli) error {
	components, files, err := v.sort()
	switch {
	case err != nil:
		return err
	case v.All && len(v.What) > 0:
		return wrong("cert renew: --all means every connected component, and others were named too", "give one or the other")
	case !v.All && len(v.What) == 0:
		return wrong("cert renew: what is to be renewed was not said", "name components (gateway/NAME, proxy/NAME) or certificate files, or give --all")
	case len(components) > 0 && len(files) > 0:
		return wrong("cert renew: components and files are renewed in different ways", "run it once for "+strings.Join(components, " ")+" and once for "+strings.Join(files, " "))
	case len(files) > 0:
		return v.files(c, files)
	case v.CADir != "":
		return wrong("cert renew: --ca-dir is for certificate files; components renew with the running core", "leave --ca-dir out")
	}
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		done, err := core.RenewComponents(ctx, &control.RenewComponentsRequest{Components: components, All: v.All, WaitSeconds: v.Wait.seconds()})
		if err != nil {
			return err
		}
		return c.renewed(done.GetComponents(), v.JSON)
	})
}

// sort tells components from files.
func (v *certRenew) sort() (components, files []string, err error) {
	for _, what := range v.What {
		_, missing := os.Stat(what)
		role, name, named := strings.Cut(what, "/")
		isComponent := named && (role == "gateway" || role == "proxy") && pki.ValidName(name) == nil
		switch {
		case missing == nil:
			files = append(files, what)
		case isComponent:
			components = append(components, what)
		case errors.Is(missing, fs.ErrNotExist):
			return nil, nil, wrong(fmt.Sprintf("cert renew: %q is no file and no component (gateway/NAME, proxy/NAME)", what), "see sallyport status for the components; callers and services are renewed by the file of their certificate")
		default:
			return nil, nil, failed(missing.Error(), "")
		}
	}
	return components, files, nil
}

// renewed prints what became of the components' certificates; one that has none
// is a failure.
func (c *cli) renewed(rows []*control.RenewedComponent, json bool) error {
	var not []string
	for _, r := range rows {
		if r.GetError() != "" {
			not = append(not, r.GetComponent())
		}
	}
	if json {
		list := []object{}
		for _, r := range rows {
			row := object{{"component", r.GetComponent()}, {"former_serial", r.GetFormerSerial()}, {"former_not_after", rfc3339(r.GetFormerNotAfterUnix())}}
			if r.GetError() != "" {
				row = append(row, member{"error", r.GetError()})
			} else {
				row = append(row, member{"serial", r.GetSerial()}, member{"not_after", rfc3339(r.GetNotAfterUnix())})
			}
			list = append(list, row)
		}
		if err := c.printJSON(list); err != nil {
			return err
		}
	} else {
		t := c.table("COMPONENT", "BEFORE", "ENDS", "NOW", "ENDS", "WHY NOT")
		for _, r := range rows {
			t.row(r.GetComponent(), r.GetFormerSerial(), whenever(r.GetFormerNotAfterUnix()), r.GetSerial(), whenever(r.GetNotAfterUnix()), r.GetError())
		}
		if err := t.flush("no component is connected"); err != nil {
			return err
		}
	}
	if len(not) > 0 {
		return failed("not renewed: "+strings.Join(not, ", "), "what they have stays good until it ends")
	}
	return nil
}

func whenever(unix int64) string {
	if unix == 0 {
		return ""
	}
	return clock(unix)
}

// renewal is one file that is issued again.
type renewal struct {
	from  string
	leaf  *x509.Certificate
	ask   *control.IssueCertificateRequest
	files []file
}

// files issues the certificates of files again. All are looked at before the
// first is issued.
func (v *certRenew) files(c *cli, paths []string) error {
	if v.Wait.seconds() != 0 {
		return wrong("cert renew: --wait is for components", "leave it out")
	}
	var list []*renewal
	for _, path := range paths {
		r, err := v.read(c, path)
		if err != nil {
			return err
		}
		list = append(list, r)
	}
	return v.authority(c, func(ctx context.Context, by issuer) error {
		for _, r := range list {
			if err := mayRenew(ctx, by, r); err != nil {
				return err
			}
		}
		for _, r := range list {
			issued, err := by.IssueCertificate(ctx, r.ask)
			if err != nil {
				return err
			}
			if err := c.handOut(issued, v.Force, v.JSON, r.files); err != nil {
				return err
			}
			c.say("The one before (serial %s) stays good until %s: sallyport cert revoke %s ends it, when nothing uses it any more.",
				pki.Serial(r.leaf), clock(r.leaf.NotAfter.Unix()), pki.Serial(r.leaf))
		}
		return nil
	})
}

// read makes the request for a certificate like the one in a file, for a new
// key of the same kind.
func (v *certRenew) read(c *cli, path string) (*renewal, error) {
	chain, err := c.certificates(path)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	base := strings.TrimSuffix(path, filepath.Ext(path))
	if _, err := os.Stat(base + ".key"); err != nil {
		return nil, failed("cert renew "+path+": its key is not beside it ("+base+".key), and a new certificate comes with a new key",
			"where the key is made elsewhere, make a new request there and run: sallyport cert sign FILE.csr")
	}
	if v.Out != "" {
		base = filepath.Join(v.Out, filepath.Base(base))
	}
	r := &renewal{from: path, leaf: leaf, ask: &control.IssueCertificateRequest{KeepCsrNames: true, LifetimeSeconds: v.Validity.seconds(),
		Client: slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth), Server: slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth)}}
	if r.ask.LifetimeSeconds == 0 {
		r.ask.LifetimeSeconds = int64(leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Hour) / time.Second)
	}
	uris := leaf.URIs
	if id, err := pki.CertificateID(leaf); err == nil {
		if id.Role.Component() {
			return nil, wrong("cert renew "+path+": it is the identity of "+string(id.Role)+" "+id.Name, "run: sallyport cert renew "+string(id.Role)+"/"+id.Name)
		}
		r.ask.Name = id.Name
		uris = slices.DeleteFunc(slices.Clone(uris), func(u *url.URL) bool { return u.String() == id.String() })
	}
	key, err := pki.NewKey(kindOf(leaf.PublicKey))
	if err != nil {
		return nil, err
	}
	r.ask.Csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: leaf.RawSubject, DNSNames: leaf.DNSNames, IPAddresses: leaf.IPAddresses, URIs: uris}, key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := pki.MarshalKeyPEM(key)
	if err != nil {
		return nil, err
	}
	out := base + filepath.Ext(path)
	r.files = []file{{base + ".key", keyPEM, 0o600}, {out, nil, 0o644}, {filepath.Join(filepath.Dir(base), caFile), nil, 0o644}}
	return r, free(v.Force, r.files[0].path, r.files[1].path)
}

// kindOf is the kind of a public key, as cert issue names it.
func kindOf(key crypto.PublicKey) string {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() > 2048 {
			return "rsa4096"
		}
		return "rsa2048"
	case ed25519.PublicKey:
		return "ed25519"
	case *ecdsa.PublicKey:
		if key.Curve.Params().BitSize > 256 {
			return "p384"
		}
	}
	return "p256"
}

// mayRenew refuses what this CA has not issued, and what was revoked.
func mayRenew(ctx context.Context, by issuer, r *renewal) error {
	if err := issuedHere(ctx, by, "cert renew "+r.from, r.leaf, "renew it where it was issued, or issue a new one: sallyport cert issue"); err != nil {
		return err
	}
	list, err := by.ListCertificates(ctx, &control.ListCertificatesRequest{All: true})
	if err != nil {
		return err
	}
	for _, row := range list.GetCertificates() {
		if row.GetSerial() == pki.Serial(r.leaf) && row.GetRevokedUnix() != 0 {
			return failed("cert renew "+r.from+": it was revoked at "+clock(row.GetRevokedUnix()), "if its owner is to go on, issue a new one: sallyport cert issue")
		}
	}
	return nil
}
