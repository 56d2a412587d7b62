package store

import (
	"context"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// CertificateRecord is a certificate that core issued, to a component or to
// others, or one of the authority itself.
type CertificateRecord struct {
	Serial      string // hexadecimal, lower case
	Identity    string // SPIFFE ID, empty when it has none
	Kind        string // "root", "intermediate", "core", "gateway", "proxy", "client", "service"
	Subject     string
	Incarnation uint64 // of a component's identity
	NotBefore   time.Time
	NotAfter    time.Time
	SPKI        []byte // SHA-256 of the SubjectPublicKeyInfo
	DER         []byte
	Revoked     time.Time // zero: not revoked
}

// owner is whose certificate it is, as columns; empty for the authority's own.
func (r *CertificateRecord) owner() (role pki.Role, name string, err error) {
	if r.Identity == "" {
		return "", "", nil
	}
	id, err := pki.ParseID(r.Identity)
	return id.Role, id.Name, err
}

// RecordCertificate keeps a certificate and audits that it was issued.
// [ErrExists] if its serial number is known.
func (c *Core) RecordCertificate(ctx context.Context, actor Actor, r CertificateRecord) error {
	err := c.decide(ctx, actor, func(t *tx) error {
		if err := t.insertCertificate(r); err != nil {
			return err
		}
		subject := r.Identity
		if subject == "" {
			subject = r.Subject
		}
		return t.audit("certificate.issue", subject, fmt.Sprintf("%s, serial %s, %s", r.Kind, r.Serial, until(r.NotAfter)))
	})
	if err != nil {
		return fmt.Errorf("record certificate %s: %w", r.Serial, err)
	}
	return nil
}

func (t *tx) insertCertificate(r CertificateRecord) error {
	role, name, err := r.owner()
	if err != nil {
		return err
	}
	if r.Serial == "" || r.Kind == "" || len(r.DER) == 0 {
		return fmt.Errorf("a certificate needs serial, kind and DER")
	}
	if err := keyHash("certificate "+r.Serial, r.SPKI); err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO certificates
		(serial, identity, kind, subject, role, name, incarnation, not_before, not_after, spki, der, recorded, revoked)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (serial) DO NOTHING`,
		r.Serial, r.Identity, r.Kind, r.Subject, role, name, r.Incarnation, nanos(r.NotBefore), nanos(r.NotAfter),
		r.SPKI, r.DER, nanos(t.now), nanos(r.Revoked))
	if err == nil && n == 0 {
		return fmt.Errorf("a certificate with this serial number %w", ErrExists)
	}
	return err
}

func scanCertificate(row func(...any) error) (r CertificateRecord, err error) {
	var notBefore, notAfter, revoked int64
	err = row(&r.Serial, &r.Identity, &r.Kind, &r.Subject, &r.Incarnation, &notBefore, &notAfter, &r.SPKI, &r.DER, &revoked)
	r.NotBefore, r.NotAfter, r.Revoked = moment(notBefore), moment(notAfter), moment(revoked)
	return r, err
}

const selectCertificates = `SELECT serial, identity, kind, subject, incarnation, not_before, not_after, spki, der, revoked
	FROM certificates c `

// Certificates returns what is valid or not yet valid at now, revoked ones
// too; of a component only the newest. With superseded, every one that was ever
// recorded. The one that ends first comes first.
func (c *Core) Certificates(ctx context.Context, superseded bool, now time.Time) ([]CertificateRecord, error) {
	query, args := selectCertificates, []any{}
	if !superseded {
		query += `WHERE not_after > ? AND NOT (kind IN ('core', 'gateway', 'proxy') AND EXISTS (
			SELECT 1 FROM certificates n WHERE n.role = c.role AND n.name = c.name AND n.kind = c.kind AND n.rowid > c.rowid)) `
		args = append(args, nanos(now))
	}
	list, err := all(ctx, c.db.reader, scanCertificate, query+"ORDER BY not_after, c.rowid", args...)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	return list, nil
}

// Revocation covers an identity's incarnations up to and including
// Incarnation, or, when Serial is set, that one certificate.
type Revocation struct {
	Role        pki.Role
	Name        string
	Incarnation uint64
	Serial      string
	Reason      string
	At          time.Time
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
