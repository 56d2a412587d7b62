package proxy

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
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

// issued is a certificate for localhost from the embedded CA, asked of core
// with a new key at each start. Key and certificate are only ever in memory.
type issued struct {
	request func(ctx context.Context, csr []byte) ([][]byte, error)
	changed func() // there is another certificate
	log     *slog.Logger
	now     func() time.Time // core's clock, as far as it is known
	held    atomic.Pointer[tls.Certificate]
	failure atomic.Pointer[string] // why there is no newer one
	again   chan struct{}          // asks for another one now
}

func (i *issued) current() (*tls.Certificate, error) {
	if c := i.held.Load(); c != nil && i.now().Before(c.Leaf.NotAfter) {
		return c, nil
	}
	return nil, errNoCertificate
}

func (i *issued) report() *control.Certificate {
	held := i.held.Load()
	if held == nil {
		return nil
	}
	c := link.Report(publicPort, held.Leaf)
	if why := i.failure.Load(); why != nil {
		c.Error = *why
	}
	return c
}

// follow looks whether the certificate in use is from the issuer that issues
// now; if not, another is asked for at once. After a rotation of the CA callers
// may know the new root alone, while the new chain serves those who know the old
// one too.
func (i *issued) follow(b *pki.Bundle, issuer []byte) {
	held := i.held.Load()
	if held == nil || b.Current(held.Leaf, issuer) {
		return
	}
	select {
	case i.again <- struct{}{}:
	default:
	}
}

const (
	requestFirst = 200 * time.Millisecond
	requestLast  = 30 * time.Second
	requestTime  = 20 * time.Second
	backdate     = time.Minute // how long before its making a certificate's NotBefore lies
)

func (i *issued) run(ctx context.Context) {
	wait, said := requestFirst, ""
	for ctx.Err() == nil {
		cert, err := i.obtain(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := wait
		if err != nil {
			text := err.Error()
			if i.failure.Store(&text); text != said {
				said = text
				i.log.Warn("core issued no certificate for the public port, trying again", "cause", text)
			}
			most := requestLast
			if held := i.held.Load(); held != nil {
				most = min(most, max(lifeOf(held.Leaf)/30, time.Second))
			}
			pause = min(pause, most)
			pause, wait = pause/2+rand.N(pause/2), min(2*wait, most)
		} else {
			wait, said = requestFirst, ""
			i.failure.Store(nil)
			i.held.Store(cert)
			i.log.Info("the public port has a certificate from core", "names", cert.Leaf.DNSNames, "until", cert.Leaf.NotAfter)
			i.changed()
			pause = renewIn(cert.Leaf, i.now())
		}
		i.pause(ctx, pause)
	}
}

// pause waits, until another certificate is wanted at the longest. A machine
// that slept is noticed within a minute.
func (i *issued) pause(ctx context.Context, d time.Duration) {
	until := i.now().Add(d)
	for left := d; left > 0; left = until.Sub(i.now()) {
		t := time.NewTimer(min(left, time.Minute))
		select {
		case <-t.C:
			continue
		case <-i.again:
		case <-ctx.Done():
		}
		t.Stop()
		return
	}
}

// lifeOf is how long a certificate lives, counted from its making.
func lifeOf(leaf *x509.Certificate) time.Duration {
	return max(leaf.NotAfter.Sub(leaf.NotBefore)-backdate, time.Second)
}

// renewIn is how long a certificate is used before the next is asked for:
// until 0.60 to 0.66 of its life.
func renewIn(leaf *x509.Certificate, now time.Time) time.Duration {
	life := lifeOf(leaf)
	at := leaf.NotAfter.Add(-life + life*60/100 + rand.N(life*6/100+1))
	return max(at.Sub(now), time.Second)
}

func (i *issued) obtain(ctx context.Context) (*tls.Certificate, error) {
	key, err := pki.NewKey("p256")
	if err != nil {
		return nil, err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return nil, err
	}
	if i.held.Load() != nil { // while there is none, one waits for core
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTime)
		defer cancel()
	}
	ders, err := i.request(ctx, csr)
	if err != nil {
		return nil, err
	}
	chain, err := pki.ParseChain(ders)
	if err != nil {
		return nil, err
	}
	if public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the certificate that core sent is for another key")
	}
	return &tls.Certificate{Certificate: ders, PrivateKey: key, Leaf: chain[0]}, nil
}
