package store

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// Why a join token is refused. [ErrTokenBound] arrives as a [*TokenBoundError].
var (
	ErrTokenUnknown   = errors.New("this join token is not known here")
	ErrTokenExpired   = errors.New("this join token has expired without having been used")
	ErrTokenClosed    = errors.New("this join token is closed")
	ErrTokenBound     = errors.New("this join token was used with another key")
	ErrTokenExhausted = errors.New("this join token has as many live instances as it may have")
	ErrBootstrapKey   = errors.New("the key of the certificate request is the token's own")
)

// TokenBoundError says who used the token first.
type TokenBoundError struct {
	Source string
	At     time.Time
	Alarm  bool // this attempt was audited; the first was, and then as their number doubles
}

func (e *TokenBoundError) Error() string {
	return fmt.Sprintf("%v, from %s at %s", ErrTokenBound, e.Source, e.At.UTC().Format(time.RFC3339))
}

// Is makes it [ErrTokenBound].
func (e *TokenBoundError) Is(target error) bool { return target == ErrTokenBound }

// TokenRecord is what core keeps of a join token: never the seed, only the
// public key that it derives.
type TokenRecord struct {
	PublicKey   []byte // Ed25519
	Role        pki.Role
	Name        string
	Incarnation uint64
	Expires     time.Time
	Reusable    bool
	Uses        int       // reusable: how many live instances it may make, 0 without bound
	Withdrawn   time.Time // its component was removed or added anew; zero: it was not
	BoundSPKI   []byte    // SHA-256 of the first key that used it; nil: nobody has
	BoundAt     time.Time
	Source      string // where that came from
}

func (r *TokenRecord) check() error {
	switch {
	case len(r.PublicKey) != ed25519.PublicKeySize:
		return fmt.Errorf("the token's public key has %d bytes, not %d", len(r.PublicKey), ed25519.PublicKeySize)
	case r.Expires.IsZero():
		return errors.New("a join token needs an expiry")
	case r.Uses < 0:
		return fmt.Errorf("a join token cannot have %d uses", r.Uses)
	}
	return nil
}

// isKey reports whether spki is the hash of the token's own key.
func (r *TokenRecord) isKey(spki []byte) bool {
	der, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(r.PublicKey))
	return err == nil && sha256.Sum256(der) == [32]byte(spki)
}

func scanToken(row func(...any) error) (r TokenRecord, err error) {
	var expires, withdrawn, bound int64
	err = row(&r.PublicKey, &r.Role, &r.Name, &r.Incarnation, &expires, &r.Reusable, &r.Uses, &withdrawn, &r.BoundSPKI, &bound, &r.Source)
	r.Expires, r.Withdrawn, r.BoundAt = moment(expires), moment(withdrawn), moment(bound)
	return r, err
}

// selectTokens shows, of a token that several keys used, the one that holds it
// now: the first that was not superseded.
const selectTokens = `SELECT t.public_key, t.role, t.name, t.incarnation, t.expires, t.reusable, t.uses, t.withdrawn,
		a.spki, coalesce(a.at, 0), coalesce(a.source, '')
	FROM tokens t LEFT JOIN adoptions a ON a.rowid = (
		SELECT rowid FROM adoptions WHERE token = t.public_key ORDER BY superseded > 0, at, rowid LIMIT 1) `

// TokenByKey returns the token that derives this Ed25519 key, open or not, or
// [ErrTokenUnknown].
func (c *Core) TokenByKey(ctx context.Context, publicKey []byte) (TokenRecord, error) {
	return tokenByKey(ctx, c.db.reader, publicKey)
}

func tokenByKey(ctx context.Context, from source, publicKey []byte) (TokenRecord, error) {
	r, err := one(ctx, from, scanToken, selectTokens+"WHERE t.public_key = ?", publicKey)
	if errors.Is(err, ErrNotFound) {
		return r, ErrTokenUnknown
	}
	if err != nil {
		return r, fmt.Errorf("read join token: %w", err)
	}
	return r, nil
}

// TokenOf returns the token that a component was invited with, unless it was
// withdrawn: what core pins when it dials a proxy that has not joined. An
// instance has its parent's. [ErrNotFound] when there is none.
func (c *Core) TokenOf(ctx context.Context, role pki.Role, name string) (TokenRecord, error) {
	r, err := one(ctx, c.db.reader, scanToken, selectTokens+`WHERE t.withdrawn = 0 AND t.role = ?1 AND t.name = coalesce(
		(SELECT nullif(parent, '') FROM components WHERE role = ?1 AND name = ?2), ?2) ORDER BY t.added DESC, t.rowid DESC LIMIT 1`, role, name)
	if err != nil {
		return r, fmt.Errorf("join token of %s %s: %w", role, name, err)
	}
	return r, nil
}

// putToken makes r the only token of its component that is not withdrawn.
func (t *tx) putToken(r TokenRecord) error {
	if _, err := t.exec("UPDATE tokens SET withdrawn = ? WHERE role = ? AND name = ? AND withdrawn = 0", nanos(t.now), r.Role, r.Name); err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO tokens (public_key, role, name, incarnation, added, expires, reusable, uses)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (public_key) DO NOTHING`,
		r.PublicKey, r.Role, r.Name, r.Incarnation, nanos(t.now), nanos(r.Expires), r.Reusable, r.Uses)
	if err == nil && n == 0 {
		return fmt.Errorf("a join token with this key %w", ErrExists)
	}
	return err
}
