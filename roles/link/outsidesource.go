package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// OutsideSource is a certificate in files that something else renews: certbot,
// cert-manager, a human. A new pair that cannot be used leaves the former in
// service and is reported.
type OutsideSource struct {
	what      string // "the gRPC port"
	cert, key string
	changed   func()
	log       *slog.Logger
	now       func() time.Time
	every     time.Duration
	held      atomic.Pointer[tls.Certificate]
	bad       atomic.Pointer[string] // why newer files are not in service
	outlives  atomic.Pointer[string] // that the pair in service outlives its CA; empty: not
	watch     watched
}

// OpenOutside reads the pair for the first time; it has to be good. what is
// the port that shows it, as "the gRPC port"; changed, if set, hears of every
// new pair in service.
func OpenOutside(what, cert, key string, log *slog.Logger, changed func()) (*OutsideSource, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	o := &OutsideSource{what: what, cert: cert, key: key, changed: changed, log: log, now: time.Now, every: reloadEvery}
	c, sum, err := o.read()
	if err != nil {
		return nil, err
	}
	o.watch.seen = sum
	o.hold(c)
	if o.now().After(c.Leaf.NotAfter) {
		log.Warn("the certificate of "+what+" has expired: renew it, it is picked up without a restart", "file", cert, "expired", c.Leaf.NotAfter.UTC())
	}
	return o, nil
}

// Certificate is the pair in service: Port.Outside, or for a tls.Config.
func (o *OutsideSource) Certificate() (*tls.Certificate, error) { return o.held.Load(), nil }

// Report is what core is told of the pair, for status and alerts.
func (o *OutsideSource) Report() *control.Certificate {
	leaf := o.held.Load().Leaf
	c := Report(o.what, leaf)
	c.Warning = printable(*o.outlives.Load(), 1024)
	if why := o.bad.Load(); why != nil {
		c.Error = printable(*why, 1024)
	}
	return c
}

// hold puts a pair into service. That it outlives a CA in its file is said once.
func (o *OutsideSource) hold(c *tls.Certificate) {
	why := ""
	if chain, err := pki.ParseChain(c.Certificate); err == nil {
		why = pki.Outlives(pathOf(chain))
	}
	o.outlives.Store(&why)
	o.held.Store(c)
	if why != "" {
		o.log.Warn("the certificate of "+o.what+" outlives its CA", "file", o.cert, "cause", why)
	}
}

// pathOf is the path from the leaf of a chain upwards, without what else lies in
// the file.
func pathOf(chain []*x509.Certificate) []*x509.Certificate {
	path := chain[:1:1]
	for _, c := range chain[1:] {
		if pki.IssuedBy(path[len(path)-1], c) {
			path = append(path, c)
		}
	}
	return path
}

// Run looks for new files until ctx ends.
func (o *OutsideSource) Run(ctx context.Context) error { return every(ctx, o.every, o.look) }

// look takes a new pair into service if it is one and is good.
func (o *OutsideSource) look() {
	c, sum, err := o.read()
	held := o.held.Load()
	if err == nil && o.now().After(c.Leaf.NotAfter) && o.now().Before(held.Leaf.NotAfter) {
		err = fmt.Errorf("%s: the new certificate expired at %s", o.cert, c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if !o.watch.changed(sum, err) {
		return
	}
	if err != nil {
		why := err.Error()
		o.bad.Store(&why)
		o.log.Error("new certificate files of "+o.what+" cannot be used, the former stay in service", "cause", why, "until", held.Leaf.NotAfter.UTC())
		return
	}
	o.bad.Store(nil)
	if bytes.Equal(c.Certificate[0], held.Certificate[0]) && len(c.Certificate) == len(held.Certificate) {
		return
	}
	o.hold(c)
	o.log.Info(o.what+" has a new certificate", "file", o.cert, "names", c.Leaf.DNSNames, "until", c.Leaf.NotAfter.UTC())
	if o.changed != nil {
		o.changed()
	}
}

// read reads the pair. The sum is that of what was read, also when it is bad.
func (o *OutsideSource) read() (*tls.Certificate, [sha256.Size]byte, error) {
	hash := sha256.New()
	cert, certErr := readBounded(o.cert)
	key, keyErr := readBounded(o.key)
	fmt.Fprintf(hash, "%d\n%s%d\n%s%v%v", len(cert), cert, len(key), key, certErr, keyErr)
	var sum [sha256.Size]byte
	hash.Sum(sum[:0])
	if certErr != nil {
		return nil, sum, fmt.Errorf("certificate file: %w", certErr)
	}
	if keyErr != nil {
		return nil, sum, fmt.Errorf("key file: %w", keyErr)
	}
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		why := pki.Explain(err)
		return nil, sum, fmt.Errorf("%s with %s: %w", o.cert, o.key, &why)
	}
	return &c, sum, nil
}
