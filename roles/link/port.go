package link

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/health/grpc_health_v1"

	"sallyport/acme/pki"
)

// Handler owns one accepted connection until it returns; the port closes the
// connection then. ctx ends when the port stops.
type Handler func(ctx context.Context, conn *Conn)

// Port is the listening side: one gRPC port of core or of a proxy. The zero
// value of every optional field is the strict one.
type Port struct {
	Self *Self        // what the port proves and believes
	Log  *slog.Logger // refusals, once each, bounded per source

	// Expect is the role that dials this port: gateway at core, core at a proxy.
	Expect pki.Role

	// Handlers by ALPN: join, control, relay, call. An ALPN without a handler
	// is refused. Renew is built in.
	Handlers map[string]Handler

	// Token, at a proxy that has not joined, is its join token: the port then
	// presents the bootstrap certificate. Nil, or a nil token: the port
	// presents its identity.
	Token func() *pki.Token

	// JoinKey, at core, is what core thinks of a bootstrap key; nil accepts.
	// Only Why asks it: the Join RPC decides by Registrar.Adopt.
	JoinKey func(key ed25519.PublicKey, from netip.AddrPort) *pki.Refusal

	// Admit decides by address alone, before the first byte is read, and again
	// about open connections at Recheck. A refused connection is told by a TLS
	// alert (access_denied) and closed. Nil admits.
	Admit func(netip.AddrPort) *pki.Refusal

	// Check runs after the handshake, when the peer has proven that it holds
	// the key of its verified identity: the registry of components, its peer
	// addresses, alarms. Nil accepts. It runs again when that peer asks Why.
	Check func(alpn string, peer Peer) *pki.Refusal

	// Recover answers the Recover RPC on sallyport-renew/1: at core
	// (*Registrar).ServeRecover, at a proxy (*Renewer).ServeRecover. Nil: no
	// identity is recovered here.
	Recover func(ctx context.Context, conn *Conn, st RecoverStream) error

	// Outside, if set, is the certificate that the port shows to the world
	// (mode files or acme): (*OutsideSource).Certificate. Who dials has to
	// expect it; the port's identity is then proven by its preface.
	Outside func() (*tls.Certificate, error)

	// Health answers on ALPN h2. Nil: h2 is refused.
	Health grpc_health_v1.HealthServer

	// HandshakeTimeout bounds everything before a handler (10 s), Handshakes
	// how many of them run at a time (64, half of them for one source address).
	// One more takes the place of the oldest, of the source that has most: who
	// means to speak is done long before that.
	HandshakeTimeout time.Duration
	Handshakes       int

	once       sync.Once
	refusals   *refusalLog
	mu         sync.Mutex               // guards what follows
	unfinished []*unfinished            // handshakes running, the oldest first
	bySource   map[netip.Prefix]int     // how many of them, per source
	open       map[string]int           // accepted connections, per kind and per kind and peer
	rates      map[string]*rate.Limiter // of new ones, per kind and identity or token

	admission admission
}

// unfinished is a connection whose handshake is running.
type unfinished struct {
	nc     net.Conn
	remote netip.AddrPort
	source netip.Prefix
}

const (
	defaultHandshakeTimeout = 10 * time.Second
	defaultHandshakes       = 64
	strangerTime            = time.Minute // join and renew; health probes may watch longer

	// Accepted connections at a time. Of those that prove no identity (renew,
	// h2, and join with a key that no token made): per protocol, and for one
	// source address. Of the others: per protocol for one identity or token;
	// of control sessions, each of which may be about to send its largest
	// message, there is one, and a few more while it is being replaced.
	maxStrangers  = 64
	maxFromSource = 16
	maxOfIdentity = 64
	maxSessions   = 8

	// New connections of one identity or token, per protocol: who reconnects
	// without end costs core work and lines in its log.
	opensPerSecond = 2
	opensBurst     = 100
)

func (p *Port) init() {
	p.once.Do(func() {
		if p.Log == nil {
			p.Log = slog.New(slog.DiscardHandler)
		}
		if p.HandshakeTimeout <= 0 {
			p.HandshakeTimeout = defaultHandshakeTimeout
		}
		if p.Handshakes <= 0 {
			p.Handshakes = defaultHandshakes
		}
		p.refusals = newRefusalLog(p.Log)
		p.bySource = make(map[netip.Prefix]int)
		p.open = make(map[string]int)
		p.rates = make(map[string]*rate.Limiter)
	})
}

// Serve accepts connections until ctx ends or the listener fails, and returns
// when every connection's handler has returned. It closes the listener. The
// error is nil when ctx ended.
func (p *Port) Serve(ctx context.Context, l net.Listener) error {
	p.init()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()

	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	pause := 5 * time.Millisecond
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of file descriptors, or a connection that died in the queue.
			p.refusals.note(netip.AddrPort{}, "", &pki.Refusal{Code: "accept_failed", Cause: "cannot accept a connection: " + err.Error(), Remedy: "if it persists, raise the limit of open files"})
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		remote := remoteOf(nc)
		if !p.admits(nc, remote) {
			continue
		}
		hs, displaced := p.begin(nc, remote)
		if displaced != nil {
			p.tooMany(displaced.remote)
			displaced.nc.Close()
		}
		if hs == nil {
			p.tooMany(remote)
			nc.Close()
			continue
		}
		running.Go(func() { p.connection(ctx, hs) })
	}
}

func (p *Port) tooMany(remote netip.AddrPort) {
	p.refusals.note(remote, "", &pki.Refusal{Code: "too_many_handshakes", Cause: "too many unfinished connections from one address",
		Remedy: "if a component lives there, it dials too often: read its log; if not, keep the address out with the firewall"})
}

// begin takes a connection among the unfinished ones, if its source has not
// too many of them, in the place of another if all together are too many.
func (p *Port) begin(nc net.Conn, remote netip.AddrPort) (hs, displaced *unfinished) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hs = &unfinished{nc, remote, sourcePrefix(remote.Addr())}
	if p.bySource[hs.source] >= max(p.Handshakes/2, 1) {
		return nil, nil
	}
	if len(p.unfinished) >= p.Handshakes {
		for _, u := range p.unfinished {
			if displaced == nil || p.bySource[u.source] > p.bySource[displaced.source] {
				displaced = u
			}
		}
		p.endLocked(displaced)
	}
	p.unfinished = append(p.unfinished, hs)
	p.bySource[hs.source]++
	return hs, displaced
}

// end is called when a handshake is over.
func (p *Port) end(hs *unfinished) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(hs)
}

func (p *Port) endLocked(hs *unfinished) {
	i := slices.Index(p.unfinished, hs)
	if i < 0 {
		return // it was displaced
	}
	p.unfinished = slices.Delete(p.unfinished, i, i+1)
	if p.bySource[hs.source]--; p.bySource[hs.source] <= 0 {
		delete(p.bySource, hs.source)
	}
}

// connection is one accepted connection, from its first byte to its end.
func (p *Port) connection(ctx context.Context, hs *unfinished) {
	nc := hs.nc
	defer nc.Close()
	if !p.watch(nc, hs.remote) {
		p.end(hs)
		return
	}
	defer p.unwatch(nc)
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	conn, err := p.handshake(ctx, nc, hs.remote)
	p.end(hs)
	if !stop() || err != nil {
		return
	}
	defer conn.Close()
	p.dispatch(ctx, conn)
}

// dispatch hands an accepted connection to what serves its protocol.
func (p *Port) dispatch(ctx context.Context, conn *Conn) {
	release, r := p.reserve(conn)
	if r != nil {
		p.refusals.note(conn.Peer.Remote, conn.ALPN, r)
		return
	}
	defer release()
	if conn.ALPN == ALPNJoin || conn.ALPN == ALPNRenew {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, strangerTime)
		defer cancel()
	}
	switch conn.ALPN {
	case ALPNHealth:
		p.serveHealth(ctx, conn)
	case ALPNRenew:
		p.serveRenew(ctx, conn)
	default:
		p.Handlers[conn.ALPN](ctx, conn)
	}
}

// reserve counts an accepted connection, or refuses it for being one too many.
func (p *Port) reserve(conn *Conn) (release func(), r *pki.Refusal) {
	who, most, all := conn.Peer.ID.String(), maxOfIdentity, 0
	switch conn.ALPN {
	case ALPNControl:
		most = maxSessions
	case ALPNJoin:
		peer := conn.Peer
		if p.verdict(ALPNJoin, &peer) == nil && peer.BootstrapKey != nil {
			who = string(peer.BootstrapKey) // strangers must not keep newcomers out
			break
		}
		fallthrough
	case ALPNRenew, ALPNHealth:
		who, most, all = sourcePrefix(conn.Peer.Remote.Addr()).String(), maxFromSource, maxStrangers
	}
	kind := conn.ALPN
	who = kind + " " + who
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[who] >= most || all > 0 && p.open[kind] >= all {
		return nil, &pki.Refusal{Code: "too_many_connections", Cause: "too many connections of this kind are open",
			Remedy: "a component tries again by itself; if it persists, look for a second process with its identity, or keep strangers out with the firewall"}
	}
	if all == 0 && !p.mayOpen(who) {
		return nil, &pki.Refusal{Code: "too_many_connections", Cause: "it connects too often",
			Remedy: "a component tries again by itself; if it persists, read its log, and look for a second process with its identity"}
	}
	p.open[who]++
	if all > 0 {
		p.open[kind]++
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.open[who]--; p.open[who] == 0 {
			delete(p.open, who)
		}
		if all > 0 {
			p.open[kind]--
		}
	}, nil
}

// mayOpen counts a new connection of who, an identity or token that is known,
// so that there are no more counters than those.
func (p *Port) mayOpen(who string) bool {
	r := p.rates[who]
	if r == nil {
		r = rate.NewLimiter(opensPerSecond, opensBurst)
		p.rates[who] = r
	}
	return r.Allow()
}

// state is what this handshake proves and believes, and the join token if the
// port is still waiting to join.
func (p *Port) state() (*selfState, *pki.Token) {
	st := p.Self.state.Load()
	if p.Token != nil && st.credentials == nil {
		return st, p.Token()
	}
	return st, nil
}

// certificate is what the port presents on alpn.
func (p *Port) certificate(alpn string, st *selfState, token *pki.Token) (*tls.Certificate, *pki.Refusal) {
	if token != nil {
		c, err := token.BootstrapCertificate(p.Self.now())
		if err != nil {
			return nil, refusalOf(err)
		}
		return &c, nil
	}
	c, err := st.certificate(alpn == ALPNJoin || alpn == ALPNRenew)
	if err != nil {
		return nil, refuseNotJoined()
	}
	return c, nil
}
