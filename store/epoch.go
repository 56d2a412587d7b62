package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"sallyport/acme/pki"
)

// Epoch orders states before generations do; a restore moves it.
func (c *Core) Epoch(ctx context.Context) (uint64, error) {
	epoch, err := one(ctx, c.db.reader, value[uint64], "SELECT epoch FROM state")
	if err != nil {
		return 0, fmt.Errorf("read epoch: %w", err)
	}
	return epoch, nil
}

// generation is what is kept about a component's snapshots.
type generation struct {
	number uint64
	hash   []byte
}

func scanGeneration(row func(...any) error) (g generation, err error) {
	err = row(&g.number, &g.hash)
	return g, err
}

// Generation says which generation a component's snapshot with this content
// is: the stored one when hash (SHA-256 of the content) is the stored one,
// else the next one, which is then stored with hash. So generations move when
// content does, and a restart of core moves none.
func (c *Core) Generation(ctx context.Context, role pki.Role, name string, hash []byte) (number uint64, moved bool, err error) {
	if len(hash) != 32 {
		return 0, false, fmt.Errorf("generation of %s %s: a hash has 32 bytes, not %d", role, name, len(hash))
	}
	return c.generation(ctx, role, name, hash)
}

// NextGeneration moves a component's generation in any case.
func (c *Core) NextGeneration(ctx context.Context, role pki.Role, name string) (uint64, error) {
	number, _, err := c.generation(ctx, role, name, nil)
	return number, err
}

func (c *Core) generation(ctx context.Context, role pki.Role, name string, hash []byte) (number uint64, moved bool, err error) {
	err = c.observe(ctx, func(t *tx) error {
		g, err := one(ctx, t.sql, scanGeneration, "SELECT generation, hash FROM generations WHERE role = ? AND name = ?", role, name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		number, moved = g.number, false
		if hash != nil && bytes.Equal(g.hash, hash) {
			return nil
		}
		number, moved = g.number+1, true
		_, err = t.exec(`INSERT INTO generations (role, name, generation, hash) VALUES (?, ?, ?, ?)
			ON CONFLICT (role, name) DO UPDATE SET generation = excluded.generation, hash = excluded.hash`, role, name, number, hash)
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("generation of %s %s: %w", role, name, err)
	}
	return number, moved, nil
}
