package core

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"sallyport/acme"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// ordered is the certificate that core orders of a public CA for its gRPC port.
type ordered struct {
	*acme.Manager
	db     *store.ACME
	domain string
	http   net.Listener // where a CA looks for its proof; nil: elsewhere
}

// openOrdered opens where it is kept.
func (c *core) openOrdered() (err error) {
	s := c.set
	o := &ordered{domain: s.GRPCDomain}
	if o.db, err = store.OpenACME(filepath.Join(s.DataDir, "acme.db")); err != nil {
		return err
	}
	o.db.Log = c.log
	o.Manager, err = acme.New(context.Background(), acme.Settings{CA: *s.ACME, Domains: []string{s.GRPCDomain}, HTTP: true, Storage: o.db,
		KeyFile: filepath.Join(s.DataDir, "acme.key"), Log: c.log, Instead: "--grpc-tls files with a certificate made elsewhere", Changed: func() { c.expiries.kick() }})
	if err == nil {
		o.http, err = acme.Listen(s.HTTPAddress)
	}
	if err != nil {
		return errors.Join(err, o.db.Close())
	}
	c.ordered = o
	return nil
}

// serve keeps the certificate, and answers the CA, until ctx ends.
func (o *ordered) serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return o.Run(ctx) })
	if o.http != nil {
		front := &acme.Front{Manager: o.Manager, Names: []string{}, Port: "443"}
		group.Go(func() error { return front.Serve(ctx, o.http) })
	}
	return errors.Join(group.Wait(), o.db.Close())
}

// shown is what the gRPC port shows.
func (o *ordered) shown() (*tls.Certificate, error) { return o.CertificateOf(o.domain) }

func (o *ordered) report() *control.Certificate {
	s := o.States()[0]
	return link.ReportOrdered("gRPC port", s.Domain, s.Leaf, s.Error)
}
