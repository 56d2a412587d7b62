package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(middleEnv); spec != "" {
		middle(spec)
	}
	goleak.VerifyTestMain(m)
}

// testTLS is one certificate that is its own CA.
var testTLS = sync.OnceValue(func() *tls.Config {
	key, err := testKey()
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	if given := os.Getenv(benchCertEnv); given != "" {
		if der, err = base64.StdEncoding.DecodeString(given); err != nil {
			panic(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}},
		RootCAs:      pool, ClientCAs: pool, ServerName: "localhost", NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
})

// testKey is a new key, or in a child process of a benchmark its parent's.
func testKey() (*ecdsa.PrivateKey, error) {
	given := os.Getenv(benchKeyEnv)
	if given == "" {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	der, err := base64.StdEncoding.DecodeString(given)
	if err != nil {
		return nil, err
	}
	return x509.ParseECPrivateKey(der)
}

// hopConfig is how one hop of a chain is built.
type hopConfig struct {
	tls     bool // towards its caller
	plain   bool // without Socket
	web     bool // the edge takes gRPC-Web
	limits  Limits
	linkLim Limits
	forward ForwardOptions
	handler func(*Call, *hop) // instead of forwarding
	conns   int               // parallel links to the next hop
}

// hop is one relay of a chain: a place where calls come in, and a pool of
// connections on which they go out.
type hop struct {
	name string
	cfg  hopConfig
	opts *Options
	m    *Metrics
	out  Pool
	wg   sync.WaitGroup
	ctx  context.Context
	stop context.CancelFunc

	mu  sync.Mutex
	ins []*Conn
}

func newHop(t testing.TB, name string, edge bool, cfg hopConfig) *hop {
	h := &hop{name: name, cfg: cfg, m: new(Metrics)}
	h.opts = &Options{Limits: cfg.limits, Metrics: h.m, Budget: NewBudget(64 << 20), Hop: name, Edge: edge, Remote: "link from " + name}
	if cfg.web && edge {
		h.opts.Web = webOptions().Web
	}
	h.ctx, h.stop = context.WithCancel(context.Background())
	t.Cleanup(func() { h.stop(); h.wg.Wait() })
	return h
}

// ServeCall forwards to the least busy connection.
func (h *hop) ServeCall(c *Call) {
	if h.cfg.handler != nil {
		h.cfg.handler(c, h)
		return
	}
	h.forward(c)
}

func (h *hop) forward(c *Call) {
	for range 3 {
		to := h.out.Pick()
		if to == nil {
			break
		}
		o := h.cfg.forward
		o.Retry = func(error) { h.forward(c) }
		if err := c.Forward(to, c.Header(), o); !errors.Is(err, ErrNotAccepting) {
			return
		}
	}
	c.Reject(codes.Unavailable, h.name+": nothing to forward to")
}

// serve runs the receiving end on nc.
func (h *hop) serve(nc net.Conn) *Conn {
	c := NewServer(nc, h.opts, h)
	h.mu.Lock()
	h.ins = append(h.ins, c)
	h.mu.Unlock()
	h.wg.Add(1)
	go func() { defer h.wg.Done(); _ = c.Run(h.ctx) }()
	return c
}

// open runs the sending end on nc.
func (h *hop) open(nc net.Conn, remote string) *Conn {
	o := *h.opts
	o.Limits, o.Remote = h.cfg.linkLim, remote
	c := NewClient(nc, &o)
	h.out.Add(c)
	h.wg.Add(1)
	go func() { defer h.wg.Done(); _ = c.Run(h.ctx) }()
	return c
}

func (h *hop) wrap(nc net.Conn) net.Conn {
	if h.cfg.plain {
		return nc
	}
	return Socket(nc)
}

// listen accepts callers.
func (h *hop) listen(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc = h.wrap(nc)
			if h.cfg.tls {
				nc = tls.Server(nc, testTLS())
			}
			h.serve(nc)
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// reverse connects a hop to the next one: the next one dials and serves.
func (h *hop) reverse(t testing.TB, next *hop) *Conn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	dialled, accepted = next.wrap(dialled), h.wrap(accepted)
	next.serve(tls.Client(dialled, testTLS()))
	c := h.open(tls.Server(accepted, testTLS()), "link to "+next.name)
	<-c.Ready()
	return c
}

// upstream connects a hop to a service.
func (h *hop) upstream(t testing.TB, address string) *Conn {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := h.open(h.wrap(nc), "upstream test")
	<-c.Ready()
	return c
}

// chain builds hops relays in a row before a service and returns its entrance.
func chain(t testing.TB, hops int, backend string, cfg hopConfig) (string, []*hop) {
	names := []string{"edge", "core", "gateway g1"}
	var all []*hop
	for i := range hops {
		one := cfg
		if i > 0 {
			one.handler = nil
			one.limits = LinkLimits()
		}
		if i < hops-1 {
			one.linkLim = LinkLimits()
		}
		all = append(all, newHop(t, names[i], i == 0, one))
	}
	for i := range hops - 1 {
		for range max(cfg.conns, 1) {
			all[i].reverse(t, all[i+1])
		}
	}
	for range max(cfg.conns, 1) {
		all[hops-1].upstream(t, backend)
	}
	return all[0].listen(t), all
}

func dial(t testing.TB, address string, secure bool, more ...grpc.DialOption) *grpc.ClientConn {
	creds := insecure.NewCredentials()
	if secure {
		creds = credentials.NewTLS(testTLS())
	}
	cc, err := grpc.NewClient(address, append([]grpc.DialOption{grpc.WithTransportCredentials(creds)}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// backend runs a grpc-go server.
func backend(t testing.TB, register func(*grpc.Server), o ...grpc.ServerOption) (string, *grpc.Server) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(o...)
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String(), s
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 500 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("never happened: " + what)
}

func describe(h *hop) string {
	return fmt.Sprintf("%s: calls %d open %d buffered %d", h.name, h.m.Calls.Load(), h.m.CallsOpen.Load(), h.m.Buffered.Load())
}
