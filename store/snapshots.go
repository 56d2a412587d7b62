package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrStaleSnapshot refuses a snapshot that is older than the one held.
var ErrStaleSnapshot = errors.New("snapshot is older than the one held")

// maxValue bounds what Put takes.
const maxValue = 16 << 20

// Component is proxy.db or gateway.db: the last good snapshot from core, and
// a few things that a component wants to know again after a restart. It holds
// no authority: all of it can be lost and is learned again from core and from
// the upstreams. Its methods are safe for concurrent use.
type Component struct {
	// Now is time.Now unless replaced before the first call.
	Now func() time.Time

	db *database
}

// OpenComponent opens or creates the database of a proxy or gateway, under the
// same conditions as [OpenCore].
func OpenComponent(path string) (*Component, error) {
	db, err := open(path, componentKind)
	if err != nil {
		return nil, err
	}
	return &Component{Now: time.Now, db: db}, nil
}

// OpenMemoryComponent is OpenComponent for --state memory.
func OpenMemoryComponent() (*Component, error) {
	db, err := openMemory(componentKind)
	if err != nil {
		return nil, err
	}
	return &Component{Now: time.Now, db: db}, nil
}

// Close waits for the transaction under way and releases the lock.
func (c *Component) Close() error { return c.db.close() }

// snapshot is one row.
type snapshot struct {
	epoch, generation uint64
	body              []byte
}

func scanSnapshot(row func(...any) error) (s snapshot, err error) {
	err = row(&s.epoch, &s.generation, &s.body)
	return s, err
}

const selectSnapshot = "SELECT epoch, generation, body FROM snapshot"

// SaveSnapshot replaces the snapshot held, durably when it returns. One that
// is older, by epoch and then by generation, is refused with
// [ErrStaleSnapshot]; the same one again is fine.
func (c *Component) SaveSnapshot(body []byte, epoch, generation uint64) error {
	ctx := context.Background() // durable or not at all: nothing to cancel
	err := c.db.update(ctx, func(t *tx) error {
		held, err := one(ctx, t.sql, scanSnapshot, selectSnapshot)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if epoch < held.epoch || epoch == held.epoch && generation < held.generation {
			return fmt.Errorf("%w (epoch %d generation %d)", ErrStaleSnapshot, held.epoch, held.generation)
		}
		_, err = t.exec("INSERT OR REPLACE INTO snapshot (one, epoch, generation, body, saved) VALUES (1, ?, ?, ?, ?)",
			epoch, generation, notNil(body), nanos(c.Now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("save snapshot of epoch %d, generation %d: %w", epoch, generation, err)
	}
	return nil
}

// Snapshot returns the last one saved; body is nil when there is none.
func (c *Component) Snapshot() (body []byte, epoch, generation uint64, err error) {
	s, err := one(context.Background(), c.db.reader, scanSnapshot, selectSnapshot)
	if errors.Is(err, ErrNotFound) {
		return nil, 0, 0, nil
	}
	if err != nil {
		return nil, 0, 0, fmt.Errorf("read snapshot: %w", err)
	}
	return notNil(s.body), s.epoch, s.generation, nil
}

// ForgetSnapshot is for a component that joins anew: what it held came from
// another life, whose generations mean nothing now.
func (c *Component) ForgetSnapshot() error {
	return c.change("forget snapshot", "DELETE FROM snapshot")
}

// Put keeps a value of at most 16 MiB under key.
func (c *Component) Put(key string, value []byte) error {
	if len(value) > maxValue {
		return fmt.Errorf("keep %s: %d bytes are more than the %d allowed", key, len(value), maxValue)
	}
	return c.change("keep "+key, "INSERT OR REPLACE INTO memory (key, value) VALUES (?, ?)", key, notNil(value))
}

// Get returns what Put kept, nil when there is nothing.
func (c *Component) Get(key string) ([]byte, error) {
	v, err := one(context.Background(), c.db.reader, value[[]byte], "SELECT value FROM memory WHERE key = ?", key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return notNil(v), nil
}

// Delete forgets what Put kept.
func (c *Component) Delete(key string) error {
	return c.change("forget "+key, "DELETE FROM memory WHERE key = ?", key)
}

func (c *Component) change(what, statement string, args ...any) error {
	err := c.db.update(context.Background(), func(t *tx) error {
		_, err := t.exec(statement, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// notNil keeps "empty" apart from "absent".
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
