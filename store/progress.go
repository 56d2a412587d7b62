package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sallyport/acme/pki"
)

// Progress is what a component that has joined has acknowledged.
type Progress struct {
	Role        pki.Role
	Name        string
	Reusable    bool   // of a reusable token, or an instance of one: it never blocks a rotation
	Bundle      []byte // SHA-256 of the newest trust bundle it acknowledged; nil: none
	Root        []byte // of its confirmed certificate; nil: not known
	Epoch       uint64 // of Revocations
	Revocations uint64 // how many entries of the revocation list it enforces
	Skipped     bool   // in this rotation
	LastSeen    time.Time
}

// Label is how audit rows and messages call it: gateway/orders.
func (p *Progress) Label() string { return label(p.Role, p.Name) }

// Progress returns what every component that has joined has acknowledged, by
// role and name.
func (c *Core) Progress(ctx context.Context) ([]Progress, error) {
	list, err := all(ctx, c.db.reader, func(row func(...any) error) (p Progress, err error) {
		var seen int64
		err = row(&p.Role, &p.Name, &p.Reusable, &p.Bundle, &p.Root, &p.Epoch, &p.Revocations, &p.Skipped, &seen)
		p.LastSeen = moment(seen)
		return p, err
	}, `SELECT c.role, c.name, c.reusable OR c.parent <> '', a.bundle, k.root, coalesce(a.epoch, 0), coalesce(a.revocations, 0), coalesce(a.skipped, 0), c.last_seen
		FROM components c LEFT JOIN acknowledgements a ON a.role = c.role AND a.name = c.name
		LEFT JOIN identity_keys k ON k.role = c.role AND k.name = c.name AND k.incarnation = c.incarnation AND k.state = 'confirmed'
		WHERE c.state = 'joined' ORDER BY c.role, c.name`)
	if err != nil {
		return nil, fmt.Errorf("read what components have acknowledged: %w", err)
	}
	return list, nil
}

// AcknowledgeBundle notes that a component has a trust bundle, by the SHA-256 of
// its content. [ErrNotFound] unless it has joined.
func (c *Core) AcknowledgeBundle(ctx context.Context, role pki.Role, name string, bundle []byte) error {
	if err := keyHash("acknowledged bundle", bundle); err != nil {
		return err
	}
	return c.acknowledged(ctx, role, name, []string{"bundle"}, bundle)
}

// AcknowledgeRevocations notes how many entries of the list, as it is in an
// epoch, a component enforces. [ErrNotFound] unless it has joined.
func (c *Core) AcknowledgeRevocations(ctx context.Context, role pki.Role, name string, epoch, sequence uint64) error {
	return c.acknowledged(ctx, role, name, []string{"epoch", "revocations"}, epoch, sequence)
}

// acknowledged writes only what is not there: acknowledgements come often and
// change seldom.
func (c *Core) acknowledged(ctx context.Context, role pki.Role, name string, columns []string, values ...any) error {
	known, err := one(ctx, c.db.reader, value[int], "SELECT count(*) FROM acknowledgements WHERE role = ? AND name = ? AND "+strings.Join(columns, " = ? AND ")+" = ?",
		append([]any{role, name}, values...)...)
	if err == nil && known == 0 {
		err = c.observe(ctx, func(t *tx) error { return t.acknowledge(role, name, strings.Join(columns, " = ?, ")+" = ?", values...) })
	}
	if err != nil {
		return fmt.Errorf("note what %s has acknowledged: %w", label(role, name), err)
	}
	return nil
}

// acknowledge sets columns of a component that has joined.
func (t *tx) acknowledge(role pki.Role, name, set string, args ...any) error {
	n, err := t.exec(`INSERT INTO acknowledgements (role, name) SELECT role, name FROM components WHERE role = ? AND name = ? AND state = 'joined'
		ON CONFLICT DO UPDATE SET name = name`, role, name)
	if err != nil {
		return err
	}
	if n == 0 {
		return ErrNotFound
	}
	_, err = t.exec("UPDATE acknowledgements SET "+set+" WHERE role = ? AND name = ?", append(args, role, name)...)
	return err
}
