package store

import (
	"context"
	"errors"
	"time"

	"sallyport/acme/pki"
)

// AlertOnce reports whether an alert of this key is to be raised: the first
// time, and again after [Core.ForgetAlert].
func (c *Core) AlertOnce(ctx context.Context, key string) (bool, error) {
	return false, errors.ErrUnsupported
}

// ForgetAlert says that what a key stands for is over.
func (c *Core) ForgetAlert(ctx context.Context, key string) error { return errors.ErrUnsupported }

// HeldCertificate is a certificate that a component uses beside its identity,
// as it reported it.
type HeldCertificate struct {
	Role      pki.Role
	Name      string // of the component
	What      string // "public port", "gRPC port", "upstream orders", …: one certificate each
	Subject   string
	Serial    string
	NotBefore time.Time
	NotAfter  time.Time
	Error     string // why a newer file was not taken
	Reported  time.Time
}

// ReportCertificates replaces what is known of a component's certificates.
func (c *Core) ReportCertificates(ctx context.Context, role pki.Role, name string, list []HeldCertificate) error {
	return errors.ErrUnsupported
}

// HeldCertificates returns what the components that have joined have reported.
// The one that ends first comes first.
func (c *Core) HeldCertificates(ctx context.Context) ([]HeldCertificate, error) {
	return nil, errors.ErrUnsupported
}
