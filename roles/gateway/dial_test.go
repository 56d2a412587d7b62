package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/relay"
)

// pem writes a certificate and its key where settings can name them.
func pem(t *testing.T, a *pki.Authority, name string, r pki.LeafRequest) (cert, key string) {
	t.Helper()
	k, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	r.PublicKey, r.Lifetime = k.Public(), time.Hour
	issued, err := a.IssueLeaf(r, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := pki.MarshalKeyPEM(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, body := range map[string][]byte{cert: issued.PEM(), key: text} {
		if err := os.WriteFile(file, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestUpstreamOverTLS(t *testing.T) {
	a, err := pki.CreateAuthority(filepath.Join(t.TempDir(), "ca"), pki.Secret{}, "test.internal", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, a.Bundle().PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	serverCert, serverKey := pem(t, a, "server", pki.LeafRequest{Server: true, DNS: []string{"orders.internal"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.2")}})
	clientCert, clientKey := pem(t, a, "gateway", pki.LeafRequest{ID: pki.ID{TrustDomain: "test.internal", Role: pki.RoleClient, Name: "attic"}, Client: true})
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.Bundle().PEM())
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})))
	demo.RegisterEchoServer(s, demo.UnimplementedEchoServer{})
	reflection.Register(s)
	address, _ := serveOn(t, s, "127.0.0.1:0")

	good := configs.Upstream{Name: "orders", Address: configs.UpstreamAddress{Scheme: configs.SchemeTLS, Target: address}, CA: ca, Cert: clientCert, Key: clientKey, ServerName: "orders.internal"}
	watchUpstream(t, good).until(t, "up", isUp)

	for _, c := range []struct {
		what   string
		change func(*configs.Upstream)
		want   string
	}{
		{"another CA", func(u *configs.Upstream) { u.CA = serverOf(t) }, "not"},
		{"the system's roots", func(u *configs.Upstream) { u.CA = "" }, "not"},
		{"another name", func(u *configs.Upstream) { u.ServerName = "stock.internal" }, "stock.internal"},
		{"no client certificate", func(u *configs.Upstream) { u.Cert, u.Key = "", "" }, "certificate"},
		{"a CA file that is gone", func(u *configs.Upstream) { u.CA = "/nowhere/ca.crt" }, "/nowhere/ca.crt"},
	} {
		bad := good
		c.change(&bad)
		w := watchUpstream(t, bad)
		st := w.until(t, c.what, func(s upstreamState) bool { return s.problem != "" })
		if !strings.Contains(st.problem, c.want) {
			t.Errorf("%s: %q, want something about %q", c.what, st.problem, c.want)
		}
	}

	// TLS without HTTP/2, and no TLS at all.
	web := httptest.NewUnstartedServer(http.NotFoundHandler())
	web.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	web.StartTLS()
	defer web.Close()
	bad := good
	bad.Address.Target = web.Listener.Addr().String()
	watchUpstream(t, bad).until(t, "a server without h2", func(s upstreamState) bool {
		return strings.Contains(s.problem, "protocol") || strings.Contains(s.problem, "ALPN")
	})
	plainly, _ := serveOn(t, echoServer(nil), "127.0.0.1:0")
	bad.Address.Target = plainly
	watchUpstream(t, bad).until(t, "a server without TLS", func(s upstreamState) bool { return strings.Contains(s.problem, "TLS") })
}

// serverOf is the CA file of another installation.
func serverOf(t *testing.T) string {
	t.Helper()
	a, err := pki.CreateAuthority(filepath.Join(t.TempDir(), "ca"), pki.Secret{}, "other.internal", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "other.crt")
	if err := os.WriteFile(file, a.Bundle().PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestUpstreamOnAUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "sp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	up := &recorder{seen: make(chan metadata.MD, 1)}
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, up)
	reflection.Register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-done }()

	core := newFakeCore(t)
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{Join: core.token(), Upstreams: []configs.Upstream{{Name: "orders", Address: configs.UpstreamAddress{Scheme: configs.SchemeUnix, Target: path}}}})
	g.until(true)
	core.announcement("the upstream", serves(echoName))
	if _, err := demo.NewEchoClient(core.client()).Say(t.Context(), &demo.SayRequest{}); err != nil {
		t.Fatal(err)
	}
	if md := <-up.seen; md.Get(":authority")[0] != "localhost" {
		t.Errorf("authority %q", md.Get(":authority"))
	}
}

func TestNoTokenGoesOverPlaintextNetworks(t *testing.T) {
	up := &recorder{seen: make(chan metadata.MD, 1)}
	s := grpc.NewServer()
	demo.RegisterEchoServer(s, up)
	reflection.Register(s)
	address, _ := serveOn(t, s, "127.0.0.1:0")
	core := newFakeCore(t)
	core.part = demoPart()
	core.part.Methods[0].ForwardAuthorization = true
	core.write(relay.Field{Name: "authorization", Value: "Bearer token"})
	g := runGateway(t, configs.Gateway{Join: core.token(), Upstreams: []configs.Upstream{{Name: "orders", Address: configs.UpstreamAddress{Scheme: configs.SchemeH2C, Target: address}}}})
	g.until(true)
	core.announcement("the upstream", serves(echoName))
	if _, err := demo.NewEchoClient(core.client()).Say(t.Context(), &demo.SayRequest{}); err != nil {
		t.Fatal(err)
	}
	if md := <-up.seen; md.Get("authorization") != nil {
		t.Error("h2c:// got the token")
	}
}

// An upstream that closes its connections politely, as all do now and then,
// loses no call and is never shown as down.
func TestUpstreamThatRenewsItsConnections(t *testing.T) {
	s := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 20 * time.Millisecond, MaxConnectionAgeGrace: 5 * time.Second}))
	demo.RegisterEchoServer(s, quick{})
	reflection.Register(s)
	address, _ := serveOn(t, s, "127.0.0.1:0")
	core := newFakeCore(t)
	core.part = demoPart()
	g := runGateway(t, configs.Gateway{Join: core.token(), AccessLog: "off", Upstreams: []configs.Upstream{plain("orders", address)}})
	g.until(true)
	core.announcement("the upstream", serves(echoName))
	client := demo.NewEchoClient(core.client())
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				if _, err := client.Say(t.Context(), &demo.SayRequest{Text: "x"}); err != nil {
					t.Errorf("a call was lost: %v", err)
					return
				}
			}
		})
	}
	callers.Wait()
}

// quick answers without remembering.
type quick struct{ demo.UnimplementedEchoServer }

func (quick) Say(_ context.Context, in *demo.SayRequest) (*demo.SayResponse, error) {
	return &demo.SayResponse{Text: in.Text}, nil
}
