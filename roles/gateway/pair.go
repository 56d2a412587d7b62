package gateway

import (
	"context"
	"crypto/x509"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// errNoPair is why handshakes fail until core has issued a certificate.
var errNoPair = &pki.Refusal{Code: "no_certificate",
	Cause:  "the TLS entrance has no certificate yet: core has not issued one",
	Remedy: "let the gateway reach core; it asks again by itself"}

// newPair is the certificate of TLS entrances: good for localhost and the names
// that core knows for this gateway (gateway set --cert-name).
func newPair(g *gateway) *link.Issued {
	i := &link.Issued{What: "the TLS entrance", As: "entrance", Missing: errNoPair, Log: g.log,
		Now: func() time.Time { return time.Now().Add(g.end.ClockOffset()) },
		Good: func(leaf *x509.Certificate) bool {
			s := g.snapshots.Snapshot()
			return covers(leaf, s.GetCertificateNames()) && g.self.Bundle().Current(leaf, s.GetCallerIssuer())
		},
		Request: func(ctx context.Context, csr []byte) ([][]byte, error) {
			return g.end.Request(ctx, csr, control.CertificateRequest_PURPOSE_ENTRANCE)
		}}
	return i.Open()
}
