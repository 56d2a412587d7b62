package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/roles/gateway/demo"
)

const eastWestPolicy = `
[methods]
"/sallyport.demo.v1.Echo/Say"   = ["echo:say"]
"/sallyport.demo.v1.Echo/Chat"  = ["echo:say"]
"/sallyport.demo.v1.Echo/Count" = ["echo:count"]

[[grant]]
caller = "spiffe://sallyport.internal/gateway/shop"
permissions = ["echo:say"]

[[grant]]
caller = "spiffe://sallyport.internal/gateway/shop"
listener = "batch"
permissions = ["echo:count"]

[[grant]]
apikey = "ci"
permissions = ["echo:count"]

[[grant]]
caller = "spiffe://sallyport.internal/client/billing"
permissions = ["echo:say"]
via_gateway = ["shop"]

[[grant]]
caller = "spiffe://sallyport.internal/client/elsewhere"
permissions = ["echo:say"]
via_gateway = ["other"]
via_proxy = ["dmz1"]
`

// appDial is an app's connection to an entrance.
func appDial(t *testing.T, target string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	cc, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// sayAs makes a unary call and returns who the upstream was told has called.
func sayAs(cc *grpc.ClientConn, pairs ...string) (caller string, err error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), pairs...), 20*time.Second)
	defer cancel()
	out, err := demo.NewEchoClient(cc).Say(ctx, &demo.SayRequest{Text: "x"})
	return out.GetCaller(), err
}

// countAs opens a server stream and reads it to its end.
func countAs(cc *grpc.ClientConn, pairs ...string) error {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), pairs...), 20*time.Second)
	defer cancel()
	s, err := demo.NewEchoClient(cc).Count(ctx, &demo.CountRequest{To: 2})
	for err == nil {
		_, err = s.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// wantStatus checks code and words of an error.
func wantStatus(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != code {
		t.Errorf("%s: %v (%s), want %v", what, s.Code(), s.Message(), code)
		return
	}
	for _, w := range words {
		if !strings.Contains(s.Message(), w) {
			t.Errorf("%s: the message %q does not say %q", what, s.Message(), w)
		}
	}
}

// TestEastWest: apps beside gateway shop call the service behind gateway office,
// by a unix socket, by loopback and by TLS: as the gateway, with a token, with a
// client certificate.
func TestEastWest(t *testing.T) {
	t.Parallel()
	d := deploy(t, eastWestPolicy)
	d.addGateway("office", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "office")
	dir, err := os.MkdirTemp("", "ew") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "call.sock")
	loopback, secure := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))

	// A process that was killed left its socket.
	stale, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()

	settings := filepath.Join(d.dir, "shop.toml")
	text := fmt.Sprintf("listen = [%q, %q, %q]\nupstream = [\"void=127.0.0.1:1=acme.void.v1.Void\"]\n", "unix://"+socket, "batch="+loopback, "tls://"+secure)
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	shop := d.addGateway("shop", nil, "SALLYPORT_CONFIG="+settings, "SALLYPORT_ACCESS_LOG=all")

	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v; want mode 0600", info, err)
	}
	bySocket, byLoopback := appDial(t, "unix://"+socket, nil), appDial(t, loopback, nil)
	const self = "spiffe://sallyport.internal/gateway/shop"
	eventually(t, 15*time.Second, "an app's call goes through", func() error {
		caller, err := sayAs(bySocket, "sallyport-caller", "me", "sallyport-listener", "batch", "x-forwarded-for", "10.9.9.9")
		if err == nil && caller != self {
			return fmt.Errorf("the upstream was told that %q calls", caller)
		}
		return err
	})
	if caller, err := sayAs(byLoopback); err != nil || caller != self+";listener=batch" {
		t.Errorf("by the labelled listener: %q, %v", caller, err)
	}
	if err := countAs(byLoopback); err != nil {
		t.Errorf("what is granted to the listener: %v", err)
	}
	wantStatus(t, "the same by another listener", countAs(bySocket, "sallyport-listener", "batch"), codes.PermissionDenied, self+" may not call this method")

	key := strings.TrimSpace(run(t, d.coreEnv, "apikey", "create", "ci"))
	token := []string{"authorization", "Bearer " + key}
	eventually(t, 10*time.Second, "the key is known", func() error { return countAs(bySocket, token...) })
	_, err = sayAs(bySocket, token...)
	wantStatus(t, "with a key that may not, by a gateway that may", err, codes.PermissionDenied, "apikey:ci")
	_, err = sayAs(bySocket, "authorization", "Bearer spk_wrong")
	wantStatus(t, "with a wrong key, by a gateway that may", err, codes.Unauthenticated)

	tlsWith := func(name string) *grpc.ClientConn {
		cert, keyFile, ca := d.issue(name, "--client")
		pem, err := os.ReadFile(ca)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		config := &tls.Config{RootCAs: pool}
		if name != "nobody" {
			pair, err := tls.LoadX509KeyPair(cert, keyFile)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		return appDial(t, secure, credentials.NewTLS(config))
	}
	billing := tlsWith("billing")
	eventually(t, 15*time.Second, "a call with a client certificate goes through", func() error {
		caller, err := sayAs(billing)
		if err == nil && caller != "spiffe://sallyport.internal/client/billing" {
			return fmt.Errorf("the upstream was told that %q calls", caller)
		}
		return err
	})
	_, err = sayAs(tlsWith("elsewhere"))
	wantStatus(t, "a certificate on the word of a gateway that is not named", err, codes.PermissionDenied, "client/elsewhere")
	_, err = sayAs(tlsWith("nobody"))
	wantStatus(t, "a stranger by TLS", err, codes.Unauthenticated)
	chat, err := demo.NewEchoClient(billing).Chat(t.Context())
	if err == nil {
		err = chat.Send(&demo.SayRequest{Text: "a"})
	}
	if err == nil {
		_, err = chat.Recv()
	}
	if err != nil {
		t.Fatalf("a stream: %v", err)
	}
	run(t, d.coreEnv, "cert", "revoke", "spiffe://sallyport.internal/client/billing")
	_, err = chat.Recv()
	wantStatus(t, "the open stream of a revoked certificate", err, codes.Unauthenticated)

	if out := run(t, d.coreEnv, "status"); !strings.Contains(out, "unix://"+socket) || !strings.Contains(out, "batch="+loopback) {
		t.Errorf("status shows no entrances:\n%s", out)
	}
	if out, errOut, err := tryRun(nil, "call", "--address", "unix://"+socket, "sallyport.demo.v1.Echo/Say", `{"text":"hello"}`); err != nil || !strings.Contains(out, "gateway/shop") {
		t.Errorf("sallyport call by the socket: %v\n%s%s", err, out, errOut)
	}
	if log := d.gateways["shop"].log.String(); !strings.Contains(log, self) || !strings.Contains(log, "/sallyport.demo.v1.Echo/Say") {
		t.Error("the access log of the gateway says nothing of its apps' calls")
	}
	if strings.Contains(shop.log.String(), key) {
		t.Error("the key is in the log")
	}

	t.Run("core away", func(t *testing.T) {
		d.core.kill()
		eventually(t, 15*time.Second, "calls end", func() error {
			_, err := sayAs(bySocket)
			if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), "gateway shop: core is not connected") {
				return fmt.Errorf("%v", err)
			}
			return nil
		})
		d.core.start(t)
		eventually(t, 20*time.Second, "calls go through again", func() error { _, err := sayAs(bySocket); return err })
	})
	t.Run("gateway removed", func(t *testing.T) {
		stream, err := demo.NewEchoClient(bySocket).Chat(t.Context())
		if err == nil {
			err = stream.Send(&demo.SayRequest{Text: "a"})
		}
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		run(t, d.coreEnv, "gateway", "rm", "shop")
		_, err = stream.Recv()
		wantStatus(t, "the open stream", err, codes.Unavailable)
		_, err = sayAs(bySocket)
		wantStatus(t, "a new call", err, codes.Unavailable, "gateway shop")
	})
	shop.stop(t, 20*time.Second)
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is there after the end: %v", err)
	}
}

// TestEastWestOwnServices: health and reflection at an entrance are core's, and
// show what the caller there may call.
func TestEastWestOwnServices(t *testing.T) {
	t.Parallel()
	d := deploy(t, eastWestPolicy)
	d.addGateway("office", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "office")
	loopback := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	d.addGateway("shop", nil, "SALLYPORT_LISTEN="+loopback, "SALLYPORT_UPSTREAM=void=127.0.0.1:1=acme.void.v1.Void")
	cc := appDial(t, loopback, nil)
	eventually(t, 15*time.Second, "health", func() error {
		for _, name := range []string{"", "sallyport.demo.v1.Echo"} {
			out, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
			if err != nil {
				return err
			}
			if out.GetStatus() != healthpb.HealthCheckResponse_SERVING {
				return fmt.Errorf("%q is %v", name, out.GetStatus())
			}
		}
		return nil
	})
	_, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "no.Such"})
	wantStatus(t, "an unknown service", err, codes.NotFound)
	grpcurl := tool(t, "grpcurl")
	show := func(args ...string) string {
		out, err := exec.Command(grpcurl, append([]string{"-plaintext"}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("grpcurl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := show(loopback, "list"); !strings.Contains(out, "sallyport.demo.v1.Echo\n") {
		t.Errorf("grpcurl list:\n%s", out)
	}
	out := show(loopback, "describe", "sallyport.demo.v1.Echo")
	if !strings.Contains(out, "rpc Say") || strings.Contains(out, "rpc Count") {
		t.Errorf("the gateway may call Say and not Count, and is shown:\n%s", out)
	}
	if out := show("-d", `{"text":"hello"}`, loopback, "sallyport.demo.v1.Echo/Say"); !strings.Contains(out, "gateway/shop") {
		t.Errorf("the call:\n%s", out)
	}
	d.applyPolicy(strings.Replace(eastWestPolicy, "gateway/shop\"\npermissions", "gateway/other\"\npermissions", 1))
	eventually(t, 10*time.Second, "nothing is listed that may not be called", func() error {
		if out := show(loopback, "list"); strings.Contains(out, "sallyport.demo.v1.Echo") {
			return errors.New(out)
		}
		return nil
	})
}
