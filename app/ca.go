package app

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// caNoun is the embedded certificate authority.
type caNoun struct {
	Init   caInit   `cmd:"" help:"Make a CA in a directory, for use with nothing running."`
	Import caImport `cmd:"" help:"Make your own CA the issuer of callers and services."`
	Show   caShow   `cmd:"" help:"Show its certificates."`
	Export caExport `cmd:"" help:"Print the root, for whoever has to verify ours."`
	Rotate caRotate `cmd:"" help:"Replace the CA step by step, with no call dropped."`
	CRL    caCRL    `cmd:"" name:"crl" help:"Print the list of revoked certificates, for other software."`
}

type caShow struct {
	caFlags
	jsonFlag
}

func (caShow) Help() string {
	return `When you want to know who signs here, and until when.

Example:

    sallyport ca show`
}

func (v *caShow) Run(c *cli) error {
	return v.authority(c, func(ctx context.Context, by issuer) error {
		ca, err := by.ShowCA(ctx, &control.ShowCARequest{})
		if err != nil {
			return err
		}
		parts := []struct {
			title, key string
			ders       [][]byte
		}{
			{"root", "roots", ca.GetRoots()},
			{"issuer of components", "component_intermediates", ca.GetComponentIntermediates()},
			{"issuer of callers and services", "caller_intermediates", ca.GetCallerIntermediates()},
			{"root of an issuer of callers and services", "caller_roots", ca.GetCallerRoots()},
		}
		now := time.Now()
		if v.JSON {
			o := object{{"trust_domain", ca.GetTrustDomain()}, {"root_pins", ca.GetRootPins()}}
			for _, part := range parts {
				list := []any{}
				for _, der := range part.ders {
					certs, err := pki.ParseChain([][]byte{der})
					if err != nil {
						return err
					}
					list = append(list, certificate(certs[0]))
				}
				o = append(o, member{part.key, list})
			}
			return c.printJSON(o)
		}
		fmt.Fprintf(c.out, "trust domain %s\n", ca.GetTrustDomain())
		for i, pin := range ca.GetRootPins() {
			fmt.Fprintf(c.out, "%s root key sha256:%s\n", []string{"current", "next"}[min(i, 1)], pin)
		}
		for _, part := range parts {
			for _, der := range part.ders {
				certs, err := pki.ParseChain([][]byte{der})
				if err != nil {
					return err
				}
				fmt.Fprintf(c.out, "\n%s\n", part.title)
				pki.Describe(c.out, certs[0], now)
			}
		}
		return nil
	})
}

type caExport struct {
	Output string `short:"o" placeholder:"FILE" type:"path" help:"Write it there instead of stdout."`
	Force  bool   `help:"Replace FILE."`
	caFlags
	jsonFlag
}

func (caExport) Help() string {
	return `When another program has to trust certificates of this CA: the root in PEM, which is no secret.

Example:

    sallyport ca export -o ca.crt`
}

func (v *caExport) Run(c *cli) error {
	return v.authority(c, func(ctx context.Context, by issuer) error {
		ca, err := by.ShowCA(ctx, &control.ShowCARequest{})
		if err != nil {
			return err
		}
		text, err := rootsPEM(ca)
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(object{{"trust_domain", ca.GetTrustDomain()}, {"roots", string(text)}})
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

// rootsPEM is what others install to verify certificates of this CA.
func rootsPEM(ca *control.ShowCAResponse) ([]byte, error) {
	roots, err := pki.ParseChain(slices.Concat(ca.GetRoots(), ca.GetCallerRoots()))
	if err != nil {
		return nil, err
	}
	return pki.MarshalCertificatesPEM(roots), nil
}
