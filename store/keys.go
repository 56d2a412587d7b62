package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"sallyport/acme/pki"
)

// Why a key is refused.
var (
	ErrNotJoined    = errors.New("this identity has not joined here")
	ErrRevoked      = errors.New("this identity or certificate was revoked")
	ErrSuperseded   = errors.New("this key was superseded by a newer one of the same identity")
	ErrPendingOther = errors.New("a renewal with another key is pending")
	ErrKeyReused    = errors.New("a renewal needs a key that was never used before")
)

// KeyState is what core thinks of a key of a component.
//
// An identity has one confirmed key, the last one that a control session ran
// with; joining confirms the first. A renewal makes another one pending, and
// while it is, the confirmed key obtains that same certificate again and
// nothing else. The first control session with the pending key confirms it;
// the keys before are superseded and refused from then on. So of two that hold
// the same key, a component and a copy of its disk, only one can go on, and the
// other one's refusal raises the alarm, whichever renews first. A disk that was
// rolled back looks the same. The remedy is to remove the component and to add
// it again.
type KeyState string

// States of a key.
const (
	KeyUnknown    KeyState = ""           // of no component that has joined here
	KeyConfirmed  KeyState = "confirmed"  // the last one that a control session ran with
	KeyPending    KeyState = "pending"    // issued, not seen on a control session yet
	KeySuperseded KeyState = "superseded" // a newer one was confirmed
	KeyRevoked    KeyState = "revoked"
)

// KeyUse is a component's certificate in use at a handshake. Its chain was
// verified: nothing here checks a signature.
type KeyUse struct {
	Certificate CertificateRecord // of the leaf: identity, incarnation, serial, key, times, DER
	Source      string            // address it came from, or was found at
	Begun       time.Time         // when its handshake began; zero: now
}

// KeyVerdict is what becomes of a [KeyUse].
type KeyVerdict struct {
	State KeyState
	Since time.Time // when the key came into this state
	Alarm bool      // this use wrote an alarm into the audit
}

// KeyRecord is one key of a component.
type KeyRecord struct {
	SPKI      []byte
	State     KeyState
	Since     time.Time
	Serial    string
	NotBefore time.Time
	NotAfter  time.Time
	Root      []byte // SHA-256 of the SubjectPublicKeyInfo of the root above it; nil: not known
	Source    string // address that asked for it, and once it is confirmed, that it was seen at

	chain [][]byte
}

func scanKey(row func(...any) error) (k KeyRecord, err error) {
	var since, notBefore, notAfter int64
	var chain string
	if err := row(&k.SPKI, &k.State, &since, &k.Serial, &notBefore, &notAfter, &k.Root, &k.Source, &chain); err != nil {
		return k, err
	}
	k.Since, k.NotBefore, k.NotAfter = moment(since), moment(notBefore), moment(notAfter)
	return k, json.Unmarshal([]byte(chain), &k.chain)
}

const (
	selectKeys = "SELECT spki, state, since, serial, not_before, not_after, root, source, chain FROM identity_keys "
	keyOf      = selectKeys + "WHERE role = ? AND name = ? AND incarnation = ? AND spki = ?"
	keyInState = selectKeys + "WHERE role = ? AND name = ? AND incarnation = ? AND state = ?"
)

// Keys returns the keys of a component's present incarnation that are
// remembered: the confirmed one, the pending one, then the superseded ones,
// the newest first.
func (c *Core) Keys(ctx context.Context, role pki.Role, name string) ([]KeyRecord, error) {
	r, err := c.Component(ctx, role, name)
	if err != nil {
		return nil, err
	}
	list, err := all(ctx, c.db.reader, scanKey, selectKeys+`WHERE role = ? AND name = ? AND incarnation = ?
		ORDER BY CASE state WHEN 'confirmed' THEN 1 WHEN 'pending' THEN 2 ELSE 3 END, not_before DESC`, role, name, r.Incarnation)
	if err != nil {
		return nil, fmt.Errorf("read keys of %s: %w", r.Label(), err)
	}
	return list, nil
}

// SawKey notes that a control session runs with a key: a pending one becomes
// the confirmed one. It fails with [ErrSuperseded], [ErrRevoked] or
// [ErrNotJoined] when the session must not go on. A superseded key raises an
// alarm, unless its handshake began before it was superseded; so does one that
// the CA signed and core has no record of.
func (c *Core) SawKey(ctx context.Context, use KeyUse, now time.Time) (KeyVerdict, error) {
	h, err := c.judge(ctx, use, now)
	if err != nil || h.refusal != nil || h.State == KeyConfirmed {
		return h.KeyVerdict, errors.Join(err, h.refusal)
	}
	err = c.decide(ctx, use.actor(), func(t *tx) error {
		t.now = now
		h, err = t.holder(use)
		switch {
		case err != nil || t.verdict != nil: // an alarm stays, so this is no error of the transaction
			return err
		case h.refusal != nil:
			return h.refusal
		case h.State == KeyConfirmed: // by another session, just now
			return nil
		}
		return t.confirm(&h, use)
	})
	return h.KeyVerdict, err
}

// CheckKey is SawKey for any other link: it confirms nothing, a pending key is
// as good as the confirmed one, and it writes only where it raises an alarm.
func (c *Core) CheckKey(ctx context.Context, use KeyUse, now time.Time) (KeyVerdict, error) {
	h, err := c.judge(ctx, use, now)
	return h.KeyVerdict, errors.Join(err, h.refusal)
}

// judge reads what a key is, and raises the alarm if it is to be raised.
func (c *Core) judge(ctx context.Context, use KeyUse, now time.Time) (holder, error) {
	h, err := readHolder(ctx, c.db.reader, use, now)
	if err != nil || !h.alarming(use, now) {
		return h, err
	}
	err = c.decide(ctx, use.actor(), func(t *tx) (err error) {
		t.now = now
		if h, err = readHolder(t.ctx, t.sql, use, now); err != nil || !h.alarming(use, now) {
			return err
		}
		return t.keyAlarm(&h, use)
	})
	return h, err
}

// actor is who the audit names.
func (u *KeyUse) actor() Actor {
	role, name, _ := u.Certificate.owner()
	return Actor(label(role, name) + " from " + u.from())
}

func (u *KeyUse) from() string {
	if u.Source == "" {
		return "an unknown address"
	}
	return clean(u.Source, 128)
}

// holder is who shows a key, as judged.
type holder struct {
	KeyVerdict
	component ComponentRecord
	key       KeyRecord // as it is known
	refusal   error     // why it is refused; nil: it is not
	lost      bool      // issued between a backup and its restoration, and accepted for that
}

// readHolder judges a key by what is stored.
func readHolder(ctx context.Context, from source, use KeyUse, now time.Time) (h holder, err error) {
	role, name, err := use.Certificate.owner()
	if err != nil {
		return h, err
	}
	if role != pki.RoleGateway && role != pki.RoleProxy {
		return h, fmt.Errorf("judge the key of %s: only gateways and proxies are components of core", use.Certificate.Identity)
	}
	if err := keyHash("judge a key of "+label(role, name), use.Certificate.SPKI); err != nil {
		return h, err
	}
	at, err := revokedAt(ctx, from, role, name, &use.Certificate)
	if err != nil {
		return h, err
	}
	h.component = ComponentRecord{Role: role, Name: name}
	if !at.IsZero() {
		h.State, h.Since = KeyRevoked, at
		h.refusal = fmt.Errorf("%s, serial %s: %w at %s", label(role, name), use.Certificate.Serial, ErrRevoked, at.Format(time.RFC3339))
		return h, nil
	}
	r, err := component(ctx, from, role, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return h, err
	}
	if err != nil || r.Incarnation != use.Certificate.Incarnation {
		h.refusal = fmt.Errorf("%s, incarnation %d: %w", label(role, name), use.Certificate.Incarnation, ErrNotJoined)
		return h, nil
	}
	h.component = r
	h.key, err = one(ctx, from, scanKey, keyOf, role, name, r.Incarnation, use.Certificate.SPKI)
	if errors.Is(err, ErrNotFound) {
		return h, h.unrecorded(ctx, from, use)
	}
	if err != nil {
		return h, fmt.Errorf("read keys of %s: %w", r.Label(), err)
	}
	if h.State, h.Since = h.key.State, h.key.Since; h.State == KeySuperseded {
		h.refusal = fmt.Errorf("%s: %w, at %s", r.Label(), ErrSuperseded, h.Since.Format(time.RFC3339))
	}
	return h, nil
}

// unrecorded judges a key that is not known although its identity is. That can
// be only in a database that was restored: what was issued after the backup is
// accepted when it is younger than the key that counts here. So a component
// that has renewed since connects to a restored core, and an older key than one
// that was seen does not.
func (h *holder) unrecorded(ctx context.Context, from source, use KeyUse) error {
	r, label := h.component, h.component.Label()
	gap, err := one(ctx, from, scanGap, "SELECT made, restored FROM state")
	if err != nil {
		return fmt.Errorf("read when this database was restored: %w", err)
	}
	if !gap.holds(use.Certificate.NotBefore) {
		h.refusal = fmt.Errorf("%s: %w with this key: core has no record of serial %s", label, ErrNotJoined, use.Certificate.Serial)
		return nil
	}
	confirmed, err := one(ctx, from, scanKey, keyInState, r.Role, r.Name, r.Incarnation, KeyConfirmed)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("read keys of %s: %w", label, err)
	}
	if err == nil && !use.Certificate.NotBefore.After(confirmed.NotBefore) {
		h.State, h.Since = KeySuperseded, confirmed.Since
		h.refusal = fmt.Errorf("%s: %w, at %s", label, ErrSuperseded, h.Since.Format(time.RFC3339))
		return nil
	}
	h.State, h.lost = KeyPending, true
	return nil
}

// gap is the time between a backup and its restoration.
type gap struct{ made, restored time.Time }

func scanGap(row func(...any) error) (g gap, err error) {
	var made, restored int64
	err = row(&made, &restored)
	return gap{moment(made), moment(restored)}, err
}

// slack covers how far NotBefore lies before the issuance, and that the backup
// took its time.
const slack = 2 * time.Minute

// holds says whether a certificate may have been issued in the gap.
func (g gap) holds(notBefore time.Time) bool {
	return !g.made.IsZero() && notBefore.After(g.made.Add(-slack)) && notBefore.Before(g.restored)
}

// alarming says whether the use of a refused key is to be looked at: not when
// its handshake had begun before the key was superseded, and not when the
// operator revoked it and knows.
func (h *holder) alarming(use KeyUse, now time.Time) bool {
	begun := use.Begun
	if begun.IsZero() {
		begun = now
	}
	switch h.State {
	case KeySuperseded:
		return !begun.Before(h.Since)
	case KeyUnknown:
		return h.refusal != nil
	}
	return false
}

// keyAlarm audits the use of a refused key: of a superseded one at the first
// attempt and whenever their number has doubled, of one without record once.
func (t *tx) keyAlarm(h *holder, use KeyUse) error {
	r, c := h.component, use.Certificate
	remedy := fmt.Sprintf("If that was not you: run sallyport %s rm %s, and add it again", r.Role, r.Name)
	if h.State == KeyUnknown {
		if first, err := t.alertOnce("unknown_key " + c.Serial); err != nil || !first {
			return err
		}
		h.Alarm = true
		return t.audit(ActionAlarm+"unknown_key", r.Label(), fmt.Sprintf(
			"a certificate that the CA signed and core has no record of was used from %s: serial %s, key %x, incarnation %d, issued at %s. It is refused. After a restore from an old backup: add the component again. Otherwise somebody may have the CA's keys: see sallyport ca rotate --compromised",
			use.from(), c.Serial, c.SPKI, c.Incarnation, c.NotBefore.UTC().Format(time.RFC3339)))
	}
	attempts, err := one(t.ctx, t.sql, value[uint64], `UPDATE identity_keys SET alarms = alarms + 1
		WHERE role = ? AND name = ? AND incarnation = ? AND spki = ? RETURNING alarms`, r.Role, r.Name, r.Incarnation, c.SPKI)
	if errors.Is(err, ErrNotFound) { // one that a restored database has no record of
		first, err := t.alertOnce("superseded_key " + c.Serial)
		if err != nil || !first {
			return err
		}
		attempts = 1
	} else if err != nil {
		return err
	}
	if bits.OnesCount64(attempts) != 1 {
		return nil
	}
	h.Alarm = true
	return t.audit(ActionAlarm+"superseded_key", r.Label(), fmt.Sprintf(
		"key %x, serial %s, was used from %s, but a newer one counts since %s; attempt %d. Either its disk was rolled back, or there is a copy of it. %s",
		c.SPKI, c.Serial, use.from(), h.Since.Format(time.RFC3339), attempts, remedy))
}

// holder is readHolder in a transaction, with the alarm.
func (t *tx) holder(use KeyUse) (holder, error) {
	h, err := readHolder(t.ctx, t.sql, use, t.now)
	if err == nil && h.alarming(use, t.now) {
		if err = t.keyAlarm(&h, use); err == nil {
			t.verdict = h.refusal // and what was audited stays
		}
	}
	return h, err
}

// confirm makes the key that h shows the one that counts.
func (t *tx) confirm(h *holder, use KeyUse) error {
	r, c := h.component, use.Certificate
	states := "state = 'confirmed'"
	if h.lost {
		states = "state IN ('confirmed', 'pending')"
	}
	if _, err := t.exec("UPDATE identity_keys SET state = 'superseded', since = ?, chain = '[]' WHERE role = ? AND name = ? AND incarnation = ? AND "+states,
		nanos(t.now), r.Role, r.Name, r.Incarnation); err != nil {
		return err
	}
	detail := ""
	if h.lost {
		detail = ", issued after the backup that this database was restored from"
		if err := t.recover(&r, use); err != nil {
			return err
		}
	} else if _, err := t.exec("UPDATE identity_keys SET state = 'confirmed', since = ?, source = ?, chain = '[]' WHERE role = ? AND name = ? AND incarnation = ? AND spki = ?",
		nanos(t.now), use.from(), r.Role, r.Name, r.Incarnation, c.SPKI); err != nil {
		return err
	}
	r.SPKI, r.NotAfter = bytes.Clone(c.SPKI), c.NotAfter.UTC()
	if _, err := t.exec("UPDATE components SET spki = ?, not_after = ? WHERE role = ? AND name = ?", r.SPKI, nanos(r.NotAfter), r.Role, r.Name); err != nil {
		return err
	}
	h.component, h.KeyVerdict = r, KeyVerdict{State: KeyConfirmed, Since: t.now.UTC()}
	return t.audit("key.confirm", r.Label(), fmt.Sprintf("key %x, serial %s, seen from %s%s", c.SPKI, c.Serial, use.from(), detail))
}

// recover records what a restored database does not know: a certificate that
// was issued after the backup, of a component that may have joined after it.
func (t *tx) recover(r *ComponentRecord, use KeyUse) error {
	if err := t.insertCertificate(use.Certificate); err != nil && !errors.Is(err, ErrExists) {
		return err
	}
	if err := t.insertKey(*r, KeyConfirmed, use.Certificate, use.from(), nil); err != nil {
		return err
	}
	if r.State != StateInvited {
		return nil
	}
	r.State, r.Joined = StateJoined, t.now.UTC()
	if _, err := t.exec("UPDATE tokens SET withdrawn = ? WHERE role = ? AND name = ? AND withdrawn = 0 AND reusable = 0", nanos(t.now), r.Role, r.Name); err != nil {
		return err
	}
	return t.putComponent(*r)
}

// insertKey records a key of a component. chain is the answer that a pending one
// gets again.
func (t *tx) insertKey(r ComponentRecord, state KeyState, c CertificateRecord, source string, chain [][]byte) error {
	stored, err := json.Marshal(append([][]byte{}, chain...))
	if err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO identity_keys (role, name, incarnation, spki, state, since, serial, not_before, not_after, root, source, chain, ends)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (role, name, incarnation, spki) DO UPDATE SET since = excluded.since, serial = excluded.serial, not_before = excluded.not_before,
			not_after = excluded.not_after, root = excluded.root, source = excluded.source, chain = excluded.chain, ends = excluded.ends
			WHERE state = excluded.state`,
		r.Role, r.Name, r.Incarnation, c.SPKI, state, nanos(t.now), c.Serial, nanos(c.NotBefore), nanos(c.NotAfter), c.Root,
		clean(source, 128), string(stored), nanos(c.NotAfter.Add(recovery)))
	if err == nil && n == 0 {
		return ErrKeyReused
	}
	return err
}

// forgetKeys forgets every key of an identity, whose certificates are revoked.
func (t *tx) forgetKeys(r ComponentRecord) error {
	_, err := t.exec("DELETE FROM identity_keys WHERE role = ? AND name = ?", r.Role, r.Name)
	return err
}
