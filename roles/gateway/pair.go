package gateway

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// errNoPair is why handshakes fail until core has issued a certificate.
var errNoPair = &pki.Refusal{Code: "no_certificate",
	Cause:  "the TLS entrance has no certificate yet: core has not issued one",
	Remedy: "let the gateway reach core; it asks again by itself"}

// pair is the certificate of TLS entrances: asked of core, good for localhost and
// the names that core knows for this gateway (gateway set --cert-name). Key and
// certificate are only ever in memory.
type pair struct {
	gateway *gateway
	news    chan struct{} // names or CA may be others
	held    atomic.Pointer[tls.Certificate]
	failure atomic.Pointer[string]
}

func newPair(g *gateway) *pair { return &pair{gateway: g, news: make(chan struct{}, 1)} }

// changed asks for a look.
func (p *pair) changed() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func (p *pair) now() time.Time { return time.Now().Add(p.gateway.end.ClockOffset()) }

func (p *pair) current() (*tls.Certificate, error) {
	if c := p.held.Load(); c != nil && p.now().Before(c.Leaf.NotAfter) {
		return c, nil
	}
	return nil, errNoPair
}

// run keeps the pair until ctx ends.
func (p *pair) run(ctx context.Context) {
	wait, said := exportRetryFirst, ""
	for {
		err := p.look(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := exportLook
		if held := p.held.Load(); held != nil {
			pause = min(pause, max(renewalOf(held.Leaf).Sub(p.now()), time.Second))
		}
		if err != nil {
			text := err.Error()
			if p.failure.Store(&text); text != said {
				said = text
				p.gateway.log.Warn("the certificate of the TLS entrance was not renewed, trying again", "cause", text)
			}
			pause = min(pause, wait/2+rand.N(wait/2))
			wait = min(2*wait, exportRetryLast)
		} else {
			wait, said = exportRetryFirst, ""
			p.failure.Store(nil)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-p.news:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// renewalOf is when a certificate is renewed: at three fifths of its life.
func renewalOf(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 3 / 5)
}

// look asks for a certificate if there is none, its time has come, or names or CA
// are others.
func (p *pair) look(ctx context.Context) error {
	g := p.gateway
	snapshot := g.snapshots.Snapshot()
	if snapshot == nil || !g.end.Connected() {
		return nil // core has not said yet, or cannot be asked
	}
	names := snapshot.GetCertificateNames()
	if held := p.held.Load(); held != nil && p.now().Before(renewalOf(held.Leaf)) && covers(held.Leaf, names) &&
		slices.ContainsFunc(g.self.Bundle().CallerIntermediates, func(c *x509.Certificate) bool { return pki.IssuedBy(held.Leaf, c) }) {
		return nil
	}
	key, err := pki.NewKey("p256")
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, exportRetryLast)
	defer cancel()
	ders, err := g.end.Request(asking, csr, control.CertificateRequest_PURPOSE_ENTRANCE)
	if err != nil {
		return err
	}
	chain, err := pki.ParseChain(ders)
	if err != nil {
		return fmt.Errorf("core's answer cannot be used: %w", err)
	}
	if public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return errors.New("the certificate that core sent is for another key")
	}
	p.held.Store(&tls.Certificate{Certificate: ders, PrivateKey: key, Leaf: chain[0]})
	g.log.Info("the TLS entrance has a certificate", "names", chain[0].DNSNames, "until", chain[0].NotAfter.UTC())
	return nil
}

// report is what core is told of the pair; nil while there is none.
func (p *pair) report() *control.Certificate {
	held := p.held.Load()
	if held == nil {
		return nil
	}
	c := link.Report("entrance", held.Leaf)
	if why := p.failure.Load(); why != nil {
		c.Error = *why
	}
	return c
}
