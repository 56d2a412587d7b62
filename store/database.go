package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
)

// readers is how many connections read beside the writer.
const readers = 4

// database is one SQLite database: exactly one connection that writes and a
// pool that reads. Both are set up by their DSN alone, so that a connection
// made anew by the pool is like the first one.
type database struct {
	kind   kind
	path   string  // empty in memory
	at     url.URL // what connections are made to
	lock   *lock   // nil in memory
	writer *sql.DB
	reader *sql.DB
	anchor *sql.Conn // in memory: keeps the database alive between connections
}

func open(path string, k kind) (*database, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", k.what, err)
	}
	if err := privateDirectory(filepath.Dir(path)); err != nil {
		return nil, err
	}
	l, err := acquire(path, k)
	if err != nil {
		return nil, err
	}
	return openHeld(path, k, l)
}

// openHeld opens a database that is locked. It releases the lock, if it is given
// one, when it fails or is closed.
func openHeld(path string, k kind, l *lock) (_ *database, err error) {
	d := &database{kind: k, path: path, lock: l, at: url.URL{Scheme: "file", Path: path}}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := privateFile(path); err != nil {
		return nil, err
	}
	if d.writer, err = connect(d.at, writing("journal_mode(WAL)", "synchronous(FULL)")); err != nil {
		return nil, fmt.Errorf("open %s %s: %w", k.what, path, err)
	}
	if err := d.migrate(context.Background()); err != nil {
		return nil, err
	}
	if d.reader, err = connect(d.at, reading()); err != nil {
		return nil, fmt.Errorf("open %s %s: %w", k.what, path, err)
	}
	return d, nil
}

func openMemory(k kind) (_ *database, err error) {
	d := &database{kind: k}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	// A name with a slash first is one database for all connections of the process.
	d.at = url.URL{Scheme: "file", Path: "/sallyport-" + rand.Text()}
	for _, c := range []struct {
		pool    **sql.DB
		options url.Values
	}{{&d.writer, writing()}, {&d.reader, reading()}} {
		c.options.Set("vfs", "memdb")
		if *c.pool, err = connect(d.at, c.options); err != nil {
			return nil, fmt.Errorf("open %s in memory: %w", k.what, err)
		}
	}
	if d.anchor, err = d.reader.Conn(context.Background()); err != nil {
		return nil, fmt.Errorf("open %s in memory: %w", k.what, err)
	}
	return d, d.migrate(context.Background())
}

// writing and reading are the options of the writer's and the readers'
// connections.
func writing(pragmas ...string) url.Values {
	v := options(pragmas...)
	v.Set("_txlock", "immediate") // a transaction that will write never has to be upgraded
	return v
}

func reading() url.Values {
	v := options()
	v.Set("_query_only", "1")
	return v
}

func options(pragmas ...string) url.Values {
	return url.Values{
		"_pragma": append([]string{
			"busy_timeout(10000)",
			"foreign_keys(1)",
			"trusted_schema(0)",
			"cell_size_check(1)",
			"temp_store(MEMORY)",
		}, pragmas...),
		"_dqs":       {"0"},
		"_defensive": {"1"},
	}
}

// connect makes a pool of one connection when options say that it writes, of
// several otherwise.
func connect(at url.URL, options url.Values) (*sql.DB, error) {
	at.RawQuery = options.Encode()
	c, err := sqlite.NewConnector(at.String())
	if err != nil {
		return nil, err
	}
	pool, n := sql.OpenDB(c), readers
	if options.Has("_txlock") {
		n = 1
	}
	pool.SetMaxOpenConns(n)
	pool.SetMaxIdleConns(n)
	if err := pool.Ping(); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

func (d *database) close() error {
	var all []error
	if d.anchor != nil {
		all = append(all, d.anchor.Close())
	}
	for _, pool := range []*sql.DB{d.reader, d.writer} {
		if pool != nil {
			all = append(all, pool.Close())
		}
	}
	if d.lock != nil {
		all = append(all, d.lock.release())
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("close %s %s: %w", d.kind.what, d.path, err)
	}
	return nil
}

// tx is the one writing transaction of the moment.
type tx struct {
	ctx   context.Context
	sql   *sql.Tx
	now   time.Time
	actor Actor

	changed, audited bool

	holds *holds // read once, when a service is judged

	// verdict is what the method returns although the transaction commits: a
	// refusal that left an alarm behind.
	verdict error
}

// exec runs one statement and returns how many rows it changed.
func (t *tx) exec(statement string, args ...any) (int64, error) {
	r, err := t.sql.ExecContext(t.ctx, statement, args...)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	if n > 0 {
		t.changed = true
	}
	return n, err
}

// update runs fn in a transaction and commits what it did, unless it fails.
func (d *database) update(ctx context.Context, fn func(*tx) error) error {
	s, err := d.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", d.kind.what, err)
	}
	defer s.Rollback() // after a commit it does nothing
	t := &tx{ctx: ctx, sql: s}
	if err := fn(t); err != nil {
		return err
	}
	if err := s.Commit(); err != nil {
		return fmt.Errorf("%s: commit: %w", d.kind.what, err)
	}
	return t.verdict
}

// view runs fn on one unchanging state of the database.
func (d *database) view(ctx context.Context, fn func(*sql.Tx) error) error {
	s, err := d.reader.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", d.kind.what, err)
	}
	defer s.Rollback()
	return fn(s)
}

// source is what can be read from: the pool of readers or a transaction.
type source interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// scan reads one row into a T.
type scan[T any] func(row func(...any) error) (T, error)

// all returns every row of a query.
func all[T any](ctx context.Context, from source, s scan[T], query string, args ...any) ([]T, error) {
	rows, err := from.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		v, err := s(rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// one returns the first row of a query, or [ErrNotFound].
func one[T any](ctx context.Context, from source, s scan[T], query string, args ...any) (T, error) {
	list, err := all(ctx, from, s, query, args...)
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		var none T
		return none, err
	}
	return list[0], nil
}

// value is the scan of a single column.
func value[T any](row func(...any) error) (v T, err error) {
	err = row(&v)
	return v, err
}
