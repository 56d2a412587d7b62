package store

import (
	"context"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// Revocation covers an identity's incarnations up to and including
// Incarnation, or, when Serial is set, that one certificate.
type Revocation struct {
	Role        pki.Role
	Name        string
	Incarnation uint64
	Serial      string
	Reason      string
	At          time.Time
	SPKI        []byte    // of a serial: the SHA-256 of the certificate's SubjectPublicKeyInfo; nil: not known
	Ends        time.Time // when nothing that it covers could be accepted any more; zero: never
}

// recovery is how long after its end a certificate may still be renewed, and a
// day to be sure: so long its revocation has to be known.
const recovery = 31 * 24 * time.Hour

// Revocations returns those that still matter: of each identity the one that
// covers most, and of single certificates and of instances, whose names are
// never used again, those that ended not long ago.
func (c *Core) Revocations(ctx context.Context) ([]Revocation, error) {
	list, err := all(ctx, c.db.reader, func(row func(...any) error) (r Revocation, err error) {
		var at int64
		err = row(&r.Role, &r.Name, &r.Incarnation, &r.Serial, &r.Reason, &at)
		r.At = moment(at)
		return r, err
	}, `SELECT role, name, incarnation, serial, reason, at FROM revocations r
		WHERE (ends = 0 OR ends > ?) AND (serial <> '' OR NOT EXISTS (
			SELECT 1 FROM revocations n WHERE n.role = r.role AND n.name = r.name AND n.serial = '' AND n.incarnation > r.incarnation))
		ORDER BY id`, nanos(c.Now()))
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	return list, nil
}

// revokeIdentity revokes what a component was until now, with its certificates.
func (t *tx) revokeIdentity(r ComponentRecord, reason string) error {
	var ends time.Time
	if r.Parent != "" {
		ends = r.NotAfter.Add(recovery)
	}
	if _, err := t.exec("INSERT INTO revocations (role, name, incarnation, reason, at, ends) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		r.Role, r.Name, r.Incarnation, reason, nanos(t.now), nanos(ends)); err != nil {
		return err
	}
	_, err := t.exec("UPDATE certificates SET revoked = ? WHERE role = ? AND name = ? AND incarnation <= ? AND revoked = 0",
		nanos(t.now), r.Role, r.Name, r.Incarnation)
	return err
}

// revokeSerials revokes the certificates that an identity has, and leaves it
// its incarnation.
func (t *tx) revokeSerials(r ComponentRecord, reason string) error {
	const live = " FROM certificates WHERE role = ? AND name = ? AND incarnation = ? AND revoked = 0"
	if _, err := t.exec("INSERT INTO revocations (serial, reason, at, ends) SELECT serial, ?, ?, not_after + ?"+live+" ON CONFLICT DO NOTHING",
		reason, nanos(t.now), recovery, r.Role, r.Name, r.Incarnation); err != nil {
		return err
	}
	_, err := t.exec("UPDATE certificates SET revoked = ? WHERE role = ? AND name = ? AND incarnation = ? AND revoked = 0",
		nanos(t.now), r.Role, r.Name, r.Incarnation)
	return err
}
