package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"

	"sallyport/roles/control"
)

// revocationsContext stands before the payload in what is signed, so that the
// signature means nothing anywhere else.
const revocationsContext = "sallyport-revocations-v1\x00"

// SignRevocations signs a list with the component intermediate that issues.
// The signature is deterministic: the same list under the same issuer is the
// same message, and moves no generation.
func (a *Authority) SignRevocations(l *RevocationList) (*control.RevocationList, error) {
	fail := func(err error) (*control.RevocationList, error) {
		return nil, fmt.Errorf("sign the revocation list: %w", err)
	}
	if l.TrustDomain != a.trustDomain {
		return fail(fmt.Errorf("it is of the trust domain %s, and this authority of %s", l.TrustDomain, a.trustDomain))
	}
	payload, err := l.Encode()
	if err != nil {
		return fail(err)
	}
	digest := revocationsDigest(payload)
	signature, err := a.components.key.Sign(nil, digest[:], crypto.SHA256) // nil: RFC 6979
	if err != nil {
		return fail(err)
	}
	p := &control.RevocationList{Payload: payload, Signature: signature}
	for _, c := range slices.Concat([]*x509.Certificate{a.components.cert}, a.state.cross) {
		p.Chain = append(p.Chain, c.Raw)
	}
	if _, err := VerifyRevocations(p, a.Bundle().Roots); err != nil {
		return fail(err)
	}
	return p, nil
}

// VerifyRevocations reads a signed list that a component intermediate under one
// of the roots has signed. That the intermediate has expired meanwhile does not
// matter: what was revoked stays revoked. An older list is as valid as a newer
// one; MergeRevocations forgets nothing of either.
func VerifyRevocations(p *control.RevocationList, roots []*x509.Certificate) (*RevocationList, error) {
	refusal := func(cause string) error {
		return refuse(CodeBadRevocations, cause, "take no revocation list from there: it is that of another installation, or of a CA that was made anew")
	}
	if p == nil || len(p.GetPayload()) > maxRevocations {
		return nil, refusal("there is no revocation list, or it is too large")
	}
	chain, err := ParseChain(p.GetChain())
	if err != nil {
		return nil, fmt.Errorf("revocation list: %w", err)
	}
	signer := chain[0]
	if !signer.BasicConstraintsValid || !isComponentIssuer(signer) {
		return nil, refusal(fmt.Sprintf("the revocation list is signed by %s, which issues no components", whose(signer)))
	}
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		anchors.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	paths, err := signer.Verify(x509.VerifyOptions{Roots: anchors, Intermediates: between, CurrentTime: signer.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, refusal("the revocation list is not signed by this CA: " + printable(err.Error(), 300))
	}
	if err := checkPath(paths[0]); err != nil {
		return nil, err
	}
	key, ok := signer.PublicKey.(*ecdsa.PublicKey)
	digest := revocationsDigest(p.GetPayload())
	if !ok || !ecdsa.VerifyASN1(key, digest[:], p.GetSignature()) {
		return nil, refusal("the signature of the revocation list is wrong")
	}
	l, err := ParseRevocations(p.GetPayload())
	if err != nil {
		return nil, err
	}
	if td := signer.PermittedURIDomains; len(td) != 1 || td[0] != l.TrustDomain {
		return nil, refusal(fmt.Sprintf("the revocation list is of the trust domain %s, which its issuer is not", l.TrustDomain))
	}
	return l, nil
}

func revocationsDigest(payload []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte(revocationsContext))
	h.Write(payload)
	return [32]byte(h.Sum(nil))
}

// RevocationsHead names a list without sending it: the number of its entries
// and the hash of its payload. Nil for none, and for one that cannot be read.
func RevocationsHead(p *control.RevocationList) *control.RevocationListHead {
	l, err := ParseRevocations(p.GetPayload())
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(p.GetPayload())
	return &control.RevocationListHead{Sequence: l.Sequence(), Sha256: sum[:]}
}
