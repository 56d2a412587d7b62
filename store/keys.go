package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
// the CA signed and core has no record of. An instance of a reusable gateway that
// was away for five minutes returns if its token has a place left, else it is
// [ErrTokenExhausted].
func (c *Core) SawKey(ctx context.Context, use KeyUse, now time.Time) (KeyVerdict, error) {
	h, err := c.judge(ctx, use, now)
	if err != nil || h.refusal != nil || h.State == KeyConfirmed && !h.component.away(now) {
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
		}
		if err := t.returned(h.component); err != nil {
			return err
		}
		if h.State == KeyConfirmed {
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
