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
func recordOf(issued *pki.Issued, kind string, id pki.ID, incarnation uint64) (store.CertificateRecord, error) {
	leaf := issued.Chain[0]
	spki, err := pki.SPKIHash(leaf.PublicKey)
	if err != nil {
		return store.CertificateRecord{}, err
	}
	return store.CertificateRecord{Serial: issued.Serial, Identity: id.String(), Kind: kind, Subject: leaf.Subject.String(), Incarnation: incarnation,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, SPKI: spki[:], DER: leaf.Raw}, nil
}

// record keeps a certificate that was issued, before anybody gets it.
func (c *core) record(ctx context.Context, actor store.Actor, issued *pki.Issued, kind string, id pki.ID, incarnation uint64) error {
	r, err := recordOf(issued, kind, id, incarnation)
	if err != nil {
		return err
	}
	if err := c.db.RecordCertificate(ctx, actor, r); err != nil {
		return fmt.Errorf("record the certificate: %w", err)
	}
	return nil
}

// publicLifetime is how long the certificate of a proxy's public port is good
// for in mode internal.
const publicLifetime = 30 * 24 * time.Hour

// certificate answers a proxy that asks for a certificate for its public port.
// The names are what core knows: loopback, and the host it reaches the proxy
// at; nothing of the request counts but its key.
func (c *core) certificate(ctx context.Context, s *link.Session, r *control.CertificateRequest) ([][]byte, *pki.Refusal) {
	if s.Peer.ID.Role != pki.RoleProxy || r.GetPurpose() != control.CertificateRequest_PURPOSE_PUBLIC_PORT {
		return nil, &pki.Refusal{Code: "purpose_unknown", Cause: "core gives proxies certificates for their public port, and nothing else here",
			Remedy: "bring both components to the same version"}
	}
	csr, err := pki.ParseCSR(r.GetCsr())
	if err != nil {
		return nil, explain(err)
	}
	record, err := c.db.Component(ctx, pki.RoleProxy, s.Peer.ID.Name)
	if err != nil {
		return nil, explain(err)
	}
	dns := []string{"localhost"}
	ips := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	dns, ips = addHost(dns, ips, record.Address)
	issued, err := c.ca.IssueLeaf(pki.LeafRequest{PublicKey: csr.PublicKey, DNS: dns, IPs: ips, Server: true, Lifetime: publicLifetime}, time.Now())
	if err != nil {
		return nil, explain(err)
	}
	if err := c.record(ctx, actorCore, issued, "service", pki.ID{}, 0); err != nil {
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
