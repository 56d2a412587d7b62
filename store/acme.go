package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// ACME is acme.db: what orders of public certificates leave behind, as
// certmagic wants it kept, and who works at which of them. It is a
// [certmagic.Storage]. Its methods are safe for concurrent use.
//
// Unlike the other databases it may be open in several processes of one host at
// a time: a core and a proxy with one data directory share accounts and answer
// each other's challenges.
//
// # Files of one thing change together
//
// A certificate's key, chain and description are written one after the other, as
// certmagic does, and held back until all three are there; then they replace the
// former three in one transaction. The same goes for an account's two. Until then
// the former are read, also after a crash in between, and once replaced they are
// kept for the operator, see Former. A description that is written alone, as after
// news about when to renew, replaces the former one alone.
//
// # Leases
//
// A lock is a row that its owner renews for as long as it lives, and that anybody
// may take when it was not renewed in time: what a killed process was doing is
// taken over LeaseTime later at the latest.
type ACME struct {
	// Now is time.Now unless replaced before the first call.
	Now func() time.Time
	// Log hears of leases that were lost; set before the first call.
	Log *slog.Logger
	// LeaseTime is how long a lease outlives its owner; 10 s.
	LeaseTime time.Duration

	db    *database
	owner string

	mu     sync.Mutex                   // guards what follows
	staged map[string]map[string][]byte // by folder and key: what waits for the rest
	leases map[string]*lease            // those of this process
	closed bool

	beating sync.WaitGroup
}

var acmeKind = kind{"database of public certificates", 0x53507961, mustSub("migrations/acme")}

var (
	_ certmagic.Storage          = (*ACME)(nil)
	_ certmagic.TryLocker        = (*ACME)(nil)
	_ certmagic.LockLeaseRenewer = (*ACME)(nil)
)

// OpenACME opens or creates a database of public certificates. The directory is
// made 0700, the files 0600. Other processes may have it open; one of an older
// version must not, when the schema has to change: [ErrInUse].
func OpenACME(path string) (*ACME, error) {
	db, err := openShared(path, acmeKind)
	if err != nil {
		return nil, err
	}
	return newACME(db), nil
}

// OpenMemoryACME is OpenACME for --state memory.
func OpenMemoryACME() (*ACME, error) {
	db, err := openMemory(acmeKind)
	if err != nil {
		return nil, err
	}
	return newACME(db), nil
}

func newACME(db *database) *ACME {
	return &ACME{Now: time.Now, Log: slog.New(slog.DiscardHandler), LeaseTime: leaseTime, db: db, owner: rand.Text(),
		staged: make(map[string]map[string][]byte), leases: make(map[string]*lease)}
}

// Close gives back the leases of this process and closes the database.
func (a *ACME) Close() error {
	a.mu.Lock()
	a.closed = true
	held := make([]string, 0, len(a.leases))
	for name := range a.leases {
		held = append(held, name)
	}
	a.mu.Unlock()
	for _, name := range held {
		if err := a.Unlock(context.Background(), name); err != nil {
			a.Log.Warn("a lease could not be given back, it runs out by itself", "lease", name, "cause", err)
		}
	}
	a.beating.Wait()
	return a.db.close()
}

// String names the storage in logs, and nothing else of it.
func (a *ACME) String() string { return "SQLite" }

// clean brings a key into the one form under which it is kept; "" is the root.
func cleanKey(key string) string {
	return strings.Trim(path.Clean("/"+key), "/")
}

// members are the extensions of the files that change together, in the order
// in which certmagic writes them; nil for a file of its own.
func members(key string) []string {
	p := strings.Split(key, "/")
	ext := path.Ext(key)
	var of []string
	switch {
	case len(p) == 4 && p[0] == "certificates" && strings.TrimSuffix(p[3], ext) == p[2]:
		of = []string{".key", ".crt", ".json"}
	case len(p) == 5 && p[0] == "acme" && p[2] == "users":
		of = []string{".json", ".key"}
	}
	if !slices.Contains(of, ext) {
		return nil
	}
	return of
}

// Store puts value at key, or keeps it until the files that belong to it are
// there, see [ACME].
func (a *ACME) Store(ctx context.Context, key string, value []byte) error {
	key = cleanKey(key)
	all := map[string][]byte{key: value}
	if of := members(key); of != nil {
		a.mu.Lock()
		folder := path.Dir(key)
		waiting := a.staged[folder]
		if waiting == nil {
			waiting = make(map[string][]byte)
		}
		alone := len(waiting) == 0 && len(of) == 3 && path.Ext(key) == ".json"
		waiting[key] = slices.Clone(value)
		if whole := len(waiting) == len(of); !alone && !whole {
			a.staged[folder] = waiting
			a.mu.Unlock()
			return nil
		}
		delete(a.staged, folder)
		a.mu.Unlock()
		all = waiting
	}
	err := a.db.update(ctx, func(t *tx) error {
		for k, v := range all {
			if err := a.put(t, k, v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	return nil
}

func (a *ACME) put(t *tx, key string, content []byte) error {
	if key == "" {
		return errors.New("the root is no file")
	}
	below, err := one(t.ctx, t.sql, value[int], "SELECT count(*) FROM file WHERE key >= ? || '/' AND key < ? || '0'", key, key)
	if err != nil {
		return err
	}
	if below > 0 {
		return fmt.Errorf("%s is a folder", key)
	}
	for folder := path.Dir(key); folder != "."; folder = path.Dir(folder) {
		n, err := one(t.ctx, t.sql, value[int], "SELECT count(*) FROM file WHERE key = ?", folder)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("%s is a file", folder)
		}
	}
	if members(key) != nil {
		if _, err := t.exec("INSERT OR REPLACE INTO former (key, value, modified) SELECT key, value, modified FROM file WHERE key = ?", key); err != nil {
			return err
		}
	}
	_, err = t.exec("INSERT OR REPLACE INTO file (key, value, modified) VALUES (?, ?, ?)", key, notNil(content), nanos(a.Now()))
	return err
}

// Load returns the value at key; fs.ErrNotExist if there is none.
func (a *ACME) Load(ctx context.Context, key string) ([]byte, error) {
	return a.load(ctx, "file", key)
}

// Former returns what a file of a certificate or an account held before it was
// last replaced; fs.ErrNotExist if it was not.
func (a *ACME) Former(ctx context.Context, key string) ([]byte, error) {
	return a.load(ctx, "former", key)
}

func (a *ACME) load(ctx context.Context, table, key string) ([]byte, error) {
	v, err := one(ctx, a.db.reader, value[[]byte], "SELECT value FROM "+table+" WHERE key = ?", cleanKey(key))
	if err != nil {
		return nil, a.failed("load", key, err)
	}
	return notNil(v), nil
}

func (a *ACME) failed(verb, key string, err error) error {
	if errors.Is(err, ErrNotFound) {
		err = fs.ErrNotExist
	}
	return fmt.Errorf("%s %s: %w", verb, key, err)
}

// Delete removes the file key, or the folder key with everything in it. What is
// not there is no error. A file that is held back is dropped, and the one that
// it was to replace stays.
func (a *ACME) Delete(ctx context.Context, key string) error {
	key = cleanKey(key)
	if a.drop(key) {
		return nil
	}
	err := a.db.update(ctx, func(t *tx) error {
		for _, table := range []string{"file", "former"} {
			if _, err := t.exec("DELETE FROM "+table+" WHERE key = ? OR ? = '' OR key >= ? || '/' AND key < ? || '0'", key, key, key, key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return a.failed("delete", key, err)
	}
	return nil
}

// drop forgets a file that is held back.
func (a *ACME) drop(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	folder := path.Dir(key)
	if _, held := a.staged[folder][key]; !held {
		return false
	}
	if delete(a.staged[folder], key); len(a.staged[folder]) == 0 {
		delete(a.staged, folder)
	}
	return true
}

// Exists says whether key is a file or a folder.
func (a *ACME) Exists(ctx context.Context, key string) bool {
	_, err := a.Stat(ctx, key)
	return err == nil
}

// below are the keys of the files in a folder, sorted.
func (a *ACME) below(ctx context.Context, key string) ([]string, error) {
	return all(ctx, a.db.reader, value[string], "SELECT key FROM file WHERE ? = '' OR key >= ? || '/' AND key < ? || '0' ORDER BY key", key, key, key)
}

// List returns what is in a folder, files and folders, and with recursive what
// is in those. fs.ErrNotExist if there is nothing by that name.
func (a *ACME) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	key := cleanKey(folder)
	keys, err := a.below(ctx, key)
	if err != nil {
		return nil, a.failed("list", folder, err)
	}
	if len(keys) == 0 && key != "" && !a.Exists(ctx, key) {
		return nil, a.failed("list", folder, ErrNotFound)
	}
	var found []string
	seen := make(map[string]bool)
	for _, k := range keys {
		parts := strings.Split(strings.TrimPrefix(strings.TrimPrefix(k, key), "/"), "/")
		if !recursive {
			parts = parts[:1]
		}
		at := key
		for _, p := range parts {
			if at = path.Join(at, p); !seen[at] {
				seen[at] = true
				found = append(found, at)
			}
		}
	}
	return found, nil
}

// Stat describes a file or a folder; fs.ErrNotExist if there is neither.
func (a *ACME) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	k := cleanKey(key)
	info, err := one(ctx, a.db.reader, func(row func(...any) error) (i certmagic.KeyInfo, err error) {
		var modified int64
		err = row(&i.Size, &modified)
		i.Key, i.Modified, i.IsTerminal = key, moment(modified), true
		return i, err
	}, "SELECT length(value), modified FROM file WHERE key = ?", k)
	if !errors.Is(err, ErrNotFound) {
		if err != nil {
			err = a.failed("stat", key, err)
		}
		return info, err
	}
	keys, err := a.below(ctx, k)
	if err == nil && len(keys) == 0 && k != "" {
		err = ErrNotFound
	}
	if err != nil {
		return certmagic.KeyInfo{}, a.failed("stat", key, err)
	}
	return certmagic.KeyInfo{Key: key}, nil
}
