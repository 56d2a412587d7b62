package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"
)

// ErrLeaseLost says that a lease ran out and somebody else may have it now.
var ErrLeaseLost = errors.New("the lease is not held any more")

const (
	leaseTime  = 10 * time.Second
	leaseFirst = 20 * time.Millisecond // between two looks at a lease that another has
	leaseLast  = 500 * time.Millisecond
)

// lease is one that this process holds.
type lease struct {
	token string // of this taking of it, so that a later one is not mistaken for it
	stop  chan struct{}
}

// Lock waits until nobody has the lease called name, and takes it.
func (a *ACME) Lock(ctx context.Context, name string) error {
	for wait := leaseFirst; ; wait = min(2*wait, leaseLast) {
		ok, err := a.TryLock(ctx, name)
		if ok || err != nil {
			return err
		}
		t := time.NewTimer(wait/2 + mathrand.N(wait/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("wait for lease %s: %w", name, ctx.Err())
		}
	}
}

// TryLock takes the lease called name unless somebody has it, this process
// included.
func (a *ACME) TryLock(ctx context.Context, name string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	l := &lease{token: a.owner + "." + rand.Text(), stop: make(chan struct{})}
	var taken int64
	err := a.db.update(ctx, func(t *tx) (err error) {
		now := a.Now()
		taken, err = t.exec(`INSERT INTO lease (name, owner, taken, until) VALUES (?, ?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, taken = excluded.taken, until = excluded.until WHERE until < excluded.taken`,
			name, l.token, nanos(now), nanos(now.Add(a.LeaseTime)))
		if err == nil && taken == 0 {
			// Nobody takes one for longer: the clock was ahead. Who lives
			// renews it in time, for who does not it must not last so long.
			_, err = t.exec("UPDATE lease SET until = ?1 WHERE name = ?2 AND until > ?1", nanos(now.Add(a.LeaseTime)), name)
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("take lease %s: %w", name, err)
	}
	if taken == 0 {
		return false, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false, fmt.Errorf("take lease %s: the database is closed", name)
	}
	if former := a.leases[name]; former != nil { // it ran out unnoticed
		close(former.stop)
	}
	a.leases[name] = l
	a.beating.Go(func() { a.beat(name, l) })
	return true, nil
}

// beat renews a lease until it is given back or lost.
func (a *ACME) beat(name string, l *lease) {
	tick := time.NewTicker(a.LeaseTime / 5)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		if err := a.renew(context.Background(), name, l); errors.Is(err, ErrLeaseLost) {
			a.Log.Warn("a lease on the database of public certificates ran out while it was in use", "lease", name)
			return
		} else if err != nil {
			a.Log.Warn("a lease on the database of public certificates cannot be renewed, trying again", "lease", name, "cause", err)
		}
	}
}

func (a *ACME) renew(ctx context.Context, name string, l *lease) error {
	return a.db.update(ctx, func(t *tx) error {
		n, err := t.exec("UPDATE lease SET until = ? WHERE name = ? AND owner = ?", nanos(a.Now().Add(a.LeaseTime)), name, l.token)
		if err == nil && n == 0 {
			err = ErrLeaseLost
		}
		return err
	})
}

// RenewLockLease makes sure that the lease is still held. It is renewed all the
// time, so that it lasts for as long as this process lives and never longer than
// LeaseTime after it, whatever time is asked for.
func (a *ACME) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	a.mu.Lock()
	l := a.leases[name]
	a.mu.Unlock()
	if l == nil {
		return fmt.Errorf("renew lease %s: %w", name, ErrLeaseLost)
	}
	if err := a.renew(ctx, name, l); err != nil {
		return fmt.Errorf("renew lease %s: %w", name, err)
	}
	return nil
}

// Unlock gives a lease back. It is [ErrLeaseLost] if another has it meanwhile,
// or it was not held.
func (a *ACME) Unlock(ctx context.Context, name string) error {
	a.mu.Lock()
	l := a.leases[name]
	if l != nil {
		close(l.stop)
		delete(a.leases, name)
	}
	a.mu.Unlock()
	if l == nil {
		return fmt.Errorf("give back lease %s: %w", name, ErrLeaseLost)
	}
	err := a.db.update(context.WithoutCancel(ctx), func(t *tx) error {
		n, err := t.exec("DELETE FROM lease WHERE name = ? AND owner = ?", name, l.token)
		if err == nil && n == 0 {
			err = ErrLeaseLost
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("give back lease %s: %w", name, err)
	}
	return nil
}
