package core

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// recordOf is what the store keeps of a certificate that was issued.
func recordOf(ca *pki.Authority, issued *pki.Issued, kind string, id pki.ID, incarnation uint64) (store.CertificateRecord, error) {
	leaf := issued.Chain[0]
	spki, err := pki.SPKIHash(leaf.PublicKey)
	if err != nil {
		return store.CertificateRecord{}, err
	}
	return store.CertificateRecord{Serial: issued.Serial, Identity: id.String(), Kind: kind, Subject: leaf.Subject.String(), Incarnation: incarnation,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, SPKI: spki[:], DER: leaf.Raw, Root: rootOf(ca, leaf)}, nil
}

// record keeps a certificate that was issued, before anybody gets it.
// holder, if any, is who has it and for what: the next one of this holder
// supersedes it.
func (c *core) record(ctx context.Context, actor store.Actor, ca *pki.Authority, issued *pki.Issued, kind string, id pki.ID, incarnation uint64, holder string) error {
	r, err := recordOf(ca, issued, kind, id, incarnation)
	if err != nil {
		return err
	}
	r.Holder = holder
	if err := c.db.RecordCertificate(ctx, actor, r); err != nil {
		return fmt.Errorf("record the certificate: %w", err)
	}
	return nil
}

// fileLifetime is how long the certificates are good for that components keep
// in use beside their identity and renew by themselves.
const fileLifetime = 30 * 24 * time.Hour

// certificate answers a component that asks for a certificate that is not its
// identity. The names are what core knows; nothing of the request counts but
// its key.
func (c *core) certificate(ctx context.Context, s *link.Session, r *control.CertificateRequest) ([][]byte, *pki.Refusal) {
	if refusal := c.mayIssue(); refusal != nil {
		return nil, refusal
	}
	csr, err := pki.ParseCSR(r.GetCsr())
	if err != nil {
		return nil, explain(err)
	}
	record, err := c.db.Component(ctx, s.Peer.ID.Role, s.Peer.ID.Name)
	if err != nil {
		return nil, explain(err)
	}
	ca := c.ca.get()
	request := pki.LeafRequest{PublicKey: csr.PublicKey, DNS: []string{"localhost"}, Server: true, Lifetime: fileLifetime,
		IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}}
	holder := record.Label()
	switch role, purpose := s.Peer.ID.Role, r.GetPurpose(); {
	case role == pki.RoleProxy && purpose == control.CertificateRequest_PURPOSE_PUBLIC_PORT:
		request.DNS, request.IPs = addHost(request.DNS, request.IPs, record.Address)
		holder += ": public port"
	case role == pki.RoleGateway && purpose == control.CertificateRequest_PURPOSE_EXPORT:
		for _, name := range record.CertNames {
			request.DNS, request.IPs = addHost(request.DNS, request.IPs, net.JoinHostPort(name, "0"))
		}
		request.ID = pki.ID{TrustDomain: ca.TrustDomain(), Role: pki.RoleService, Name: record.Name}
		request.Client = true
		holder += ": export"
	case role == pki.RoleGateway && purpose == control.CertificateRequest_PURPOSE_ENTRANCE:
		for _, name := range record.CertNames {
			request.DNS, request.IPs = addHost(request.DNS, request.IPs, net.JoinHostPort(name, "0"))
		}
		holder += ": entrance"
	default:
		return nil, &pki.Refusal{Code: "purpose_unknown", Cause: fmt.Sprintf("core does not give a %s certificates for that purpose (%s)", role, purpose),
			Remedy: "bring both components to the same version"}
	}
	issued, err := ca.IssueLeaf(request, time.Now())
	if err != nil {
		return nil, explain(err)
	}
	if err := c.record(ctx, actorCore, ca, issued, "service", request.ID, 0, holder); err != nil {
		return nil, explain(err)
	}
	return issued.DER(), nil
}

// addHost adds the host of address to the names, if it is not there.
func addHost(dns []string, ips []netip.Addr, address string) ([]string, []netip.Addr) {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return dns, ips
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if !slices.Contains(dns, host) {
			dns = append(dns, host)
		}
		return dns, ips
	}
	if ip = ip.Unmap().WithZone(""); !ip.IsUnspecified() && !slices.Contains(ips, ip) {
		ips = append(ips, ip)
	}
	return dns, ips
}

// explain turns an error into a refusal that a peer may read.
func explain(err error) *pki.Refusal {
	if r, ok := pki.AsRefusal(err); ok {
		return r
	}
	r := pki.Explain(err)
	return &r
}
