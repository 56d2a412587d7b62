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
	Root        []byte    // SHA-256 of the SubjectPublicKeyInfo of the root above it; nil: not known
	Holder      string    // who has it and for what, "proxy/dmz1: public port": the next one of this holder supersedes it
	Revoked     time.Time // zero: not revoked
	Reason      string    // of the revocation
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
	if r.Root != nil {
		if err := keyHash("root of certificate "+r.Serial, r.Root); err != nil {
			return err
		}
	}
	n, err := t.exec(`INSERT INTO certificates
		(serial, identity, kind, subject, role, name, incarnation, not_before, not_after, spki, der, root, holder, recorded, revoked, revoked_reason)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (serial) DO NOTHING`,
		r.Serial, r.Identity, r.Kind, r.Subject, role, name, r.Incarnation, nanos(r.NotBefore), nanos(r.NotAfter),
		r.SPKI, r.DER, r.Root, clean(r.Holder, 256), nanos(t.now), nanos(r.Revoked), r.Reason)
	if err == nil && n == 0 {
		return fmt.Errorf("a certificate with this serial number %w", ErrExists)
	}
	return err
}

func scanCertificate(row func(...any) error) (r CertificateRecord, err error) {
	var notBefore, notAfter, revoked int64
	err = row(&r.Serial, &r.Identity, &r.Kind, &r.Subject, &r.Incarnation, &notBefore, &notAfter, &r.SPKI, &r.DER, &r.Root, &r.Holder, &revoked, &r.Reason)
	r.NotBefore, r.NotAfter, r.Revoked = moment(notBefore), moment(notAfter), moment(revoked)
	return r, err
}

const selectCertificates = `SELECT serial, identity, kind, subject, incarnation, not_before, not_after, spki, der, root, holder, revoked, revoked_reason
	FROM certificates c `

// Certificates returns what is valid or not yet valid at now, revoked ones
// too; of a component and of a holder only the newest. With superseded, every one that was ever
// recorded. The one that ends first comes first.
func (c *Core) Certificates(ctx context.Context, superseded bool, now time.Time) ([]CertificateRecord, error) {
	query, args := selectCertificates, []any{}
	if !superseded {
		query += `WHERE not_after > ? AND NOT (kind IN ('core', 'gateway', 'proxy') AND EXISTS (
			SELECT 1 FROM certificates n WHERE n.role = c.role AND n.name = c.name AND n.kind = c.kind AND n.rowid > c.rowid))
			AND NOT (holder <> '' AND EXISTS (SELECT 1 FROM certificates n WHERE n.holder = c.holder AND n.rowid > c.rowid)) `
		args = append(args, nanos(now))
	}
	list, err := all(ctx, c.db.reader, scanCertificate, query+"ORDER BY not_after, c.rowid", args...)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	return list, nil
}

// CertificatesInUse returns, of each component that has joined, the certificates
// of its confirmed and of its pending key, by role and name.
func (c *Core) CertificatesInUse(ctx context.Context) ([]CertificateRecord, error) {
	list, err := all(ctx, c.db.reader, scanCertificate, selectCertificates+`WHERE serial IN (SELECT k.serial FROM identity_keys k
		JOIN components m ON m.role = k.role AND m.name = k.name AND m.incarnation = k.incarnation AND m.state = 'joined'
		WHERE k.state IN ('confirmed', 'pending')) ORDER BY c.role, c.name, c.rowid`)
	if err != nil {
		return nil, fmt.Errorf("read the certificates in use: %w", err)
	}
	return list, nil
}

// Recorded is when a certificate came to be known here. [ErrNotFound] for one
// that is not.
func (c *Core) Recorded(ctx context.Context, serial string) (time.Time, error) {
	at, err := one(ctx, c.db.reader, value[int64], "SELECT recorded FROM certificates WHERE serial = ?", serial)
	if err != nil {
		return time.Time{}, fmt.Errorf("read certificate %s: %w", serial, err)
	}
	return moment(at), nil
}
