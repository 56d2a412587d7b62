package core

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

var errNotOurKey = errors.New("the key just made is none of ours")

const defaultLeafLifetime = 365 * 24 * time.Hour

// ShowCA returns the certificates of the authority.
func (a *admin) ShowCA(context.Context, *control.ShowCARequest) (*control.ShowCAResponse, error) {
	return showCA(a.core.ca.get()), nil
}

func showCA(ca *pki.Authority) *control.ShowCAResponse {
	b := ca.Bundle().Proto()
	out := &control.ShowCAResponse{TrustDomain: b.GetTrustDomain(), Roots: b.GetRoots(), ComponentIntermediates: b.GetComponentIntermediates(), CallerIntermediates: b.GetCallerIntermediates(), CallerRoots: b.GetCallerRoots()}
	for _, pin := range ca.Pins() {
		out.RootPins = append(out.RootPins, hex.EncodeToString(pin[:]))
	}
	if issuer := issuerOf(ca, "callers' issuer"); issuer != nil {
		out.CallersIssuer = issuer.Raw
	}
	return out
}

// ImportCA makes somebody's own CA the issuer for callers and services.
func (a *admin) ImportCA(ctx context.Context, in *control.ImportCARequest) (*control.ShowCAResponse, error) {
	c := a.core
	var imported *pki.Imported
	ca, err := c.ca.change(func(ca *pki.Authority) (*pki.Authority, error) {
		next, made, err := ca.ImportCallers(in.GetChainPem(), in.GetKeyPem(), time.Now())
		imported = made
		return next, err
	})
	if err != nil {
		return nil, wrong("ca import: %v", err)
	}
	if err := recordAuthority(ctx, c.db, ca); err != nil {
		return nil, refusal(err)
	}
	how := "by an intermediate of ours under it"
	if imported.Direct {
		how = "by itself"
	}
	if err := c.db.Audit(ctx, actor(ctx), "ca.import", imported.Issuer.Subject.String(), "issues to callers and services "+how); err != nil {
		return nil, refusal(err)
	}
	c.log.Info("callers and services get their certificates from an imported CA", "issuer", imported.Issuer.Subject, "not_after", imported.Issuer.NotAfter, "how", how, "actor", actor(ctx))
	for _, w := range imported.Warnings {
		c.log.Warn("imported CA: " + w)
	}
	if err := c.refreshIdentity(ctx, time.Now()); err != nil {
		return nil, refusal(err)
	}
	if err := c.publisher.publish(ctx); err != nil {
		return nil, refusal(err)
	}
	c.expiries.kick()
	c.backupSoon()
	out := showCA(ca)
	out.Warnings = imported.Warnings
	return out, nil
}

// IssueCertificate issues a certificate to a caller or a service, for the key
// of a certificate request; the private key stays where the request was made.
func (a *admin) IssueCertificate(ctx context.Context, in *control.IssueCertificateRequest) (*control.IssueCertificateResponse, error) {
	c := a.core
	if refusal := c.mayIssue(); refusal != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "cert issue: %v", refusal)
	}
	ca := c.ca.get()
	issued, id, err := IssueLeaf(ca, in, time.Now())
	if err != nil {
		return nil, err
	}
	identity, kind := "", leafKind(issued.Chain[0])
	if !id.IsZero() {
		identity, kind = id.String(), id.Role
	}
	if err := c.record(ctx, actor(ctx), ca, issued, string(kind), id, 0, ""); err != nil {
		return nil, refusal(err)
	}
	c.log.Info("certificate was issued", "identity", identity, "subject", issued.Chain[0].Subject.String(), "serial", issued.Serial, "not_after", issued.Chain[0].NotAfter, "actor", actor(ctx))
	b := ca.Bundle().Proto()
	return &control.IssueCertificateResponse{Chain: issued.DER(), Roots: append(b.GetRoots(), b.GetCallerRoots()...), Identity: identity}, nil
}

// ListCertificates lists what the authority issued, and the certificates that
// core and its components use beside that.
func (a *admin) ListCertificates(ctx context.Context, in *control.ListCertificatesRequest) (*control.ListCertificatesResponse, error) {
	now := time.Now()
	rows, err := a.core.db.Certificates(ctx, in.GetAll(), now)
	if err != nil {
		return nil, refusal(err)
	}
	out := &control.ListCertificatesResponse{}
	for _, r := range rows {
		w := watched{ours: true, notBefore: r.NotBefore, notAfter: r.NotAfter}
		row := &control.CertificateRow{Serial: r.Serial, Identity: r.Identity, Kind: r.Kind, Subject: r.Subject, Holder: r.Holder,
			NotBeforeUnix: seconds(r.NotBefore), NotAfterUnix: seconds(r.NotAfter), SpkiSha256: hex.EncodeToString(r.SPKI), RevokedUnix: seconds(r.Revoked)}
		if r.Revoked.IsZero() {
			row.Alert = w.alert(now)
		}
		out.Certificates = append(out.Certificates, row)
	}
	files, err := a.core.expiries.list(ctx, now)
	if err != nil {
		return nil, refusal(err)
	}
	for _, w := range files {
		if w.kind == "file" || w.kind == "acme" {
			out.Certificates = append(out.Certificates, &control.CertificateRow{Serial: w.serial, Kind: w.kind, Subject: w.subject, Holder: w.holder,
				NotBeforeUnix: seconds(w.notBefore), NotAfterUnix: seconds(w.notAfter), Alert: w.alert(now)})
		}
	}
	return out, nil
}
