package store

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// AuditRow is one decision. Rows are numbered from 1 without gaps, never
// changed and never deleted. Hash is
//
//	SHA-256("sallyport-audit-v1\x00" ‖ hash of the row before (32 zero bytes for row 1)
//	        ‖ sequence ‖ time ‖ actor ‖ action ‖ subject ‖ detail)
//
// where sequence and time (nanoseconds since 1970) are 8 bytes, big endian,
// and each text is preceded by its length in 8 bytes, big endian. The newest
// sequence and hash are kept beside the rows as well, so that cutting off the
// end shows. Who can write the database file can forge the whole chain, but not
// so that it agrees with a hash noted elsewhere before.
type AuditRow struct {
	Sequence uint64
	Time     time.Time
	Actor    Actor
	Action   string // "component.add"; see [ActionAlarm]
	Subject  string // "gateway/orders"
	Detail   string
	Hash     []byte
}

// ActionAlarm begins the action of every row that an operator has to look at.
const ActionAlarm = "alarm."

// ErrAuditBroken is what [Core.VerifyAudit] fails with when the rows are not
// what was written.
var ErrAuditBroken = errors.New("audit chain is broken")

func (r *AuditRow) hash(previous []byte) []byte {
	b := make([]byte, 0, 256+len(r.Detail))
	b = append(b, "sallyport-audit-v1\x00"...)
	b = append(b, previous...)
	b = binary.BigEndian.AppendUint64(b, r.Sequence)
	b = binary.BigEndian.AppendUint64(b, uint64(nanos(r.Time)))
	for _, s := range []string{string(r.Actor), r.Action, r.Subject, r.Detail} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	h := sha256.Sum256(b)
	return h[:]
}

// auditHead is where the chain ends.
type auditHead struct {
	sequence uint64
	hash     []byte
}

func scanHead(row func(...any) error) (h auditHead, err error) {
	err = row(&h.sequence, &h.hash)
	return h, err
}

const selectHead = "SELECT audit_sequence, audit_hash FROM state"

// audit appends a row in the transaction of the decision that it records.
func (t *tx) audit(action, subject, detail string) error {
	head, err := one(t.ctx, t.sql, scanHead, selectHead)
	if err != nil {
		return fmt.Errorf("audit %s: %w", action, err)
	}
	r := AuditRow{
		Sequence: head.sequence + 1,
		Time:     t.now,
		Actor:    t.actor,
		Action:   clean(action, 64),
		Subject:  clean(subject, 512),
		Detail:   clean(detail, 4096),
	}
	r.Hash = r.hash(head.hash)
	if _, err := t.exec("INSERT INTO audit (sequence, time, actor, action, subject, detail, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
		r.Sequence, nanos(r.Time), r.Actor, r.Action, r.Subject, r.Detail, r.Hash); err != nil {
		return fmt.Errorf("audit %s: %w", action, err)
	}
	if _, err := t.exec("UPDATE state SET audit_sequence = ?, audit_hash = ?", r.Sequence, r.Hash); err != nil {
		return fmt.Errorf("audit %s: %w", action, err)
	}
	t.audited = true
	return nil
}

// Audit records a decision that changes nothing in the store.
func (c *Core) Audit(ctx context.Context, actor Actor, action, subject, detail string) error {
	return c.decide(ctx, actor, func(t *tx) error { return t.audit(action, subject, detail) })
}

func scanAudit(row func(...any) error) (r AuditRow, err error) {
	var at int64
	err = row(&r.Sequence, &at, &r.Actor, &r.Action, &r.Subject, &r.Detail, &r.Hash)
	r.Time = moment(at)
	return r, err
}

const selectAudit = "SELECT sequence, time, actor, action, subject, detail, hash FROM audit"

// AuditRows returns up to limit rows before a sequence number, 0 for the end,
// newest first.
func (c *Core) AuditRows(ctx context.Context, before uint64, limit int) ([]AuditRow, error) {
	query, args := selectAudit, []any{}
	if before > 0 {
		query, args = query+" WHERE sequence < ?", append(args, before)
	}
	rows, err := all(ctx, c.db.reader, scanAudit, query+" ORDER BY sequence DESC LIMIT ?", append(args, max(limit, 0))...)
	if err != nil {
		return nil, fmt.Errorf("read audit: %w", err)
	}
	return rows, nil
}

// VerifyAudit reads every row and recomputes the chain. It fails with
// [ErrAuditBroken] and says at which row.
func (c *Core) VerifyAudit(ctx context.Context) error {
	return c.db.view(ctx, func(s *sql.Tx) error {
		head, err := one(ctx, s, scanHead, selectHead)
		if err != nil {
			return fmt.Errorf("verify audit: %w", err)
		}
		rows, err := s.QueryContext(ctx, selectAudit+" ORDER BY sequence")
		if err != nil {
			return fmt.Errorf("verify audit: %w", err)
		}
		defer rows.Close()
		last := auditHead{hash: make([]byte, sha256.Size)}
		for rows.Next() {
			r, err := scanAudit(rows.Scan)
			if err != nil {
				return fmt.Errorf("verify audit after row %d: %w", last.sequence, err)
			}
			if r.Sequence != last.sequence+1 {
				return fmt.Errorf("%w: row %d is missing", ErrAuditBroken, last.sequence+1)
			}
			if subtle.ConstantTimeCompare(r.hash(last.hash), r.Hash) != 1 {
				return fmt.Errorf("%w: row %d, or the one before it, is not what was written", ErrAuditBroken, r.Sequence)
			}
			last = auditHead{r.Sequence, r.Hash}
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("verify audit after row %d: %w", last.sequence, err)
		}
		if last.sequence < head.sequence {
			return fmt.Errorf("%w: rows %d to %d are missing", ErrAuditBroken, last.sequence+1, head.sequence)
		}
		if last.sequence > head.sequence || subtle.ConstantTimeCompare(last.hash, head.hash) != 1 {
			return fmt.Errorf("%w: the newest row is not the one that was written last", ErrAuditBroken)
		}
		return nil
	})
}
