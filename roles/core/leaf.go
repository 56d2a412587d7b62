package core

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// IssueLeaf makes the certificate that a request asks for, by a CA with or
// without a core around it: the same checks and defaults hold for `cert issue`
// at a running core and with --ca-dir. The identity is zero when a request
// without a name is signed. Its errors are statuses, for whoever asked.
func IssueLeaf(ca *pki.Authority, in *control.IssueCertificateRequest, now time.Time) (*pki.Issued, pki.ID, error) {
	what := "cert issue " + clean(in.GetName())
	if in.GetKeepCsrNames() || in.GetName() == "" {
		what = "cert sign"
	}
	csr, err := pki.ParseCSR(in.GetCsr())
	if err != nil {
		return nil, pki.ID{}, wrong("%s: %v", what, err)
	}
	asks, _ := usesOf(csr)
	if !in.GetClient() && !in.GetServer() && !in.GetKeepCsrNames() && !asks {
		return nil, pki.ID{}, wrong("%s: say what it is for: --client, --server or both", what)
	}
	var id pki.ID
	if in.GetName() != "" {
		if err := pki.ValidName(in.GetName()); err != nil {
			return nil, id, wrong("%s: %v", what, err)
		}
		id = pki.ID{TrustDomain: ca.TrustDomain(), Role: leafRole(in, csr), Name: in.GetName()}
	}
	leaf := pki.LeafRequest{ID: id, DNS: in.GetDns(), URIs: in.GetUris(), Client: in.GetClient(), Server: in.GetServer()}
	if leaf.Lifetime, err = leafLifetime(ca, in.GetLifetimeSeconds(), now); err != nil {
		return nil, id, wrong("%s: %v", what, err)
	}
	if in.GetSubject() != "" {
		if leaf.Subject, err = parseSubject(in.GetSubject()); err != nil {
			return nil, id, wrong("%s: --subject: %v", what, err)
		}
	}
	for _, s := range in.GetIps() {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, id, wrong("%s: --ip %q is no IP address", what, clean(s))
		}
		leaf.IPs = append(leaf.IPs, ip.Unmap())
	}
	issued, err := ca.SignCSR(pki.SignRequest{LeafRequest: leaf, CSR: csr, KeepNames: in.GetKeepCsrNames()}, now)
	if err != nil {
		return nil, id, wrong("%s: %v", what, err)
	}
	return issued, id, nil
}

// leafRole is who the owner of a certificate is: a client if it is to be one,
// also where it is a server too; else what the request itself asks for.
func leafRole(in *control.IssueCertificateRequest, csr *x509.CertificateRequest) pki.Role {
	asks, client := usesOf(csr)
	switch {
	case in.GetClient():
		return pki.RoleClient
	case in.GetServer():
		return pki.RoleService
	case asks && client:
		return pki.RoleClient
	case asks:
		return pki.RoleService
	case len(in.GetDns())+len(in.GetIps())+len(csr.DNSNames)+len(csr.IPAddresses) > 0:
		return pki.RoleService
	}
	return pki.RoleClient
}

// usesOf is whether a request asks for extended key usages, and for client
// authentication among them.
func usesOf(csr *x509.CertificateRequest) (asks, client bool) {
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 37}) {
			continue
		}
		var uses []asn1.ObjectIdentifier
		_, err := asn1.Unmarshal(ext.Value, &uses)
		return err == nil, slices.ContainsFunc(uses, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}.Equal)
	}
	return false, false
}

// leafLifetime is how long a certificate of a caller or service is good: what
// was asked for, else a year, or what is left of a CA that ends before.
func leafLifetime(ca *pki.Authority, asked int64, now time.Time) (time.Duration, error) {
	if asked < 0 || asked > int64(maxKeyLifetime/time.Second) {
		return 0, errors.New("that lifetime is out of range")
	}
	if asked > 0 {
		return time.Duration(asked) * time.Second, nil
	}
	for _, c := range ca.Certificates() {
		if c.What != "callers' issuer" {
			continue
		}
		left := c.Cert.NotAfter.Sub(now).Truncate(time.Second)
		if left <= 0 {
			return 0, fmt.Errorf("the CA that issues to callers and services has ended at %s: import another one, or rotate", c.Cert.NotAfter.UTC().Format(time.RFC3339))
		}
		return min(defaultLeafLifetime, left), nil
	}
	return defaultLeafLifetime, nil
}

// leafKind is what a certificate without an identity counts as in listings.
func leafKind(c *x509.Certificate) pki.Role {
	if slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return pki.RoleService
	}
	return pki.RoleClient
}
