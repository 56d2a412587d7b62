// Package gateway is the role that stands beside real services in the private
// network. It dials core and never listens for it; over the connection it
// dialled, calls come in. It announces the services of its upstreams, learned
// by server reflection or listed in the settings, withdraws what is down, and
// brings each call to the upstream that serves it.
//
// # The third check
//
// The proxy and core have decided about a call before it arrives. The gateway
// decides again, about what it may be used for: the method must belong to a
// service that it announces and that core routes to it, must be in its slice
// of the policy, and must lie below its own --allow ceiling, which core cannot
// raise. So a core that was taken over cannot call more through a gateway than
// the gateway's owner wrote down.
//
// # East-west
//
// With --listen, apps beside it call services behind other gateways: the gateway
// dials core once more for them, on sallyport-call/1, and core decides about what
// they call as about any caller's. Apps that show no credentials are the gateway
// itself to the policy.
//
// # Working on alone
//
// What core last said is kept in gateway.db and used until core says
// something newer. A gateway never gives up its identity because core is away.
package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
	"sallyport/store"
)

// Deps is what a gateway needs from the process it runs in.
type Deps struct {
	Log      *slog.Logger
	Version  string
	Registry prometheus.Registerer // nil: metrics are kept and shown nowhere
	Budget   *relay.Budget         // what calls may make the process hold; nil: relay.DefaultBudget
	Ready    func(err error)       // nil error: ready; called on every change
	Started  func(Info)            // called once, when the gateway has its identity
}

// Info says what a running gateway is.
type Info struct {
	Name string // as core knows it
	Core string // the address it dials
}

// gateway is one running gateway.
type gateway struct {
	settings configs.Gateway
	deps     Deps
	log      *slog.Logger
	db       *store.Component
	self     *link.Self
	name     string
	hop      string // how callers read it in errors: "gateway orders-1"
	started  time.Time
	instance []byte

	snapshots *link.Snapshots
	verdicts  atomic.Pointer[verdicts]
	ruled     chan struct{} // verdicts are others
	ceiling   *policy.Patterns

	upstreams []*upstream
	changed   chan struct{} // some upstream's state is another
	routes    atomic.Pointer[routes]
	end       *link.ComponentEnd
	anchors   *link.Anchors // that verify core's port in mode files; nil: it shows its identity
	renewer   *link.Renewer
	renewals  atomic.Uint32 // times core was dialled to recover the identity
	export    *exporter     // nil: nothing is exported
	links     links
	entrances *entrances // nil: apps beside this gateway do not call through it
	calling   relay.Pool // links on which their calls go
	stopping  atomic.Bool
	telling   sync.Mutex // serialises tellReady

	metrics *relay.CallMetrics
	frames  *relay.Metrics
	shares  *relay.Shares // of the memory that calls hold, by the source that core names
	access  *relay.AccessLog
	denials link.Denials

	goroutines sync.WaitGroup
}

// Run runs a gateway until ctx ends and the calls in flight were drained.
func Run(ctx context.Context, s configs.Gateway, d Deps) error {
	g, token, err := open(s, d)
	if err != nil {
		return err
	}
	defer g.db.Close()
	g.tellReady()
	if token != nil {
		if err := g.join(ctx, *token); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	id := g.self.Credentials().ID
	g.name, g.hop = id.Name, "gateway "+id.Name
	if err := g.snapshots.Restore(); err != nil {
		return err
	}
	if g.entrances, err = g.openEntrances(); err != nil {
		return err
	}
	if g.entrances != nil {
		defer g.entrances.close()
	}
	if d.Started != nil {
		d.Started(Info{Name: g.name, Core: g.coreAddresses()[0]})
	}
	return g.run(ctx)
}

// open reads what is on disk and what does not depend on the identity.
func open(s configs.Gateway, d Deps) (*gateway, *pki.Token, error) {
	g := &gateway{
		settings: s, deps: d, log: d.Log, started: time.Now(), instance: make([]byte, 16),
		changed: make(chan struct{}, 1), ruled: make(chan struct{}, 1), metrics: relay.NewCallMetrics("gateway", d.Registry), access: relay.NewAccessLog(d.Log, s.AccessLog),
		frames: new(relay.Metrics), shares: relay.NewShares(cmp.Or(d.Budget, relay.DefaultBudget)),
	}
	if d.Registry != nil {
		if err := d.Registry.Register(relay.NewCollector("gateway", g.frames)); err != nil {
			return nil, nil, fmt.Errorf("metrics: %w", err)
		}
	}
	_, _ = rand.Read(g.instance)
	g.routes.Store(&routes{})
	var err error
	if g.ceiling, err = policy.ParsePatterns(s.Allow); err != nil {
		return nil, nil, fmt.Errorf("--allow: %w", err)
	}
	if s.GRPCCA != "" {
		if g.anchors, err = link.OpenAnchors(s.GRPCCA, d.Log); err != nil {
			return nil, nil, fmt.Errorf("--grpc-ca: %w", err)
		}
	}
	if err := g.makeDir(); err != nil {
		return nil, nil, fmt.Errorf("data directory: %w", err)
	}
	var token *pki.Token
	if g.self, token, err = link.OpenSelf(g.dir(), pki.RoleGateway, s.Join); err != nil {
		return nil, nil, err
	}
	if s.DataDir == "" && !token.Reusable {
		d.Log.Warn("the identity is kept in memory and the join token is good once: after a restart this gateway has to be added again; 'sallyport gateway add --reusable' makes a token for hosts without a disk")
	}
	if g.db, err = g.openStore(); err != nil {
		return nil, nil, err
	}
	g.snapshots = &link.Snapshots{Self: g.self, Save: g.db.SaveSnapshot, Load: g.db.Snapshot, Forget: g.db.ForgetSnapshot, Prepare: g.prepare}
	g.end = &link.ComponentEnd{
		Hello: func() *control.Hello {
			return &control.Hello{Version: d.Version, Instance: g.instance, Held: g.snapshots.Held(), StartedUnix: g.started.Unix(),
				RevocationsHeld: g.self.RevocationsHead(), Entrances: g.entrances.tell()}
		},
		Apply:         g.snapshots.Apply,
		Welcomed:      func(conn *link.Conn, _ *control.Welcome) { g.links.welcome(conn) },
		Denials:       g.denials.Take,
		Revocations:   g.self.Revocations,
		Certificates:  g.reports,
		CallsInFlight: func() uint32 { return uint32(g.metrics.InFlight()) },
		Log:           d.Log,
	}
	g.renewer = &link.Renewer{
		Self: g.self, Dir: g.dir(), End: g.end, RenewBefore: s.RenewBefore, Version: d.Version, Log: d.Log,
		Dial:  g.dialRenewal,
		Ready: func(error) { g.tellReady() },
	}
	if s.ExportCert != "" {
		g.export, err = openExporter(&exporter{dir: s.ExportCert, bundle: g.self.Bundle, log: d.Log,
			now: func() time.Time { return time.Now().Add(g.end.ClockOffset()) },
			names: func() ([]string, bool) {
				held := g.snapshots.Snapshot()
				return held.GetCertificateNames(), held != nil
			},
			issuer: func() []byte { return g.snapshots.Snapshot().GetCallerIssuer() },
			request: func(ctx context.Context, csr []byte) ([][]byte, error) {
				return g.end.Request(ctx, csr, control.CertificateRequest_PURPOSE_EXPORT)
			}})
		if err != nil {
			g.db.Close()
			return nil, nil, err
		}
	}
	return g, token, nil
}

// dir is where the identity is kept; empty: in memory.
func (g *gateway) dir() string {
	if g.settings.DataDir == "" {
		return ""
	}
	return filepath.Join(g.settings.DataDir, "gateway")
}

func (g *gateway) makeDir() error {
	if g.dir() == "" {
		return nil
	}
	return os.MkdirAll(g.dir(), 0o700)
}

// openStore opens what is known beside the identity.
func (g *gateway) openStore() (*store.Component, error) {
	if g.settings.DataDir == "" {
		return store.OpenMemoryComponent()
	}
	return store.OpenComponent(filepath.Join(g.settings.DataDir, "gateway.db"))
}

// tellReady tells whether calls can be served: there is a link to bring them,
// and core has said what may be served. It is called after every event that
// may matter.
func (g *gateway) tellReady() {
	if g.deps.Ready == nil {
		return
	}
	g.telling.Lock() // what is told last is what holds
	defer g.telling.Unlock()
	problem := g.renewer.Err()
	switch {
	case g.stopping.Load():
		g.deps.Ready(errors.New("the gateway is shutting down"))
	case problem != nil:
		g.deps.Ready(problem)
	case !g.links.up():
		g.deps.Ready(errors.New("the gateway has no link to core"))
	case g.verdicts.Load() == nil:
		g.deps.Ready(errors.New("the gateway has not heard from core yet what it may serve"))
	default:
		g.deps.Ready(nil)
	}
}

// prepare reads the gateway's part of a snapshot.
func (g *gateway) prepare(s *control.Snapshot) (func(), error) {
	part := s.GetGateway()
	if part == nil {
		return nil, errors.New("the snapshot has no part for a gateway")
	}
	v, err := newVerdicts(part)
	if err != nil {
		return nil, err
	}
	return func() {
		v.logNew(g.log, g.verdicts.Swap(v))
		select {
		case g.ruled <- struct{}{}:
		default:
		}
		if g.export != nil {
			g.export.upkeep.Kick()
		}
		if g.entrances != nil {
			g.entrances.changed()
		}
		g.tellReady()
	}, nil
}

// run works until ctx ends, then drains. What carries calls outlives ctx until
// the last call has ended or the drain time is over.
func (g *gateway) run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer g.goroutines.Wait()
	defer stop()

	stopDemo, err := g.makeUpstreams(work)
	if err != nil {
		return err
	}
	defer stopDemo()
	for _, u := range g.upstreams {
		g.goroutines.Go(func() { u.run(work) })
	}
	g.goroutines.Go(func() { g.keepAnnounced(work) })
	g.goroutines.Go(func() { g.keepChecking(work) })
	if g.anchors != nil {
		g.goroutines.Go(func() { _ = g.anchors.Run(work) })
	}
	if g.export != nil {
		g.goroutines.Go(func() { g.export.upkeep.Run(work) })
	}
	g.goroutines.Go(func() { g.keepSession(work) })
	g.goroutines.Go(func() { _ = g.renewer.Run(work) }) // nil: work has ended
	var linking, draining sync.WaitGroup
	linking.Go(func() { g.keepRelay(ctx, work) })
	if g.entrances != nil {
		linking.Go(func() { g.keepCalling(ctx, work) })
		g.goroutines.Go(func() { g.entrances.run(ctx, work) })
	}

	<-ctx.Done()
	g.stopping.Store(true)
	g.tellReady()
	if g.entrances != nil {
		draining.Go(func() { g.entrances.drain(g.settings.DrainTimeout) })
	}
	linking.Wait() // no new link from here on
	g.links.drain(g.settings.DrainTimeout, g.log)
	draining.Wait()
	return nil
}
