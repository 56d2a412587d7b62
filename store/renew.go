package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"sallyport/configs/fault"
)

// Renewal is a component's request for its next certificate.
type Renewal struct {
	Holder  KeyUse // the certificate that asks, its chain verified
	NewSPKI []byte // SHA-256 of the SubjectPublicKeyInfo of the certificate request: another key each time

	// Stale says of a pending certificate that it is of no use any more and
	// is to be issued again, for the same key: after the CA has changed. One
	// that has lived six tenths of its life is stale in any case.
	Stale func(CertificateRecord) bool

	// Issue makes the certificate and its chain, as [Adoption.Issue] does.
	Issue func(ComponentRecord) (CertificateRecord, [][]byte, error)
}

// Renewed is the answer to a renewal.
type Renewed struct {
	Component ComponentRecord
	Serial    string
	Chain     [][]byte // DER, leaf first
	Again     bool     // the same key asked again and gets what it got
}

// Renew issues the next certificate of a component, in one transaction. Its key
// is pending until a control session runs with it, see [KeyState] and
// [Core.SawKey].
//
// Who asks with the pending key, because it expired before it was ever seen,
// has confirmed it by asking. Until then the confirmed key gets the pending
// certificate again, if it asks for the same key; a request for another key is
// refused with [ErrPendingOther] and raises an alarm: somebody else renews with
// the same identity. The other refusals are [ErrSuperseded], with an alarm,
// [ErrRevoked], [ErrNotJoined] and [ErrKeyReused].
func (c *Core) Renew(ctx context.Context, actor Actor, r Renewal, now time.Time) (Renewed, error) {
	if err := keyHash("renew", r.NewSPKI); err != nil {
		return Renewed{}, err
	}
	if actor == "" {
		return Renewed{}, ErrNoActor
	}
	// A key that is refused costs no transaction, but for its alarm.
	if h, err := c.judge(ctx, r.Holder, now); err != nil || h.refusal != nil {
		return Renewed{}, errors.Join(err, h.refusal)
	}
	var done Renewed
	err := c.decide(ctx, actor, func(t *tx) error {
		t.now = now
		h, err := t.holder(r.Holder)
		if err != nil {
			return err
		}
		if h.refusal != nil {
			if t.verdict != nil {
				return nil // and the alarm stays
			}
			return h.refusal
		}
		if at, err := revokedAt(t.ctx, t.sql, h.component.Role, h.component.Name, &CertificateRecord{Incarnation: h.component.Incarnation, SPKI: r.NewSPKI}); err != nil || !at.IsZero() {
			return errors.Join(err, fmt.Errorf("renew %s with the key of a revoked certificate: %w", h.component.Label(), ErrRevoked))
		}
		if h.State == KeyPending {
			if bytes.Equal(r.NewSPKI, r.Holder.Certificate.SPKI) {
				return fmt.Errorf("renew %s: %w", h.component.Label(), ErrKeyReused)
			}
			if err := t.confirm(&h, r.Holder); err != nil {
				return err
			}
		}
		done, err = t.renew(h.component, r)
		fault.Point("renewal", "decided")
		return err
	})
	if err != nil {
		return Renewed{}, err
	}
	fault.Point("renewal", "recorded")
	return done, nil
}

func (t *tx) renew(r ComponentRecord, ask Renewal) (Renewed, error) {
	pending, err := one(t.ctx, t.sql, scanKey, keyInState, r.Role, r.Name, r.Incarnation, KeyPending)
	waiting := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Renewed{}, fmt.Errorf("renew %s: %w", r.Label(), err)
	}
	if waiting && !bytes.Equal(pending.SPKI, ask.NewSPKI) {
		return Renewed{}, t.pendingOther(r, pending, ask)
	}
	what := "certificate.renew"
	if waiting {
		stale, err := t.stale(pending, ask)
		if err != nil {
			return Renewed{}, fmt.Errorf("renew %s: %w", r.Label(), err)
		}
		if !stale {
			return Renewed{Component: r, Serial: pending.Serial, Chain: pending.chain, Again: true}, nil
		}
		what = "certificate.reissue"
	} else if _, err := one(t.ctx, t.sql, scanKey, keyOf, r.Role, r.Name, r.Incarnation, ask.NewSPKI); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = ErrKeyReused
		}
		return Renewed{}, fmt.Errorf("renew %s: %w", r.Label(), err)
	}
	certificate, chain, err := ask.Issue(r)
	if err == nil {
		err = checkIssued(r, ask.NewSPKI, certificate, chain)
	}
	if err != nil {
		return Renewed{}, fmt.Errorf("renew %s: %w", r.Label(), err)
	}
	certificate.Incarnation = r.Incarnation
	if err := errors.Join(t.insertCertificate(certificate), t.insertKey(r, KeyPending, certificate, ask.Holder.from(), chain), t.pruneKeys(r)); err != nil {
		return Renewed{}, fmt.Errorf("renew %s: %w", r.Label(), err)
	}
	err = t.audit(what, r.Label(), fmt.Sprintf("incarnation %d, for %s, key %x, serial %s, %s",
		r.Incarnation, ask.Holder.from(), ask.NewSPKI, certificate.Serial, until(certificate.NotAfter)))
	return Renewed{Component: r, Serial: certificate.Serial, Chain: chain}, err
}

// stale says whether a pending certificate is issued again rather than repeated.
func (t *tx) stale(pending KeyRecord, ask Renewal) (bool, error) {
	if !t.now.Before(pending.NotBefore.Add(pending.NotAfter.Sub(pending.NotBefore) * 6 / 10)) {
		return true, nil
	}
	if ask.Stale == nil {
		return false, nil
	}
	c, err := one(t.ctx, t.sql, scanCertificate, selectCertificates+"WHERE serial = ?", pending.Serial)
	return err == nil && ask.Stale(c), err
}

// pendingOther refuses a second key while one is pending, and raises the alarm
// as secondKey does.
func (t *tx) pendingOther(r ComponentRecord, pending KeyRecord, ask Renewal) error {
	attempts, err := one(t.ctx, t.sql, value[uint64], `UPDATE identity_keys SET alarms = alarms + 1
		WHERE role = ? AND name = ? AND incarnation = ? AND spki = ? RETURNING alarms`, r.Role, r.Name, r.Incarnation, pending.SPKI)
	if err != nil {
		return err
	}
	t.verdict = fmt.Errorf("%s: %w: requested from %s at %s", r.Label(), ErrPendingOther, pending.Source, pending.Since.Format(time.RFC3339))
	if bits.OnesCount64(attempts) != 1 {
		return nil
	}
	return t.audit(ActionAlarm+"pending_other", r.Label(), fmt.Sprintf(
		"renewal with key %x from %s, while the renewal with key %x from %s at %s is not in use yet; attempt %d. Either its disk was rolled back, or there is a copy of it. If that was not you: run sallyport %s rm %s, and add it again",
		ask.NewSPKI, ask.Holder.from(), pending.SPKI, pending.Source, pending.Since.Format(time.RFC3339), attempts, r.Role, r.Name))
}

// pruneKeys forgets keys and certificates of a component that ended so long ago
// that nothing accepts them, so that short lifetimes do not fill the disk.
func (t *tx) pruneKeys(r ComponentRecord) error {
	if _, err := t.exec("DELETE FROM identity_keys WHERE role = ? AND name = ? AND state = 'superseded' AND ends < ?", r.Role, r.Name, nanos(t.now)); err != nil {
		return err
	}
	_, err := t.exec(`DELETE FROM certificates WHERE role = ?1 AND name = ?2 AND kind = ?1 AND not_after < ?3
			AND serial NOT IN (SELECT serial FROM adoptions) AND serial NOT IN (SELECT serial FROM identity_keys WHERE role = ?1 AND name = ?2)`,
		r.Role, r.Name, nanos(t.now.Add(-recovery)))
	return err
}
