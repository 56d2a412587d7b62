package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sallyport/acme/pki"
)

// Revocation covers one of: an identity's incarnations up to and including
// Incarnation; when Serial is set, that one certificate, with its key; when SPKI
// alone is set, whatever that is the hash of, an API key or the key of
// certificates.
type Revocation struct {
	Role        pki.Role
	Name        string
	Incarnation uint64
	Serial      string
	Reason      string
	At          time.Time
	SPKI        []byte    // SHA-256 of the certificate's SubjectPublicKeyInfo, of a serial nil if not known; or of an API key
	Ends        time.Time // when nothing that it covers could be accepted any more; zero: never
}

// recovery is how long after its end a certificate may still be renewed, and a
// day to be sure: so long its revocation has to be known.
const recovery = 31 * 24 * time.Hour

func scanRevocation(row func(...any) error) (r Revocation, err error) {
	var at, ends int64
	err = row(&r.Role, &r.Name, &r.Incarnation, &r.Serial, &r.Reason, &at, &r.SPKI, &ends)
	r.At, r.Ends = moment(at), moment(ends)
	return r, err
}

const revocationColumns = "role, name, incarnation, serial, reason, at, spki, ends"

// Revocations returns those that still matter: of each identity the one that
// covers most, and of single certificates and of instances, whose names are
// never used again, those that ended not long ago.
func (c *Core) Revocations(ctx context.Context) ([]Revocation, error) {
	list, err := all(ctx, c.db.reader, scanRevocation, "SELECT "+revocationColumns+` FROM revocations r
		WHERE (ends = 0 OR ends > ?) AND (serial <> '' OR NOT EXISTS (
			SELECT 1 FROM revocations n WHERE n.role = r.role AND n.name = r.name AND n.serial = '' AND n.incarnation > r.incarnation))
		ORDER BY id`, nanos(c.Now()))
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	return list, nil
}

// RevocationEntry is an entry of the list of revocations, which only grows.
type RevocationEntry struct {
	Sequence uint64 // from 1, without gaps
	Revocation
}

// RevocationEntries returns the entries after a sequence number, 0 for all, in
// the order in which they were made.
func (c *Core) RevocationEntries(ctx context.Context, after uint64) ([]RevocationEntry, error) {
	list, err := all(ctx, c.db.reader, func(row func(...any) error) (e RevocationEntry, err error) {
		e.Revocation, err = scanRevocation(func(columns ...any) error { return row(append([]any{&e.Sequence}, columns...)...) })
		return e, err
	}, "SELECT * FROM (SELECT row_number() OVER (ORDER BY id) AS sequence, "+revocationColumns+" FROM revocations) WHERE sequence > ? ORDER BY sequence", after)
	if err != nil {
		return nil, fmt.Errorf("read the list of revocations: %w", err)
	}
	return list, nil
}

// revokedAt is when an identity or one of its certificates was revoked: by
// name and incarnation, by serial number, or by key. Zero: it was not.
func revokedAt(ctx context.Context, from source, role pki.Role, name string, c *CertificateRecord) (time.Time, error) {
	at, err := one(ctx, from, value[int64], `SELECT at FROM revocations WHERE (role = ? AND name = ? AND incarnation >= ? AND serial = '')
		OR (role = '' AND serial <> '' AND serial = ?) OR spki = ? ORDER BY id LIMIT 1`,
		role, name, c.Incarnation, c.Serial, c.SPKI)
	if errors.Is(err, ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read revocations of %s: %w", label(role, name), err)
	}
	return moment(at), nil
}

// insertRevocation appends to the list, unless what it says is there. Of a
// serial number that is listed without its key, the key follows by itself.
func (t *tx) insertRevocation(r Revocation) (bool, error) {
	if r.Role == "" && r.Serial == "" {
		known, err := one(t.ctx, t.sql, value[int], "SELECT count(*) FROM revocations WHERE spki = ?", r.SPKI)
		if err != nil || known > 0 {
			return false, err
		}
	}
	n, err := t.exec("INSERT INTO revocations ("+revocationColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		r.Role, r.Name, r.Incarnation, r.Serial, r.Reason, nanos(r.At), r.SPKI, nanos(r.Ends))
	if err == nil && n == 0 && r.Serial != "" && r.SPKI != nil {
		r.Serial = ""
		return t.insertRevocation(r)
	}
	return n > 0, err
}

// revokeIdentity revokes what a component was until now, with its certificates.
func (t *tx) revokeIdentity(r ComponentRecord, reason string) error {
	v := Revocation{Role: r.Role, Name: r.Name, Incarnation: r.Incarnation, Reason: reason, At: t.now}
	if r.Parent != "" {
		v.Ends = r.NotAfter.Add(recovery)
	}
	if _, err := t.insertRevocation(v); err != nil {
		return err
	}
	return t.markRevoked(v)
}

// markRevoked notes at the certificates and API keys what a revocation covers. A
// renewal with a key that is revoked before it was seen is none: another key may
// follow.
func (t *tx) markRevoked(v Revocation) error {
	if v.Role == "" {
		if _, err := t.exec("DELETE FROM identity_keys WHERE (serial = ? OR spki = ?) AND state = 'pending'", v.Serial, v.SPKI); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE api_keys SET revoked = ? WHERE sha256 = ? AND revoked = 0", nanos(v.At), v.SPKI); err != nil {
			return err
		}
	}
	_, err := t.exec(`UPDATE certificates SET revoked = ?1, revoked_reason = ?2 WHERE revoked = 0 AND
			CASE WHEN ?3 <> '' THEN serial = ?3 WHEN ?4 <> '' THEN role = ?4 AND name = ?5 AND incarnation <= ?6
				ELSE spki = ?7 AND kind NOT IN ('root', 'intermediate') END`,
		nanos(v.At), v.Reason, v.Serial, v.Role, v.Name, v.Incarnation, v.SPKI)
	return err
}

// revokeSerials revokes the certificates that an identity has, and leaves it
// its incarnation.
func (t *tx) revokeSerials(r ComponentRecord, reason string) error {
	list, err := all(t.ctx, t.sql, scanCertificate, selectCertificates+"WHERE role = ? AND name = ? AND incarnation = ? AND revoked = 0 ORDER BY c.rowid",
		r.Role, r.Name, r.Incarnation)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := t.revokeSerial(c, reason); err != nil {
			return err
		}
	}
	return nil
}

// revokeSerial revokes one certificate, and with it the key that it is for.
func (t *tx) revokeSerial(c CertificateRecord, reason string) error {
	v := Revocation{Serial: c.Serial, SPKI: c.SPKI, Reason: reason, At: t.now}
	if !c.NotAfter.IsZero() {
		v.Ends = c.NotAfter.Add(recovery)
	}
	if _, err := t.insertRevocation(v); err != nil {
		return err
	}
	return t.markRevoked(v)
}

// MergeRevocations adds what another list has and this database does not, in
// the order of that list, and returns how many entries that were. What they
// cover is revoked here from then on: components that are covered are removed.
func (c *Core) MergeRevocations(ctx context.Context, actor Actor, list []Revocation, now time.Time) (int, error) {
	added := 0
	err := c.decide(ctx, actor, func(t *tx) (err error) {
		t.now = now
		added, err = t.mergeRevocations(list)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("merge revocations: %w", err)
	}
	return added, nil
}

func (t *tx) mergeRevocations(list []Revocation) (added int, err error) {
	for _, v := range list {
		if !v.valid() {
			return 0, fmt.Errorf("%+v is no revocation: it names neither one identity nor one serial number nor one key", v)
		}
		v.Reason = clean(v.Reason, 256)
		fresh, err := t.insertRevocation(v)
		if err != nil {
			return 0, err
		}
		if !fresh {
			continue
		}
		added++
		if err := t.markRevoked(v); err != nil {
			return 0, err
		}
		if v.Role == "" {
			continue
		}
		r, err := component(t.ctx, t.sql, v.Role, v.Name)
		if errors.Is(err, ErrNotFound) || err == nil && r.Incarnation > v.Incarnation {
			continue
		}
		if err == nil {
			err = t.discard(r, v.Reason)
		}
		if err != nil {
			return 0, err
		}
	}
	if added == 0 {
		return 0, nil
	}
	return added, t.audit("revocations.merge", fmt.Sprintf("%d of %d", added, len(list)), "they were not known here")
}

// valid says whether v names one thing.
func (v *Revocation) valid() bool {
	switch {
	case v.Role != "":
		return v.Name != "" && v.Incarnation > 0 && v.Serial == "" && v.SPKI == nil
	case v.Name != "" || v.Incarnation > 0 || v.SPKI != nil && len(v.SPKI) != 32:
		return false
	case v.Serial != "":
		return validSerial(v.Serial)
	}
	return v.SPKI != nil
}

// discard ends a component whose revocation is recorded.
func (t *tx) discard(r ComponentRecord, reason string) error {
	instances, err := all(t.ctx, t.sql, scanComponent, selectComponents+"WHERE role = ? AND parent = ?", r.Role, r.Name)
	if err != nil {
		return err
	}
	for _, i := range instances {
		if err := t.dropInstance(i, reason); err != nil {
			return err
		}
	}
	if err := t.withdraw(r); err != nil || r.Parent == "" {
		return err
	}
	return t.eraseInstance(r)
}

// validSerial says whether s is a serial number as it is written here.
func validSerial(s string) bool {
	return s != "" && len(s) <= 40 && strings.Trim(s, "0123456789abcdef") == ""
}
