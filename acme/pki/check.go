package pki

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Purpose is what a certificate is to be used for.
type Purpose string

const (
	PurposeAny    Purpose = ""
	PurposeServer Purpose = "server"
	PurposeClient Purpose = "client"
)

// Step is one step of a verification.
type Step struct {
	Name    string   // one of the Step constants
	Detail  string   // what was found, or why the step was skipped
	Refusal *Refusal // nil: passed or skipped
	Skipped bool     // an earlier step would have to pass first, or nothing was asked
}

// The steps, in their order.
const (
	StepKeys     = "keys"     // every key is of a kind and size that is safe
	StepChain    = "chain"    // each certificate is signed by the next
	StepTrust    = "trust"    // the last one is, or is signed by, a root that was given
	StepIssuers  = "issuers"  // all but the first are CAs and may sign what they signed
	StepValidity = "validity" // all are valid now
	StepUsage    = "usage"    // the first one is made for the purpose
	StepName     = "name"     // the first one is for the name
	StepRules    = "rules"    // nothing else speaks against it: name constraints, critical extensions
)

// Verification is how a chain was verified, step by step.
type Verification struct {
	Steps []Step
	Path  []*x509.Certificate // leaf first, as far as it was found
}

// Err is the refusal of the first step that failed, nil if none did.
func (v *Verification) Err() error {
	if s := v.Failed(); s != nil {
		return s.Refusal
	}
	return nil
}

// Failed is the first step that failed, nil if none did.
func (v *Verification) Failed() *Step {
	for i := range v.Steps {
		if v.Steps[i].Refusal != nil {
			return &v.Steps[i]
		}
	}
	return nil
}

// Verify verifies a chain (leaf first, as files and servers carry it) for
// people: every step that can be looked at is, so that whoever mends the first
// fault sees the next one too. The verdict is that of crypto/x509, of which the
// last step asks; the steps before it name what it would refuse. name may be
// empty.
func Verify(chain, roots []*x509.Certificate, name string, purpose Purpose, now time.Time) *Verification {
	v := &Verification{}
	if len(chain) == 0 {
		v.add(StepChain, "", refuse(CodeCertificateRequired, "there is no certificate", "name a file that holds one"))
		return v
	}
	leaf := chain[0]
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		anchors.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	options := x509.VerifyOptions{Roots: anchors, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	complete, trusted, broken := v.walk(chain, roots)
	if !trusted {
		// There may be another way, over a cross-certificate.
		if paths, err := leaf.Verify(options); err == nil {
			v.Path, complete, trusted, broken = paths[0], true, true, nil
		}
	}
	v.add(StepKeys, keyNames(v.Path), checkKeys(v.Path))
	v.add(StepChain, fmt.Sprintf("%d certificates: %s", len(v.Path), pathNames(v.Path)), broken)
	switch {
	case broken != nil:
		v.skip(StepTrust, "the chain is broken")
	case !complete || !trusted:
		r := explainUnknown(x509.UnknownAuthorityError{Cert: v.Path[len(v.Path)-1]}, chain)
		v.add(StepTrust, "", &r)
	default:
		v.add(StepTrust, "ends at "+subjectOf(v.Path[len(v.Path)-1]), nil)
	}
	v.add(StepIssuers, "", checkIssuers(v.Path))
	v.add(StepValidity, fmt.Sprintf("until %s (%s)", clock(shortest(v.Path).NotAfter), describeRemaining(shortest(v.Path), now)), checkValidity(v.Path, now))
	uses := x509.ExtKeyUsageAny
	switch purpose {
	case PurposeServer:
		uses = x509.ExtKeyUsageServerAuth
	case PurposeClient:
		uses = x509.ExtKeyUsageClientAuth
	}
	if purpose == PurposeAny {
		v.skip(StepUsage, "no purpose was named")
	} else {
		v.add(StepUsage, describeUsages(leaf), checkUsage(v.Path, uses, purpose))
	}
	if name == "" {
		v.skip(StepName, "no name was given")
	} else if err := leaf.VerifyHostname(name); err != nil {
		r := explainCertificate(err, chain, now)
		v.add(StepName, "", &r)
	} else {
		v.add(StepName, "it is for "+printable(name, 253), nil)
	}
	if v.Failed() != nil {
		v.skip(StepRules, "the steps before have to pass first")
		return v
	}
	options.DNSName, options.KeyUsages = name, []x509.ExtKeyUsage{uses}
	if _, err := leaf.Verify(options); err != nil {
		r := explainCertificate(err, chain, now)
		v.add(StepRules, "", &r)
	} else {
		v.add(StepRules, "nothing else speaks against it", nil)
	}
	return v
}

func (v *Verification) add(name, detail string, r *Refusal) {
	if r != nil {
		detail = ""
	}
	v.Steps = append(v.Steps, Step{Name: name, Detail: detail, Refusal: r})
}

func (v *Verification) skip(name, why string) {
	v.Steps = append(v.Steps, Step{Name: name, Detail: why, Skipped: true})
}

// walk finds the path: from the leaf to a root that was given, or as far as it
// goes. A certificate that has the issuer's name and key id and did not sign is
// what breaks a chain.
func (v *Verification) walk(chain, roots []*x509.Certificate) (complete, trusted bool, broken *Refusal) {
	at := chain[0]
	v.Path = append(v.Path, at)
	for len(v.Path) <= maxChain {
		if slices.ContainsFunc(roots, at.Equal) {
			return true, true, nil
		}
		if selfSigned(at) {
			return true, false, nil
		}
		var next, liar *x509.Certificate
		for _, c := range slices.Concat(roots, chain[1:]) {
			if !bytes.Equal(c.RawSubject, at.RawIssuer) || slices.ContainsFunc(v.Path, c.Equal) {
				continue
			}
			if err := c.CheckSignature(at.SignatureAlgorithm, at.RawTBSCertificate, at.Signature); err == nil {
				next = c
				break
			} else if _, weak := err.(x509.InsecureAlgorithmError); weak {
				r, _ := explainX509(err, chain, time.Time{})
				return false, false, &r
			}
			liar = c
		}
		if next == nil && liar != nil {
			return false, false, refusef(CodeBadCertificate, "the CA was probably made anew under its old name: take the CA's certificate that the chain was made with, or make the certificate again",
				"%s names %s as its issuer, and the certificate of that name did not sign it", subjectOf(at), subjectOf(liar))
		}
		if next == nil {
			return false, false, nil
		}
		at = next
		v.Path = append(v.Path, at)
	}
	return false, false, refusef(CodePathLength, "send the leaf and its intermediates only", "a chain of more than %d certificates", maxChain)
}

func checkKeys(path []*x509.Certificate) *Refusal {
	for _, c := range path {
		if r, ok := AsRefusal(CheckKey(c.PublicKey)); ok {
			return refusef(r.Code, r.Remedy, "%s: %s", subjectOf(c), r.Cause)
		}
	}
	return nil
}

func checkIssuers(path []*x509.Certificate) *Refusal {
	for i, c := range path {
		if i == 0 {
			continue
		}
		switch below := i - 1; {
		case !c.BasicConstraintsValid || !c.IsCA:
			return refusef(CodeCACertificate, "sign it with a CA certificate (basic constraints CA:TRUE)", "%s is signed by %s, which is not a CA", subjectOf(path[i-1]), subjectOf(c))
		case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return refusef(CodeWrongKeyUsage, "sign it with a CA that has the key usage keyCertSign", "the CA %s may not sign certificates (key usage)", subjectOf(c))
		case c.MaxPathLen >= 0 && below > c.MaxPathLen:
			return refusef(CodePathLength, "sign the certificate with a CA that may", "the CA %s may have %d CAs below it and has %d", subjectOf(c), c.MaxPathLen, below)
		}
	}
	return nil
}

func checkValidity(path []*x509.Certificate, now time.Time) *Refusal {
	for i, c := range path {
		if !now.Before(c.NotBefore) && !now.After(c.NotAfter) {
			continue
		}
		r := explainInvalid(x509.CertificateInvalidError{Cert: c, Reason: x509.Expired}, now)
		if i > 0 {
			r.Cause = "above the certificate: " + r.Cause
			r.Remedy = "the CA itself has ended or not begun: compare the clock; else make or fetch a new CA, and new certificates under it"
		}
		return &r
	}
	return nil
}

func checkUsage(path []*x509.Certificate, use x509.ExtKeyUsage, purpose Purpose) *Refusal {
	for i, c := range path {
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, use) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
			continue
		}
		if i == 0 {
			return refusef(CodeWrongUsage, "make one for this use: sallyport cert issue NAME --"+string(purpose), "the certificate is not made for a %s (extended key usage: %s)", purpose, describeUsages(c))
		}
		return refusef(CodeWrongUsage, "use another CA", "the CA %s may not issue for a %s (extended key usage)", subjectOf(c), purpose)
	}
	return nil
}

// shortest is the certificate of a path that ends first.
func shortest(path []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(path, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

func subjectOf(c *x509.Certificate) string {
	if s := c.Subject.String(); s != "" {
		return fmt.Sprintf("%q", printable(s, 200))
	}
	return whose(c)
}

func pathNames(path []*x509.Certificate) string {
	var names []string
	for _, c := range path {
		names = append(names, subjectOf(c))
	}
	return strings.Join(names, ", ")
}

func keyNames(path []*x509.Certificate) string {
	var names []string
	for _, c := range path {
		names = append(names, KeyName(c.PublicKey))
	}
	return strings.Join(names, ", ")
}

// Outlives says so if a certificate is valid for longer than one above it,
// which no verifier minds until that one has ended; empty if not.
func Outlives(path []*x509.Certificate) string {
	for i := 1; i < len(path); i++ {
		if path[0].NotAfter.After(path[i].NotAfter) {
			return fmt.Sprintf("the certificate is valid until %s and its CA %s ends at %s already: from then on nobody accepts it; renew the CA first, then the certificate",
				clock(path[0].NotAfter), subjectOf(path[i]), clock(path[i].NotAfter))
		}
	}
	return ""
}
