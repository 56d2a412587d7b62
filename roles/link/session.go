package link

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/roles/control"
)

// A control session is one stream of frames. The component says hello, core
// welcomes or refuses it. Then each side has three goroutines: one that reads,
// one that alone writes, one that watches the time. The first that ends, ends
// the session.
const (
	heartbeatEvery = 5 * time.Second
	// A session is lost when three heartbeats in a row were missed and nothing
	// else arrived either. While a large snapshot is on a slow line, heartbeats
	// queue behind it; arriving bytes then speak for the peer, for a while.
	lostAfter  = 3*heartbeatEvery + heartbeatEvery/5
	mutedAfter = 2 * time.Minute
)

var (
	errLost       = errors.New("three heartbeats in a row were missed")
	errMuted      = errors.New("no heartbeat for two minutes, though bytes arrive")
	errExpired    = errors.New("the certificate of this connection has expired")
	errSuperseded = errors.New("superseded by a newer session")
	errNoWelcome  = errors.New("the other side connected and did not finish its greeting")
)

// sessionConn is what both ends have: the connection, why it ended, when the
// peer last gave a sign of life.
type sessionConn struct {
	conn   *Conn
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	beat   atomic.Int64 // monotonic time of the last heartbeat (core) or reply (component)
	wake   chan struct{}
	read   chan struct{} // closed when the reader has ended
}

func newSessionConn(ctx context.Context, conn *Conn) *sessionConn {
	c := &sessionConn{conn: conn, wake: make(chan struct{}, 1), read: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.beat.Store(monotonic())
	conn.lastRead.Store(monotonic())
	return c
}

// end ends the session; the first cause is the one that stays.
func (c *sessionConn) end(cause error) { c.cancel(cause) }

// kick wakes the writer.
func (c *sessionConn) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// start runs f beside the session; its error ends the session.
func (c *sessionConn) start(f func() error) {
	c.wg.Go(func() {
		if err := f(); err != nil {
			c.end(err)
		}
	})
}

// startReader is start for the goroutine that reads: when others learn that it
// has ended, its cause stands.
func (c *sessionConn) startReader(f func() error) {
	c.wg.Go(func() {
		defer close(c.read)
		if err := f(); err != nil {
			c.end(err)
		}
	})
}

// sendEnd is what a failed Send means. Why a stream ended, gRPC says to the
// reader only, and it may be the other side's refusal: the reader has a moment
// to say it first.
func (c *sessionConn) sendEnd(err error) error {
	if err == nil {
		return nil
	}
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-c.read:
	case <-t.C:
	}
	return endOf(c.ctx, err)
}

// watch ends the session when the peer is silent or a certificate has expired.
func (c *sessionConn) watch() error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		if x := c.conn.Expires(); !x.IsZero() && !now.Before(x) {
			return errExpired
		}
		beat := time.Duration(monotonic() - c.beat.Load())
		bytes := time.Duration(monotonic() - c.conn.lastRead.Load())
		switch {
		case beat >= mutedAfter:
			return errMuted
		case beat >= lostAfter && bytes >= lostAfter:
			return errLost
		}
	}
}

// greet bounds the greeting in time: the stream is cut when stop is not called.
func (c *sessionConn) greet() (stop func()) {
	t := time.AfterFunc(firstWordTime, func() {
		c.end(errNoWelcome)
		c.conn.NetConn().Close()
	})
	return func() { t.Stop() }
}

// drain reads and forgets until the other side, which has been told the end,
// ends the stream, or its time for that is over.
func (c *sessionConn) drain(st stream[control.Frame]) {
	t := time.AfterFunc(lastWordTime, func() { c.conn.NetConn().Close() })
	defer t.Stop()
	for {
		if _, err := st.Recv(); err != nil {
			return
		}
	}
}

// wait blocks until the session ends and returns why. After an end by a last
// word that the peer will act upon (polite), the peer has a moment to do so.
func (c *sessionConn) wait(polite func(error) bool) error {
	<-c.ctx.Done()
	cause := context.Cause(c.ctx)
	if polite(cause) {
		t := time.NewTimer(lastWordTime)
		select {
		case <-c.read:
		case <-t.C:
		}
		t.Stop()
	}
	return cause
}

// generation orders snapshots.
type generation struct{ epoch, number uint64 }

func generationOf(g *control.Generation) generation {
	return generation{g.GetEpoch(), g.GetGeneration()}
}

func (g generation) after(o generation) bool {
	return g.epoch > o.epoch || g.epoch == o.epoch && g.number > o.number
}
