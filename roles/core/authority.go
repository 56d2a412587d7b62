package core

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/store"
)

// authority is the embedded CA as it is now. An Authority never changes: who
// begins something takes one with get and ends with it, while a rotation or an
// import puts the next in its place.
type authority struct {
	current  atomic.Pointer[pki.Authority]
	changing sync.Mutex // one change at a time
}

func newAuthority(ca *pki.Authority) *authority {
	a := &authority{}
	a.current.Store(ca)
	return a
}

func (a *authority) get() *pki.Authority { return a.current.Load() }

// change puts what edit makes of the CA in its place. When edit returns, that
// is on disk.
func (a *authority) change(edit func(*pki.Authority) (*pki.Authority, error)) (*pki.Authority, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	next, err := edit(a.get())
	if err != nil {
		return nil, err
	}
	a.current.Store(next)
	return next, nil
}

func authorityDir(dataDir string) string { return filepath.Join(dataDir, "ca") }

// secretOf is what the CA's keys are sealed with, as the settings say.
func secretOf(s configs.Core) pki.Secret {
	return pki.Secret{Passphrase: s.CAPassphrase.Reveal(), KeyFile: s.CAKeyFile}
}

// openAuthority opens the embedded CA, or makes it when core starts for the
// first time. It never makes one beside a database that knows another.
func openAuthority(ctx context.Context, db *store.Core, s configs.Core, log *slog.Logger) (*pki.Authority, error) {
	dir := authorityDir(s.DataDir)
	ca, err := unseal(dir, s, log)
	if err == nil {
		if td := ca.TrustDomain(); s.TrustDomain != td && s.TrustDomain != defaultTrustDomain {
			return nil, fmt.Errorf("the trust domain cannot change: the CA in %s is for %s and the settings say %s; leave --trust-domain out, or start a new core in another data directory", dir, td, s.TrustDomain)
		}
		return ca, recordAuthority(ctx, db, ca)
	}
	if !errors.Is(err, pki.ErrNoAuthority) {
		return nil, err
	}
	known, err := db.Certificates(ctx, true, time.Now())
	if err != nil {
		return nil, err
	}
	if len(known) > 0 {
		return nil, fmt.Errorf("the CA in %s is gone, but core's database knows certificates that it issued: restore the whole data directory from a backup; to start over with nothing, use an empty data directory", dir)
	}
	ca, err = pki.CreateAuthority(dir, secretOf(s), s.TrustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	log.Info("made a new certificate authority", "directory", dir, "trust_domain", ca.TrustDomain())
	return ca, recordAuthority(ctx, db, ca)
}

// unseal opens the CA with the secret that the settings name. One that was
// sealed with the key file beside it, and is to have another secret from now
// on, gets it.
func unseal(dir string, s configs.Core, log *slog.Logger) (*pki.Authority, error) {
	secret := secretOf(s)
	ca, err := pki.OpenAuthority(dir, secret)
	if err == nil || !errors.Is(err, pki.ErrWrongSecret) || (secret.Passphrase == "" && secret.KeyFile == "") {
		return ca, err
	}
	former, openErr := pki.OpenAuthority(dir, pki.Secret{})
	if openErr != nil {
		return nil, err
	}
	if ca, err = former.Reseal(secret); err != nil {
		return nil, err
	}
	log.Warn("the CA's keys are sealed with another secret from now on, as the settings say", "secret", secret,
		"remedy", "move "+pki.KeyFileBeside(dir)+" to where your older backups are: it opens those, and nothing here any more")
	return ca, nil
}

// recordAuthority keeps the CA's own certificates among those that core knows.
func recordAuthority(ctx context.Context, db *store.Core, ca *pki.Authority) error {
	for _, c := range ca.Certificates() {
		kind := "intermediate"
		if bytes.Equal(c.Cert.RawSubject, c.Cert.RawIssuer) {
			kind = "root"
		}
		r, err := recordOf(ca, &pki.Issued{Chain: []*x509.Certificate{c.Cert}, Serial: pki.Serial(c.Cert)}, kind, pki.ID{}, 0)
		if err != nil {
			return err
		}
		if err := db.RecordCertificate(ctx, actorCore, r); err != nil && !errors.Is(err, store.ErrExists) {
			return err
		}
	}
	return nil
}

// rootOf is the SHA-256 of the key of the root that a component's certificate
// chains to; nil if that root is not in force.
func rootOf(ca *pki.Authority, leaf *x509.Certificate) []byte {
	b := ca.Bundle()
	by := slices.IndexFunc(b.ComponentIntermediates, func(i *x509.Certificate) bool { return pki.IssuedBy(leaf, i) })
	if by < 0 {
		return nil
	}
	for _, root := range b.Roots {
		if pki.IssuedBy(b.ComponentIntermediates[by], root) {
			hash := pki.SPKI(root)
			return hash[:]
		}
	}
	return nil
}

// issuingRoot is the SHA-256 of the key of the root that issues.
func issuingRoot(ca *pki.Authority) []byte {
	pin := ca.Pins()[0]
	return pin[:]
}

// issuerOf is the certificate of the CA for one purpose, as Certificates names it.
func issuerOf(ca *pki.Authority, what string) *x509.Certificate {
	for _, c := range ca.Certificates() {
		if c.What == what {
			return c.Cert
		}
	}
	return nil
}

// pruneCallers drops former issuers of callers from the bundle, once the last
// certificate that they have given has ended.
func (c *core) pruneCallers(ctx context.Context, now time.Time) error {
	ca := c.ca.get()
	if ca.Phase() != pki.PhaseSteady || issuerOf(ca, "former callers' issuer") == nil {
		return nil
	}
	rows, err := c.db.Certificates(ctx, true, now)
	if err != nil {
		return err
	}
	var leaves []*x509.Certificate
	for _, r := range rows {
		if cert, err := x509.ParseCertificate(r.DER); err == nil && !cert.IsCA {
			leaves = append(leaves, cert)
		}
	}
	next, err := c.ca.change(func(ca *pki.Authority) (*pki.Authority, error) {
		return ca.PruneCallers(now, func(issuer *x509.Certificate) (last time.Time) {
			for _, leaf := range leaves {
				if leaf.NotAfter.After(last) && pki.IssuedBy(leaf, issuer) {
					last = leaf.NotAfter
				}
			}
			return last
		})
	})
	if err != nil || next == ca {
		return err
	}
	c.log.Info("a former issuer of callers is not believed any more: all its certificates have ended")
	if err := c.refreshIdentity(ctx, now); err != nil {
		return err
	}
	return c.publisher.publish(ctx)
}
