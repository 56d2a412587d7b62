package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// SignRequest asks for a certificate for the key of a CSR that somebody
// brought. The names of the LeafRequest are given beside those of the CSR; its
// PublicKey is ignored. Without Client and Server the CSR's extended key usages
// decide, and without those: server if there are names for one, client anyway.
type SignRequest struct {
	LeafRequest
	CSR       *x509.CertificateRequest
	KeepNames bool                    // also the subject and the alternative names the CSR asks for
	Allow     func(name string) error // policy: asked about each alternative name of the CSR; nil allows all
}

// SignCSR makes a certificate for a request. Of the CSR its key is used, and
// with KeepNames its subject, DNS names, IP addresses and URIs. Identities are
// not its to ask for: a spiffe:// URI has to be the one that the signer gives
// (ID), and a component's is refused always.
func (a *Authority) SignCSR(r SignRequest, now time.Time) (*Issued, error) {
	l, err := r.leaf()
	if err != nil {
		return nil, fmt.Errorf("sign the certificate request: %w", err)
	}
	return a.IssueLeaf(l, now)
}

func (r SignRequest) leaf() (LeafRequest, error) {
	if r.CSR == nil {
		return LeafRequest{}, errors.New("there is none")
	}
	if err := r.CSR.CheckSignature(); err != nil {
		return LeafRequest{}, refusef(CodeKeyMismatch, "make a new request with a new key", "it is not signed by its own key: %v", err)
	}
	l := r.LeafRequest
	l.PublicKey = r.CSR.PublicKey
	l.DNS, l.IPs, l.URIs = slices.Clone(l.DNS), slices.Clone(l.IPs), slices.Clone(l.URIs)
	if r.KeepNames {
		if err := r.keep(&l); err != nil {
			return LeafRequest{}, err
		}
	}
	if !l.Client && !l.Server {
		if err := usesOfCSR(r.CSR, &l); err != nil {
			return LeafRequest{}, err
		}
	}
	return l, nil
}

// keep adds what the CSR asks for.
func (r SignRequest) keep(l *LeafRequest) error {
	uris, err := rawNames(r.CSR.Extensions)
	if err != nil {
		return fmt.Errorf("the alternative names it asks for: %w; make it again with DNS names, IP addresses and URIs", err)
	}
	allow := func(name string) error {
		if r.Allow == nil {
			return nil
		}
		if err := r.Allow(name); err != nil {
			return fmt.Errorf("it asks for %q, which is not allowed: %w", printable(name, 253), err)
		}
		return nil
	}
	for _, name := range r.CSR.DNSNames {
		if err := allow(name); err != nil {
			return err
		}
		l.DNS = append(l.DNS, name)
	}
	for _, raw := range r.CSR.IPAddresses {
		ip, ok := netip.AddrFromSlice(raw)
		if !ok {
			return errors.New("it asks for an IP address that is none")
		}
		if err := allow(ip.Unmap().String()); err != nil {
			return err
		}
		l.IPs = append(l.IPs, ip)
	}
	for _, u := range uris {
		if isSPIFFE(u) {
			if !r.ID.IsZero() && u == r.ID.String() {
				continue // given anyway
			}
			if id, err := ParseID(u); err == nil && id.Role.Component() {
				return fmt.Errorf("it asks to be %s: components are not made by signing; they join with the token of `sallyport %s add`", id, id.Role)
			}
			return fmt.Errorf("it asks for the identity %q: an identity is given by who signs (its name and role), and this one was not given", printable(u, 256))
		}
		if err := allow(u); err != nil {
			return err
		}
		l.URIs = append(l.URIs, u)
	}
	if l.Subject == nil && len(r.CSR.Subject.Names) > 0 {
		subject, err := subjectOfCSR(r.CSR.Subject)
		if err != nil {
			return err
		}
		l.Subject = subject
	}
	return nil
}

// subjectOfCSR is a subject without the parsed attributes, of which those that
// have no field are refused.
func subjectOfCSR(n pkix.Name) (*pkix.Name, error) {
	known := []asn1.ObjectIdentifier{{2, 5, 4, 3}, {2, 5, 4, 5}, {2, 5, 4, 6}, {2, 5, 4, 7}, {2, 5, 4, 8}, {2, 5, 4, 9}, {2, 5, 4, 10}, {2, 5, 4, 11}, {2, 5, 4, 17}}
	names := 0
	for _, a := range n.Names {
		if !slices.ContainsFunc(known, a.Type.Equal) {
			return nil, fmt.Errorf("its subject has the attribute %s: use CN, O, OU, C, ST, L and serialNumber, or give the certificate a subject of its own", a.Type)
		}
		if a.Type.Equal(known[0]) {
			names++
		}
	}
	if names > 1 {
		return nil, errors.New("its subject has several common names: make it again with one")
	}
	n.Names, n.ExtraNames = nil, nil
	return &n, nil
}

// usesOfCSR takes the uses from the request's extended key usages.
func usesOfCSR(csr *x509.CertificateRequest, l *LeafRequest) error {
	var (
		server = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
		client = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	)
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 37}) {
			continue
		}
		var oids []asn1.ObjectIdentifier
		if rest, err := asn1.Unmarshal(ext.Value, &oids); err != nil || len(rest) > 0 {
			return errors.New("the extended key usages it asks for cannot be read")
		}
		for _, oid := range oids {
			switch {
			case oid.Equal(server):
				l.Server = true
			case oid.Equal(client):
				l.Client = true
			default:
				return fmt.Errorf("it asks for the extended key usage %s: certificates are made for servers and clients", oid)
			}
		}
		return nil
	}
	l.Server = len(l.DNS)+len(l.IPs) > 0
	l.Client = l.ID.Role != RoleService || !l.Server
	return nil
}
