package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// APIKeyRecord is an API key as core knows it: by its SHA-256.
type APIKeyRecord struct {
	Name    string
	SHA256  []byte
	Prefix  string // its first characters, to recognise it by
	Created time.Time
	Expires time.Time // zero: never
	Revoked time.Time // zero: not revoked
}

func scanAPIKey(row func(...any) error) (k APIKeyRecord, err error) {
	var created, expires, revoked int64
	err = row(&k.Name, &k.SHA256, &k.Prefix, &created, &expires, &revoked)
	k.Created, k.Expires, k.Revoked = moment(created), moment(expires), moment(revoked)
	return k, err
}

const (
	selectAPIKeys = "SELECT name, sha256, prefix, created, expires, revoked FROM api_keys"
	liveAPIKey    = selectAPIKeys + " WHERE name = ? AND revoked = 0"
)

// CreateAPIKey records a new key. A name has one live key at a time
// ([ErrExists]); an expired one makes room by itself.
func (c *Core) CreateAPIKey(ctx context.Context, actor Actor, k APIKeyRecord) (APIKeyRecord, error) {
	if err := pki.ValidName(k.Name); err != nil {
		return k, fmt.Errorf("create API key: %w", err)
	}
	if len(k.SHA256) != 32 {
		return k, fmt.Errorf("create API key %s: the SHA-256 of the secret has 32 bytes, not %d", k.Name, len(k.SHA256))
	}
	err := c.decide(ctx, actor, func(t *tx) error {
		k.Revoked = time.Time{}
		if k.Created.IsZero() {
			k.Created = t.now.UTC()
		}
		live, err := one(ctx, t.sql, scanAPIKey, liveAPIKey, k.Name)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		case live.Expires.IsZero() || t.now.Before(live.Expires):
			return fmt.Errorf("%w (%s…): revoke it first with sallyport apikey revoke %s, or choose another name", ErrExists, live.Prefix, k.Name)
		default:
			if _, err := t.exec("UPDATE api_keys SET revoked = expires WHERE name = ? AND revoked = 0", k.Name); err != nil {
				return err
			}
		}
		if _, err := t.exec("INSERT INTO api_keys (name, sha256, prefix, created, expires) VALUES (?, ?, ?, ?, ?)",
			k.Name, k.SHA256, k.Prefix, nanos(k.Created), nanos(k.Expires)); err != nil {
			return err
		}
		return t.audit("apikey.create", "apikey/"+k.Name, k.Prefix+"…, "+until(k.Expires))
	})
	if err != nil {
		return k, fmt.Errorf("create API key %s: %w", k.Name, err)
	}
	return k, nil
}

// APIKeys returns all keys, revoked and expired ones too, oldest first.
func (c *Core) APIKeys(ctx context.Context) ([]APIKeyRecord, error) {
	keys, err := all(ctx, c.db.reader, scanAPIKey, selectAPIKeys+" ORDER BY id")
	if err != nil {
		return nil, fmt.Errorf("read API keys: %w", err)
	}
	return keys, nil
}

// RevokeAPIKey ends the live key of a name, and puts it on the list of
// revocations, so that no older copy of this database revives it.
func (c *Core) RevokeAPIKey(ctx context.Context, actor Actor, name string) (APIKeyRecord, error) {
	var k APIKeyRecord
	err := c.decide(ctx, actor, func(t *tx) (err error) {
		if k, err = one(ctx, t.sql, scanAPIKey, liveAPIKey, name); err != nil {
			return err
		}
		k.Revoked = t.now.UTC()
		if _, err := t.exec("UPDATE api_keys SET revoked = ? WHERE name = ? AND revoked = 0", nanos(k.Revoked), name); err != nil {
			return err
		}
		v := Revocation{SPKI: k.SHA256, Reason: "API key " + name, At: k.Revoked, Ends: k.Expires}
		if _, err := t.insertRevocation(v); err != nil {
			return err
		}
		return t.audit("apikey.revoke", "apikey/"+name, k.Prefix+"…")
	})
	if err != nil {
		return k, fmt.Errorf("revoke API key %s: %w", name, err)
	}
	return k, nil
}

// until says how long something holds.
func until(t time.Time) string {
	if t.IsZero() {
		return "without expiry"
	}
	return "until " + t.UTC().Format(time.RFC3339)
}
