package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sallyport/acme/pki"
)

// RevokeRequest names what to revoke: a certificate by its serial number, or
// everything that an identity has had until now. Exactly one is set.
type RevokeRequest struct {
	Serial   string // hexadecimal, lower case
	Identity string // SPIFFE ID
	Reason   string // for people, and for the CRL if it is a name of RFC 5280: keyCompromise, superseded, …

	// Unrecorded revokes a serial number also when no certificate of that
	// number is known here: issued with --ca-dir, or lost with a database.
	Unrecorded bool
}

// Revoked is what a [RevokeRequest] came to.
type Revoked struct {
	Serials    []string          // of certificates that were revoked just now
	Components []ComponentRecord // that were removed just now, as they were; instances too
	Sequence   uint64            // of the newest entry of the list: what components have to acknowledge
}

// RevokeCertificate revokes a certificate with its key, or an identity. With the
// certificate of a component that counts, confirmed or pending, goes the other
// one, so that nobody renews past it. A component whose identity is revoked is removed, as [Core.RemoveComponent]
// does it, and can be added again as its next incarnation. Of a caller or a
// service every certificate is revoked that is still good; its name can be used
// again. What was revoked before stays as it is and is no error. [ErrNotFound]
// for what is not known here.
//
// Core's newest certificate and those of the CA are not revoked but replaced.
func (c *Core) RevokeCertificate(ctx context.Context, actor Actor, r RevokeRequest, now time.Time) (Revoked, error) {
	what := r.Identity
	if what == "" {
		what = "serial " + r.Serial
	}
	r.Reason = clean(r.Reason, 256)
	if r.Reason == "" {
		r.Reason = "unspecified"
	}
	var done Revoked
	err := c.decide(ctx, actor, func(t *tx) (err error) {
		t.now = now
		if (r.Serial == "") == (r.Identity == "") {
			return errors.New("name either a serial number or an identity")
		}
		if r.Identity != "" {
			done, err = t.revokeNamed(r)
		} else {
			done, err = t.revokeNumbered(r)
		}
		if err != nil {
			return err
		}
		if t.changed {
			var removed []string
			for _, c := range done.Components {
				removed = append(removed, c.Label())
			}
			if err := t.audit("certificate.revoke", what, fmt.Sprintf("%s; %d certificates %s; %d components %s",
				r.Reason, len(done.Serials), strings.Join(done.Serials, " "), len(removed), strings.Join(removed, " "))); err != nil {
				return err
			}
		}
		done.Sequence, err = one(t.ctx, t.sql, value[uint64], "SELECT count(*) FROM revocations")
		return err
	})
	if err != nil {
		return Revoked{}, fmt.Errorf("revoke %s: %w", what, err)
	}
	return done, nil
}

// revokeNumbered revokes one certificate.
func (t *tx) revokeNumbered(r RevokeRequest) (done Revoked, err error) {
	if !validSerial(r.Serial) {
		return done, errors.New("a serial number is written in lower-case hexadecimal digits, as 'cert show' prints it")
	}
	c, err := one(t.ctx, t.sql, scanCertificate, selectCertificates+"WHERE serial = ?", r.Serial)
	if errors.Is(err, ErrNotFound) && r.Unrecorded {
		c, err = CertificateRecord{Serial: r.Serial}, nil
	}
	if err != nil {
		return done, err
	}
	if !c.Revoked.IsZero() {
		return done, nil
	}
	if err := t.mayRevoke(c); err != nil {
		return done, err
	}
	also, err := t.twin(c)
	if err != nil {
		return done, err
	}
	if err := t.revokeSerial(c, r.Reason); err != nil || !t.changed {
		return done, err
	}
	done.Serials = []string{c.Serial}
	for _, twin := range also {
		if err := t.revokeSerial(twin, r.Reason); err != nil {
			return done, err
		}
		done.Serials = append(done.Serials, twin.Serial)
	}
	return done, nil
}

// twin is the other certificate that a component may go on with: who revokes the
// one in use means the one that is on its way to it too, and the other way round.
func (t *tx) twin(c CertificateRecord) ([]CertificateRecord, error) {
	role, name, err := c.owner()
	if err != nil || string(role) != c.Kind || role != pki.RoleGateway && role != pki.RoleProxy {
		return nil, err
	}
	return all(t.ctx, t.sql, scanCertificate, selectCertificates+`WHERE revoked = 0 AND serial <> ?1 AND serial IN (
			SELECT serial FROM identity_keys WHERE role = ?2 AND name = ?3 AND incarnation = ?4 AND state IN ('confirmed', 'pending'))
		AND EXISTS (SELECT 1 FROM identity_keys WHERE role = ?2 AND name = ?3 AND incarnation = ?4 AND state IN ('confirmed', 'pending') AND spki = ?5)`,
		c.Serial, role, name, c.Incarnation, c.SPKI)
}

// mayRevoke refuses what would cut core off from everybody.
func (t *tx) mayRevoke(c CertificateRecord) error {
	switch c.Kind {
	case "root", "intermediate":
		return fmt.Errorf("it is the CA's own (%s): run sallyport ca rotate --compromised, which distrusts it at once", c.Kind)
	case string(pki.RoleCore):
		newest, err := one(t.ctx, t.sql, value[string], "SELECT serial FROM certificates WHERE kind = ? ORDER BY rowid DESC LIMIT 1", c.Kind)
		if err == nil && newest == c.Serial {
			err = errors.New("core works with it: run sallyport ca rotate --compromised if core's key may be known to others")
		}
		return err
	}
	return nil
}

// revokeNamed revokes all that an identity has had until now.
func (t *tx) revokeNamed(r RevokeRequest) (done Revoked, err error) {
	id, err := pki.ParseID(r.Identity)
	if err != nil {
		return done, err
	}
	list, err := all(t.ctx, t.sql, scanCertificate, selectCertificates+"WHERE identity = ? AND revoked = 0 AND not_after > ? ORDER BY c.rowid", r.Identity, nanos(t.now))
	if err != nil {
		return done, err
	}
	for _, c := range list {
		done.Serials = append(done.Serials, c.Serial)
	}
	switch id.Role {
	case pki.RoleCore:
		return Revoked{}, errors.New("core works with this identity: run sallyport ca rotate --compromised if core's key may be known to others")
	case pki.RoleGateway, pki.RoleProxy:
		c, err := component(t.ctx, t.sql, id.Role, id.Name)
		if err != nil {
			return Revoked{}, err
		}
		instances, err := t.remove(c, r.Reason)
		done.Components = append([]ComponentRecord{c}, instances...)
		return done, err
	}
	for _, c := range list {
		if err := t.revokeSerial(c, r.Reason); err != nil {
			return Revoked{}, err
		}
	}
	if len(list) > 0 {
		return done, nil
	}
	known, err := one(t.ctx, t.sql, value[int], "SELECT count(*) FROM certificates WHERE identity = ?", r.Identity)
	if err == nil && known == 0 {
		err = ErrNotFound
	}
	return Revoked{}, err
}

// RevokedCertificate is an entry of a CRL.
type RevokedCertificate struct {
	Serial   string
	Kind     string // of the certificate, tells whose CRL it belongs to; empty when it was never recorded
	At       time.Time
	Reason   string
	NotAfter time.Time // zero: not known
}

// afterEnd is how long a CRL goes on to list what has ended by itself: it has
// to be on one more than the certificate's life has.
const afterEnd = 7 * 24 * time.Hour

// RevokedCertificates returns what a CRL of now has to list, the first that was
// revoked first.
func (c *Core) RevokedCertificates(ctx context.Context, now time.Time) ([]RevokedCertificate, error) {
	list, err := all(ctx, c.db.reader, func(row func(...any) error) (r RevokedCertificate, err error) {
		var at, notAfter int64
		err = row(&r.Serial, &r.Kind, &at, &r.Reason, &notAfter)
		r.At, r.NotAfter = moment(at), moment(notAfter)
		return r, err
	}, `SELECT serial, kind, revoked AS at, revoked_reason, not_after FROM certificates WHERE revoked <> 0 AND not_after > ?1
		UNION ALL SELECT serial, '', at, reason, 0 FROM revocations r WHERE serial <> '' AND (ends = 0 OR ends > ?1)
			AND NOT EXISTS (SELECT 1 FROM certificates c WHERE c.serial = r.serial)
		ORDER BY at, serial`, nanos(now.Add(-afterEnd)))
	if err != nil {
		return nil, fmt.Errorf("read revoked certificates: %w", err)
	}
	return list, nil
}
