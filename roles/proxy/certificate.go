package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// errNoCertificate is why handshakes fail until core has issued one.
var errNoCertificate = &pki.Refusal{Code: "no_certificate",
	Cause:  "the public port has no certificate yet: core has not issued one",
	Remedy: "let core connect to this proxy's gRPC port; with --tls-cert and --tls-key the public port does not depend on core"}

// certificates is where the public port's certificate comes from: files, the
// embedded CA (issued), or a public CA (ordered); with --tls off nowhere
// (noCertificate).
type certificates interface {
	// current is what handshakes present now.
	current() (*tls.Certificate, error)
	// run keeps it current until ctx ends.
	run(ctx context.Context)
	// report is what core is told of it; nil while there is none.
	report() *control.Certificate
}

// files is a certificate that something else renews.
type files struct{ *link.OutsideSource }

func (f files) current() (*tls.Certificate, error) { return f.Certificate() }
func (f files) run(ctx context.Context)            { _ = f.Run(ctx) } // nil: ctx has ended
func (f files) report() *control.Certificate       { return f.Report() }

// issued is a certificate for localhost from the embedded CA. After a rotation of
// the CA another is asked for at once: callers may know the new root alone, while
// the new chain serves those who know the old one too.
type issued struct{ *link.Issued }

func (i issued) current() (*tls.Certificate, error) { return i.Certificate() }
func (i issued) run(ctx context.Context)            { i.Run(ctx) }
func (i issued) report() *control.Certificate       { return i.Report() }

func (p *proxy) newIssued() *issued {
	i := &link.Issued{What: publicPort, As: publicPort, Missing: errNoCertificate, Log: p.log, Changed: p.state.changed,
		Now: func() time.Time { return time.Now().Add(p.end.ClockOffset()) },
		Good: func(leaf *x509.Certificate) bool {
			return p.self.Bundle().Current(leaf, p.snapshots.Snapshot().GetCallerIssuer())
		},
		Request: func(ctx context.Context, csr []byte) ([][]byte, error) {
			return p.end.Request(ctx, csr, control.CertificateRequest_PURPOSE_PUBLIC_PORT)
		}}
	return &issued{i.Open()}
}
