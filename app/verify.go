package app

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"sallyport/acme/pki"
)

// certVerify goes through a chain for a person.
type certVerify struct {
	File    string `arg:"" help:"The chain, leaf first: PEM or DER; - is stdin."`
	CA      string `name:"ca" placeholder:"FILE" type:"path" help:"Roots, or an intermediate taken as one. Default: the system's."`
	CADir   string `name:"ca-dir" placeholder:"DIR" type:"path" help:"The CA that ca init made in DIR: its root, and what it has revoked."`
	CRL     string `name:"crl" placeholder:"FILE" type:"path" help:"Revocation lists in PEM or DER, as sallyport ca crl writes them."`
	Name    string `placeholder:"NAME" help:"DNS name or IP address it has to be good for."`
	Purpose string `enum:"any,server,client" default:"any" placeholder:"any|server|client" help:"What it has to be good for (default any; server with --name)."`
	Key     string `placeholder:"FILE" type:"path" help:"Private key that has to belong to it."`
	jsonFlag
}

func (certVerify) Help() string {
	return `When a peer refuses a certificate and you want to know why: step by step, the one that fails, and its remedy. Works with nothing running.

Example:

    sallyport cert verify server.crt --ca ca.crt --name api.example.org`
}

// The steps that this verb adds to those of pki.Verify.
const (
	stepKey        = "key"        // the private key belongs to it
	stepRevocation = "revocation" // no list has it
)

func (v *certVerify) Run(c *cli) error {
	if v.CA != "" && v.CADir != "" {
		return wrong("cert verify: --ca and --ca-dir contradict each other", "give one of them")
	}
	chain, err := c.certificates(v.File)
	if err != nil {
		return err
	}
	result, err := v.verify(c, chain, time.Now())
	if err != nil {
		return err
	}
	if v.JSON {
		err = c.printJSON(verificationJSON(result))
		if err == nil && result.Failed() != nil {
			err = quietly(1)
		}
		return err
	}
	t := c.table("STEP", "RESULT", "DETAIL")
	for _, s := range result.Steps {
		detail := s.Detail
		if s.Refusal != nil {
			detail = s.Refusal.Cause
		}
		t.row(s.Name, outcome(s), detail)
	}
	if err := t.flush(""); err != nil {
		return err
	}
	if s := result.Failed(); s != nil {
		return failed(v.File+" fails at "+s.Name+": "+s.Refusal.Cause, s.Refusal.Remedy)
	}
	if s := pki.Outlives(result.Path); s != "" {
		c.say("%s", c.warning("attention: "+oneLine(s)))
	}
	c.say("%s is valid.", v.File)
	return nil
}

func outcome(s pki.Step) string {
	switch {
	case s.Refusal != nil:
		return "failed"
	case s.Skipped:
		return "skipped"
	}
	return "passed"
}

func verificationJSON(v *pki.Verification) object {
	o := object{{"valid", true}, {"failed", nil}, {"code", nil}, {"cause", nil}, {"remedy", nil}}
	if s := v.Failed(); s != nil {
		o = object{{"valid", false}, {"failed", s.Name}, {"code", s.Refusal.Code}, {"cause", s.Refusal.Cause}, {"remedy", s.Refusal.Remedy}}
	}
	steps, path := []object{}, []object{}
	for _, s := range v.Steps {
		step := object{{"step", s.Name}, {"result", outcome(s)}, {"detail", s.Detail}, {"code", nil}}
		if s.Refusal != nil {
			step[2].value, step[3].value = s.Refusal.Cause, s.Refusal.Code
		}
		steps = append(steps, step)
	}
	for _, cert := range v.Path {
		path = append(path, certificate(cert))
	}
	return append(o, member{"steps", steps}, member{"path", path}, member{"attention", pki.Outlives(v.Path)})
}

// verify goes through all steps. Its error is about the question, never about
// the chain.
func (v *certVerify) verify(c *cli, chain []*x509.Certificate, now time.Time) (*pki.Verification, error) {
	purpose := pki.Purpose(v.Purpose)
	switch {
	case v.Purpose == "any" && v.Name != "":
		purpose = pki.PurposeServer
	case v.Purpose == "any":
		purpose = pki.PurposeAny
	}
	roots, err := v.roots(c, chain)
	if err != nil {
		return nil, err
	}
	result := pki.Verify(chain, roots, v.Name, purpose, now)
	if v.Key != "" {
		step, err := v.keyStep(c, chain[0])
		if err != nil {
			return nil, err
		}
		result.Steps = append([]pki.Step{step}, result.Steps...)
	}
	step, err := v.revocationStep(c, result.Path)
	if err == nil && step.Name != "" {
		result.Steps = append(result.Steps, step)
	}
	return result, err
}

// roots are those that the flags name, else the one of the system's to which
// the chain leads.
func (v *certVerify) roots(c *cli, chain []*x509.Certificate) ([]*x509.Certificate, error) {
	switch {
	case v.CA != "":
		return c.certificates(v.CA)
	case v.CADir != "":
		text, err := rootsOf(v.CADir)
		if err != nil {
			return nil, err
		}
		return pki.ParseCertificatesPEM(text)
	}
	between := x509.NewCertPool()
	for _, i := range chain[1:] {
		between.AddCert(i)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: chain[0].NotAfter})
	if err != nil {
		return nil, nil // the system knows none: the step says so
	}
	path := paths[0]
	return path[len(path)-1:], nil
}

func (v *certVerify) keyStep(c *cli, leaf *x509.Certificate) (pki.Step, error) {
	text, err := c.read(v.Key)
	if err != nil {
		return pki.Step{}, failed("--key: "+err.Error(), "")
	}
	key, err := pki.ParseKeyPEM(text)
	if err != nil {
		return pki.Step{}, failed("--key "+v.Key+": "+asProblem(err).What, "give a private key in PEM")
	}
	if public, ok := leaf.PublicKey.(interface{ Equal(x crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return pki.Step{Name: stepKey, Refusal: &pki.Refusal{Code: pki.CodeKeyMismatch, Cause: "the key " + v.Key + " does not belong to the certificate",
			Remedy: "find the key that was made with this certificate, or issue both anew"}}, nil
	}
	return pki.Step{Name: stepKey, Detail: v.Key + " belongs to it"}, nil
}

// revocationStep looks the path up in the lists that the flags name; no step
// if they name none.
func (v *certVerify) revocationStep(c *cli, path []*x509.Certificate) (pki.Step, error) {
	none := pki.Step{Name: stepRevocation, Detail: "it is on no list"}
	refused := func(cert *x509.Certificate, at time.Time) pki.Step {
		return pki.Step{Name: stepRevocation, Refusal: &pki.Refusal{Code: pki.CodeRevoked,
			Cause:  fmt.Sprintf("%s (serial %s) was revoked at %s", cert.Subject, pki.Serial(cert), at.UTC().Format(time.RFC3339)),
			Remedy: "issue another certificate, with another key"}}
	}
	if v.CADir != "" {
		entry, err := (&standalone{dir: v.CADir}).revocation(pki.Serial(path[0]))
		if err != nil {
			return pki.Step{}, failed(err.Error(), "")
		}
		if entry != nil {
			return refused(path[0], entry.at), nil
		}
	}
	if v.CRL == "" {
		if v.CADir == "" {
			return pki.Step{}, nil
		}
		return none, nil
	}
	text, err := os.ReadFile(v.CRL)
	if err != nil {
		return pki.Step{}, failed("--crl: "+err.Error(), "")
	}
	lists, err := revocationLists(text)
	if err != nil || len(lists) == 0 {
		return pki.Step{}, failed("--crl "+v.CRL+": it holds no revocation list", "give one in PEM or DER, as sallyport ca crl writes it")
	}
	looked := 0
	for i := 1; i < len(path); i++ {
		for _, list := range lists {
			if list.CheckSignatureFrom(path[i]) != nil {
				continue
			}
			looked++
			for _, e := range list.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(path[i-1].SerialNumber) == 0 {
					return refused(path[i-1], e.RevocationTime), nil
				}
			}
			none.Detail += fmt.Sprintf(" (that of %s is of %s)", path[i].Subject, list.ThisUpdate.UTC().Format(time.RFC3339))
		}
	}
	if looked == 0 {
		none.Skipped, none.Detail = true, "none of the lists is by an issuer of this chain"
	}
	return none, nil
}
