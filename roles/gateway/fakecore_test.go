package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// fakeCore is as much of core as a gateway meets: its port, its end of
// sessions and links, and an entrance where callers come in without a policy.
// It lets faults be injected that a real core would not make.
type fakeCore struct {
	t         *testing.T
	authority *pki.Authority
	self      *link.Self
	lifetime  time.Duration // of gateways' certificates
	renewed   atomic.Int32
	recovered atomic.Int32
	linksMade atomic.Int32
	callLinks atomic.Int32
	brought   atomic.Pointer[[]relay.Field] // by the last call of an app
	refuse    atomic.Pointer[pki.Refusal]   // of renewals
	reports   chan []*control.Certificate   // of heartbeats, if wanted
	denied    chan *control.DenialReport    // likewise
	files     *link.OutsideSource           // what its port shows, nil: its identity
	address   string                        // for gateways
	entrance  string                        // for callers
	end       *link.CoreEnd
	pool      relay.Pool

	mu         sync.Mutex
	part       *control.GatewayPart
	names      []string      // for the exported pair
	exportLife time.Duration // of it
	headers    []relay.Field // what this core writes for the gateway
	announced  *control.Announcement
	news       chan struct{}
	acks       chan *control.SnapshotAck
	retries    chan error
	stop       func()
	stored     func() // the gateway has its identity on disk, and waits
}

func newFakeCore(t *testing.T) *fakeCore {
	t.Helper()
	a, err := pki.CreateAuthority(filepath.Join(t.TempDir(), "ca"), pki.Secret{}, "test.internal", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := &fakeCore{t: t, authority: a, lifetime: time.Hour, self: link.NewSelf(), news: make(chan struct{}, 100), acks: make(chan *control.SnapshotAck, 100), retries: make(chan error, 100)}
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	id := pki.ID{TrustDomain: "test.internal", Role: pki.RoleCore, Name: "core"}
	issued, err := a.IssueComponent(pki.ComponentRequest{ID: id, Incarnation: 1, PublicKey: key.Public(), Lifetime: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c.self.Set(&pki.Credentials{ID: id, Chain: issued.Chain, Key: key}, a.Bundle())
	c.address = freeAddress(t)
	c.start()
	t.Cleanup(func() { c.stop() })
	return c
}

// start opens the ports; stop, which it sets, closes them and all connections.
func (c *fakeCore) start() {
	c.t.Helper()
	log := logTo(c.t).With("at", "core")
	ctx, cancel := context.WithCancel(context.Background())
	c.end = &link.CoreEnd{Version: "test", Log: log,
		Opened: func(s, _ *link.Session) *pki.Refusal { s.Send(c.snapshot()); return nil },
		Announced: func(_ *link.Session, a *control.Announcement) {
			c.mu.Lock()
			c.announced = a
			c.mu.Unlock()
			c.news <- struct{}{}
		},
		Acknowledged: func(_ *link.Session, a *control.SnapshotAck) { c.acks <- a },
		Renew:        c.renew,
		Certificate:  c.certificate,
		Denied: func(_ *link.Session, r *control.DenialReport) {
			if c.denied != nil {
				c.denied <- r
			}
		},
		Reported: func(_ *link.Session, list []*control.Certificate) {
			if c.reports != nil {
				c.reports <- list
			}
		},
	}
	registrar := &link.Registrar{Log: log, Renew: c.renew, Verifier: func() *pki.Verifier { return c.authority.RecoveryVerifier(time.Now, c.self.Revoked) }, Adopt: func(_ context.Context, a link.JoinAttempt) (*control.JoinGrant, *pki.Refusal) {
		id := pki.ID{TrustDomain: "test.internal", Role: pki.RoleGateway, Name: "attic"}
		issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: id, Incarnation: 1, PublicKey: a.PublicKey, Lifetime: c.lifetime}, time.Now())
		if err != nil {
			return nil, &pki.Refusal{Code: "failed", Cause: err.Error(), Remedy: "none"}
		}
		return &control.JoinGrant{Chain: issued.DER(), Bundle: c.authority.Bundle().Proto(), Name: "attic", CoreAddress: c.address}, nil
	}, Stored: func(context.Context, link.JoinAttempt) {
		if c.stored != nil {
			c.stored()
		}
	}}
	port := &link.Port{Self: c.self, Log: log, Expect: pki.RoleGateway, Recover: registrar.ServeRecover, Handlers: map[string]link.Handler{
		link.ALPNJoin:    func(ctx context.Context, conn *link.Conn) { _ = registrar.Serve(ctx, conn) },
		link.ALPNControl: func(ctx context.Context, conn *link.Conn) { _ = c.end.Serve(ctx, conn) },
		link.ALPNRelay: func(ctx context.Context, conn *link.Conn) {
			r := relay.NewClient(conn, &relay.Options{Limits: relay.LinkLimits(), Log: log, Hop: "core", Remote: "gateway attic"})
			c.pool.Add(r)
			c.linksMade.Add(1)
			_ = r.Run(ctx)
		},
		link.ALPNCall: func(ctx context.Context, conn *link.Conn) {
			c.callLinks.Add(1)
			_ = relay.NewServer(conn, &relay.Options{Limits: relay.LinkLimits(), Log: log, Hop: "core", Remote: "call link"}, relay.HandlerFunc(func(call *relay.Call) {
				header := call.Header()
				c.brought.Store(&header)
				c.carry(call)
			})).Run(ctx)
		},
	}}
	if c.files != nil {
		port.Outside = c.files.Certificate
	}
	gateways, err := net.Listen("tcp", c.address)
	if err != nil {
		c.t.Fatal(err)
	}
	callers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.entrance = callers.Addr().String()
	var running sync.WaitGroup
	running.Go(func() { _ = port.Serve(ctx, gateways) })
	running.Go(func() {
		for {
			nc, err := callers.Accept()
			if err != nil {
				return
			}
			r := relay.NewServer(nc, &relay.Options{Log: log, Hop: "core"}, relay.HandlerFunc(c.carry))
			running.Go(func() { _ = r.Run(ctx) })
		}
	})
	c.stop = sync.OnceFunc(func() { cancel(); callers.Close(); running.Wait() })
}

// carry brings a call to the gateway with the header a core writes.
func (c *fakeCore) carry(call *relay.Call) {
	c.mu.Lock()
	header := append(append([]relay.Field(nil), call.Header()...), c.headers...)
	c.mu.Unlock()
	to := c.pool.Pick()
	if to == nil {
		call.Reject(codes.Unavailable, "core: no gateway")
		return
	}
	err := call.Forward(to, header, relay.ForwardOptions{Retry: func(reason error) {
		c.retries <- reason
		call.Reject(codes.Unavailable, "core: every gateway handed the call back")
	}})
	if err != nil {
		call.Reject(codes.Unavailable, "core: "+err.Error())
	}
}

// certificate answers what a gateway asks beside its identity.
func (c *fakeCore) certificate(_ context.Context, _ *link.Session, q *control.CertificateRequest) ([][]byte, *pki.Refusal) {
	csr, err := pki.ParseCSR(q.GetCsr())
	if err != nil || q.GetPurpose() != control.CertificateRequest_PURPOSE_EXPORT {
		return nil, &pki.Refusal{Code: "purpose_unknown", Cause: "not this", Remedy: "none"}
	}
	c.mu.Lock()
	names, life := c.names, c.exportLife
	c.mu.Unlock()
	issued, err := c.authority.IssueLeaf(pki.LeafRequest{PublicKey: csr.PublicKey, DNS: names, Server: true, Lifetime: life}, time.Now())
	if err != nil {
		return nil, &pki.Refusal{Code: "core_error", Cause: err.Error(), Remedy: "none"}
	}
	return issued.DER(), nil
}

func (c *fakeCore) snapshot() *control.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &control.Snapshot{Generation: &control.Generation{Epoch: 1, Generation: uint64(time.Now().UnixNano())}, Bundle: c.authority.Bundle().Proto(),
		CoreAddresses: []string{c.address}, CertificateNames: c.names, Part: &control.Snapshot_Gateway{Gateway: c.part}}
}

// rule lets the gateway serve services with these method rules, and waits
// until it has taken that in.
func (c *fakeCore) rule(part *control.GatewayPart) {
	c.t.Helper()
	c.mu.Lock()
	c.part = part
	c.mu.Unlock()
	for _, s := range c.end.Sessions() {
		snapshot := c.snapshot()
		s.Send(snapshot)
		c.acknowledged(snapshot.GetGeneration().GetGeneration())
	}
}

func (c *fakeCore) acknowledged(generation uint64) {
	c.t.Helper()
	for {
		select {
		case a := <-c.acks:
			if a.GetError() != "" {
				c.t.Fatalf("snapshot refused: %s", a.GetError())
			}
			if a.GetGeneration().GetGeneration() >= generation {
				return
			}
		case <-time.After(10 * time.Second):
			c.t.Fatal("the snapshot was not acknowledged")
		}
	}
}

// announcement waits for one that is as wanted.
func (c *fakeCore) announcement(what string, is func(*control.Announcement) bool) *control.Announcement {
	c.t.Helper()
	limit := time.After(10 * time.Second)
	for {
		c.mu.Lock()
		a := c.announced
		c.mu.Unlock()
		if a != nil && is(a) {
			return a
		}
		select {
		case <-c.news:
		case <-limit:
			c.t.Fatalf("waited for an announcement: %s; the last was %v", what, a)
		}
	}
}

func (c *fakeCore) write(headers ...relay.Field) {
	c.mu.Lock()
	c.headers = headers
	c.mu.Unlock()
}

// client is a caller at the entrance.
func (c *fakeCore) client() *grpc.ClientConn {
	c.t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+c.entrance, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cc.Close() })
	return cc
}

func (c *fakeCore) token() string {
	c.t.Helper()
	t := pki.Token{Role: pki.RoleGateway, Name: "attic", Expires: time.Now().Add(time.Hour), Core: c.address, Pins: c.authority.Pins()}
	if c.files != nil {
		t.GRPCTLS, t.ServerName = link.ModeFiles, "core.example"
	}
	token, err := pki.NewToken(t, rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	return token.String()
}

// running is a gateway under test.
type running struct {
	t     *testing.T
	ready chan error
	stop  func() error
}

// runGateway starts a gateway; it stops with the test at the latest.
func runGateway(t *testing.T, s configs.Gateway) *running {
	t.Helper()
	if s.DataDir == "" {
		s.DataDir = t.TempDir()
	}
	if s.DrainTimeout == 0 {
		s.DrainTimeout = 5 * time.Second
	}
	r := &running{t: t, ready: make(chan error, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, s, Deps{Log: logTo(t).With("at", "gateway"), Version: "test", Ready: func(err error) { r.ready <- err }})
	}()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the gateway ended: %v", err)
		}
	})
	return r
}

// untilReady waits until the gateway says that it is, or, with want false,
// that it is not any more.
func (r *running) until(want bool) error {
	r.t.Helper()
	for limit := time.After(15 * time.Second); ; {
		select {
		case err := <-r.ready:
			if (err == nil) == want {
				return err
			}
		case <-limit:
			r.t.Fatal(errors.New("the gateway's readiness did not change"))
		}
	}
}
