package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// keep has a certificate for d until ctx ends.
func (m *Manager) keep(ctx context.Context, d *domain) {
	for ctx.Err() == nil {
		err := m.look(ctx, d)
		if ctx.Err() != nil {
			return
		}
		wait := max(m.set.Check, d.pace())
		if err != nil {
			wait = m.failed(d, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// failed notes and says that an order failed, and how long to wait.
func (m *Manager) failed(d *domain, err error) time.Duration {
	why := explain(err, d.name, &m.set)
	d.mu.Lock()
	d.failures++
	wait := m.set.pause(d.failures, err)
	d.next = time.Now().Add(wait)
	said := d.trouble == why
	d.trouble = why
	until := "nothing"
	if d.held != nil {
		until = "the former until " + d.held.Leaf.NotAfter.UTC().Format(time.RFC3339)
	}
	args := []any{"domain", d.name, "cause", why, "next", d.next.UTC().Format(time.RFC3339), "failures", d.failures, "serving", until}
	d.mu.Unlock()
	if !said || d.failures%10 == 0 {
		m.log.Warn("the certificate could not be had of the CA, trying again", args...)
	}
	m.set.Changed()
	return wait
}

// look takes what there is into service, and orders what is missing or due.
func (m *Manager) look(ctx context.Context, d *domain) error {
	cert, ok := m.cached(d.name)
	if !ok {
		var err error
		switch cert, err = m.load(ctx, d.name); {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist):
			if err := m.attempt(ctx, func(ctx context.Context) error { return m.config.ObtainCertAsync(ctx, d.name) }); err != nil {
				return err
			}
			if cert, err = m.load(ctx, d.name); err != nil {
				return err
			}
		default:
			return err
		}
	}
	m.serve(d, cert)
	if !cert.NeedsRenewal(m.config) {
		d.well()
		d.mu.Lock()
		d.due = 0
		d.mu.Unlock()
		return nil
	}
	former := cert.Hash()
	if err := m.attempt(ctx, func(ctx context.Context) error { return m.config.RenewCertAsync(ctx, d.name, false) }); err != nil {
		return err
	}
	cert, err := m.load(ctx, d.name)
	if err != nil {
		return err
	}
	if cert.Hash() != former {
		m.cache.Remove([]string{former})
	}
	m.serve(d, cert)
	d.well()
	if !cert.NeedsRenewal(m.config) {
		return nil
	}
	d.mu.Lock()
	d.due++
	first := d.due == 1
	d.mu.Unlock()
	if first {
		m.log.Warn("the CA's certificate is due for renewal as soon as it is there, the next ones are ordered ever later", "domain", d.name,
			"until", cert.Leaf.NotAfter.UTC(), "likely", "this host's clock is ahead, the CA's certificates are very short, or it asks for renewal itself")
	}
	return nil
}

// pace is how long to wait because certificates are due at once.
func (d *domain) pace() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held == nil {
		return 0
	}
	return pace(d.due, time.Until(d.held.Leaf.NotAfter))
}

// well notes that nothing is wrong.
func (d *domain) well() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trouble, d.failures, d.next = "", 0, time.Time{}
}

// cached is the newest certificate of a name in certmagic's cache, where news
// about its renewal arrive.
func (m *Manager) cached(name string) (newest certmagic.Certificate, ok bool) {
	for _, c := range m.cache.AllMatchingCertificates(name) {
		if c.Leaf != nil && (!ok || c.Leaf.NotBefore.After(newest.Leaf.NotBefore)) {
			newest, ok = c, true
		}
	}
	return newest, ok
}

// load takes a certificate from the storage into the cache. While another
// process replaces it, it may be read half from the former and half from the new
// one: then it does not fit, and is read again.
func (m *Manager) load(ctx context.Context, name string) (certmagic.Certificate, error) {
	for n := 1; ; n++ {
		c, err := m.config.CacheManagedCertificate(ctx, name)
		if err == nil || errors.Is(err, fs.ErrNotExist) || n == loadAttempts || ctx.Err() != nil {
			return c, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(loadAgain):
		}
	}
}

// serve takes a certificate into service.
func (m *Manager) serve(d *domain, cert certmagic.Certificate) {
	c := cert.Certificate
	if c.Leaf == nil {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			return // certmagic has read it
		}
		c.Leaf = leaf
	}
	d.mu.Lock()
	same := d.held != nil && d.held.Leaf.Equal(c.Leaf)
	d.held = &tls.Certificate{Certificate: c.Certificate, PrivateKey: c.PrivateKey, OCSPStaple: c.OCSPStaple, Leaf: c.Leaf}
	d.mu.Unlock()
	if !same {
		m.log.Info("there is a certificate of the CA", "domain", d.name, "until", c.Leaf.NotAfter.UTC(), "issuer", c.Leaf.Issuer.String())
		m.set.Changed()
	}
}

// attempt is one order: certmagic would try again by itself, holding the lease
// of the domain all the while; how often is for keep to say.
type attempt struct {
	cancel context.CancelFunc
	err    error
}

type attemptKey struct{}

func (m *Manager) attempt(ctx context.Context, order func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	a := &attempt{cancel: cancel}
	err := order(context.WithValue(ctx, attemptKey{}, a))
	if a.err != nil {
		return a.err
	}
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		err = errNone
	}
	return err
}

// event hears what certmagic does. Why an order of ours failed is said nowhere
// else; what certmagic's own maintenance wants to order, when it has heard news
// about renewal from the CA, it may not: keep sees the same news, and alone knows
// how often the CA was asked already.
func (m *Manager) event(ctx context.Context, event string, data map[string]any) error {
	a, ours := ctx.Value(attemptKey{}).(*attempt)
	switch {
	case event == "cert_obtaining" && !ours:
		return errNotOurs
	case event == "cert_failed" && ours:
		if a.err, _ = data["error"].(error); a.err == nil {
			a.err = errNone
		}
		a.cancel()
	}
	return nil
}

var (
	errNone    = errors.New("nothing was ordered") // an order that ended without a word
	errNotOurs = errors.New("orders are made elsewhere")
)

// refusalPauses follow upon refusals of the CA. Let's Encrypt allows five
// failed attempts an hour for one name.
var refusalPauses = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour}

const (
	silenceFirst = 5 * time.Second // when the CA cannot be reached
	silenceLast  = 5 * time.Minute
	limitPause   = time.Hour // when the CA says that it is too much
)

// backoff is how long to wait after failures in a row, the last of which is err.
func backoff(failures int, err error) time.Duration {
	wait := silenceLast
	if n := failures - 1; n < 6 {
		wait = min(silenceFirst<<n, silenceLast)
	}
	if problem, ok := errors.AsType[acme.Problem](err); ok {
		wait = refusalPauses[min(failures, len(refusalPauses))-1]
		if problem.Status == http.StatusTooManyRequests || problem.Type == acme.ProblemTypeRateLimited {
			wait = max(wait, limitPause)
		}
	}
	if _, ok := errors.AsType[*useless](err); ok {
		wait = refusalPauses[min(failures, len(refusalPauses))-1]
	}
	return wait + rand.N(wait/10+1)
}
