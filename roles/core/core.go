// Package core is the role that has authority. It keeps the embedded CA and
// the registry of components, decides who may call what, and routes calls from
// proxies to gateways. It listens for gateways, it dials proxies, and nobody
// reaches it from the internet.
//
// # What it believes
//
// The operator, on admin.sock, by uid. Its own store, its own authority. A
// component only about itself, and only as far as it is bounded: names, counts
// and texts that a component sends are checked or cut before they are kept. A
// proxy about a caller's client certificate only where the grant names that
// proxy; credentials that core can verify itself it verifies itself.
//
// # How a change takes effect
//
// What decides about a call is one immutable value, a ruling: the policy, the
// API keys, and for every service the gateways that may serve it, each with
// the generation of the snapshot that tells it so. A change (a policy, a key,
// a component, an announcement) makes the next ruling: the publisher reads the
// store, composes the snapshot of every component, moves the generation of
// those whose content moved, puts the new ruling in force and sends what
// changed. A call is routed by the ruling that decided it, and only to
// gateways that have acknowledged its generation, so that a gateway never
// judges a call by an older table than core did.
//
// # How a call goes
//
// Towards proxies core is the HTTP/2 server, although it dialled. It reads
// what the proxy says of the caller, decides again, writes the sallyport-*
// headers anew and passes the call to the gateway with the fewest calls in
// flight among those whose upstream answers. A gateway that hands the call
// back untouched costs the caller nothing: another one is tried. Apps beside a
// gateway call in the same way, through it (eastwest.go).
//
// # Certificates
//
// Components renew over their control sessions (renewing.go), or recover when
// they have expired or the CA was rotated meanwhile; the store says which of an
// identity's keys counts. A rotation (rotation.go) and an import put another
// immutable Authority in the place of the present one (authority.go); links are
// replaced before they end, so that no call notices. A revocation (revoking.go)
// is in the store and in the signed list beside it (revocationlist.go) before it
// takes effect, and is in effect everywhere when every component has
// acknowledged the snapshot that says so. A backup (backup.go) is all that a
// fresh host needs (restore.go), which then learns from its components what was
// revoked since (relearning.go). What is about to fail is said in time
// (expiries.go, alerts.go).
package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/firewall"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy/token"
	"sallyport/roles/relay"
	"sallyport/store"
)

// Deps is what a core needs from the process it runs in.
type Deps struct {
	Log      *slog.Logger
	Version  string
	Registry prometheus.Registerer // nil: metrics are kept and shown nowhere
	Budget   *relay.Budget         // what calls may make the process hold; nil: relay.DefaultBudget
	Ready    func(err error)       // nil error: ready; called on every change
	Started  func(Info)            // called once, when every listener is open
	Firewall *firewall.File        // gets the addresses of the gateways; nil: they are written nowhere

	fetch func(ctx context.Context, issuer string) (*token.Keys, error) // of tests; nil: by HTTPS
}

// Info says where a running core is.
type Info struct {
	GRPCAddress string // as bound, HOST:PORT
	Advertise   string // what gateways dial; empty when nothing but loopback is known
	AdminSocket string
	TrustDomain string

	admin control.AdminServer
	core  *core
}

// Admin is the admin service of the running core that info describes, without
// a socket in between. What is done through it is audited as done by the
// process itself.
func Admin(info Info) control.AdminServer { return info.admin }

// actorCore is who decides when nobody asked core to.
const actorCore store.Actor = "core"

// core is the parts of a running core.
type core struct {
	set     configs.Core
	log     *slog.Logger
	version string
	started time.Time

	db        *store.Core
	ca        *authority
	self      *link.Self
	address   string // of the gRPC port, as bound
	advertise string // what gateways dial

	registry   *registry
	publisher  *publisher
	router     *router
	denials    *denials
	issuers    *issuers
	sessions   *link.CoreEnd
	registrar  *link.Registrar
	proxies    *proxies
	policy     *policyFile
	relearning *relearning
	peers      *peers
	renewals   *rates // by components
	rotation   *rotation
	alerts     *alerts
	crls       *crls
	expiries   *expiries
	backupDue  chan struct{}
	outside    *link.OutsideSource // what the gRPC port shows to the world; nil: core's identity
	ordered    *ordered            // the same, where it is ordered of a public CA; else nil
	anchors    *link.Anchors       // of the proxies' ports; nil: they show their identities

	secrets    atomic.Pointer[secrets]
	reloading  sync.Mutex // one change of secrets at a time
	refreshing sync.Mutex // one renewal of core's own identity at a time

	budget  *relay.Budget // nil: relay.DefaultBudget
	relayed *relay.Metrics
	running sync.WaitGroup // relay connections with gateways

	draining atomic.Bool
}

// Run is a core from start to end: it returns when ctx is cancelled and the
// calls in flight have ended, or when it cannot go on.
func Run(ctx context.Context, s configs.Core, d Deps) error {
	if d.Ready == nil {
		d.Ready = func(error) {}
	}
	if d.Started == nil {
		d.Started = func(Info) {}
	}
	d.Ready(errors.New("core is starting"))
	if err := privateDir(s.DataDir); err != nil {
		return err
	}
	if err := finishRestore(ctx, s, d.Log); err != nil {
		return err
	}
	db, err := store.OpenCore(filepath.Join(s.DataDir, "core.db"))
	if err != nil {
		return fmt.Errorf("open core's database: %w", err)
	}
	defer db.Close()
	ca, err := openAuthority(ctx, db, s, d.Log)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, s.GRPCAddress)
	if err != nil {
		return err
	}
	defer listener.Close()
	socket, err := listenAdmin(filepath.Join(s.DataDir, "admin.sock"))
	if err != nil {
		return err
	}
	defer socket.Close()
	c, err := newCore(ctx, s, d, db, ca, listener.Addr().String())
	if err != nil {
		return err
	}
	return c.run(ctx, d, listener, socket)
}

// newCore puts the parts together. It starts nothing.
func newCore(ctx context.Context, s configs.Core, d Deps, db *store.Core, opened *pki.Authority, address string) (*core, error) {
	c := &core{set: s, log: d.Log, version: d.Version, started: time.Now(), db: db, ca: newAuthority(opened), self: link.NewSelf(),
		address: address, advertise: advertised(s.Advertise, address), relayed: &relay.Metrics{}}
	list := &revocationList{path: revocationsPath(s.DataDir), log: d.Log, db: db, ca: c.ca}
	if err := list.adopt(ctx); err != nil {
		return nil, err
	}
	epoch, err := db.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	if c.relearning, err = openRelearning(s.DataDir, d.Log); err != nil {
		return nil, err
	}
	if err := c.openPort(); err != nil {
		return nil, err
	}
	c.budget = d.Budget
	c.renewals = newRates(renewalEvery, renewalBurst)
	c.secrets.Store(&secrets{webhook: s.AlertWebhook, backup: s.BackupPassphrase, ca: s.CAPassphrase})
	c.alerts = newAlerts(d.Log, db, func() configs.Secret { return c.secrets.Load().webhook }, opened.TrustDomain())
	c.crls = openCRLs(s.DataDir, d.Log, db, c.ca)
	c.rotation = newRotation(c)
	c.expiries = newExpiries(c)
	c.backupDue = make(chan struct{}, 1)
	c.registry = newRegistry()
	c.peers = newPeers(d.Log, s.NoPeerCheck)
	c.denials = newDenials(db, d.Log)
	c.router = &router{log: d.Log, shares: relay.NewShares(cmp.Or(d.Budget, relay.DefaultBudget)), registry: c.registry, denials: c.denials, calls: relay.NewCallMetrics("core", d.Registry),
		access: relay.NewAccessLog(d.Log, s.AccessLog), now: time.Now, wait: routeWait, waiting: make(chan struct{}, maxWaiting), held: c.relearning.holds, recheck: make(chan struct{}, 1)}
	fetch := d.fetch
	if fetch == nil {
		client := token.NewClient()
		fetch = func(ctx context.Context, issuer string) (*token.Keys, error) { return token.Fetch(ctx, client, issuer) }
	}
	c.issuers = newIssuers(d.Log, fetch, func(ctx context.Context) error { return c.publisher.publish(ctx) })
	c.issuers.remember(s.DataDir)
	c.router.newer = c.issuers.newer
	c.router.own = c.newOwn()
	c.publisher = &publisher{log: d.Log, db: db, ca: c.ca, list: list, crls: c.crls, self: c.self, registry: c.registry, lifetime: s.CertLifetime,
		demo: s.Demo, advertise: c.advertise, listener: c.presents(), modeOf: c.modeOf, ruling: &c.router.ruling, ruled: c.router.ruled, issuers: c.issuers, peers: c.peers}
	c.publisher.epoch.Store(epoch)
	c.policy = &policyFile{path: s.PolicyFile, log: d.Log, db: db, publish: c.publisher.publish}
	c.registrar = &link.Registrar{Adopt: c.adopt, Stored: c.stored, Verifier: c.recoveryVerifier, Renew: c.renew, Recovered: c.recovered,
		WantRevocations: c.wantRecoveryList, Revocations: c.recoveryList, Log: d.Log}
	c.sessions = &link.CoreEnd{Version: d.Version, Log: d.Log, Opened: c.opened, Closed: c.closed, Announced: c.announced,
		Denied: c.denied, Acknowledged: c.acknowledged, Certificate: c.certificate, Flapping: c.flapping,
		Renew: c.renew, Renewed: c.renewed, WantRevocations: c.wantRevocations, Revocations: c.revocationsFrom, Alerted: c.alerted, Reported: c.reported}
	c.proxies = newProxies(c)
	registerMetrics(d.Registry, c)
	if c.ordered != nil && d.Registry != nil {
		if err := d.Registry.Register(c.ordered.Collector("core")); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return c, nil
}

// run runs the parts until ctx ends, then drains.
func (c *core) run(ctx context.Context, d Deps, listener, socket net.Listener) error {
	if err := c.rotation.start(ctx); err != nil {
		return err
	}
	if err := c.refreshIdentity(ctx, time.Now()); err != nil {
		return err
	}
	if err := c.policy.start(ctx); err != nil {
		return err
	}
	if err := c.publisher.publish(ctx); err != nil {
		return err
	}
	// hard outlives ctx by the time that calls may take to finish.
	hard, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	group, hard := errgroup.WithContext(hard)
	c.router.stopped = hard.Done()
	hs := health.NewServer()
	hs.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	port := &link.Port{Self: c.self, Log: c.log, Expect: pki.RoleGateway, JoinKey: c.joinKey, Admit: c.peers.admit, Check: c.check, Recover: c.registrar.ServeRecover, Health: hs,
		Handlers: map[string]link.Handler{link.ALPNJoin: c.serveJoin, link.ALPNControl: c.serveControl, link.ALPNRelay: c.serveRelay, link.ALPNCall: c.serveCalls}}
	if c.outside != nil {
		port.Outside = c.outside.Certificate
		group.Go(func() error { return c.outside.Run(hard) })
	}
	if c.ordered != nil {
		port.Outside = c.ordered.shown
		group.Go(func() error { return c.ordered.serve(hard) })
	}
	if c.anchors != nil {
		group.Go(func() error { return c.anchors.Run(hard) })
	}
	c.peers.port.Store(port)
	admin := &admin{core: c}

	group.Go(func() error { return c.keepPeers(hard, port, d.Firewall) })
	group.Go(func() error { return port.Serve(hard, relay.Listen(listener)) })
	group.Go(func() error { return admin.serve(hard, socket) })
	group.Go(func() error { return c.proxies.run(hard, ctx.Done()) })
	group.Go(func() error { return c.keepIdentity(hard) })
	group.Go(func() error { return c.rotation.run(hard) })
	group.Go(func() error { return c.alerts.run(hard) })
	group.Go(func() error { return c.expiries.run(hard) })
	group.Go(func() error { return c.backups(hard) })
	group.Go(func() error { return c.policy.watch(hard) })
	group.Go(func() error { return c.denials.run(hard) })
	group.Go(func() error { c.router.own.Run(hard); return nil })
	group.Go(func() error { return c.issuers.run(hard) })
	group.Go(func() error { c.router.keepChecking(hard); return nil })
	group.Go(func() error { return c.sweep(hard) })
	group.Go(func() error {
		select {
		case <-hard.Done():
			return nil
		case <-ctx.Done():
		}
		d.Ready(errors.New("core is draining"))
		hs.Shutdown()
		c.drain()
		stop(errShutdown)
		return errShutdown
	})

	info := Info{GRPCAddress: c.address, Advertise: c.advertise, AdminSocket: socket.Addr().String(), TrustDomain: c.ca.get().TrustDomain(), admin: admin, core: c}
	c.log.Info("core is up", "grpc", info.GRPCAddress, "admin", info.AdminSocket, "trust_domain", info.TrustDomain)
	d.Ready(nil)
	d.Started(info)
	err := group.Wait()
	c.running.Wait()
	c.router.goroutines.Wait()
	if errors.Is(err, errShutdown) {
		return nil
	}
	return err
}

// errShutdown ends the group when the drain is over, and is what calls hear that
// did not end by then.
var errShutdown = errors.New("core is shutting down")

// drain takes no new calls and waits for those in flight.
func (c *core) drain() {
	c.draining.Store(true)
	for _, p := range c.registry.list(pki.RoleProxy) {
		p.links.Drain()
	}
	for _, g := range c.registry.list(pki.RoleGateway) {
		g.calling.Drain()
	}
	deadline := time.NewTimer(c.set.DrainTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for c.router.calls.InFlight() > 0 {
		select {
		case <-deadline.C:
			c.log.Warn("calls did not end within the drain time and are ended", "calls", c.router.calls.InFlight(), "drain_timeout", c.set.DrainTimeout)
			for _, p := range c.registry.list(pki.RoleProxy) {
				p.links.Close(errShutdown)
			}
			for _, g := range c.registry.list(pki.RoleGateway) {
				g.calling.Close(errShutdown)
			}
			return
		case <-tick.C:
		}
	}
}

// sweep does what is due now and then.
func (c *core) sweep(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	pruned := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if now.Sub(pruned) >= time.Hour {
				pruned = now
				if err := c.pruneCallers(ctx, now); err != nil {
					c.log.Error("former issuers of callers stay in the bundle", "cause", err)
				}
			}
			c.noteSightings(ctx, now)
			c.forgetInstances(ctx, now)
			if c.crls.due(now) {
				if err := c.publisher.publish(ctx); err != nil {
					c.log.Error("the revocation lists for others are not renewed", "cause", err)
				}
			}
		}
	}
}
