package proxy

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/link"
	"sallyport/roles/policy"
)

// foreignCA is a CA of somebody else whose client certificates are accepted
// here. Whom it names is named in its own realm: claims carry the CA's name, a
// grant has to as well, and nothing in our trust domain can come of it.
//
// Its leaves need not look like ours: those without extended key usages, with
// keyEncipherment alone, or with a common name alone are taken.
type foreignCA struct {
	name string
	file *link.CAFile
}

func openForeign(settings []configs.ClientCA, p *proxy) ([]*foreignCA, error) {
	var list []*foreignCA
	for _, s := range settings {
		file, err := link.OpenCAFile("client CA "+s.Name, s.File, p.log, p.refreshView)
		if err != nil {
			return nil, fmt.Errorf("--client-ca: %w", err)
		}
		list = append(list, &foreignCA{name: s.Name, file: file})
	}
	return list, nil
}

// run keeps the file up to date until ctx ends.
func (f *foreignCA) run(ctx context.Context) error { return f.file.Run(ctx) }

// callers are all the ways by which a client certificate can be judged.
type callers struct {
	own     *pki.Verifier
	foreign []foreignAnchors
	domain  string // our trust domain
}

type foreignAnchors struct {
	name  string
	roots *x509.CertPool
}

// judge finds out whom a client certificate names. Our own CA comes first; a
// foreign one is asked only about what ours did not make, or made without an
// identity.
func (c *callers) judge(chain []*x509.Certificate, now time.Time) (policy.Claim, *pki.Refusal) {
	id, err := c.own.Caller(chain)
	if err == nil {
		return policy.Claim{ID: id.String()}, nil
	}
	why, ok := pki.AsRefusal(err)
	if !ok {
		explained := pki.Explain(err)
		why = &explained
	}
	switch why.Code {
	case pki.CodeUnknownAuthority, pki.CodeWrongIssuer, pki.CodeIntermediateMissing, pki.CodeNoIdentity, pki.CodeWrongUsage, pki.CodeWrongKeyUsage:
	default:
		return policy.Claim{}, why
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	for _, f := range c.foreign {
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: f.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			if explained := pki.Explain(err); explained.Code != pki.CodeUnknownAuthority && explained.Code != pki.CodeIntermediateMissing {
				why = &explained // it is of this CA, and bad
			}
			continue
		}
		return c.foreignClaim(f.name, chain[0])
	}
	return policy.Claim{}, why
}

// foreignClaim names the owner of a leaf that a foreign CA vouches for: by its
// SPIFFE ID, else by its common name.
func (c *callers) foreignClaim(ca string, leaf *x509.Certificate) (policy.Claim, *pki.Refusal) {
	none := policy.Claim{}
	bad := func(code, cause, remedy string) (policy.Claim, *pki.Refusal) {
		return none, &pki.Refusal{Code: code, Cause: "the certificate, which client CA " + ca + " vouches for, " + cause, Remedy: remedy}
	}
	if leaf.IsCA {
		return bad(pki.CodeCACertificate, "is a CA's", "use a certificate that this CA has issued")
	}
	if err := pki.CheckKey(leaf.PublicKey); err != nil {
		return bad("weak_key", "has a key that is not taken: "+err.Error(), "make a stronger key")
	}
	if c.own.Revoked != nil && c.own.Revoked(leaf, pki.ID{}, 0) {
		return bad(pki.CodeRevoked, "is revoked", "use a new one, if its owner may still call")
	}
	var ids []*url.URL
	for _, u := range leaf.URIs {
		if strings.EqualFold(u.Scheme, "spiffe") {
			ids = append(ids, u)
		}
	}
	claim := policy.Claim{ClientCA: ca}
	switch {
	case len(ids) > 1:
		return bad("many_identities", "carries more than one identity", "make a certificate with one spiffe:// name")
	case len(ids) == 1:
		// What a URI may be and a SPIFFE ID not: spiffe:name, a user, a port.
		id := ids[0]
		if id.Host == "" || id.Host != id.Hostname() || id.User != nil || id.Opaque != "" {
			return bad("bad_identity", "carries a spiffe name that is none", "make a certificate with a name of the form spiffe://DOMAIN/PATH")
		}
		if strings.EqualFold(strings.TrimSuffix(id.Host, "."), c.domain) {
			return bad("wrong_trust_domain", "names somebody in our trust domain "+c.domain+", for which only our own CA speaks", "use another trust domain there, or 'cert issue' here")
		}
		claim.ID = id.String()
	case commonName(leaf.Subject.CommonName):
		claim.ID = "cn:" + leaf.Subject.CommonName
	default:
		return bad(pki.CodeNoIdentity, "carries no identity: neither a spiffe:// name nor a common name", "make a certificate with one of them")
	}
	if policy.EncodeClaim(claim) == "" {
		return bad("bad_identity", "carries an identity that cannot be used", "make a certificate with a plain name")
	}
	return claim, nil
}

// commonName reports whether a name can be shown and written in a policy.
func commonName(s string) bool {
	return s != "" && len(s) <= 256 && utf8.ValidString(s) && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, unicode.IsControl)
}
