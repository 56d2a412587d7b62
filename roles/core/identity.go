package core

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/store"
)

// coreName is the name in core's identity; there is one core.
const coreName = "core"

// defaultTrustDomain is what configs says when nobody chose one.
const defaultTrustDomain = "sallyport.internal"

// openAuthority opens the embedded CA, or makes it when core starts for the
// first time. It never makes one beside a database that knows another.
func openAuthority(ctx context.Context, db *store.Core, s configs.Core, log *slog.Logger) (*pki.Authority, error) {
	dir := filepath.Join(s.DataDir, "ca")
	ca, err := pki.OpenAuthority(dir)
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
	ca, err = pki.CreateAuthority(dir, s.TrustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	log.Info("made a new certificate authority", "directory", dir, "trust_domain", ca.TrustDomain())
	return ca, recordAuthority(ctx, db, ca)
}

// recordAuthority makes the database know the authority's own certificates,
// also when core was killed between making and recording them.
func recordAuthority(ctx context.Context, db *store.Core, ca *pki.Authority) error {
	b := ca.Bundle()
	for kind, certs := range map[string][]*x509.Certificate{"root": b.Roots, "intermediate": slices.Concat(b.ComponentIntermediates, b.CallerIntermediates)} {
		for _, cert := range certs {
			r, err := recordOf(&pki.Issued{Chain: []*x509.Certificate{cert}, Serial: pki.Serial(cert)}, kind, pki.ID{}, 0)
			if err != nil {
				return err
			}
			if err := db.RecordCertificate(ctx, actorCore, r); err != nil && !errors.Is(err, store.ErrExists) {
				return err
			}
		}
	}
	return nil
}

// refreshIdentity puts core's own certificate in force: the one on disk while
// it is good for long enough and says the right names, else a new one with a
// new key, which is on disk before it is used.
func (c *core) refreshIdentity(ctx context.Context, now time.Time) error {
	dir := filepath.Join(c.set.DataDir, "core")
	dns, ips := c.ownNames()
	credentials, _, err := pki.LoadCredentials(dir)
	switch {
	case err == nil && c.keeps(credentials, dns, ips, now):
		c.self.Set(credentials, c.ca.Bundle())
		return nil
	case err != nil && !errors.Is(err, pki.ErrNoCredentials):
		c.log.Warn("core's own certificate cannot be read and is made anew", "directory", dir, "cause", err)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("core's own certificate in %s: %w", dir, err)
		}
	}
	key, err := pki.NewKey("p256")
	if err != nil {
		return err
	}
	id := pki.ID{TrustDomain: c.ca.TrustDomain(), Role: pki.RoleCore, Name: coreName}
	issued, err := c.ca.IssueComponent(pki.ComponentRequest{ID: id, Incarnation: 1, PublicKey: key.Public(), DNS: dns, IPs: ips, Lifetime: c.set.CertLifetime}, now)
	if err != nil {
		return err
	}
	if err := c.record(ctx, actorCore, issued, string(pki.RoleCore), id, 1); err != nil {
		return err
	}
	credentials = &pki.Credentials{ID: id, Chain: issued.Chain, Key: key}
	if err := pki.SaveCredentials(dir, credentials, c.ca.Bundle()); err != nil {
		return fmt.Errorf("save core's own certificate: %w", err)
	}
	c.self.Set(credentials, c.ca.Bundle())
	c.log.Info("core has a new certificate of its own", "serial", issued.Serial, "not_after", issued.Chain[0].NotAfter)
	return nil
}

// keeps reports whether core's certificate can be used on.
func (c *core) keeps(have *pki.Credentials, dns []string, ips []netip.Addr, now time.Time) bool {
	leaf := have.Chain[0]
	verifier := &pki.Verifier{TrustDomain: c.ca.TrustDomain(), Anchors: c.ca.Bundle().ComponentIntermediates, Now: func() time.Time { return now }}
	if _, err := verifier.Component(have.Chain, pki.Expect{Role: pki.RoleCore, Name: coreName}); err != nil {
		return false
	}
	for _, name := range dns {
		if !slices.Contains(leaf.DNSNames, name) {
			return false
		}
	}
	for _, ip := range ips {
		if !slices.ContainsFunc(leaf.IPAddresses, func(have net.IP) bool { return have.Equal(net.IP(ip.AsSlice())) }) {
			return false
		}
	}
	return now.Before(renewAt(leaf, 0.60))
}

// ownNames are the names in core's certificate: how gateways may reach it.
func (c *core) ownNames() ([]string, []netip.Addr) {
	dns, ips := addHost([]string{"localhost"}, []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, c.advertise)
	return addHost(dns, ips, c.address)
}

// backdate is how far a certificate's NotBefore lies before it was issued.
const backdate = time.Minute

// renewAt is when a share of a certificate's life, counted from its issuance,
// is over.
func renewAt(leaf *x509.Certificate, share float64) time.Time {
	issued := leaf.NotBefore.Add(backdate)
	return issued.Add(time.Duration(float64(leaf.NotAfter.Sub(issued)) * share))
}

// keepIdentity renews core's own certificate well before it ends, for as long
// as core runs. Links that are open go on; new ones show the new certificate.
func (c *core) keepIdentity(ctx context.Context) error {
	pause := time.Second
	var leaf *x509.Certificate
	var due time.Time
	for {
		if now := c.self.Credentials().Chain[0]; now != leaf {
			jitter, err := rand.Int(rand.Reader, big.NewInt(60))
			if err != nil {
				return err
			}
			leaf, due = now, renewAt(now, 0.60+float64(jitter.Int64())/1000)
		}
		timer := time.NewTimer(nextLook(time.Until(due), pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		now := time.Now()
		if now.Before(due) {
			continue
		}
		if err := c.refreshIdentity(ctx, now); err != nil && ctx.Err() == nil {
			c.log.Error("core's own certificate could not be renewed", "not_after", leaf.NotAfter, "cause", err)
			pause = min(2*pause, time.Minute)
			continue
		}
		pause = time.Second
	}
}

// nextLook is how long to wait before looking at the clock again. A timer
// stands still while the host sleeps, and hears nothing of a clock that is set;
// certificates end by the clock.
func nextLook(until, least time.Duration) time.Duration {
	return max(min(until, time.Minute), least)
}
