package link

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

const (
	upkeepFirst = 200 * time.Millisecond // after a failure; doubles
	upkeepLast  = 30 * time.Second
	upkeepLook  = time.Minute // a machine that slept is noticed within
)

// Upkeep keeps a certificate good that a component has of the embedded CA beside
// its identity: it looks when the certificate's time has come, when there is
// news, and otherwise once a minute, and tries again after failures. One that
// lasts is logged once and reported to core.
type Upkeep struct {
	what    string
	now     func() time.Time
	log     *slog.Logger
	look    func(ctx context.Context) (*x509.Certificate, error)
	news    chan struct{}
	failure atomic.Pointer[string]
}

// NewUpkeep returns the upkeep of a certificate that the log calls what. now is
// core's clock, as far as it is known; look does what is due, and returns the
// certificate in use then, nil while there is none.
func NewUpkeep(what string, now func() time.Time, log *slog.Logger, look func(ctx context.Context) (*x509.Certificate, error)) *Upkeep {
	return &Upkeep{what: what, now: now, log: log, look: look, news: make(chan struct{}, 1)}
}

// Kick asks for a look now.
func (u *Upkeep) Kick() {
	select {
	case u.news <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (u *Upkeep) Run(ctx context.Context) {
	wait, said := upkeepFirst, ""
	for {
		leaf, err := u.look(ctx)
		if ctx.Err() != nil {
			return
		}
		pause, most := upkeepLook, upkeepLast
		if leaf != nil {
			pause = min(pause, max(RenewalOf(leaf).Sub(u.now()), time.Second))
			most = min(most, max(lifeOf(leaf)/30, time.Second))
		}
		if err != nil {
			text := err.Error()
			if u.failure.Store(&text); text != said {
				said = text
				u.log.Warn("there is no new certificate of "+u.what+", trying again", "cause", text)
			}
			wait = min(wait, most)
			pause = wait/2 + rand.N(wait/2)
			wait *= 2
		} else {
			wait, said = upkeepFirst, ""
			u.failure.Store(nil)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-u.news:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// Report is what core is told of the certificate in use; nil while there is none.
func (u *Upkeep) Report(what string, leaf *x509.Certificate) *control.Certificate {
	if leaf == nil {
		return nil
	}
	c := Report(what, leaf)
	if why := u.failure.Load(); why != nil {
		c.Error = *why
	}
	return c
}

// RenewalOf is when a certificate of the embedded CA is renewed: at 0.60 to 0.66
// of its life, always the same for the same certificate.
func RenewalOf(leaf *x509.Certificate) time.Time {
	life := lifeOf(leaf)
	share := 0.60 + 0.06*float64(crc32.ChecksumIEEE(leaf.Raw))/(1<<32)
	return leaf.NotAfter.Add(-life + time.Duration(share*float64(life)))
}

// RequestCertificate makes a key and has core certify it; request brings the
// CSR there, as [ComponentEnd.Request] does.
func RequestCertificate(ctx context.Context, request func(ctx context.Context, csr []byte) ([][]byte, error)) (crypto.Signer, []*x509.Certificate, error) {
	key, err := pki.NewKey("p256")
	if err != nil {
		return nil, nil, err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return nil, nil, err
	}
	ders, err := request(ctx, csr)
	if err != nil {
		return nil, nil, err
	}
	chain, err := pki.ParseChain(ders)
	if err != nil {
		return nil, nil, fmt.Errorf("core's answer cannot be used: %w", err)
	}
	if public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, nil, errors.New("the certificate that core sent is for another key")
	}
	return key, chain, nil
}
