package core

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs/fault"
)

// coreName is the name in core's identity; there is one core.
const coreName = "core"

// defaultTrustDomain is what configs says when nobody chose one.
const defaultTrustDomain = "sallyport.internal"

// refreshIdentity puts core's own certificate in force: the one on disk while
// it is good for long enough, says the right names and is of the hierarchy that
// issues, else a new one with a new key, which is on disk before it is used.
// The trust bundle comes into force with it.
func (c *core) refreshIdentity(ctx context.Context, now time.Time) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	ca := c.ca.get()
	dir := filepath.Join(c.set.DataDir, "core")
	dns, ips := c.ownNames()
	credentials, _, err := pki.LoadCredentials(dir)
	switch {
	case err == nil && c.keeps(ca, credentials, dns, ips, now):
		c.show(ca, credentials)
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
	id := pki.ID{TrustDomain: ca.TrustDomain(), Role: pki.RoleCore, Name: coreName}
	issued, err := ca.IssueComponent(pki.ComponentRequest{ID: id, Incarnation: 1, PublicKey: key.Public(), DNS: dns, IPs: ips, Lifetime: c.set.CertLifetime}, now)
	if err != nil {
		return err
	}
	if err := c.record(ctx, actorCore, ca, issued, string(pki.RoleCore), id, 1, ""); err != nil {
		return err
	}
	fault.Point("own certificate", "recorded")
	credentials = &pki.Credentials{ID: id, Chain: issued.Chain, Key: key}
	if err := pki.SaveCredentials(dir, credentials, ca.Bundle()); err != nil {
		return fmt.Errorf("save core's own certificate: %w", err)
	}
	fault.Point("own certificate", "saved")
	c.show(ca, credentials)
	c.log.Info("core has a new certificate of its own", "serial", issued.Serial, "not_after", issued.Chain[0].NotAfter)
	return nil
}

// show lets core prove these credentials and believe ca from the next
// handshake on. Links that were made with others are replaced one by one.
func (c *core) show(ca *pki.Authority, credentials *pki.Credentials) {
	if have := c.self.Credentials(); have != nil && have.Chain[0].Equal(credentials.Chain[0]) {
		credentials = have // the same one, and no reason to replace a link
	}
	c.self.SetCore(credentials, ca.Bundle(), ca.RecoveryChain(credentials))
}

// keeps reports whether core's certificate can be used on.
func (c *core) keeps(ca *pki.Authority, have *pki.Credentials, dns []string, ips []netip.Addr, now time.Time) bool {
	leaf := have.Chain[0]
	verifier := ca.Bundle().ComponentVerifier(func() time.Time { return now }, nil)
	if _, err := verifier.Component(have.Chain, pki.Expect{Role: pki.RoleCore, Name: coreName}); err != nil {
		return false
	}
	if ca.GenerationOf(leaf) != ca.Generation() {
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
// as core runs, and at once when another hierarchy issues. Links that are open
// go on; those that core dialled are replaced, new ones show the new
// certificate.
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
			c.alerts.raise(ctx, alert{Code: "renewal_failed", Subject: "core", Once: "renewal core " + pki.Serial(leaf),
				Text: "core's own certificate could not be renewed: " + clean(err.Error()), Remedy: fmt.Sprintf("see core's log; the certificate ends at %s", leaf.NotAfter.UTC().Format(time.RFC3339))})
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
