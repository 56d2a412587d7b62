package link

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Turn is one run of a connection that KeepFresh keeps.
type Turn struct {
	conn    chan *Conn
	retired chan struct{}
	ended   chan error
}

// Use tells which connection this turn runs on. The turn is up when the
// connection is: [Conn.Up] is called, which control sessions do by themselves.
func (t *Turn) Use(conn *Conn) {
	select {
	case t.conn <- conn:
	default:
	}
}

// Retired is closed when a newer turn is up: take no new work, finish what is
// open, and return. A control session need not look: the newer one ends it.
func (t *Turn) Retired() <-chan struct{} { return t.retired }

// KeepFresh is [Keep] for connections that are replaced before they end: f
// dials, says which connection it uses (Turn.Use), and runs it. When that
// connection is due (Conn.Due), the next turn of f begins beside it; when that
// is up, the former one is retired. While the next cannot be brought up the
// former goes on. KeepFresh returns when every turn has.
func KeepFresh(ctx context.Context, log *slog.Logger, name string, f func(ctx context.Context, t *Turn) error) {
	var turns sync.WaitGroup
	defer turns.Wait()
	var former *Turn
	Keep(ctx, log, name, func(ctx context.Context) error {
		for {
			t := &Turn{conn: make(chan *Conn, 1), retired: make(chan struct{}), ended: make(chan error, 1)}
			turns.Go(func() { t.ended <- f(ctx, t) })
			conn, err := t.up(ctx)
			if err != nil {
				return err
			}
			if former != nil {
				close(former.retired)
			}
			former = t
			if err := t.awaitDue(ctx, conn); err != nil {
				former = nil
				return err
			}
		}
	})
}

// up waits until the turn's connection is up; the error is why it ended.
func (t *Turn) up(ctx context.Context) (*Conn, error) {
	var conn *Conn
	var up <-chan struct{}
	for {
		select {
		case conn = <-t.conn:
			up = conn.upped()
		case <-up:
			return conn, nil
		case err := <-t.ended:
			return nil, ended(err)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

const dueEvery = time.Second

// awaitDue waits until the connection wants replacing; the error is why it
// ended before.
func (t *Turn) awaitDue(ctx context.Context, conn *Conn) error {
	tick := time.NewTicker(dueEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-t.ended:
			return ended(err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-conn.replaced():
		}
		if conn.Due() {
			return nil
		}
	}
}

func ended(err error) error {
	if err == nil {
		return errors.New("it ended")
	}
	return err
}

// freshness is when a connection is to be replaced by a newer one.
type freshness struct {
	once    sync.Once
	up      chan struct{} // closed: it does its work
	replace chan struct{} // closed: somebody wants it replaced
	upOnce  sync.Once
	reOnce  sync.Once

	self *Self      // whose identity counts; nil: none does
	made *selfState // what was in force at the handshake
	due  time.Time
}

func (f *freshness) init() {
	f.once.Do(func() { f.up, f.replace = make(chan struct{}), make(chan struct{}) })
}

func (f *freshness) upped() <-chan struct{}    { f.init(); return f.up }
func (f *freshness) replaced() <-chan struct{} { f.init(); return f.replace }

// Up says that the connection does its work: whoever keeps it may retire its
// predecessor. Control sessions say it when they are welcomed.
func (f *freshness) Up() {
	f.init()
	f.upOnce.Do(func() { close(f.up) })
}

// Replace asks whoever keeps the connection to replace it.
func (f *freshness) Replace() {
	f.init()
	f.reOnce.Do(func() { close(f.replace) })
}

// Due reports whether the connection is to be replaced: this side has another
// identity by now, Replace was called, or two thirds are over of the time that
// was left, at the handshake, to the first of the two certificates. A
// certificate that is renewed at 0.66 of its life has been renewed by then,
// however old it was at the handshake.
func (f *freshness) Due() bool {
	select {
	case <-f.replaced():
		return true
	default:
	}
	if f.self == nil {
		return false
	}
	if now := f.self.state.Load(); now.credentials != f.made.credentials && now.credentials != nil {
		return true
	}
	return !f.due.IsZero() && !f.self.now().Before(f.due)
}

// freshFor prepares c.Due. expires is when the first certificate ends.
func (f *freshness) freshFor(self *Self, made *selfState, expires time.Time) {
	if self == nil || made == nil || made.credentials == nil {
		return
	}
	f.self, f.made = self, made
	if left := expires.Sub(self.now()); !expires.IsZero() {
		f.due = expires.Add(-left / 3)
		if least := self.now().Add(5 * time.Second); f.due.Before(least) {
			f.due = least // a peer that cannot renew is not dialled without end
		}
	}
}
