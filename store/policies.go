package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// PolicyRecord is one version of the policy file, as it was applied.
type PolicyRecord struct {
	Version uint64 // from 1
	Text    []byte
	Actor   Actor
	Applied time.Time
}

func scanPolicy(row func(...any) error) (r PolicyRecord, err error) {
	var applied int64
	err = row(&r.Version, &r.Text, &r.Actor, &applied)
	r.Applied = moment(applied)
	return r, err
}

const (
	selectPolicy = "SELECT version, text, actor, applied FROM policies"
	newestPolicy = selectPolicy + " ORDER BY version DESC LIMIT 1"
)

// ApplyPolicy puts text into force and returns its version. The text that is
// in force already changes nothing, so that a core may apply its file at each
// start. The caller has parsed it: a policy that does not parse never gets here.
func (c *Core) ApplyPolicy(ctx context.Context, actor Actor, text []byte) (uint64, error) {
	var version uint64
	err := c.decide(ctx, actor, func(t *tx) error {
		now, err := one(ctx, t.sql, scanPolicy, newestPolicy)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		version = now.Version
		if version > 0 && bytes.Equal(now.Text, text) {
			return nil
		}
		version++
		if _, err := t.exec("INSERT INTO policies (version, text, actor, applied) VALUES (?, ?, ?, ?)",
			version, notNil(text), t.actor, nanos(t.now)); err != nil {
			return err
		}
		return t.audit("policy.apply", fmt.Sprintf("policy version %d", version), fmt.Sprintf("%d bytes", len(text)))
	})
	if err != nil {
		return 0, fmt.Errorf("apply policy: %w", err)
	}
	return version, nil
}

// Policy returns a version, 0 for the one in force. [ErrNotFound] when there
// is none.
func (c *Core) Policy(ctx context.Context, version uint64) (PolicyRecord, error) {
	query, args := newestPolicy, []any{}
	if version > 0 {
		query, args = selectPolicy+" WHERE version = ?", []any{version}
	}
	r, err := one(ctx, c.db.reader, scanPolicy, query, args...)
	if err != nil {
		return r, fmt.Errorf("policy version %d: %w", version, err)
	}
	return r, nil
}
