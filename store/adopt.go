package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs/fault"
)

// Adoption is a newcomer's request to become a component.
type Adoption struct {
	TokenPublicKey []byte // Ed25519, proven by the handshake
	SPKI           []byte // SHA-256 of the SubjectPublicKeyInfo of its certificate request
	Source         string // address it came from, or was found at
	Version        string // its software

	// Instance is the suffix of an instance of a reusable gateway; random
	// when empty.
	Instance string

	// Issue makes the certificate and its chain (DER, leaf first). It runs
	// inside the transaction: what it makes is stored, or nobody ever hears of
	// it. It must not call the store, which waits for it.
	Issue func(ComponentRecord) (CertificateRecord, [][]byte, error)
}

// Adopted is the answer to a newcomer.
type Adopted struct {
	Component ComponentRecord
	Serial    string
	Chain     [][]byte // DER, leaf first, as Issue made it
	Again     bool     // the same key asked again and gets what it got
}

// adoption is a stored answer.
type adoption struct {
	name, source, serial string
	incarnation          uint64
	at, superseded       time.Time
	chain                [][]byte
}

func scanAdoption(row func(...any) error) (a adoption, err error) {
	var chain string
	var at, superseded int64
	if err := row(&a.name, &a.incarnation, &a.source, &at, &a.serial, &chain, &superseded); err != nil {
		return a, err
	}
	a.at, a.superseded = moment(at), moment(superseded)
	return a, json.Unmarshal([]byte(chain), &a.chain)
}

// Adopt makes the holder of a join token a component, in one transaction: it
// binds the token to the key, issues, records the certificate and audits.
//
// Within the token's time the same key gets the same stored answer, as often
// as it asks; nothing is issued twice. Any other key gets [ErrTokenBound], and
// an alarm is audited. The other refusals are [ErrTokenUnknown],
// [ErrTokenExpired] (nobody used it in time), [ErrTokenClosed] (used, and its
// time is over; or its component is gone), [ErrTokenExhausted] and
// [ErrBootstrapKey].
//
// A reusable token takes several keys. A gateway's makes an instance
// NAME-xxxxxx of each; a proxy's gives the name to the newest and revokes the
// certificate of the one before.
func (c *Core) Adopt(ctx context.Context, actor Actor, a Adoption, now time.Time) (Adopted, error) {
	if err := keyHash("adopt", a.SPKI); err != nil {
		return Adopted{}, err
	}
	a.Source = clean(a.Source, 128)
	var done Adopted
	err := c.decide(ctx, actor, func(t *tx) error {
		t.now = now
		token, err := tokenByKey(ctx, t.sql, a.TokenPublicKey)
		if err != nil {
			return err
		}
		done, err = t.adopt(token, a)
		fault.Point("join", "decided")
		return err
	})
	if err != nil {
		return Adopted{}, err
	}
	fault.Point("join", "recorded")
	return done, nil
}

func (t *tx) adopt(token TokenRecord, a Adoption) (Adopted, error) {
	if !token.Withdrawn.IsZero() {
		return Adopted{}, fmt.Errorf("%w: %s was removed or added anew since", ErrTokenClosed, label(token.Role, token.Name))
	}
	open := t.now.Before(token.Expires)
	held, err := one(t.ctx, t.sql, scanAdoption, `SELECT name, incarnation, source, at, serial, chain, superseded
		FROM adoptions WHERE token = ? AND spki = ?`, token.PublicKey, a.SPKI)
	switch {
	case err == nil && !held.superseded.IsZero():
		return Adopted{}, t.secondKey(token, a, open) // another one took its name over
	case err == nil && !open:
		return Adopted{}, fmt.Errorf("%w: it was used from %s at %s and its time is over", ErrTokenClosed, held.source, held.at.Format(time.RFC3339))
	case err == nil:
		return t.again(token, held)
	case !errors.Is(err, ErrNotFound):
		return Adopted{}, fmt.Errorf("read adoption: %w", err)
	case token.BoundSPKI != nil && !token.Reusable:
		return Adopted{}, t.secondKey(token, a, open)
	case !open:
		return Adopted{}, fmt.Errorf("%w (%s)", ErrTokenExpired, token.Expires.Format(time.RFC3339))
	case token.isKey(a.SPKI):
		return Adopted{}, ErrBootstrapKey
	}
	return t.admit(token, a)
}

// again repeats the answer to a key that has one.
func (t *tx) again(token TokenRecord, held adoption) (Adopted, error) {
	r, err := component(t.ctx, t.sql, token.Role, held.name)
	if errors.Is(err, ErrNotFound) || err == nil && r.Incarnation != held.incarnation {
		return Adopted{}, fmt.Errorf("%w: %s was removed since", ErrTokenClosed, label(token.Role, held.name))
	}
	if err != nil {
		return Adopted{}, err
	}
	return Adopted{Component: r, Serial: held.serial, Chain: held.chain, Again: true}, nil
}

// secondKey refuses a key that comes after another one, and raises the alarm:
// at the first such attempt and then whenever their number has doubled, since
// who holds the token can try as often as he likes.
func (t *tx) secondKey(token TokenRecord, a Adoption, open bool) error {
	alarms, err := one(t.ctx, t.sql, value[uint64], "UPDATE tokens SET alarms = alarms + 1 WHERE public_key = ? RETURNING alarms", token.PublicKey)
	if err != nil {
		return err
	}
	bound := &TokenBoundError{Source: token.Source, At: token.BoundAt, Alarm: bits.OnesCount64(alarms) == 1}
	if bound.Alarm {
		if err := t.audit(ActionAlarm+"second_key", label(token.Role, token.Name), fmt.Sprintf(
			"join token used with a second key from %s; its first use was from %s at %s; attempt %d. Unless both were you, somebody else has the token: run sallyport %s rm %s and add it again",
			a.Source, bound.Source, bound.At.Format(time.RFC3339), alarms, token.Role, token.Name)); err != nil {
			return err
		}
	}
	t.verdict = bound
	if !open {
		t.verdict = fmt.Errorf("%w: it was used from %s at %s and its time is over", ErrTokenClosed, bound.Source, bound.At.Format(time.RFC3339))
	}
	return nil
}

// admit makes a key that is new here a component.
func (t *tx) admit(token TokenRecord, a Adoption) (Adopted, error) {
	r, err := component(t.ctx, t.sql, token.Role, token.Name)
	if errors.Is(err, ErrNotFound) || err == nil && r.Incarnation != token.Incarnation {
		return Adopted{}, fmt.Errorf("%w: %s was removed since", ErrTokenClosed, label(token.Role, token.Name))
	}
	if err != nil {
		return Adopted{}, err
	}
	detail := ""
	switch {
	case token.Reusable && token.Role == pki.RoleGateway:
		if r, err = t.instance(token, r, a.Instance); err != nil {
			return Adopted{}, err
		}
		detail = ", instance of " + r.Parent
	case token.Reusable && r.State == StateJoined:
		if err := t.takeOver(token, r, a); err != nil {
			return Adopted{}, err
		}
		detail = ", in place of the one before"
	}
	certificate, chain, err := a.Issue(r)
	if err != nil {
		return Adopted{}, fmt.Errorf("adopt %s: %w", r.Label(), err)
	}
	if err := checkIssued(r, a.SPKI, certificate, chain); err != nil {
		return Adopted{}, fmt.Errorf("adopt %s: %w", r.Label(), err)
	}
	certificate.Incarnation = r.Incarnation
	if err := t.insertCertificate(certificate); err != nil {
		return Adopted{}, fmt.Errorf("adopt %s: %w", r.Label(), err)
	}
	r.State, r.Joined, r.LastSeen = StateJoined, t.now.UTC(), t.now.UTC()
	r.SPKI, r.NotAfter = bytes.Clone(a.SPKI), certificate.NotAfter
	r.Version, r.Observed = clean(a.Version, 128), a.Source
	if err := t.putComponent(r); err != nil {
		return Adopted{}, fmt.Errorf("adopt %s: %w", r.Label(), err)
	}
	if err := t.bind(token, r, a, certificate.Serial, chain); err != nil {
		return Adopted{}, fmt.Errorf("adopt %s: %w", r.Label(), err)
	}
	if err := t.insertKey(r, KeyConfirmed, certificate, a.Source, nil); err != nil {
		return Adopted{}, fmt.Errorf("adopt %s: %w", r.Label(), err)
	}
	err = t.audit("component.join", r.Label(), fmt.Sprintf("incarnation %d%s, from %s, key %x, serial %s, %s",
		r.Incarnation, detail, a.Source, a.SPKI, certificate.Serial, until(certificate.NotAfter)))
	return Adopted{Component: r, Serial: certificate.Serial, Chain: chain}, err
}

// checkIssued holds Issue to what it was asked for.
func checkIssued(r ComponentRecord, spki []byte, c CertificateRecord, chain [][]byte) error {
	role, name, err := c.owner()
	switch {
	case err != nil:
		return err
	case role != r.Role || name != r.Name:
		return fmt.Errorf("a certificate for %s was issued", c.Identity)
	case !bytes.Equal(c.SPKI, spki):
		return errors.New("a certificate for another key was issued")
	case len(chain) == 0 || !bytes.Equal(chain[0], c.DER):
		return errors.New("the chain does not begin with the certificate")
	}
	return nil
}

func (t *tx) bind(token TokenRecord, r ComponentRecord, a Adoption, serial string, chain [][]byte) error {
	stored, err := json.Marshal(chain)
	if err != nil {
		return err
	}
	var sole any
	if !token.Reusable {
		sole = 1
	}
	_, err = t.exec(`INSERT INTO adoptions (token, spki, sole, name, incarnation, source, at, serial, chain) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		token.PublicKey, a.SPKI, sole, r.Name, r.Incarnation, a.Source, nanos(t.now), serial, string(stored))
	return err
}

// instanceLives is how long an instance of a reusable gateway that is not seen
// counts as live. Connected ones are seen every minute; one without a disk that
// was killed never comes back, and must not keep its successor out.
const instanceLives = 5 * time.Minute

// instance makes the record of one more instance of a reusable gateway.
func (t *tx) instance(token TokenRecord, parent ComponentRecord, suffix string) (ComponentRecord, error) {
	if full, err := crowded(t.ctx, t.sql, parent.Role, parent.Name, token.Uses, t.now); err != nil {
		return parent, err
	} else if full {
		return parent, fmt.Errorf("%w (%d): run sallyport gateway rm on one of %s-*, or wait until one has been away for %s", ErrTokenExhausted, token.Uses, parent.Name, instanceLives)
	}
	if suffix == "" {
		var b [4]byte
		rand.Read(b[:])
		suffix = strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:6]
	}
	r := parent
	r.Name, r.Parent, r.Reusable, r.Added = parent.Name+"-"+suffix, parent.Name, false, t.now.UTC()
	if err := pki.ValidName(r.Name); err != nil {
		return r, err
	}
	former, err := one(t.ctx, t.sql, scanComponent, selectComponents+"WHERE role = ? AND name = ?", r.Role, r.Name)
	if err == nil {
		return r, fmt.Errorf("%s %w", former.Label(), ErrExists)
	}
	if !errors.Is(err, ErrNotFound) {
		return r, err
	}
	r.Incarnation, err = t.incarnation(r.Role, r.Name, ComponentRecord{})
	return r, err
}

// crowded says whether as many instances of a reusable gateway live as may.
func crowded(ctx context.Context, from source, role pki.Role, parent string, uses int, now time.Time) (bool, error) {
	if uses <= 0 {
		return false, nil
	}
	live, err := one(ctx, from, value[int], "SELECT count(*) FROM components WHERE role = ? AND parent = ? AND max(last_seen, joined) > ?",
		role, parent, nanos(now.Add(-instanceLives)))
	return live >= uses, err
}

// away says of an instance that its place may be another one's by now.
func (r *ComponentRecord) away(now time.Time) bool {
	return r.Parent != "" && !r.LastSeen.After(now.Add(-instanceLives)) && !r.Joined.After(now.Add(-instanceLives))
}

// mayReturn refuses an instance that was away while others took all the places
// that its token has: else who has the token makes as many as he likes, one
// after the other, and lets them return together.
func mayReturn(ctx context.Context, from source, r ComponentRecord, now time.Time) error {
	if !r.away(now) {
		return nil
	}
	uses, err := one(ctx, from, value[int], "SELECT uses FROM tokens WHERE role = ? AND name = ? AND withdrawn = 0 ORDER BY added DESC, rowid DESC LIMIT 1", r.Role, r.Parent)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the join token of %s: %w", label(r.Role, r.Parent), err)
	}
	full, err := crowded(ctx, from, r.Role, r.Parent, uses, now)
	if err == nil && full {
		err = fmt.Errorf("%s was away for %s or more, and %w (%d)", r.Label(), instanceLives, ErrTokenExhausted, uses)
	}
	return err
}

// returned counts an instance that was away among those that live.
func (t *tx) returned(r ComponentRecord) error {
	if !r.away(t.now) {
		return nil
	}
	if _, err := t.exec("UPDATE components SET last_seen = max(last_seen, ?) WHERE role = ? AND name = ?", nanos(t.now), r.Role, r.Name); err != nil {
		return err
	}
	return t.audit("component.return", r.Label(), "last seen "+r.LastSeen.Format(time.RFC3339))
}

// takeOver ends the proxy that had a reusable token's name until now.
func (t *tx) takeOver(token TokenRecord, r ComponentRecord, a Adoption) error {
	if err := t.revokeSerials(r, "taken over by a new start of "+r.Label()); err != nil {
		return err
	}
	if err := t.forgetKeys(r); err != nil {
		return err
	}
	if _, err := t.exec("UPDATE adoptions SET superseded = ? WHERE token = ? AND superseded = 0", nanos(t.now), token.PublicKey); err != nil {
		return err
	}
	return t.audit("certificate.revoke", r.Label(), fmt.Sprintf("taken over by a new start from %s; the one before was seen at %s", a.Source, r.Observed))
}
