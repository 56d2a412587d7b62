// Package proxy is the role that faces the internet. It ends callers' TLS,
// finds out who calls, decides by the policy that core gave it, and relays
// what it lets through over connections that core dialled: the proxy dials
// nobody.
//
// # Not trusted
//
// The host it runs on is not trusted with authority. It has no CA key, no
// other component's key, and no secret of a caller but those that pass
// through. What it claims about a client certificate counts only where a
// grant names this proxy; everything else core checks again.
//
// # One call
//
// In this order, always: limit per source address, log, authenticate,
// authorize, limit per caller, relay; the limit per caller is core's, where the
// calls of all proxies meet. A bad
// certificate or key is answered with UNAUTHENTICATED and the reason, on
// public methods too. The proxy's own services, health and reflection, are
// reached by the same way, and reflection shows each caller what he may call.
//
// # Browsers
//
// Native gRPC and gRPC-Web, over HTTP/2 and HTTP/1.1, come in by the same way
// and are judged alike; HTTP/1.1 is read by net/http and carried over a
// connection in memory. Pages may call from the origins that the settings name
// and from this very one. What a browser adds by itself, cookies and client
// certificates, counts for nothing.
//
// # Crowds
//
// Connections, unfinished handshakes and open calls are counted per source, an
// IPv4 address or an IPv6 /64. A source may hold as much as is free then, so one
// alone gets half, and others find a place beside it.
//
// # Working on alone
//
// What core last said is kept in proxy.db. While core is away calls end with
// UNAVAILABLE, but who may call what is still known; the identity is never
// given up.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"sallyport/acme"
	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/firewall"
	"sallyport/roles/builtin"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
	"sallyport/store"
)

// Deps is what a proxy needs from the process it runs in.
type Deps struct {
	Log      *slog.Logger
	Version  string
	Registry prometheus.Registerer // nil: metrics are kept and shown nowhere
	Budget   *relay.Budget         // what calls may make the process hold; nil: relay.DefaultBudget
	Ready    func(err error)       // nil error: ready; called on every change
	Started  func(Info)            // called once, when both ports are open
	Firewall *firewall.File        // gets the addresses of core; nil: they are written nowhere

	admission *admission // of tests that come in crowds; nil: the usual one
}

// Info says where a running proxy is.
type Info struct {
	Name          string // empty before it has joined
	GRPCAddress   string // the component port, where core comes
	PublicAddress string // where callers come
}

// proxy is one running proxy.
type proxy struct {
	settings configs.Proxy
	deps     Deps
	log      *slog.Logger
	db       *store.Component
	self     *link.Self
	token    atomic.Pointer[pki.Token] // nil once joined
	started  time.Time
	instance []byte

	snapshots *link.Snapshots
	view      atomic.Pointer[view]
	viewing   sync.Mutex    // serialises replacements of view
	recheck   chan struct{} // the view is another
	foreign   []*foreignCA
	end       *link.ComponentEnd
	renewer   *link.Renewer
	links     relay.Pool // to core
	draining  atomic.Bool
	state     readiness

	certificates certificates
	issued       *issued                // certificates, in mode internal
	ordered      *ordered               // certificates of a public CA, for either port; nil: none are
	outside      *link.OutsideSource    // what the gRPC port shows in mode files, else nil
	expects      atomic.Pointer[string] // mode of the gRPC port that core was heard to expect last
	public       *public
	component    *component
	peers        *peers
	own          *builtin.Services

	metrics *relay.CallMetrics
	frames  *relay.Metrics
	edge    *edgeMetrics
	access  *relay.AccessLog
	denials link.Denials
	used    policy.Limiter
}

// Run runs a proxy until ctx ends and the calls in flight were drained.
func Run(ctx context.Context, s configs.Proxy, d Deps) error {
	p, err := open(s, d)
	if err != nil {
		return err
	}
	defer p.close()
	if p.token.Load() != nil {
		// What a former identity in this directory was told does not count, and
		// is gone before there is a new one.
		if err := p.db.ForgetSnapshot(); err != nil {
			return err
		}
	}
	if err := p.snapshots.Restore(); err != nil {
		return err
	}
	if err := p.peers.start(p.token.Load(), p.snapshots.Snapshot()); err != nil {
		return err
	}
	grpcListener, err := net.Listen("tcp", s.GRPCAddress)
	if err != nil {
		return fmt.Errorf("open the gRPC port (--grpc-address): %w", err)
	}
	defer grpcListener.Close()
	publicListener, err := net.Listen("tcp", s.PublicAddress)
	if err != nil {
		return fmt.Errorf("open the public port (--public-address): %w", err)
	}
	defer publicListener.Close()
	httpListener, err := acme.Listen(s.HTTPAddress)
	if err != nil {
		return err
	}
	p.state.changed()
	if d.Started != nil {
		d.Started(Info{Name: p.name(), GRPCAddress: grpcListener.Addr().String(), PublicAddress: publicListener.Addr().String()})
	}
	return p.run(ctx, relay.Listen(grpcListener), relay.Listen(publicListener), httpListener)
}

// open reads what is on disk and puts the parts together; nothing runs yet.
func open(s configs.Proxy, d Deps) (*proxy, error) {
	p := &proxy{settings: s, deps: d, log: d.Log, started: time.Now(), instance: make([]byte, 16), recheck: make(chan struct{}, 1),
		metrics: relay.NewCallMetrics("proxy", d.Registry), frames: new(relay.Metrics), access: relay.NewAccessLog(d.Log, s.AccessLog)}
	_, _ = rand.Read(p.instance)
	p.state.find, p.state.tell = p.findProblem, d.Ready
	var err error
	if p.edge, err = newEdgeMetrics(d.Registry, p.frames); err != nil {
		return nil, err
	}
	if err := p.makeDir(); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	var token *pki.Token
	if p.self, token, err = link.OpenSelf(p.dir(), pki.RoleProxy, s.Join); err != nil {
		return nil, err
	}
	if s.DataDir == "" && !token.Reusable {
		d.Log.Warn("the identity is kept in memory and the join token is good once: after a restart this proxy has to be added again; 'sallyport proxy add --reusable' makes a token for hosts without a disk")
	}
	if p.token.Store(token); token != nil {
		p.compareMode(token.GRPCTLS)
	}
	p.end = &link.ComponentEnd{
		Hello: func() *control.Hello {
			return &control.Hello{Version: d.Version, Instance: p.instance, Held: p.snapshots.Held(), StartedUnix: p.started.Unix(),
				RevocationsHeld: p.self.RevocationsHead(), Port: p.peers.report()}
		},
		Apply:         func(s *control.Snapshot) error { return p.snapshots.Apply(s) },
		Denials:       p.denials.Take,
		Revocations:   p.self.Revocations,
		Certificates:  p.reports,
		CallsInFlight: func() uint32 { return uint32(p.metrics.InFlight()) },
		Log:           d.Log,
	}
	p.renewer = &link.Renewer{Self: p.self, Dir: p.dir(), End: p.end, RenewBefore: s.RenewBefore, Version: d.Version, Log: d.Log,
		Ready: func(error) { p.state.changed() }}
	if p.ordered, err = p.openOrdered(); err != nil {
		return nil, err
	}
	if s.TLS == "off" {
		p.certificates = noCertificate{}
	} else if s.TLS == "acme" {
		p.certificates = p.ordered
	} else if s.TLS == "files" {
		source, err := link.OpenOutside(publicPort, s.TLSCert, s.TLSKey, d.Log, p.state.changed)
		if err != nil {
			return nil, err
		}
		p.certificates = files{source}
	} else {
		p.issued = p.newIssued()
		p.certificates = p.issued
	}
	if p.foreign, err = openForeign(s.ClientCAs, p); err != nil {
		return nil, err
	}
	if s.GRPCTLS == "files" {
		if p.outside, err = link.OpenOutside("the gRPC port", s.GRPCCert, s.GRPCKey, d.Log, nil); err != nil {
			return nil, err
		}
	}
	p.peers = newPeers(p)
	p.public, p.component, p.own = newPublic(p), newComponent(p), newOwn(p)
	if err := p.countStrangers(d.Registry); err != nil {
		return nil, err
	}
	if p.db, err = p.openStore(); err != nil {
		return nil, err
	}
	p.snapshots = &link.Snapshots{Self: p.self, Save: p.db.SaveSnapshot, Load: p.db.Snapshot, Forget: p.db.ForgetSnapshot, Prepare: p.prepare}
	return p, nil
}

// run works until ctx ends or a listener fails, then drains. What carries
// calls outlives ctx until the last call has ended or the drain time is over.
func (p *proxy) run(ctx context.Context, grpcListener, publicListener, httpListener net.Listener) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.component.port.Serve(work, grpcListener) })
	group.Go(func() error { return p.public.serve(ctx, work, publicListener) })
	group.Go(func() error { p.component.keepIdentity(work); return nil })
	group.Go(func() error { p.certificates.run(work); return nil })
	group.Go(func() error { p.keepChecking(work); return nil })
	if httpListener != nil {
		group.Go(func() error { return p.serveHTTP(work, httpListener, publicListener.Addr()) })
	}
	if p.ordered != nil {
		group.Go(func() error { return p.ordered.Run(work) })
	}
	for _, f := range p.foreign {
		group.Go(func() error { return f.run(work) })
	}
	if p.outside != nil {
		group.Go(func() error { return p.outside.Run(work) })
	}
	group.Go(func() error { p.own.Run(work); return nil })
	group.Go(func() error { p.peers.run(work); return nil })
	group.Go(func() error {
		<-ctx.Done()
		p.draining.Store(true)
		p.state.changed()
		p.public.drain(p.settings.DrainTimeout)
		stop()
		return nil
	})
	return group.Wait()
}

// reports are the certificates in use beside the identity, for core.
func (p *proxy) reports() []*control.Certificate {
	var list []*control.Certificate
	if p.outside != nil {
		list = append(list, p.outside.Report())
	}
	if c := p.certificates.report(); c != nil {
		list = append(list, c)
	}
	if p.ordered != nil {
		list = append(list, p.ordered.reports()...)
	}
	for _, f := range p.foreign {
		list = append(list, f.file.Report())
	}
	return list
}

// dir is where the identity is kept; empty: in memory.
func (p *proxy) dir() string {
	if p.settings.DataDir == "" {
		return ""
	}
	return filepath.Join(p.settings.DataDir, "proxy")
}

func (p *proxy) makeDir() error {
	if p.dir() == "" {
		return nil
	}
	return os.MkdirAll(p.dir(), 0o700)
}

// openStore opens what is known beside the identity.
func (p *proxy) openStore() (*store.Component, error) {
	if p.settings.DataDir == "" {
		return store.OpenMemoryComponent()
	}
	return store.OpenComponent(filepath.Join(p.settings.DataDir, "proxy.db"))
}

// close closes the databases.
func (p *proxy) close() {
	p.db.Close()
	if p.ordered != nil {
		p.ordered.db.Close()
	}
}

// name is what core calls this proxy; empty before it has joined.
func (p *proxy) name() string {
	if c := p.self.Credentials(); c != nil {
		return c.ID.Name
	}
	return ""
}

// hop is how callers read it in errors.
func (p *proxy) hop() string {
	if n := p.name(); n != "" {
		return "proxy " + n
	}
	return "proxy"
}

// findProblem is the first reason why calls cannot be served now.
func (p *proxy) findProblem() error {
	switch {
	case p.draining.Load():
		return errors.New("the proxy is shutting down")
	case p.self.Credentials() == nil:
		return errors.New("the proxy has not joined yet: it waits for core to come to its gRPC port")
	case p.view.Load() == nil:
		return errors.New("the proxy has not heard from core yet what it may let through")
	}
	if _, err := p.certificates.current(); err != nil {
		return err
	}
	if err := p.renewer.Err(); err != nil {
		return err
	}
	if p.links.Pick() == nil {
		return errors.New("core is not connected")
	}
	return nil
}
