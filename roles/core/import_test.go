package core

import (
	"context"
	"errors"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// TestAFormerIssuerIsDroppedWhenItsCertificatesHaveEnded looks at the bundle
// after an import: the former issuer stays for what it has given, and no longer.
func TestAFormerIssuerIsDroppedWhenItsCertificatesHaveEnded(t *testing.T) {
	r, g, _ := rig(t, time.Hour)
	c := r.admin.(*admin).core
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.IssueCertificate(context.Background(), &control.IssueCertificateRequest{Csr: csr, Name: "billing", Client: true, LifetimeSeconds: 3600}); err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := foreignCA(t)
	if out, err := r.admin.ImportCA(context.Background(), &control.ImportCARequest{ChainPem: certPEM, KeyPem: keyPEM}); err != nil || len(out.GetCallersIssuer()) == 0 {
		t.Fatal(out, err)
	}
	former := func(n int) {
		t.Helper()
		eventually(t, "issuers of callers at the gateway", func() error {
			if have := len(g.self.Bundle().CallerIntermediates); have != n {
				return errors.New(itoa(have))
			}
			return nil
		})
	}
	former(2)
	if err := c.pruneCallers(context.Background(), time.Now().Add(30*time.Minute)); err != nil {
		t.Fatal(err)
	}
	former(2)
	if err := c.pruneCallers(context.Background(), time.Now().Add(59*24*time.Hour)); err != nil {
		t.Log(err) // core's own certificate cannot be issued for a time far ahead
	}
	if n := len(c.ca.get().Bundle().CallerIntermediates); n != 1 {
		t.Errorf("%d issuers of callers", n)
	}
}
