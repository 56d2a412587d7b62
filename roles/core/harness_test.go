package core

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/firewall"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// logBuffer is a log that tests read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a core that runs in the test.
type running struct {
	t     testing.TB
	set   configs.Core
	log   *logBuffer
	info  Info
	admin control.AdminServer
	stop  context.CancelFunc
	done  chan error
}

func settings(t testing.TB) configs.Core {
	return configs.Core{DataDir: filepath.Join(t.TempDir(), "core"), GRPCAddress: "127.0.0.1:0", TrustDomain: "test.internal",
		CertLifetime: time.Hour, DrainTimeout: 2 * time.Second, AccessLog: "all"}
}

// start runs a core until the test ends.
func start(t testing.TB, s configs.Core) *running { return startWith(t, s, nil) }

// startWith is start with the data file of the firewall.
func startWith(t testing.TB, s configs.Core, file *firewall.File) *running {
	return startDeps(t, s, Deps{Firewall: file})
}

// startDeps is start with what else core is given.
func startDeps(t testing.TB, s configs.Core, d Deps) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: t, set: s, log: &logBuffer{}, stop: stop, done: make(chan error, 1)}
	started := make(chan Info, 1)
	go func() {
		d.Log, d.Version, d.Started = slog.New(slog.NewTextHandler(r.log, nil)), "test", func(i Info) { started <- i }
		r.done <- Run(ctx, s, d)
	}()
	select {
	case r.info = <-started:
	case err := <-r.done:
		stop()
		t.Fatalf("core did not start: %v\n%s", err, r.log)
	case <-time.After(patience):
		stop()
		t.Fatalf("core did not start in time\n%s", r.log)
	}
	r.admin = Admin(r.info)
	t.Cleanup(func() {
		r.end()
		if t.Failed() {
			t.Logf("core's log:\n%s", r.log)
		}
	})
	return r
}

// end stops the core and waits.
func (r *running) end() {
	r.t.Helper()
	r.stop()
	select {
	case err := <-r.done:
		r.done <- err
		if err != nil {
			r.t.Errorf("core ended with %v", err)
		}
	case <-time.After(patience):
		r.t.Errorf("core did not stop")
	}
}

// eventually polls until f is nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// apply puts a policy into force.
func (r *running) apply(text string) {
	r.t.Helper()
	out, err := r.admin.ApplyPolicy(context.Background(), &control.ApplyPolicyRequest{Policy: []byte(text)})
	if err != nil || len(out.GetErrors()) > 0 {
		r.t.Fatalf("apply policy: %v %v", err, out.GetErrors())
	}
}

// component is one component as the operator sees it.
func (r *running) component(role, name string) *control.Component {
	r.t.Helper()
	out, err := r.admin.ListComponents(context.Background(), &control.ListComponentsRequest{Role: role})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, m := range out.GetComponents() {
		if m.GetName() == name {
			return m
		}
	}
	return nil
}

// service waits until a service is in a state at a gateway.
func (r *running) service(name, gateway, state string) *control.ServiceRow {
	r.t.Helper()
	var found *control.ServiceRow
	eventually(r.t, name+" is "+state+" at "+gateway, func() error {
		out, err := r.admin.ListServices(context.Background(), &control.ListServicesRequest{})
		if err != nil {
			return err
		}
		for _, s := range out.GetServices() {
			if s.GetService() == name && s.GetGateway() == gateway && s.GetState() == state {
				found = s
				return nil
			}
		}
		return errors.New(out.String())
	})
	return found
}

// member is what a fake gateway and a fake proxy have in common.
type member struct {
	t       testing.TB
	role    pki.Role
	name    string
	self    *link.Self
	end     *link.ComponentEnd
	renewer *link.Renewer
	log     *slog.Logger
	hold    chan struct{} // a value per snapshot that may be acknowledged; nil: at once
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	snapshot *control.Snapshot
	count    int
}

func newMember(t testing.TB, role pki.Role, name string, log io.Writer) *member {
	p := &member{t: t, role: role, name: name, self: link.NewSelf(), log: slog.New(slog.NewTextHandler(log, nil)).With("peer", name)}
	p.ctx, p.stop = context.WithCancel(context.Background())
	instance := make([]byte, 16)
	rand.Read(instance)
	p.end = &link.ComponentEnd{Log: p.log, Apply: p.apply, Revocations: p.self.Revocations,
		Hello: func() *control.Hello {
			held, _ := p.last()
			hello := &control.Hello{Version: "fake", Instance: instance, Held: held.GetGeneration(), RevocationsHeld: p.self.RevocationsHead()}
			if role == pki.RoleProxy {
				hello.Port = &control.PortReport{}
			}
			return hello
		}}
	p.renewer = &link.Renewer{Self: p.self, End: p.end, Version: "fake", Log: p.log}
	p.running.Go(func() { p.renewer.Run(p.ctx) })
	t.Cleanup(p.close)
	return p
}

func (p *member) close() {
	p.stop()
	p.running.Wait()
}

func (p *member) apply(s *control.Snapshot) error {
	if p.hold != nil {
		select {
		case <-p.hold:
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snapshot = s
	p.count++
	return p.self.Apply(s)
}

func (p *member) last() (*control.Snapshot, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshot, p.count
}

// gateway is a fake gateway: real links, a real gRPC server as upstream.
type gateway struct {
	*member
	core     string
	upstream string
	refuse   func(*relay.Call) bool

	seen chan []relay.Field // headers of the calls that came
}

// addGateway adds a gateway at core and lets it join.
func (r *running) addGateway(name string, serve ...string) *gateway {
	r.t.Helper()
	added, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: name, Peers: []string{"127.0.0.1"}, Serve: serve})
	if err != nil {
		r.t.Fatal(err)
	}
	g := &gateway{member: newMember(r.t, pki.RoleGateway, name, r.log), core: r.info.GRPCAddress, upstream: echoServer(r.t, name), seen: make(chan []relay.Field, 100)}
	g.renewer.Dial = g.dialRenew
	if err := g.join(added.GetToken()); err != nil {
		r.t.Fatalf("gateway %s: %v", name, err)
	}
	return g
}

func (g *gateway) dialRenew(ctx context.Context) (*link.Conn, error) {
	return (&link.Dialler{Self: g.self, Log: g.log}).Dial(ctx, g.core, link.ALPNRenew, pki.Expect{Role: pki.RoleCore})
}

func (g *gateway) join(text string) error {
	token, err := pki.ParseToken(text)
	if err != nil {
		return err
	}
	d := link.Dialler{Self: g.self, Token: &token, Log: g.log}
	conn, err := d.Dial(g.ctx, g.core, link.ALPNJoin, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		return err
	}
	defer conn.Close()
	grant, err := (&link.Newcomer{Token: token, Role: pki.RoleGateway, Dir: filepath.Join(g.t.TempDir(), "id"), Version: "fake"}).Join(g.ctx, conn)
	if err != nil {
		return err
	}
	g.self.Set(grant.Credentials, grant.Bundle)
	return nil
}

// connect keeps control session and relay link up until the test ends or the
// returned function is called.
func (g *gateway) connect() (disconnect func()) {
	ctx, stop := context.WithCancel(g.ctx)
	d := link.Dialler{Self: g.self, Log: g.log}
	var both sync.WaitGroup
	keep := func(alpn string, f func(context.Context, *link.Conn, *link.Turn) error) {
		both.Add(1)
		g.running.Go(func() {
			defer both.Done()
			link.KeepFresh(ctx, g.log, alpn, func(ctx context.Context, t *link.Turn) error {
				conn, err := d.Dial(ctx, g.core, alpn, pki.Expect{Role: pki.RoleCore})
				if err != nil {
					g.renewer.Trouble(err)
					return err
				}
				defer conn.Close()
				t.Use(conn)
				return f(ctx, conn, t)
			})
		})
	}
	keep(link.ALPNControl, func(ctx context.Context, conn *link.Conn, _ *link.Turn) error {
		err := g.end.Run(ctx, conn)
		g.renewer.Trouble(err)
		return err
	})
	keep(link.ALPNRelay, func(ctx context.Context, conn *link.Conn, t *link.Turn) error {
		l := relay.NewServer(conn.Conn, &relay.Options{Hop: "gateway " + g.name, Remote: "link to core"}, relay.HandlerFunc(g.serve))
		ended := make(chan struct{})
		var beside sync.WaitGroup
		defer beside.Wait()
		defer close(ended)
		beside.Go(func() {
			select {
			case <-l.Ready():
				conn.Up()
			case <-ended:
			}
			select {
			case <-t.Retired():
				l.Drain()
			case <-ended:
			}
		})
		return l.Run(ctx)
	})
	return func() {
		stop()
		both.Wait()
	}
}

// announce says what the gateway serves.
func (g *gateway) announce(serving bool, services ...string) {
	a := &control.Announcement{Upstreams: []*control.UpstreamState{{Name: "up", Address: g.upstream, Up: serving}}}
	if !serving {
		a.Upstreams[0].Error = "connection refused"
	}
	for _, s := range services {
		a.Services = append(a.Services, &control.AnnouncedService{Name: s, Upstream: "up", Serving: serving, Methods: []string{"Get", "Put"}})
	}
	g.end.Announce(a)
}

// serve passes calls to the upstream, as a gateway does.
func (g *gateway) serve(call *relay.Call) {
	if g.refuse != nil && g.refuse(call) {
		return
	}
	select {
	case g.seen <- call.Header():
	default:
	}
	g.running.Go(func() {
		nc, err := net.Dial("tcp", g.upstream)
		if err != nil {
			call.Refuse("upstream: " + err.Error())
			return
		}
		up := relay.NewClient(nc, &relay.Options{Hop: "gateway " + g.name, Remote: "upstream"})
		ended := make(chan struct{})
		call.OnDone(func(relay.Outcome) { close(ended) })
		g.running.Go(func() {
			<-up.Ready()
			if err := call.Forward(up, call.Header(), relay.ForwardOptions{}); err != nil {
				call.Reject(codes.Unavailable, err.Error())
			}
			select {
			case <-ended:
			case <-g.ctx.Done():
			}
			up.Close(errors.New("done"))
		})
		up.Run(g.ctx)
	})
}

// echoServer answers every method with its name in the trailer; messages come
// back as they are.
func echoServer(t testing.TB, name string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		stream.SetTrailer(metadata.Pairs("served-by", name))
		for {
			m := &emptypb.Empty{}
			if err := stream.RecvMsg(m); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
	}))
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// proxy is a fake proxy: a real component port, and a plaintext entrance whose
// calls it passes to core with the headers that it is told to say.
type proxy struct {
	*member
	address string
	links   relay.Pool
	client  *grpc.ClientConn

	say func(header []relay.Field) []relay.Field
}

// addProxy adds a proxy at core, which dials it and lets it join.
func (r *running) addProxy(name string) *proxy {
	r.t.Helper()
	p := r.inviteProxy(name, "", nil)()
	eventually(r.t, "proxy "+name+" has a relay link", func() error {
		if l := p.links.Pick(); l == nil {
			return errors.New(r.component("proxy", name).String())
		}
		return nil
	})
	return p
}

// inviteProxy adds a proxy at core; what it returns starts it. With outside its
// port shows that certificate, and core is told so.
func (r *running) inviteProxy(name string, mode string, outside *tls.Certificate) (start func() *proxy) {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	added, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "proxy", Name: name, Peers: []string{"127.0.0.1"}, Address: l.Addr().String(), GrpcTls: mode})
	if err != nil {
		r.t.Fatal(err)
	}
	token, err := pki.ParseToken(added.GetToken())
	if err != nil {
		r.t.Fatal(err)
	}
	p := &proxy{member: newMember(r.t, pki.RoleProxy, name, r.log), address: l.Addr().String()}
	var joined atomic.Bool
	port := &link.Port{Self: p.self, Log: p.log, Expect: pki.RoleCore, Recover: p.renewer.ServeRecover, Token: func() *pki.Token {
		if joined.Load() {
			return nil
		}
		return &token
	}, Handlers: map[string]link.Handler{
		link.ALPNJoin: func(ctx context.Context, conn *link.Conn) {
			grant, err := (&link.Newcomer{Token: token, Role: pki.RoleProxy, Dir: filepath.Join(r.t.TempDir(), "id"), Version: "fake"}).Join(ctx, conn)
			if err == nil {
				p.self.Set(grant.Credentials, grant.Bundle)
				joined.Store(true)
			}
		},
		link.ALPNControl: func(ctx context.Context, conn *link.Conn) { p.end.Run(ctx, conn) },
		link.ALPNRelay: func(ctx context.Context, conn *link.Conn) {
			c := relay.NewClient(conn.Conn, &relay.Options{Limits: relay.LinkLimits(), Hop: "edge", Remote: "link to core"})
			p.links.Add(c)
			c.Run(ctx)
		},
	}}
	if outside != nil {
		port.Outside = func() (*tls.Certificate, error) { return outside, nil }
	}
	return func() *proxy {
		p.running.Go(func() { port.Serve(p.ctx, l) })
		p.entrance()
		return p
	}
}

// entrance listens for calls in plaintext.
func (p *proxy) entrance() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.running.Go(func() {
		context.AfterFunc(p.ctx, func() { l.Close() })
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() {
				relay.NewServer(nc, &relay.Options{Hop: "edge", Remote: "client"}, relay.HandlerFunc(func(call *relay.Call) {
					header := call.Header()
					if p.say != nil {
						header = p.say(header)
					}
					to := p.links.Pick()
					if to == nil {
						call.Reject(codes.Unavailable, "edge: core is away")
						return
					}
					if err := call.Forward(to, header, relay.ForwardOptions{}); err != nil {
						call.Reject(codes.Unavailable, "edge: "+err.Error())
					}
				})).Run(p.ctx)
			})
		}
	})
	p.client, err = grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { p.client.Close() })
}

// call makes one unary call and says which gateway's upstream answered.
func (p *proxy) call(method string, pairs ...string) (servedBy string, err error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), pairs...), patience)
	defer cancel()
	var trailer metadata.MD
	err = p.client.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}, grpc.Trailer(&trailer))
	return strings.Join(trailer.Get("served-by"), ","), err
}

// expectStatus checks code and message of an error.
func expectStatus(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != code {
		t.Fatalf("status %v (%s), want %v", s.Code(), s.Message(), code)
	}
	for _, w := range words {
		if !strings.Contains(s.Message(), w) {
			t.Errorf("the message %q does not say %q", s.Message(), w)
		}
	}
}

func (r *running) logger() *slog.Logger { return slog.New(slog.NewTextHandler(r.log, nil)) }

func renameAway(path string) error { return os.Rename(path, path+".away") }

func renameTo(from, to string) error { return os.Rename(from, to) }

func itoa(n int) string { return strconv.Itoa(n) }

// withUID is the context of a request from the socket.
func withUID(uid int) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{AuthInfo: socketPeer{uid: uid}})
}
