package core

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

var errNotOurKey = errors.New("the key just made is none of ours")

const defaultLeafLifetime = 365 * 24 * time.Hour

// ShowCA returns the certificates of the authority.
func (a *admin) ShowCA(context.Context, *control.ShowCARequest) (*control.ShowCAResponse, error) {
	b := a.core.ca.Bundle().Proto()
	out := &control.ShowCAResponse{TrustDomain: b.GetTrustDomain(), Roots: b.GetRoots(), ComponentIntermediates: b.GetComponentIntermediates(), CallerIntermediates: b.GetCallerIntermediates()}
	for _, pin := range a.core.ca.Pins() {
		out.RootPins = append(out.RootPins, hex.EncodeToString(pin[:]))
	}
	return out, nil
}

// IssueCertificate issues a certificate to a caller or a service, for the key
// of a certificate request; the private key stays where the request was made.
func (a *admin) IssueCertificate(ctx context.Context, in *control.IssueCertificateRequest) (*control.IssueCertificateResponse, error) {
	c := a.core
	what := "cert issue " + clean(in.GetName())
	if err := pki.ValidName(in.GetName()); err != nil {
		return nil, wrong("cert issue: %v", err)
	}
	if !in.GetClient() && !in.GetServer() {
		return nil, wrong("%s: say what it is for: --client, --server or both", what)
	}
	csr, err := pki.ParseCSR(in.GetCsr())
	if err != nil {
		return nil, wrong("%s: %v", what, err)
	}
	request := pki.LeafRequest{ID: pki.ID{TrustDomain: c.ca.TrustDomain(), Role: pki.RoleService, Name: in.GetName()}, PublicKey: csr.PublicKey,
		DNS: in.GetDns(), URIs: in.GetUris(), Client: in.GetClient(), Server: in.GetServer(), Lifetime: time.Duration(in.GetLifetimeSeconds()) * time.Second}
	if in.GetClient() {
		request.ID.Role = pki.RoleClient
	}
	if in.GetLifetimeSeconds() < 0 || in.GetLifetimeSeconds() > int64(maxKeyLifetime/time.Second) {
		return nil, wrong("%s: that lifetime is out of range", what)
	}
	if request.Lifetime == 0 {
		request.Lifetime = defaultLeafLifetime
	}
	if in.GetSubject() != "" {
		if request.Subject, err = parseSubject(in.GetSubject()); err != nil {
			return nil, wrong("%s: --subject: %v", what, err)
		}
	}
	for _, s := range in.GetIps() {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, wrong("%s: --ip %q is no IP address", what, clean(s))
		}
		request.IPs = append(request.IPs, ip.Unmap())
	}
	issued, err := c.ca.IssueLeaf(request, time.Now())
	if err != nil {
		return nil, wrong("%s: %v", what, err)
	}
	if err := c.record(ctx, actor(ctx), issued, string(request.ID.Role), request.ID, 0); err != nil {
		return nil, refusal(err)
	}
	c.log.Info("certificate was issued", "identity", request.ID.String(), "serial", issued.Serial, "not_after", issued.Chain[0].NotAfter, "actor", actor(ctx))
	return &control.IssueCertificateResponse{Chain: issued.DER(), Roots: c.ca.Bundle().Proto().GetRoots(), Identity: request.ID.String()}, nil
}

// ListCertificates lists what the authority issued.
func (a *admin) ListCertificates(ctx context.Context, in *control.ListCertificatesRequest) (*control.ListCertificatesResponse, error) {
	rows, err := a.core.db.Certificates(ctx, in.GetAll(), time.Now())
	if err != nil {
		return nil, refusal(err)
	}
	out := &control.ListCertificatesResponse{}
	for _, r := range rows {
		out.Certificates = append(out.Certificates, &control.CertificateRow{Serial: r.Serial, Identity: r.Identity, Kind: r.Kind, Subject: r.Subject,
			NotBeforeUnix: seconds(r.NotBefore), NotAfterUnix: seconds(r.NotAfter), SpkiSha256: hex.EncodeToString(r.SPKI), RevokedUnix: seconds(r.Revoked)})
	}
	return out, nil
}
