package core

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"

	"sallyport/acme"
	"sallyport/configs"
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
		o.http, err = listenHTTP(s)
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

// listenHTTP opens the port where a CA looks for its proof; nil if there is none.
func listenHTTP(s configs.Core) (net.Listener, error) {
	if s.HTTPAddress == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", s.HTTPAddress)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("open the port for plain HTTP (--http-address): %w: give another address that port 80 leads to, or off if that is a process of this program with the same --data-dir", err)
	case err != nil:
		return nil, fmt.Errorf("open the port for plain HTTP (--http-address): %w", err)
	}
	return l, nil
}
