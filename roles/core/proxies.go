package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/link"
	"sallyport/roles/relay"
	"sallyport/store"
)

// proxies keeps core connected to every proxy that was added: it lets those
// join that were invited, and keeps a control session and a relay link to
// those that have.
type proxies struct {
	core    *core
	log     *slog.Logger
	kicked  chan struct{} // something about proxies may have changed
	dialler link.Dialler
	working sync.WaitGroup
}

func newProxies(c *core) *proxies {
	return &proxies{core: c, log: c.log, kicked: make(chan struct{}, 1),
		dialler: link.Dialler{Self: c.self, Log: c.log, Connect: relayDial}}
}

// kick makes run look at the registry again.
func (p *proxies) kick() {
	select {
	case p.kicked <- struct{}{}:
	default:
	}
}

// proxySpec is what a worker was started for. Another one takes another worker.
type proxySpec struct {
	address, serverName, mode string
	incarnation               uint64
}

type proxyWorker struct {
	spec proxySpec
	stop context.CancelFunc
	done chan struct{}
}

// run has one worker per proxy until ctx ends. After draining is closed no
// relay link is made any more.
func (p *proxies) run(ctx context.Context, draining <-chan struct{}) error {
	workers := map[string]*proxyWorker{}
	defer p.working.Wait()
	for {
		records, err := p.core.db.Components(ctx, pki.RoleProxy)
		if err != nil && ctx.Err() == nil {
			p.log.Error("cannot read which proxies there are, the former ones stay", "cause", err)
		} else if err == nil {
			p.reconcile(ctx, workers, records, draining)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.kicked:
		}
	}
}

// reconcile starts, replaces and ends workers so that there is one for each
// record.
func (p *proxies) reconcile(ctx context.Context, workers map[string]*proxyWorker, records []store.ComponentRecord, draining <-chan struct{}) {
	wanted := map[string]proxySpec{}
	for _, r := range records {
		wanted[r.Name] = proxySpec{r.Address, r.ServerName, p.core.modeOf(r), r.Incarnation}
	}
	for name, w := range workers {
		if spec, ok := wanted[name]; !ok || spec != w.spec {
			w.stop()
			<-w.done
			delete(workers, name)
		}
	}
	for name, spec := range wanted {
		if workers[name] != nil {
			continue
		}
		working, stop := context.WithCancel(ctx)
		w := &proxyWorker{spec: spec, stop: stop, done: make(chan struct{})}
		workers[name] = w
		p.working.Go(func() {
			defer close(w.done)
			defer stop()
			p.work(working, name, spec, draining)
		})
	}
}

// work keeps both links to one proxy.
func (p *proxies) work(ctx context.Context, name string, spec proxySpec, draining <-chan struct{}) {
	m := p.core.registry.get(key{pki.RoleProxy, name})
	var both sync.WaitGroup
	both.Go(func() {
		link.KeepFresh(ctx, p.log, "control session with proxy "+name, func(ctx context.Context, t *link.Turn) error {
			err := p.control(ctx, m, spec, t)
			if err != nil && ctx.Err() == nil {
				m.explain(clean(err.Error()))
			}
			return err
		})
	})
	both.Go(func() {
		link.KeepFresh(ctx, p.log, "relay link to proxy "+name, func(ctx context.Context, t *link.Turn) error {
			return p.relay(ctx, m, spec, draining, t)
		})
	})
	both.Wait()
}

// control lets the proxy join if it has not, and runs its control session.
func (p *proxies) control(ctx context.Context, m *component, spec proxySpec, t *link.Turn) error {
	r, err := p.core.db.Component(ctx, pki.RoleProxy, m.name)
	if err != nil {
		return err
	}
	dialler, err := p.diallerTo(r)
	if err != nil {
		return err
	}
	joined := time.Time{}
	late := false // it may have joined after the backup that core was restored from
	if r.State == store.StateInvited {
		if err := p.await(ctx, m, r, spec); err != nil {
			refusal, refused := pki.AsRefusal(err)
			if late = refused && (refusal.Code == "join_not_expected" || refusal.Code == pki.CodeTokenExpired) && p.core.restored(ctx); !late {
				return err
			}
		} else {
			joined = time.Now()
			pause(ctx, settlePause)
		}
	}
	conn, err := dialler.Dial(ctx, spec.address, link.ALPNControl, pki.Expect{Role: pki.RoleProxy, Name: m.name})
	for err != nil && time.Since(joined) < settleTime && pause(ctx, settlePause) {
		conn, err = dialler.Dial(ctx, spec.address, link.ALPNControl, pki.Expect{Role: pki.RoleProxy, Name: m.name})
	}
	if err != nil {
		// A proxy may have lost the answer to its joining, and a reusable one
		// joins at each start: while its token is good it gets an answer.
		refusal, refused := pki.AsRefusal(err)
		there := !refused || refusal.Code != pki.CodeConnectionRefused
		if there && r.State == store.StateJoined && p.mayJoinAgain(ctx, r) && p.join(ctx, r, spec) == nil {
			return errJoinedAgain
		}
		if link.Recoverable(err) && (r.State == store.StateJoined || late) {
			recovered := p.recover(ctx, r, spec)
			if recovered == nil {
				return errRecovered
			}
			return fmt.Errorf("%w; and its identity could not be recovered: %w", err, recovered)
		}
		return err
	}
	defer conn.Close()
	if refusal := p.core.check(link.ALPNControl, conn.Peer); refusal != nil {
		return refusal
	}
	t.Use(conn)
	return p.core.sessions.Serve(ctx, conn)
}

// await lets an invited proxy join as soon as it is there. That nobody listens
// at its address yet is what one expects of a proxy that was just added.
func (p *proxies) await(ctx context.Context, m *component, r store.ComponentRecord, spec proxySpec) error {
	for {
		err := p.join(ctx, r, spec)
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Code != pki.CodeConnectionRefused {
			return err
		}
		m.explain("nobody listens at " + spec.address + " yet")
		if m.once("awaited") {
			p.log.Info("waiting for a proxy to be started", "proxy", m.name, "address", spec.address)
		}
		if !pause(ctx, awaitPause) {
			return ctx.Err()
		}
	}
}

const awaitPause = 300 * time.Millisecond

// A proxy that has just stored its identity takes a moment to show it.
const (
	settleTime  = 2 * time.Second
	settlePause = 100 * time.Millisecond
)

// pause waits; it is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

var (
	errJoinedAgain = errors.New("the proxy joined again")
	errRecovered   = errors.New("the proxy's identity had expired and was renewed")
)

// recover renews the identity of a proxy that has expired, or that does not
// know core's CA any more: core comes to it on sallyport-renew/1.
func (p *proxies) recover(ctx context.Context, r store.ComponentRecord, spec proxySpec) error {
	dialler, err := p.diallerTo(r)
	if err != nil {
		return err
	}
	dialler.Recovery = p.core.recoveryVerifier
	conn, err := dialler.Dial(ctx, spec.address, link.ALPNRenew, pki.Expect{Role: pki.RoleProxy, Name: r.Name})
	if err != nil {
		return err
	}
	defer conn.Close()
	return p.core.registrar.Recover(ctx, conn)
}

// diallerTo is how core dials a proxy: with the outside certificate expected
// that the proxy's port is to show.
func (p *proxies) diallerTo(r store.ComponentRecord) (link.Dialler, error) {
	d := p.dialler
	mode, anchors := p.core.modeOf(r), p.core.anchors
	if mode == link.ModeInternal {
		anchors = nil // they are for those in another mode
	}
	outside, err := link.OutsideFor(mode, r.ServerName, anchors, "", "--proxy-grpc-ca")
	d.Outside = outside
	return d, err
}

// mayJoinAgain reports whether a proxy that has joined may still use its token.
func (p *proxies) mayJoinAgain(ctx context.Context, r store.ComponentRecord) bool {
	token, err := p.core.db.TokenOf(ctx, r.Role, r.Name)
	return err == nil && time.Now().Before(token.Expires)
}

// join lets an invited proxy join: core dials it and pins the key that its
// token makes.
func (p *proxies) join(ctx context.Context, r store.ComponentRecord, spec proxySpec) error {
	token, err := p.core.db.TokenOf(ctx, r.Role, r.Name)
	if err != nil {
		return err
	}
	if !time.Now().Before(token.Expires) {
		return &pki.Refusal{Code: pki.CodeTokenExpired, Cause: fmt.Sprintf("proxy %s has not joined, and its join token expired at %s", r.Name, token.Expires.UTC().Format(time.RFC3339)),
			Remedy: fmt.Sprintf("add it again: sallyport proxy rm %s, then sallyport proxy add %s --address %s --core-ip …, and start it with the new token", r.Name, r.Name, r.Address)}
	}
	dialler, err := p.diallerTo(r)
	if err != nil {
		return err
	}
	dialler.BootstrapKey = token.PublicKey
	conn, err := dialler.Dial(ctx, spec.address, link.ALPNJoin, pki.Expect{Role: pki.RoleProxy, Name: r.Name})
	if err != nil {
		return err
	}
	defer conn.Close()
	return p.core.registrar.Serve(ctx, conn)
}

// relay runs one relay link: core dialled, so core is the HTTP/2 server.
// A link whose certificate nears its end, or whose either end has a new
// identity, is replaced: the new one is up before the old one drains.
func (p *proxies) relay(ctx context.Context, m *component, spec proxySpec, draining <-chan struct{}, t *link.Turn) error {
	for !m.connected.Load() {
		changed := p.core.registry.waiter()
		if m.connected.Load() {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
	select {
	case <-draining:
		<-ctx.Done()
		return nil
	default:
	}
	r, err := p.core.db.Component(ctx, pki.RoleProxy, m.name)
	if err != nil {
		return err
	}
	dialler, err := p.diallerTo(r)
	if err != nil {
		return err
	}
	conn, err := dialler.Dial(ctx, spec.address, link.ALPNRelay, pki.Expect{Role: pki.RoleProxy, Name: m.name})
	if err != nil {
		return err
	}
	defer conn.Close()
	if refusal := p.core.check(link.ALPNRelay, conn.Peer); refusal != nil {
		return refusal
	}
	l := relay.NewServer(conn.Conn, &relay.Options{Limits: relay.LinkLimits(), Metrics: p.core.relayed, Budget: p.core.budget, Log: p.log, Hop: "core", Remote: "link to proxy " + m.name}, p.core.router)
	l.SetPeer(&neighbour{role: m.role, name: m.name, id: conn.Peer.ID.String(), link: m.name})
	if !m.add(l, conn, &m.links) {
		return errors.New("the control session ended")
	}
	defer m.forget(l)
	ended := make(chan struct{})
	var beside sync.WaitGroup
	defer beside.Wait()
	defer close(ended)
	beside.Go(func() { p.core.keepTenure(ctx, l, conn, t.Retired(), ended) })
	t.Use(conn)
	beside.Go(func() {
		// Ready is this end's word: the proxy may not have read ours. An answer
		// from its end shows that it puts its calls here from now on.
		if _, err := l.Ping(ctx); err == nil {
			conn.Up()
		}
		select {
		case <-t.Retired():
			l.Drain()
		case <-ended:
		}
	})
	select {
	case <-draining:
		l.Drain() // it may have been added after all others were told
	default:
	}
	err = l.Run(ctx)
	select {
	case <-draining:
		<-ctx.Done()
	default:
	}
	return err
}
