package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// What the entrances together may cost. Each has an equal part of it, so that who
// reaches one of them takes nothing from those who use another; at a TLS entrance,
// where strangers come, one source has at most half of the part. Apps beside a
// gateway are peers as hostile as any: the limits of one connection are those of
// the public edge, but for the calls of a server that has many users itself.
const (
	maxApps        = 2048 // connections
	maxAppCalls    = 9000
	appStreams     = 1000 // of one connection
	appResets      = 1000 // in a second, of one connection
	entranceHello  = 10 * time.Second
	acceptPauseMax = time.Second
)

// entrances are where apps beside this gateway come in with calls of services
// behind other gateways (--listen). What is allowed is core's to decide: the
// gateway says by which entrance a call came and what certificate it saw, and
// passes tokens on.
type entrances struct {
	gateway  *gateway
	list     []*entrance
	pair     *link.Issued // shown by TLS entrances; nil: there are none
	config   *tls.Config
	refusals *link.Refusals
	metrics  *relay.CallMetrics
	news     chan struct{} // the CA or its revocations may be others
	judging  atomic.Uint64 // grows with every such change
	running  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	open   map[*relay.Conn]bool
	closed bool
}

// entrance is one of them.
type entrance struct {
	configs.Listen
	listener net.Listener
	budget   *relay.Budget // the part of the memory that its apps share
	room     *room
}

// openEntrances opens the listeners of the settings; nil without any.
func (g *gateway) openEntrances() (*entrances, error) {
	if len(g.settings.Listen) == 0 {
		return nil, nil
	}
	e := &entrances{gateway: g, refusals: link.NewRefusals(g.log), metrics: relay.NewCallMetrics("entrance", g.deps.Registry),
		news: make(chan struct{}, 1), open: make(map[*relay.Conn]bool)}
	budget := g.deps.Budget
	if budget == nil {
		budget = relay.DefaultBudget
	}
	for _, l := range g.settings.Listen {
		one := &entrance{Listen: l, budget: budget.Share(), room: newRoom(len(g.settings.Listen), l.Address.Scheme == configs.SchemeTLS)}
		var err error
		if l.Address.Scheme == configs.SchemeUnix {
			one.listener, err = listenUnix(l.Address.Target, g.settings.ListenGroup)
		} else {
			one.listener, err = net.Listen("tcp", l.Address.Target)
			if err == nil && l.Address.Scheme == configs.SchemePlain {
				err = onLoopback(one.listener)
			}
		}
		if err != nil {
			e.close()
			return nil, fmt.Errorf("open the entrance %s (--listen): %w", l, err)
		}
		if l.Address.Scheme == configs.SchemeTLS && e.pair == nil {
			e.pair = newPair(g)
			e.config = e.tlsConfig()
		}
		e.list = append(e.list, one)
	}
	return e, nil
}

// onLoopback closes a listener without TLS that other hosts could reach: a name
// such as localhost is where this host's resolver says.
func onLoopback(l net.Listener) error {
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		return nil
	}
	l.Close()
	return fmt.Errorf("it would be %s, which other hosts can reach, and without TLS they could call as this gateway; write 127.0.0.1 in place of the name, or tls://", l.Addr())
}

// tell is what core is told of the entrances, for its operator.
func (e *entrances) tell() []*control.Entrance {
	if e == nil {
		return nil
	}
	var list []*control.Entrance
	for _, one := range e.list {
		list = append(list, &control.Entrance{Label: one.Label, Address: one.Address.String()})
	}
	return list
}

// close closes the listeners.
func (e *entrances) close() {
	for _, one := range e.list {
		one.listener.Close()
	}
}

// run takes connections until ctx ends; they live in work.
func (e *entrances) run(ctx, work context.Context) {
	defer e.running.Wait()
	if e.pair != nil {
		e.running.Go(func() { e.pair.Run(work) })
	}
	e.running.Go(func() { e.keepJudging(work) })
	for _, one := range e.list {
		e.gateway.log.Info("apps may call here", "listen", one.String(), "address", one.listener.Addr().String())
		e.running.Go(func() { e.accept(ctx, work, one) })
	}
	<-ctx.Done()
	e.close()
	<-work.Done()
}

// accept takes the connections of one entrance.
func (e *entrances) accept(ctx, work context.Context, one *entrance) {
	pause := 5 * time.Millisecond
	for {
		nc, err := one.listener.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
			remote := link.RemoteOf(nc)
			source := one.room.come(remote.Addr())
			if source == nil {
				nc.Close()
				e.note(remote, &pki.Refusal{Code: "too_many", Cause: "too many connections of apps to the entrance " + one.String(), Remedy: "let the apps share connections, as gRPC clients do by themselves"})
				continue
			}
			e.running.Go(func() {
				defer one.room.leave(source)
				e.connection(work, relay.Socket(nc), &app{entrance: one, remote: remote, source: source})
			})
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // no descriptors are left, for instance
			e.gateway.log.Warn("an app's connection could not be taken, trying again", "listen", one.String(), "cause", err.Error())
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, acceptPauseMax)
		}
	}
}

// connection is one connection of an app from its first byte to its end.
func (e *entrances) connection(ctx context.Context, nc net.Conn, a *app) {
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	nc.SetDeadline(time.Now().Add(entranceHello))
	spoken := e.greet(ctx, nc, a)
	if !stop() || spoken == nil {
		return
	}
	defer spoken.Close()
	nc.SetDeadline(time.Time{})
	g := e.gateway
	limits := relay.EdgeLimits()
	limits.Streams, limits.Resets = appStreams, appResets
	conn := relay.NewServer(spoken, &relay.Options{Limits: limits, Metrics: g.frames, Budget: a.entrance.budget, Log: g.log, Hop: g.hop, Remote: "app", Edge: true, Violated: e.violated}, relay.HandlerFunc(e.serve))
	conn.SetPeer(a)
	if !e.add(conn) {
		return
	}
	defer e.remove(conn)
	err := conn.Run(ctx)
	g.log.Debug("an app's connection ended", "listen", a.entrance.String(), "cause", err)
}

// greet brings a connection to where HTTP/2 is spoken, or answers it and
// returns nil.
func (e *entrances) greet(ctx context.Context, nc net.Conn, a *app) net.Conn {
	where := "the entrance " + a.entrance.String()
	first, kind, err := link.Peek(nc)
	if err != nil {
		return nil // it said nothing in time, or went away
	}
	secure := a.entrance.Address.Scheme == configs.SchemeTLS
	switch {
	case !secure && kind == link.HTTP2:
		return first
	case !secure && kind == link.TLS:
		e.note(a.remote, &pki.Refusal{Code: pki.CodePlaintext, Cause: "a TLS handshake came to " + where + ", which speaks none",
			Remedy: "let the app speak gRPC without TLS (insecure, plaintext) here, or listen on tls://"})
		return nil
	case !secure:
		e.note(a.remote, &pki.Refusal{Code: "not_grpc", Cause: "something that is not gRPC (HTTP/2 without TLS) came to " + where, Remedy: "check what dials it; health and metrics are at --health-address"})
		return nil
	case kind != link.TLS:
		e.note(a.remote, kind.Refusal(where))
		kind.Answer(first, where)
		return nil
	}
	tc := tls.Server(first, e.config)
	if err := tc.HandshakeContext(ctx); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return nil
		}
		why, ok := pki.AsRefusal(err)
		if !ok {
			explained := pki.Explain(err)
			why = &explained
		}
		e.note(a.remote, why)
		return nil
	}
	a.chain = tc.ConnectionState().PeerCertificates
	return tc
}

// note logs why a connection comes to nothing, with a limit.
func (e *entrances) note(from netip.AddrPort, why *pki.Refusal) {
	e.refusals.Note(from, "", why)
}

// tlsConfig is that of the TLS entrances. Certificates are asked for and judged
// later, so that a bad one is answered in words.
func (e *entrances) tlsConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return e.pair.Certificate() }}
}

func (e *entrances) add(c *relay.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.open[c] = true
	}
	return !e.closed
}

func (e *entrances) remove(c *relay.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, c)
}

// connections are those that are open; last: no other comes any more.
func (e *entrances) connections(last bool) []*relay.Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = e.closed || last
	list := make([]*relay.Conn, 0, len(e.open))
	for c := range e.open {
		list = append(list, c)
	}
	return list
}
