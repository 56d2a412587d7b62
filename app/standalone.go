package app

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/core"
)

// standalone is a CA in a directory, with nothing running. It answers as core
// would. What it issued and revoked lies beside it, one file each, named after
// the serial number:
//
//	DIR/issued/SERIAL.crt   the certificate, before anybody else has it
//	DIR/revoked/SERIAL      when, and why
type standalone struct {
	dir string
	ca  *pki.Authority
}

func (s *standalone) issued(serial string) string {
	return filepath.Join(s.dir, "issued", serial+".crt")
}
func (s *standalone) revoked(serial string) string {
	return filepath.Join(s.dir, "revoked", serial)
}

// IssueCertificate issues, and keeps what it issued.
func (s *standalone) IssueCertificate(_ context.Context, in *control.IssueCertificateRequest, _ ...grpc.CallOption) (*control.IssueCertificateResponse, error) {
	made, id, err := core.IssueLeaf(s.ca, in, time.Now())
	if err != nil {
		return nil, err
	}
	path := s.issued(made.Serial)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := writeFiles(false, file{path, made.PEM(), 0o644}); err != nil {
		return nil, err
	}
	bundle := s.ca.Bundle()
	out := &control.IssueCertificateResponse{Chain: made.DER()}
	for _, root := range slices.Concat(bundle.Roots, bundle.CallerRoots) {
		out.Roots = append(out.Roots, root.Raw)
	}
	if !id.IsZero() {
		out.Identity = id.String()
	}
	return out, nil
}

// ListCertificates lists the CA's own certificates and what it issued, the one
// that ends first comes first.
func (s *standalone) ListCertificates(_ context.Context, in *control.ListCertificatesRequest, _ ...grpc.CallOption) (*control.ListCertificatesResponse, error) {
	out := &control.ListCertificatesResponse{}
	for _, own := range s.ca.Certificates() {
		kind := "intermediate"
		if strings.HasSuffix(own.What, "root") || own.Cert.CheckSignatureFrom(own.Cert) == nil {
			kind = "root"
		}
		out.Certificates = append(out.Certificates, rowOf(own.Cert, kind))
	}
	leaves, err := s.leaves()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	for _, leaf := range leaves {
		if !in.GetAll() && now.After(leaf.NotAfter) {
			continue
		}
		row := rowOf(leaf, leafKind(leaf))
		if entry, err := s.revocation(pki.Serial(leaf)); err != nil {
			return nil, err
		} else if entry != nil {
			row.RevokedUnix = entry.at.Unix()
		}
		out.Certificates = append(out.Certificates, row)
	}
	slices.SortStableFunc(out.Certificates, func(a, b *control.CertificateRow) int {
		return cmp.Compare(a.GetNotAfterUnix(), b.GetNotAfterUnix())
	})
	return out, nil
}

// leaves are the certificates that were issued.
func (s *standalone) leaves() ([]*x509.Certificate, error) {
	paths, err := filepath.Glob(s.issued("*"))
	if err != nil {
		return nil, err
	}
	leaves := make([]*x509.Certificate, 0, len(paths))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		chain, err := pki.ParseCertificatesPEM(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		leaves = append(leaves, chain[0])
	}
	return leaves, nil
}

func leafKind(leaf *x509.Certificate) string {
	if id, err := pki.CertificateID(leaf); err == nil {
		return string(id.Role)
	}
	if slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return string(pki.RoleService)
	}
	return string(pki.RoleClient)
}

func rowOf(cert *x509.Certificate, kind string) *control.CertificateRow {
	spki := pki.SPKI(cert)
	row := &control.CertificateRow{Serial: pki.Serial(cert), Kind: kind, Subject: cert.Subject.String(),
		NotBeforeUnix: cert.NotBefore.Unix(), NotAfterUnix: cert.NotAfter.Unix(), SpkiSha256: hex.EncodeToString(spki[:])}
	if id, err := pki.CertificateID(cert); err == nil {
		row.Identity = id.String()
	}
	return row
}

// standaloneEntry is a file in DIR/revoked.
type standaloneEntry struct {
	at     time.Time
	reason string
}

// revocation reads the entry of a certificate, nil if it is not revoked.
func (s *standalone) revocation(serial string) (*standaloneEntry, error) {
	return revocationIn(s.revoked(serial))
}

func revocationIn(path string) (*standaloneEntry, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	when, reason, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	at, err := time.Parse(time.RFC3339, when)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, err)
	}
	return &standaloneEntry{at, reason}, nil
}

// RevokeCertificate puts certificates on the list that ca crl writes.
func (s *standalone) RevokeCertificate(_ context.Context, in *control.RevokeCertificateRequest, _ ...grpc.CallOption) (*control.RevokeCertificateResponse, error) {
	if err := pki.CheckReason(in.GetReason()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "cert revoke: %v", err)
	}
	if ofCore(s.dir) {
		return nil, failed("the CA in "+s.dir+" is that of a core, which would not hear of the revocation", "revoke through the running core: leave --ca-dir out")
	}
	leaves, err := s.leaves()
	if err != nil {
		return nil, err
	}
	var files []file
	out := &control.RevokeCertificateResponse{}
	text := strings.TrimSpace(time.Now().UTC().Format(time.RFC3339)+" "+in.GetReason()) + "\n"
	known := false
	for _, leaf := range leaves {
		serial := pki.Serial(leaf)
		id, err := pki.CertificateID(leaf)
		if in.GetSerial() != "" && serial != in.GetSerial() || in.GetSerial() == "" && (err != nil || id.String() != in.GetIdentity()) {
			continue
		}
		known = true
		if entry, err := s.revocation(serial); err != nil {
			return nil, err
		} else if entry == nil {
			files = append(files, file{s.revoked(serial), []byte(text), 0o644})
			out.Revoked = append(out.Revoked, serial)
		}
	}
	if !known {
		return nil, failed("the CA in "+s.dir+" has issued no such certificate", "see what it has issued: sallyport cert ls --all --ca-dir "+s.dir)
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "revoked"), 0o755); err != nil {
		return nil, err
	}
	return out, writeFiles(false, files...)
}

// GetCRL makes the lists of now.
func (s *standalone) GetCRL(context.Context, *control.GetCRLRequest, ...grpc.CallOption) (*control.GetCRLResponse, error) {
	leaves, err := s.leaves()
	if err != nil {
		return nil, err
	}
	var entries []pki.CRLEntry
	for _, leaf := range leaves {
		if entry, err := s.revocation(pki.Serial(leaf)); err != nil {
			return nil, err
		} else if entry != nil {
			entries = append(entries, pki.CRLEntryOf(leaf, entry.at, entry.reason))
		}
	}
	ders, err := s.ca.CRLs(entries, 0, time.Now())
	return &control.GetCRLResponse{Crls: ders}, err
}

// ShowCA returns the CA's certificates.
func (s *standalone) ShowCA(context.Context, *control.ShowCARequest, ...grpc.CallOption) (*control.ShowCAResponse, error) {
	bundle := s.ca.Bundle()
	p := bundle.Proto()
	out := &control.ShowCAResponse{TrustDomain: p.GetTrustDomain(), Roots: p.GetRoots(), ComponentIntermediates: p.GetComponentIntermediates(), CallerIntermediates: p.GetCallerIntermediates()}
	for _, root := range bundle.CallerRoots {
		out.CallerRoots = append(out.CallerRoots, root.Raw)
	}
	for _, pin := range s.ca.Pins() {
		out.RootPins = append(out.RootPins, hex.EncodeToString(pin[:]))
	}
	for _, own := range s.ca.Certificates() {
		if own.What == "callers' issuer" {
			out.CallersIssuer = own.Cert.Raw
		}
	}
	return out, nil
}

// ImportCA makes another CA the issuer of callers and services.
func (s *standalone) ImportCA(ctx context.Context, in *control.ImportCARequest, _ ...grpc.CallOption) (*control.ShowCAResponse, error) {
	if ofCore(s.dir) {
		return nil, failed("the CA in "+s.dir+" is that of a core, which would not hear of the import", "import through the running core: leave --ca-dir out")
	}
	next, imported, err := s.ca.ImportCallers(in.GetChainPem(), in.GetKeyPem(), time.Now())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "ca import: %v", err)
	}
	s.ca = next
	out, err := s.ShowCA(ctx, nil)
	if err == nil {
		out.Warnings, out.CallersIssuer = imported.Warnings, imported.Issuer.Raw
	}
	return out, err
}
