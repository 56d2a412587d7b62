package store

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"sallyport/acme/pki"
)

// holder is who shows a key, as judged.
type holder struct {
	KeyVerdict
	component ComponentRecord
	key       KeyRecord // as it is known
	refusal   error     // why it is refused; nil: it is not
	lost      bool      // issued between a backup and its restoration, and accepted for that
}

// judge reads what a key is, and raises the alarm if it is to be raised.
func (c *Core) judge(ctx context.Context, use KeyUse, now time.Time) (holder, error) {
	h, err := readHolder(ctx, c.db.reader, use, now)
	if err != nil || !h.alarming(use, now) {
		return h, err
	}
	n := c.attempts.due(use.Certificate.SPKI, now)
	if n == 0 {
		return h, nil // counted, and written with the next
	}
	err = c.decide(ctx, use.actor(), func(t *tx) (err error) {
		t.now = now
		if h, err = readHolder(t.ctx, t.sql, use, now); err != nil || !h.alarming(use, now) {
			return err
		}
		return t.keyAlarm(&h, use, n)
	})
	return h, err
}

// attempts thins out what the uses of refused keys write: who has one can try as
// often as he likes.
type attempts struct {
	mu   sync.Mutex
	keys map[string]*attempted
}

type attempted struct {
	written int       // times
	last    time.Time // of them
	waiting uint64    // attempts that are not written yet
}

const (
	attemptsAtOnce = 8 // that are written as they come; then one write in
	attemptsEvery  = time.Second
	maxAttempted   = 10_000 // keys that are remembered; beyond that all are forgotten
)

// due counts an attempt and returns how many are to be written now.
func (a *attempts) due(spki []byte, now time.Time) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.keys == nil || len(a.keys) >= maxAttempted {
		a.keys = map[string]*attempted{}
	}
	k := a.keys[string(spki)]
	if k == nil {
		k = &attempted{}
		a.keys[string(spki)] = k
	}
	k.waiting++
	if k.written >= attemptsAtOnce && now.Sub(k.last).Abs() < attemptsEvery {
		return 0
	}
	n := k.waiting
	k.waiting, k.last = 0, now
	k.written++
	return n
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
		return h, nil
	}
	if err := mayReturn(ctx, from, r, now); errors.Is(err, ErrTokenExhausted) {
		h.refusal = err
	} else if err != nil {
		return h, err
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

// keyAlarm audits the use of a refused key, n attempts: of a superseded one at
// the first and whenever their number has doubled, of one without record once.
func (t *tx) keyAlarm(h *holder, use KeyUse, n uint64) error {
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
	attempts, err := one(t.ctx, t.sql, value[uint64], `UPDATE identity_keys SET alarms = alarms + ?
		WHERE role = ? AND name = ? AND incarnation = ? AND spki = ? RETURNING alarms`, n, r.Role, r.Name, r.Incarnation, c.SPKI)
	if errors.Is(err, ErrNotFound) { // one that a restored database has no record of
		first, err := t.alertOnce("superseded_key " + c.Serial)
		if err != nil || !first {
			return err
		}
		attempts, n = 1, 1
	} else if err != nil {
		return err
	}
	if bits.Len64(attempts-n) == bits.Len64(attempts) {
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
		if err = t.keyAlarm(&h, use, 1); err == nil {
			t.verdict = h.refusal // and what was audited stays
		}
	}
	return h, err
}
