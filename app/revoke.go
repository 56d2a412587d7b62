package app

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// certRevoke revokes one certificate, or all of an identity.
type certRevoke struct {
	What   string `arg:"" help:"A serial number, an identity (spiffe://… or client/NAME) with all it has had until now, or the certificate's file."`
	Reason string `placeholder:"REASON" help:"Why, as it stands in the list for others: key-compromise, superseded, cessation-of-operation, affiliation-changed, privilege-withdrawn."`
	caFlags
	jsonFlag
}

func (certRevoke) Help() string {
	return `When a key is in wrong hands, or its owner shall not come in any more. Every component refuses it and cuts what is open with it; the answer says how many do, and after how long. Revoking the identity of a gateway or proxy removes it; by the serial number of its certificate it is cut off, with the certificate that is on its way to it, and stays in the list until it is removed.

Examples:

    sallyport cert revoke client/billing --reason key-compromise
    sallyport cert revoke billing.crt
    sallyport cert revoke 5f3a9c0d1e`
}

func (v *certRevoke) Run(c *cli) error {
	if err := pki.CheckReason(v.Reason); err != nil {
		return wrong("cert revoke: --reason: "+asProblem(err).What, "")
	}
	return v.authority(c, func(ctx context.Context, by issuer) error {
		request, err := v.request(ctx, c, by)
		if err != nil {
			return err
		}
		done, err := by.RevokeCertificate(ctx, request)
		if err != nil {
			return err
		}
		if v.JSON {
			if err := c.printJSON(done); err != nil {
				return err
			}
			return unenforced(done)
		}
		for _, r := range done.GetRevoked() {
			fmt.Fprintln(c.out, "revoked "+oneLine(r))
		}
		if len(done.GetRevoked()) == 0 {
			c.say("It was revoked already.")
		}
		if v.CADir != "" {
			c.say("Others hear of it by the list: sallyport ca crl --ca-dir %s", v.CADir)
			return nil
		}
		return c.enforced(done)
	})
}

// request finds out what is meant.
func (v *certRevoke) request(ctx context.Context, c *cli, by issuer) (*control.RevokeCertificateRequest, error) {
	request := &control.RevokeCertificateRequest{Reason: v.Reason}
	if strings.HasPrefix(v.What, "spiffe://") {
		request.Identity = v.What
		return request, nil
	}
	if _, err := os.Stat(v.What); err == nil || v.What == "-" {
		chain, err := c.certificates(v.What)
		if err != nil {
			return nil, err
		}
		return request, v.file(ctx, by, chain[0], request)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, failed(err.Error(), "")
	}
	role, name, isIdentity := strings.Cut(v.What, "/")
	if isIdentity && pki.ValidName(role) == nil && pki.ValidName(name) == nil {
		ca, err := by.ShowCA(ctx, &control.ShowCARequest{})
		if err != nil {
			return nil, err
		}
		id := pki.ID{TrustDomain: ca.GetTrustDomain(), Role: pki.Role(role), Name: name}
		if err := id.Validate(); err != nil {
			return nil, wrong("cert revoke "+v.What+": "+asProblem(err).What, "write client/NAME, service/NAME, gateway/NAME or proxy/NAME")
		}
		request.Identity = id.String()
		return request, nil
	}
	serial, err := pki.ParseSerial(v.What)
	if err != nil {
		return nil, wrong(fmt.Sprintf("cert revoke: %q is no file, no identity (client/NAME) and no serial number", v.What), "serial numbers and identities are what sallyport cert ls prints")
	}
	request.Serial = serial
	return request, nil
}

// file fills in the request for a certificate that was read. Both serial and
// identity say that it was.
func (v *certRevoke) file(ctx context.Context, by issuer, leaf *x509.Certificate, request *control.RevokeCertificateRequest) error {
	if err := issuedHere(ctx, by, "cert revoke "+v.What, leaf, "revoke it where it was issued; one of a CA that is gone is worthless already"); err != nil {
		return err
	}
	request.Serial, request.Identity = pki.Serial(leaf), leaf.Subject.String()
	if id, err := pki.CertificateID(leaf); err == nil {
		request.Identity = id.String()
	}
	return nil
}

// issuedHere refuses a certificate that the CA has not issued.
func issuedHere(ctx context.Context, by issuer, what string, leaf *x509.Certificate, remedy string) error {
	ca, err := by.ShowCA(ctx, &control.ShowCARequest{})
	if err != nil {
		return err
	}
	for _, ders := range [][][]byte{ca.GetCallerIntermediates(), ca.GetComponentIntermediates()} {
		issuers, err := pki.ParseChain(ders)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(issuers, func(issuer *x509.Certificate) bool { return pki.IssuedBy(leaf, issuer) }) {
			return nil
		}
	}
	return failed(what+": this CA has not issued it (its issuer is "+leaf.Issuer.String()+")", remedy)
}

// enforced prints how far a revocation has come. One that a connected component
// has not acknowledged is a failure: it may still be let in there.
func (c *cli) enforced(r *control.RevokeCertificateResponse) error {
	if r == nil {
		return nil
	}
	fmt.Fprintf(c.out, "%d of %d enforced after %s\n", r.GetEnforced(), r.GetComponents(), elapsed(r.GetElapsedNano()))
	if r.GetComponents() == 0 {
		c.say("No gateway or proxy is connected at present; each hears of it before anything else when it connects.")
	}
	return unenforced(r)
}

func unenforced(r *control.RevokeCertificateResponse) error {
	if len(r.GetMissing()) == 0 {
		return nil
	}
	return failed("it is revoked, and not known yet to "+oneLine(strings.Join(r.GetMissing(), ", ")),
		"they enforce it as soon as they hear of it; see sallyport status, and end their processes if that is not soon enough")
}

// elapsed is a short time as people compare it.
func elapsed(nano int64) string {
	d := time.Duration(nano)
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
