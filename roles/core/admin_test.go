package core

import (
	"context"
	"crypto/x509"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// socket is a client on the admin socket.
func (r *running) socket() control.AdminClient {
	r.t.Helper()
	conn, err := grpc.NewClient("passthrough:///core", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			short, done, err := shortPath(r.info.AdminSocket)
			if err != nil {
				return nil, err
			}
			defer done()
			return (&net.Dialer{}).DialContext(ctx, "unix", short)
		}))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return control.NewAdminClient(conn)
}

func TestTheSocketIsTheOperatorsAlone(t *testing.T) {
	s := settings(t)
	// A path that is too long for a socket's address works as well.
	s.DataDir = filepath.Join(s.DataDir, strings.Repeat("a-long-directory-name-", 5))
	r := start(t, s)
	for path, want := range map[string]fs.FileMode{r.info.AdminSocket: 0o600, s.DataDir: 0o700, filepath.Join(s.DataDir, "core.db"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s is %o, want %o", path, got, want)
		}
	}
	client := r.socket()
	if _, err := client.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "orders", Peers: []string{"10.0.0.7"}}); err != nil {
		t.Fatal(err)
	}
	audit, err := client.ListAudit(context.Background(), &control.ListAuditRequest{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := audit.GetRows()[0].GetActor(); !strings.HasPrefix(got, "uid:") || !strings.Contains(got, "uid:"+itoa(os.Getuid())) {
		t.Errorf("the audit says %q did it", got)
	}

	// Somebody else is refused, in words, whoever let him to the socket.
	admin := &admin{core: nil}
	_, err = admin.admit(withUID(os.Getuid()+1), nil, nil, func(context.Context, any) (any, error) { return nil, nil })
	if os.Getuid()+1 != 0 {
		expectStatus(t, err, codes.PermissionDenied, "uid")
	}
	if _, err = admin.admit(context.Background(), nil, nil, func(context.Context, any) (any, error) { return nil, nil }); err == nil {
		t.Error("nobody in particular was let in")
	}

	// A second core on the same directory is told so; a socket that a dead one
	// left is not in the way.
	if err := Run(context.Background(), s, Deps{Log: r.logger(), Version: "test"}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second core: %v", err)
	}
	r.end()
	if _, err := os.Lstat(r.info.AdminSocket); err == nil {
		t.Error("the socket is left behind")
	}
	short, done, err := shortPath(r.info.AdminSocket)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", short)
	done()
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	start(t, s).end()
	if err := os.WriteFile(r.info.AdminSocket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(context.Background(), s, Deps{Log: r.logger(), Version: "test"}); err == nil {
		t.Error("a file in the way was not noticed")
	}
	if b, err := os.ReadFile(r.info.AdminSocket); err != nil || string(b) != "precious" {
		t.Error("a file in the way was removed")
	}
}

func TestWhatCannotBeAdded(t *testing.T) {
	s := settings(t)
	r := start(t, s)
	ctx := context.Background()
	any := []string{"any"}
	for _, c := range []struct {
		what  string
		in    *control.AddComponentRequest
		words []string
	}{
		{"role", &control.AddComponentRequest{Role: "core", Name: "x", Peers: any}, []string{"gateways and proxies"}},
		{"name", &control.AddComponentRequest{Role: "gateway", Name: "No Good", Peers: any}, []string{"a-z, 0-9"}},
		{"no peers", &control.AddComponentRequest{Role: "gateway", Name: "x"}, []string{"--ip is required", "gRPC port", "any"}},
		{"no core address", &control.AddComponentRequest{Role: "proxy", Name: "x", Address: "h:1"}, []string{"--core-ip is required", "any"}},
		{"bad peers", &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: []string{"10.0.0.300"}}, []string{"--ip", "10.0.0.300"}},
		{"serve of a proxy", &control.AddComponentRequest{Role: "proxy", Name: "x", Address: "h:1", Peers: any, Serve: []string{"a.B"}}, []string{"--serve"}},
		{"no address", &control.AddComponentRequest{Role: "proxy", Name: "x", Peers: any}, []string{"--address is required", "core dials"}},
		{"port", &control.AddComponentRequest{Role: "proxy", Name: "x", Peers: any, Address: "h:70000"}, []string{"--address", "65535"}},
		{"host", &control.AddComponentRequest{Role: "proxy", Name: "x", Peers: any, Address: "a b:1"}, []string{"--address"}},
		{"anywhere", &control.AddComponentRequest{Role: "proxy", Name: "x", Peers: any, Address: "0.0.0.0:1"}, []string{"--address"}},
		{"address of a gateway", &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: any, Address: "h:1"}, []string{"dials core"}},
		{"pattern", &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: any, Serve: []string{"a/b"}}, []string{"--serve", "a/b"}},
		{"uses", &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: any, Uses: 3}, []string{"--reusable"}},
		{"reusable for ever", &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: any, Reusable: true, Uses: 3}, []string{"--ttl"}},
		{"reusable by all", &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: any, Reusable: true, TtlSeconds: 60}, []string{"--uses"}},
		{"ttl", &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: any, TtlSeconds: -1}, []string{"days"}},
	} {
		_, err := r.admin.AddComponent(ctx, c.in)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		expectStatus(t, err, codes.InvalidArgument, c.words...)
	}
	if out, _ := r.admin.ListComponents(ctx, &control.ListComponentsRequest{}); len(out.GetComponents()) != 0 {
		t.Errorf("something was added: %v", out)
	}
	r.invite("orders")
	_, err := r.admin.AddComponent(ctx, &control.AddComponentRequest{Role: "gateway", Name: "orders", Peers: any})
	expectStatus(t, err, codes.AlreadyExists, "gateway rm orders")
	_, err = r.admin.SetComponent(ctx, &control.SetComponentRequest{Role: "gateway", Name: "orders", Peers: []string{"fe80::1%eth0"}})
	expectStatus(t, err, codes.InvalidArgument, "--ip", "zone")
	_, err = r.admin.SetComponent(ctx, &control.SetComponentRequest{Role: "gateway", Name: "nobody", Peers: any})
	expectStatus(t, err, codes.NotFound, "nobody")
	_, err = r.admin.RemoveComponent(ctx, &control.RemoveComponentRequest{Role: "gateway", Name: "nobody"})
	expectStatus(t, err, codes.NotFound, "nobody")
	_, err = r.admin.RevokeAPIKey(ctx, &control.RevokeAPIKeyRequest{Name: "nobody"})
	expectStatus(t, err, codes.NotFound, "nobody")
	_, err = r.admin.AllowService(ctx, &control.AllowServiceRequest{Service: "a.B", Gateway: "nobody"})
	expectStatus(t, err, codes.NotFound, "nobody")
	_, err = r.admin.ExplainPolicy(ctx, &control.ExplainPolicyRequest{Caller: "x", Method: "/a.B/C"})
	expectStatus(t, err, codes.InvalidArgument, "spiffe://")

	// Beyond loopback core has to be told its own address.
	s.GRPCAddress, s.DataDir = "0.0.0.0:0", filepath.Join(t.TempDir(), "open")
	open := start(t, s)
	_, err = open.admin.AddComponent(ctx, &control.AddComponentRequest{Role: "gateway", Name: "x", Peers: any})
	expectStatus(t, err, codes.FailedPrecondition, "--advertise")
}

func TestTheLineToPaste(t *testing.T) {
	r := start(t, settings(t))
	add := func(in *control.AddComponentRequest) (string, pki.Token) {
		t.Helper()
		in.Peers = []string{"10.0.0.7"}
		out, err := r.admin.AddComponent(context.Background(), in)
		if err != nil {
			t.Fatal(err)
		}
		token, err := pki.ParseToken(out.GetToken())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Replace(out.GetCommand(), out.GetToken(), "TOKEN", 1), token
	}
	line, token := add(&control.AddComponentRequest{Role: "gateway", Name: "orders"})
	if line != "sallyport --role gateway --join TOKEN" || token.Core != r.info.GRPCAddress || len(token.Pins) != 2 {
		t.Errorf("%s, token for %q with %d pins", line, token.Core, len(token.Pins))
	}
	line, token = add(&control.AddComponentRequest{Role: "proxy", Name: "dmz1", Address: "dmz.example.org"})
	if line != "sallyport --role proxy --join TOKEN" || strings.Join(token.Peers, " ") != "10.0.0.7" {
		t.Errorf("%s, token for %q", line, token.Peers)
	}
	if got := r.component("proxy", "dmz1").GetAddress(); got != "dmz.example.org:50051" {
		t.Errorf("the address became %q", got)
	}
	if line, _ = add(&control.AddComponentRequest{Role: "proxy", Name: "dmz2", Address: "dmz.example.org:6000"}); line != "sallyport --role proxy --join TOKEN --grpc-address :6000" {
		t.Error(line)
	}
	if line, _ = add(&control.AddComponentRequest{Role: "proxy", Name: "dmz3", Address: "127.0.0.1:6000"}); line != "sallyport --role proxy --join TOKEN --grpc-address 127.0.0.1:6000" {
		t.Error(line)
	}
}

func TestIssuedCertificatesAreNoComponents(t *testing.T) {
	r := start(t, settings(t))
	ctx := context.Background()
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.admin.IssueCertificate(ctx, &control.IssueCertificateRequest{Csr: csr, Name: "billing", Client: true, Server: true,
		Dns: []string{"billing.internal"}, Ips: []string{"10.1.2.3"}, Subject: "CN=billing,O=Acme\\, Inc."})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseChain(out.GetChain())
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(out.GetRoots()[0])
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	between.AddCert(chain[1])
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "billing.internal", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if out.GetIdentity() != "spiffe://test.internal/client/billing" || chain[0].Subject.Organization[0] != "Acme, Inc." {
		t.Errorf("%s, %s", out.GetIdentity(), chain[0].Subject)
	}
	if ours, err := pki.SPKIHash(key.Public()); err != nil || ours != must(pki.SPKIHash(chain[0].PublicKey)) {
		t.Error("the certificate is for another key")
	}
	list, err := r.admin.ListCertificates(ctx, &control.ListCertificatesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, c := range list.GetCertificates() {
		kinds[c.GetKind()]++
	}
	if kinds["root"] != 1 || kinds["intermediate"] != 2 || kinds["core"] != 1 || kinds["client"] != 1 {
		t.Errorf("certificates: %v", kinds)
	}
	for _, bad := range []*control.IssueCertificateRequest{
		{Csr: csr, Name: "x", Client: true, Uris: []string{"spiffe://test.internal/gateway/orders"}},
		{Csr: csr, Name: "x", Client: true, Uris: []string{"spiffe://test.internal/core/core"}},
		{Csr: csr, Name: "../core/core", Client: true},
		{Csr: csr, Name: "x"},
		{Csr: []byte("no"), Name: "x", Client: true},
		{Csr: csr, Name: "x", Server: true, Ips: []string{"nowhere"}},
		{Csr: csr, Name: "x", Client: true, Subject: "nonsense"},
		{Csr: csr, Name: "x", Client: true, LifetimeSeconds: -5},
	} {
		if out, err := r.admin.IssueCertificate(ctx, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v was answered with %v, %v", bad, out.GetIdentity(), err)
		}
	}
}

func TestPolicyVerbs(t *testing.T) {
	r := start(t, settings(t))
	ctx := context.Background()
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	r.service("acme.v1.Orders", "orders", "routed")
	show, err := r.admin.ShowPolicy(ctx, &control.ShowPolicyRequest{})
	if err != nil || show.GetVersion() != 0 || len(show.GetPolicy()) == 0 {
		t.Errorf("built in: %v %v", show, err)
	}
	out, err := r.admin.ApplyPolicy(ctx, &control.ApplyPolicyRequest{Policy: []byte("[methods]\nbroken")})
	if err != nil || len(out.GetErrors()) == 0 || out.GetVersion() != 0 {
		t.Errorf("a broken policy: %v %v", out, err)
	}
	typo := []byte("[methods]\n\"/acme.v1.Order/Get\" = [\"public\"]\n")
	if out, err = r.admin.ApplyPolicy(ctx, &control.ApplyPolicyRequest{Policy: typo, Strict: true}); err != nil || len(out.GetErrors()) == 0 || out.GetVersion() != 0 {
		t.Errorf("a typo, strictly: %v %v", out, err)
	}
	if out, err = r.admin.ApplyPolicy(ctx, &control.ApplyPolicyRequest{Policy: typo}); err != nil || len(out.GetWarnings()) == 0 || len(out.GetDenied()) != 2 || out.GetVersion() != 1 {
		t.Errorf("a typo: %v %v", out, err)
	}
	r.apply(openPolicy)
	if show, err = r.admin.ShowPolicy(ctx, &control.ShowPolicyRequest{}); err != nil || show.GetVersion() != 2 || string(show.GetPolicy()) != openPolicy || show.GetActor() != "process" {
		t.Errorf("in force: %v %v", show, err)
	}
	if show, err = r.admin.ShowPolicy(ctx, &control.ShowPolicyRequest{Version: 1}); err != nil || string(show.GetPolicy()) != string(typo) {
		t.Errorf("version 1: %v %v", show, err)
	}
	_, err = r.admin.ShowPolicy(ctx, &control.ShowPolicyRequest{Version: 9})
	expectStatus(t, err, codes.NotFound)
	why, err := r.admin.ExplainPolicy(ctx, &control.ExplainPolicyRequest{Caller: "anonymous", Method: "/acme.v1.Orders/Get"})
	if err != nil || !why.GetAllowed() || why.GetRow() != "/acme.v1.Orders/*" || strings.Join(why.GetGateways(), ",") != "orders" {
		t.Errorf("explained: %v %v", why, err)
	}
	all, err := r.admin.Status(ctx, &control.StatusRequest{})
	if err != nil || all.GetPolicyVersion() != 2 || len(all.GetComponents()) != 1 || len(all.GetServices()) != 1 || len(all.GetWarnings()) != 0 {
		t.Errorf("status: %v %v", all, err)
	}
}

func must[A any](a A, err error) A {
	if err != nil {
		panic(err)
	}
	return a
}
