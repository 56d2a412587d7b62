package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sallyport/roles/relay"
)

const (
	maxWaiting    = 1000 // calls that wait for one upstream's first connection
	maxTries      = 4    // times a call is brought to an upstream before it is handed back
	crowded       = 96   // calls on a connection above which another is opened
	maxConns      = 8    // connections to one upstream
	idleConnAfter = 10 * time.Minute
	failureCounts = 250 * time.Millisecond // how long a failed dial answers for the next calls
)

// connections carries calls to one upstream. A connection is dialled when the
// first call needs it; calls that come meanwhile wait for that one attempt.
type connections struct {
	dial        func(ctx context.Context) (*relay.Conn, error)
	unreachable func(error)  // the attempt failed
	spawn       func(func()) // starts a goroutine that the gateway waits for

	pool relay.Pool

	mu      sync.Mutex // guards what follows
	waiting []*carried
	dialing bool
	failed  time.Time // when the last attempt failed
	failure error
}

// carried is a call on its way to the upstream.
type carried struct {
	call    *relay.Call
	header  []relay.Field
	options relay.ForwardOptions
	refuse  func(reason error) // hands it back
	tries   int
}

// carry brings a call to the upstream, now or when there is a connection.
func (c *connections) carry(call *carried) {
	if call.options.Retry == nil {
		call.options.Retry = func(reason error) {
			if call.tries++; call.tries >= maxTries {
				call.refuse(reason)
				return
			}
			c.carry(call)
		}
	}
	for range maxConns {
		conn := c.pool.Pick()
		if conn == nil {
			break
		}
		err := call.call.Forward(conn, call.header, call.options)
		if err == nil {
			if conn.InFlight() > crowded && c.pool.Len() < maxConns {
				c.another()
			}
			return
		}
		if !errors.Is(err, relay.ErrNotAccepting) {
			call.refuse(err)
			return
		}
	}
	c.wait(call)
}

// wait keeps the call until the attempt that it joins or begins has ended.
func (c *connections) wait(call *carried) {
	call.tries++
	c.mu.Lock()
	var reason error
	switch {
	case call.tries > maxTries:
		reason = errors.New("its connections end before they take a call")
	case !c.dialing && time.Since(c.failed) < failureCounts:
		reason = c.failure
	case len(c.waiting) >= maxWaiting:
		reason = fmt.Errorf("%d calls are waiting for a connection already", maxWaiting)
	}
	if reason != nil {
		c.mu.Unlock()
		call.refuse(reason)
		return
	}
	c.waiting = append(c.waiting, call)
	begin := !c.dialing
	c.dialing = true
	c.mu.Unlock()
	if begin {
		c.spawn(c.attempt)
	}
}

// another opens one more connection, for which no call waits.
func (c *connections) another() {
	c.mu.Lock()
	begin := !c.dialing && time.Since(c.failed) > time.Second
	if begin {
		c.dialing = true
	}
	c.mu.Unlock()
	if begin {
		c.spawn(c.attempt)
	}
}

// forgive forgets a failed attempt: the upstream has been seen up since.
func (c *connections) forgive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = time.Time{}
}

// attempt dials once and sends the waiting calls on.
func (c *connections) attempt() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*dialTimeout)
	conn, err := c.dial(ctx)
	cancel()
	if err == nil {
		c.pool.Add(conn)
	}
	c.mu.Lock()
	waiting := c.waiting
	c.waiting, c.dialing = nil, false
	if err != nil {
		c.failed, c.failure = time.Now(), err
	}
	c.mu.Unlock()
	if err != nil && (len(waiting) > 0 || c.pool.Len() == 0) {
		c.unreachable(err)
	}
	for _, call := range waiting {
		if err != nil {
			call.refuse(err)
		} else {
			c.carry(call)
		}
	}
}

// open dials u and starts the HTTP/2 engine on the connection; it is ready
// when the server has said that it speaks HTTP/2. It runs until ctx ends.
func (u *upstream) open(ctx, run context.Context, options *relay.Options) (*relay.Conn, error) {
	nc, err := u.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := relay.NewClient(nc, options)
	u.calls.spawn(func() {
		err := conn.Run(run)
		u.log.Debug("connection to upstream ended", "cause", err)
	})
	select {
	case <-conn.Ready():
		return conn, nil
	case <-conn.Done():
		return nil, errors.New("it closed the connection before it spoke HTTP/2: is this its gRPC port?")
	case <-ctx.Done():
		conn.Close(ctx.Err())
		return nil, errors.New("it accepts connections and does not speak HTTP/2: is this its gRPC port?")
	}
}
