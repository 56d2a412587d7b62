package proxy

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
)

// errNoCertificate is why handshakes fail until core has issued one.
var errNoCertificate = &pki.Refusal{Code: "no_certificate",
	Cause:  "the public port has no certificate yet: core has not issued one",
	Remedy: "let core connect to this proxy's gRPC port; with --tls-cert and --tls-key the public port does not depend on core"}

// certificates is where the public port's certificate comes from. ACME is to
// be another of these.
type certificates interface {
	// current is what handshakes present now.
	current() (*tls.Certificate, error)
	// run keeps it current until ctx ends.
	run(ctx context.Context)
}

// issued is a certificate for localhost from the embedded CA, asked of core
// with a new key at each start. Key and certificate are only ever in memory.
type issued struct {
	request func(ctx context.Context, csr []byte) ([][]byte, error)
	changed func() // there is another certificate
	log     *slog.Logger
	now     func() time.Time
	held    atomic.Pointer[tls.Certificate]
}

func (i *issued) current() (*tls.Certificate, error) {
	if c := i.held.Load(); c != nil && i.now().Before(c.Leaf.NotAfter) {
		return c, nil
	}
	return nil, errNoCertificate
}

const (
	requestFirst = 200 * time.Millisecond
	requestLast  = 30 * time.Second
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
			if text := err.Error(); text != said {
				said = text
				i.log.Warn("core issued no certificate for the public port, trying again", "cause", text)
			}
			pause, wait = wait/2+rand.N(wait/2), min(2*wait, requestLast)
		} else {
			wait, said = requestFirst, ""
			i.held.Store(cert)
			i.log.Info("the public port has a certificate from core", "names", cert.Leaf.DNSNames, "until", cert.Leaf.NotAfter)
			i.changed()
			pause = renewIn(cert.Leaf.NotBefore, cert.Leaf.NotAfter, i.now())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// renewIn is how long a certificate is used before the next is asked for:
// until 0.60 to 0.66 of its life.
func renewIn(from, to, now time.Time) time.Duration {
	life := to.Sub(from)
	at := from.Add(life*60/100 + rand.N(life*6/100+1))
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
