// Package store keeps all persistent state, in SQLite: core.db of the core,
// proxy.db or gateway.db of a component, and acme.db where certificates of a
// public CA are ordered, see [ACME].
//
// # What it promises
//
// What a method has returned from survives the loss of power: WAL with
// synchronous=FULL. Every method is one transaction, so that after a crash its
// whole effect is there or none of it. One connection writes, a small pool
// reads beside it and never waits for it.
//
// Every decision of a person or of core is made by a method that takes the
// [Actor] first, and its audit row is written in the same transaction; a
// transaction of that kind which changes something without an audit row does
// not commit. Audit rows form a hash chain from the first one, see [AuditRow].
//
// What strangers cause is bounded: refused calls are counted per minute in a
// capped number of rows, announced services are capped per gateway, alarms
// about one token thin out. Nobody without a credential can fill the disk.
//
// # What it does not hold
//
// No private key, no seed of a join token (only the public key derived from
// it), no API key (only its SHA-256); what acme.db holds is sealed before it comes
// here, with a key that lies elsewhere. Reading the database files gives nobody
// access to anything; writing them does, and so they are 0600 in a 0700
// directory, and, but for acme.db, locked against a second process.
//
// # Which key counts
//
// Of every component core knows the one key that counts, and at most one that
// is to follow it, see [KeyState]. Every handshake is judged by that, so that a
// copy of a component's disk and the component cannot both go on, and the
// operator hears of it.
//
// # What survives a restore
//
// [Core.Snapshot] copies a running core, [RestoreCore] puts such a copy back. The
// revocation of an identity or a certificate is never undone by it: those are a
// list that only grows, and a restored database learns from the one that was
// there before, and from the signed lists that components hold, what it does not
// know. API keys are on those lists too. A restored core orders its state by a
// new epoch, and accepts components that have renewed since the backup.
//
// # How it changes
//
// The schema's version is PRAGMA user_version; migrations are embedded and run
// at opening, each in a transaction, after a copy of the database was put
// beside it. A database of a newer version is refused, never guessed at.
//
// Methods speak domain types. Nothing above this package knows SQL, so that a
// second engine can stand beside SQLite.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Actor says who decided, as the audit shows it: "operator uid 1000",
// "gateway/orders from 192.0.2.7", "core".
type Actor string

// Errors that callers tell apart.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrNoActor     = errors.New("no actor given for a privileged change")
	ErrInUse       = errors.New("in use by another process")
	ErrNewerSchema = errors.New("written by a newer version of this program")
	ErrForeign     = errors.New("not a database of this kind")
	ErrTooMany     = errors.New("too many")
)

//go:embed migrations
var migrations embed.FS

// kind is what tells a core's database from a component's.
type kind struct {
	what          string // as messages say it
	applicationID int64  // PRAGMA application_id
	migrations    fs.FS
}

var (
	coreKind      = kind{"core database", 0x53507943, mustSub("migrations/core")}
	componentKind = kind{"component database", 0x53507958, mustSub("migrations/component")}
)

func mustSub(dir string) fs.FS {
	sub, err := fs.Sub(migrations, dir)
	if err != nil {
		panic(err)
	}
	return sub
}

// Core is core.db: everything that core decides and remembers. Its methods are
// safe for concurrent use.
type Core struct {
	// Now is the clock of audit rows and of the times that records carry. It
	// is time.Now unless replaced before the first call.
	Now func() time.Time

	db *database

	attempts attempts
}

// OpenCore opens or creates the database of a core and locks it. The directory
// is made 0700, the files 0600. It fails with [ErrInUse] while another process
// has it, and with [ErrNewerSchema] when a newer version wrote it.
func OpenCore(path string) (*Core, error) {
	db, err := open(path, coreKind)
	if err != nil {
		return nil, err
	}
	return &Core{Now: time.Now, db: db}, nil
}

// OpenMemoryCore is OpenCore on memory that nobody else sees and Close frees.
// Its readers wait for the writer.
func OpenMemoryCore() (*Core, error) {
	db, err := openMemory(coreKind)
	if err != nil {
		return nil, err
	}
	return &Core{Now: time.Now, db: db}, nil
}

// Close waits for the transaction under way and releases the lock.
func (c *Core) Close() error { return c.db.close() }

// decide runs a privileged change of actor: fn must write an audit row when it
// changes anything.
func (c *Core) decide(ctx context.Context, actor Actor, fn func(*tx) error) error {
	if actor == "" {
		return ErrNoActor
	}
	return c.db.update(ctx, func(t *tx) error {
		t.now, t.actor = c.Now(), Actor(clean(string(actor), 256))
		if err := fn(t); err != nil {
			return err
		}
		if t.changed && !t.audited {
			return fmt.Errorf("store: a change by %s has no audit row", actor)
		}
		return nil
	})
}

// observe runs a change that records what was seen and decides nothing.
func (c *Core) observe(ctx context.Context, fn func(*tx) error) error {
	return c.db.update(ctx, func(t *tx) error {
		t.now = c.Now()
		return fn(t)
	})
}
