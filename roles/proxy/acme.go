package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"sallyport/acme"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// ordered are the certificates that this proxy orders of a public CA: those of
// the public port's domains, and that of the gRPC port.
type ordered struct {
	*acme.Manager
	db     *store.ACME
	public []string // the names of the public port
	grpc   string   // that of the gRPC port; empty: it has another certificate
}

// openOrdered opens where they are kept; nil if nothing is ordered.
func (p *proxy) openOrdered() (*ordered, error) {
	s := p.settings
	if s.ACME == nil {
		return nil, nil
	}
	o := &ordered{public: s.Domains, grpc: s.GRPCDomain}
	set := acme.Settings{CA: *s.ACME, Domains: slices.Clone(s.Domains), HTTP: s.HTTPAddress != "" || len(s.Domains) == 0, TLSALPN: s.TLS != "off",
		Log: p.log, Instead: "--tls files with a certificate made elsewhere"}
	if s.GRPCDomain != "" {
		set.Domains = append(set.Domains, s.GRPCDomain)
	}
	if len(s.Domains) == 0 {
		set.Instead = "--grpc-tls files with a certificate made elsewhere"
	}
	set.Changed = p.state.changed
	var err error
	if s.DataDir == "" {
		p.log.Warn("certificates of the public CA are kept in memory: every start orders them anew, and CAs limit how often; give --data-dir, or --tls files")
		o.db, err = store.OpenMemoryACME()
	} else {
		set.KeyFile = filepath.Join(s.DataDir, "acme.key")
		o.db, err = store.OpenACME(filepath.Join(s.DataDir, "acme.db"))
	}
	if err != nil {
		return nil, err
	}
	o.db.Log, set.Storage = p.log, o.db
	if o.Manager, err = acme.New(context.Background(), set); err != nil {
		return nil, errors.Join(err, o.db.Close())
	}
	if p.deps.Registry != nil {
		if err := p.deps.Registry.Register(o.Collector("proxy")); err != nil {
			return nil, errors.Join(fmt.Errorf("metrics: %w", err), o.db.Close())
		}
	}
	return o, nil
}

// current is a certificate of the public port; none if there is none yet, or none
// that callers would take.
func (o *ordered) current() (*tls.Certificate, error) {
	c, err := o.Certificate("", o.public)
	if err == nil && time.Now().After(c.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate of the public port has ended at %s, and the CA has not renewed it", c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return c, err
}

func (o *ordered) run(context.Context)          {} // by runOrdered, for both ports
func (o *ordered) report() *control.Certificate { return nil }

// reports are those of all certificates that are ordered.
func (o *ordered) reports() (list []*control.Certificate) {
	for _, s := range o.States() {
		if slices.Contains(o.public, s.Domain) {
			list = append(list, link.ReportOrdered(publicPort, s.Domain, s.Leaf, s.Error))
		}
		if s.Domain == o.grpc {
			list = append(list, link.ReportOrdered("the gRPC port", s.Domain, s.Leaf, s.Error))
		}
	}
	return list
}

// grpcCertificate is what the gRPC port shows.
func (o *ordered) grpcCertificate() (*tls.Certificate, error) { return o.CertificateOf(o.grpc) }

// present is the certificate of a handshake on the public port.
func (l *public) present(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if o, ok := l.proxy.certificates.(*ordered); ok {
		return o.Certificate(hello.ServerName, o.public)
	}
	return l.proxy.certificates.current()
}

// takeChallenges lets the CA find its proof at the public port. No handshake
// but one that wants nothing else is ever offered that protocol.
func (l *public) takeChallenges() {
	o, other := l.proxy.ordered, l.config.GetConfigForClient
	if o == nil {
		return
	}
	l.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c := o.Challenge(hello); c != nil {
			return c, nil
		}
		if other != nil {
			return other(hello)
		}
		return nil, nil
	}
}

// serveHTTP answers plain HTTP until ctx ends.
func (p *proxy) serveHTTP(ctx context.Context, l net.Listener, public net.Addr) error {
	front := &acme.Front{Names: p.settings.Domains, Port: "443"}
	if tcp, ok := public.(*net.TCPAddr); ok && p.settings.TLS != "off" {
		front.Port = fmt.Sprint(tcp.Port)
	}
	if p.ordered != nil {
		front.Manager = p.ordered.Manager
	}
	p.log.Info("plain HTTP is sent to https", "address", l.Addr().String())
	return front.Serve(ctx, l)
}
