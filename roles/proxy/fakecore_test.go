package proxy

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/builtin"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// fakeCore is as much of core as a proxy meets: it dials the proxy, joins it,
// keeps a session and a link, and carries calls to an Echo without deciding
// about them. What reached it is remembered.
type fakeCore struct {
	t         *testing.T
	authority *pki.Authority
	self      *link.Self
	token     pki.Token
	upstream  *bufconn.Listener

	lifetime   time.Duration // of the proxy's identity
	publicLife time.Duration // of its public port's certificate
	renewed    atomic.Int32
	recovered  atomic.Int32
	outside    *link.Outside               // how its gRPC port is verified
	reports    chan []*control.Certificate // of heartbeats, if wanted

	mu       sync.Mutex // guards what follows
	part     *control.ProxyPart
	revoked  []*control.Revocation
	crl      []byte
	from     []string // where it says that it comes from; empty: it does not
	refuse   bool     // no certificate for the public port
	denials  []*control.Denial
	requests []string // purposes
	relays   []*relay.Conn
	end      *link.CoreEnd
	acks     chan *control.SnapshotAck
	calls    chan []relay.Field
	stop     func()
	stored   func() // the proxy has its identity on disk, and waits
	began    uint64 // generations of its snapshots count from there; 0: by the clock
}

// echo answers with what it was sent.
type echo struct{ demo.UnimplementedEchoServer }

func (echo) Say(ctx context.Context, in *demo.SayRequest) (*demo.SayResponse, error) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("sallyport-caller", "forged", "sallyport-request-id", "forged", "x-answer", "1"))
	return &demo.SayResponse{Text: in.Text}, nil
}

func (echo) Chat(stream grpc.BidiStreamingServer[demo.SayRequest, demo.SayResponse]) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return nil
		}
		if err := stream.Send(&demo.SayResponse{Text: in.Text}); err != nil {
			return err
		}
	}
}

const testPolicy = `
[methods]
"/sallyport.demo.v1.Echo/Say" = ["echo"]
"/sallyport.demo.v1.Echo/Chat" = ["public"]
"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" = ["public"]

[[grant]]
apikey = "ci"
permissions = ["echo"]

[[grant]]
caller = "spiffe://test.internal/client/billing"
permissions = ["echo"]
via_proxy = ["dmz1"]

[[grant]]
caller = "spiffe://test.internal/client/elsewhere"
permissions = ["echo"]
via_proxy = ["dmz2"]
`

func newFakeCore(t *testing.T) *fakeCore {
	t.Helper()
	a, err := pki.CreateAuthority(filepath.Join(t.TempDir(), "ca"), pki.Secret{}, "test.internal", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := &fakeCore{t: t, authority: a, lifetime: time.Hour, publicLife: time.Hour, self: link.NewSelf(), upstream: bufconn.Listen(1 << 18),
		acks: make(chan *control.SnapshotAck, 100), calls: make(chan []relay.Field, 1000)}
	c.part = &control.ProxyPart{Policy: []byte(testPolicy), Services: []*control.Service{{Name: echoName, Available: true}},
		Descriptors: descriptorsOf(t, demo.File_roles_gateway_demo_echo_proto)}
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
	if c.token, err = pki.NewToken(pki.Token{Role: pki.RoleProxy, Name: "dmz1", Expires: time.Now().Add(time.Hour), Peers: []string{"127.0.0.1"}, Pins: a.Pins()}, rand.Reader); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	demo.RegisterEchoServer(server, echo{})
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(c.upstream) }()
	t.Cleanup(func() { c.disconnect(); server.Stop(); <-done })
	return c
}

const echoName = "sallyport.demo.v1.Echo"

// apiKey makes a key that the snapshot knows as name.
func (c *fakeCore) apiKey(name string, expires time.Time) string {
	c.t.Helper()
	secret, _, err := policy.NewAPIKey(rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	sum, ok := policy.HashAPIKey(secret)
	if !ok || len(sum) != sha256.Size {
		c.t.Fatal("the key is not one of ours")
	}
	row := &control.APIKey{Name: name, Sha256: sum[:]}
	if !expires.IsZero() {
		row.ExpiresUnix = expires.Unix()
	}
	c.mu.Lock()
	c.part.ApiKeys = append(c.part.ApiKeys, row)
	c.mu.Unlock()
	return secret
}

// connect dials the proxy: joins it if it has to, then keeps a session and a
// link until disconnect.
func (c *fakeCore) connect(address string) {
	c.t.Helper()
	log := logTo(c.t).With("at", "core")
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	c.end = &link.CoreEnd{Version: "test", Log: log,
		Opened:       func(s, _ *link.Session) *pki.Refusal { s.Send(c.snapshot()); return nil },
		Acknowledged: func(_ *link.Session, a *control.SnapshotAck) { c.acks <- a },
		Denied: func(_ *link.Session, r *control.DenialReport) {
			c.mu.Lock()
			c.denials = append(c.denials, r.GetDenials()...)
			c.mu.Unlock()
		},
		Certificate: c.certificate,
		Renew:       c.renew,
		Reported: func(_ *link.Session, list []*control.Certificate) {
			if c.reports != nil {
				c.reports <- list
			}
		},
	}
	dialler := &link.Dialler{Self: c.self, Log: log, Outside: c.outside}
	want := pki.Expect{Role: pki.RoleProxy, Name: "dmz1"}
	registrar := &link.Registrar{Log: log, Renew: c.renew, Verifier: c.recoveryVerifier}
	running.Go(func() {
		link.KeepFresh(ctx, log, "session", func(ctx context.Context, turn *link.Turn) error {
			conn, err := dialler.Dial(ctx, address, link.ALPNControl, want)
			if err != nil && link.Recoverable(err) {
				recovery := &link.Dialler{Self: c.self, Log: log, Recovery: c.recoveryVerifier, Outside: c.outside}
				if conn, err := recovery.Dial(ctx, address, link.ALPNRenew, want); err == nil {
					_ = registrar.Recover(ctx, conn)
				}
			}
			if err != nil {
				return err
			}
			defer conn.Close()
			turn.Use(conn)
			return c.end.Serve(ctx, conn)
		})
	})
	running.Go(func() {
		link.KeepFresh(ctx, log, "link", func(ctx context.Context, turn *link.Turn) error {
			conn, err := dialler.Dial(ctx, address, link.ALPNRelay, want)
			if err != nil {
				return err
			}
			defer conn.Close()
			turn.Use(conn)
			r := relay.NewServer(conn, &relay.Options{Limits: relay.LinkLimits(), Log: log, Hop: "core", Remote: "proxy"}, relay.HandlerFunc(c.carry))
			var watching sync.WaitGroup
			defer watching.Wait()
			watching.Go(func() {
				select {
				case <-r.Ready():
					conn.Up()
				case <-r.Done():
				}
				select {
				case <-turn.Retired():
					r.Drain()
				case <-r.Done():
				}
			})
			return r.Run(ctx)
		})
	})
	running.Go(func() { c.serveUpstream(ctx) })
	c.stop = func() { cancel(); running.Wait() }
}

func (c *fakeCore) disconnect() {
	if c.stop != nil {
		c.stop()
		c.stop = nil
	}
}

// join adopts the proxy at address.
func (c *fakeCore) join(address string) {
	c.t.Helper()
	log := logTo(c.t).With("at", "core")
	dialler := &link.Dialler{Self: c.self, BootstrapKey: c.token.PublicKey(), Log: log, Outside: c.outside}
	conn, err := dialler.Dial(c.t.Context(), address, link.ALPNJoin, pki.Expect{Role: pki.RoleProxy})
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	registrar := &link.Registrar{Log: log, Adopt: func(_ context.Context, a link.JoinAttempt) (*control.JoinGrant, *pki.Refusal) {
		id := pki.ID{TrustDomain: "test.internal", Role: pki.RoleProxy, Name: "dmz1"}
		issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: id, Incarnation: 1, PublicKey: a.PublicKey, Lifetime: c.lifetime}, time.Now())
		if err != nil {
			return nil, &pki.Refusal{Code: "failed", Cause: err.Error(), Remedy: "none"}
		}
		return &control.JoinGrant{Chain: issued.DER(), Bundle: c.authority.Bundle().Proto(), Name: "dmz1"}, nil
	}, Stored: func(context.Context, link.JoinAttempt) {
		if c.stored != nil {
			c.stored()
		}
	}}
	if err := registrar.Serve(c.t.Context(), conn); err != nil {
		c.t.Fatal(err)
	}
}

func (c *fakeCore) certificate(_ context.Context, _ *link.Session, r *control.CertificateRequest) ([][]byte, *pki.Refusal) {
	c.mu.Lock()
	refuse := c.refuse
	c.requests = append(c.requests, r.GetPurpose().String())
	c.mu.Unlock()
	if refuse {
		return nil, &pki.Refusal{Code: "refused", Cause: "core does not feel like it", Remedy: "ask again"}
	}
	csr, err := pki.ParseCSR(r.GetCsr())
	if err != nil {
		return nil, &pki.Refusal{Code: "csr_bad", Cause: err.Error(), Remedy: "none"}
	}
	issued, err := c.authority.IssueLeaf(pki.LeafRequest{PublicKey: csr.PublicKey, Server: true, DNS: []string{"localhost"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Lifetime: c.publicLife}, time.Now())
	if err != nil {
		return nil, &pki.Refusal{Code: "failed", Cause: err.Error(), Remedy: "none"}
	}
	return issued.DER(), nil
}

// serveUpstream keeps the connection behind which Echo is.
func (c *fakeCore) serveUpstream(ctx context.Context) {
	for ctx.Err() == nil {
		nc, err := c.upstream.DialContext(ctx)
		if err != nil {
			return
		}
		r := relay.NewClient(nc, &relay.Options{Hop: "core", Remote: "echo"})
		c.mu.Lock()
		c.relays = []*relay.Conn{r}
		c.mu.Unlock()
		_ = r.Run(ctx)
	}
}

func (c *fakeCore) carry(call *relay.Call) {
	c.calls <- slices.Clone(call.Header())
	c.mu.Lock()
	to := c.relays[0]
	c.mu.Unlock()
	if err := call.Forward(to, call.Header(), relay.ForwardOptions{}); err != nil {
		call.Reject(codes.Unavailable, err.Error())
	}
}

func (c *fakeCore) snapshot() *control.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	number := uint64(time.Now().UnixNano())
	if c.began > 0 {
		c.began++
		number = c.began
	}
	return &control.Snapshot{Generation: &control.Generation{Epoch: 1, Generation: number}, Bundle: c.authority.Bundle().Proto(), Revocations: c.revoked, Crl: c.crl, CoreAddresses: c.from,
		Part: &control.Snapshot_Proxy{Proxy: c.part}}
}

// change changes what the proxy is told and waits until it holds.
func (c *fakeCore) change(f func(*control.ProxyPart)) {
	c.t.Helper()
	c.mu.Lock()
	f(c.part)
	c.mu.Unlock()
	for _, s := range c.end.Sessions() {
		snapshot := c.snapshot()
		s.Send(snapshot)
		for limit := time.After(10 * time.Second); ; {
			select {
			case a := <-c.acks:
				if a.GetError() != "" {
					c.t.Fatalf("snapshot refused: %s", a.GetError())
				}
				if a.GetGeneration().GetGeneration() >= snapshot.GetGeneration().GetGeneration() {
					return
				}
				continue
			case <-limit:
				c.t.Fatal("the snapshot was not acknowledged")
			}
		}
	}
}

// running is a proxy under test.
type running struct {
	t     *testing.T
	core  *fakeCore
	info  Info
	ready chan error
	stop  func() error
	crowd *admission
}

// runProxy starts a proxy; it stops with the test at the latest.
func runProxy(t *testing.T, c *fakeCore, s configs.Proxy) *running {
	t.Helper()
	if s.DataDir == "" {
		s.DataDir = t.TempDir()
	}
	if s.DrainTimeout == 0 {
		s.DrainTimeout = 5 * time.Second
	}
	if s.TLS == "" {
		s.TLS = "internal"
	}
	if s.GRPCAddress == "" {
		s.GRPCAddress, s.PublicAddress = "127.0.0.1:0", "127.0.0.1:0"
	}
	r := &running{t: t, core: c, ready: make(chan error, 1000), crowd: newAdmission(configs.DefaultLimits(), nil)}
	ctx, cancel := context.WithCancel(context.Background())
	started := make(chan Info, 1)
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, s, Deps{Log: logTo(t).With("at", "proxy"), Version: "test", Ready: func(err error) { r.ready <- err }, Started: func(i Info) { started <- i }, admission: r.crowd})
	}()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		c.disconnect()
		if err := r.stop(); err != nil {
			t.Errorf("the proxy ended: %v", err)
		}
	})
	select {
	case r.info = <-started:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return r
}

// joined starts a proxy that core has joined and is connected to.
func joined(t *testing.T, c *fakeCore) *running {
	t.Helper()
	r := runProxy(t, c, configs.Proxy{Join: c.token.String()})
	c.join(r.info.GRPCAddress)
	c.connect(r.info.GRPCAddress)
	r.until(true)
	return r
}

func (r *running) until(want bool) error {
	r.t.Helper()
	for limit := time.After(15 * time.Second); ; {
		select {
		case err := <-r.ready:
			if (err == nil) == want {
				return err
			}
		case <-limit:
			r.t.Fatal(errors.New("the proxy's readiness did not change"))
		}
	}
}

// tls is how a caller reaches the proxy; with credentials it has a client certificate.
func (r *running) tls(c *pki.Credentials) *tls.Config {
	pool := x509.NewCertPool()
	for _, root := range r.core.authority.Bundle().Roots {
		pool.AddCert(root)
	}
	config := &tls.Config{RootCAs: pool, ServerName: "localhost"}
	if c != nil {
		config.Certificates = []tls.Certificate{c.TLS()}
	}
	return config
}

func (r *running) dial(c *pki.Credentials, options ...grpc.DialOption) *grpc.ClientConn {
	r.t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+r.info.PublicAddress, append(options, grpc.WithTransportCredentials(grpccreds.NewTLS(r.tls(c))))...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cc.Close() })
	return cc
}

// clientCertificate is what 'cert issue NAME --client' makes.
func (c *fakeCore) clientCertificate(name string, lifetime time.Duration) *pki.Credentials {
	c.t.Helper()
	key, err := pki.NewKey("p256")
	if err != nil {
		c.t.Fatal(err)
	}
	id := pki.ID{TrustDomain: "test.internal", Role: pki.RoleClient, Name: name}
	issued, err := c.authority.IssueLeaf(pki.LeafRequest{ID: id, PublicKey: key.Public(), Client: true, Lifetime: lifetime}, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	return &pki.Credentials{ID: id, Chain: issued.Chain, Key: key}
}

func say(ctx context.Context, cc *grpc.ClientConn, options ...grpc.CallOption) error {
	_, err := demo.NewEchoClient(cc).Say(ctx, &demo.SayRequest{Text: "hello"}, options...)
	return err
}

func withKey(ctx context.Context, key string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
}

func healthOf(ctx context.Context, cc *grpc.ClientConn, service string) (healthpb.HealthCheckResponse_ServingStatus, error) {
	out, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	return out.GetStatus(), err
}

func (c *fakeCore) recoveryVerifier() *pki.Verifier {
	return c.authority.RecoveryVerifier(time.Now, c.self.Revoked)
}

// renew is core's decision about the proxy's next certificate.
func (c *fakeCore) renew(_ context.Context, a link.RenewAttempt) (*control.JoinGrant, *pki.Refusal) {
	issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: a.ID, Incarnation: a.Incarnation, PublicKey: a.PublicKey, Lifetime: c.lifetime}, time.Now())
	if err != nil {
		return nil, &pki.Refusal{Code: "core_error", Cause: err.Error(), Remedy: "none"}
	}
	if a.Recovery {
		c.recovered.Add(1)
	} else {
		c.renewed.Add(1)
	}
	return &control.JoinGrant{Chain: issued.DER(), Bundle: c.authority.Bundle().Proto(), Name: a.ID.Name}, nil
}

// descriptorsOf are files and what they depend on, as a snapshot has them.
func descriptorsOf(t *testing.T, files ...protoreflect.FileDescriptor) (raws [][]byte) {
	t.Helper()
	seen := make(map[string]bool)
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		raw, err := proto.Marshal(protodesc.ToFileDescriptorProto(f))
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, raw)
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i))
		}
	}
	for _, f := range files {
		add(f)
	}
	return raws
}

func filesIn(t *testing.T, r *reflectionpb.ServerReflectionResponse) (files []*descriptorpb.FileDescriptorProto) {
	t.Helper()
	for _, raw := range r.GetFileDescriptorResponse().GetFileDescriptorProto() {
		f := new(descriptorpb.FileDescriptorProto)
		if err := proto.Unmarshal(raw, f); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// What health says.
const (
	serving        = builtin.Serving
	notServing     = builtin.NotServing
	serviceUnknown = builtin.Unknown
)
