package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

func get(header []relay.Field, name string) string {
	var values []string
	for _, f := range header {
		if f.Name == name {
			values = append(values, f.Value)
		}
	}
	return strings.Join(values, ",")
}

func TestFromTokenToCall(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := runProxy(t, core, configs.Proxy{Join: core.token.String()})
	if err := r.until(false); !strings.Contains(err.Error(), "joined") {
		t.Errorf("not ready because %v", err)
	}
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if !slices.Equal(core.requests, []string{"PURPOSE_PUBLIC_PORT"}) {
		t.Errorf("core was asked for %q", core.requests)
	}
	cc := r.dial(nil)
	var header metadata.MD
	ctx := metadata.AppendToOutgoingContext(withKey(t.Context(), key), "sallyport-caller", "me", "sallyport-request-id", "mine", "x-forwarded-for", "203.0.113.9",
		"forwarded", "for=203.0.113.9", "x-real-ip", "203.0.113.9", "Sallyport_caller", "me", "x-mine", "kept", "traceparent", "00-a-b-01")
	if err := say(ctx, cc, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	got := <-core.calls
	id := get(got, relay.HeaderRequestID)
	if len(id) != 16 || header.Get(relay.HeaderRequestID) == nil || header.Get(relay.HeaderRequestID)[0] != id || len(header.Get(relay.HeaderRequestID)) != 1 {
		t.Errorf("request id %q, the caller got %q", id, header.Get(relay.HeaderRequestID))
	}
	if header.Get("sallyport-caller") != nil || header.Get("x-answer") == nil {
		t.Errorf("the caller got %v", header)
	}
	for name, want := range map[string]string{relay.HeaderSource: "127.0.0.1", relay.HeaderClientCert: "", "sallyport-caller": "", "sallyport_caller": "",
		"x-forwarded-for": "", "forwarded": "", "x-real-ip": "", "x-mine": "kept", "traceparent": "00-a-b-01", "authorization": "Bearer " + key} {
		if v := get(got, name); v != want {
			t.Errorf("%s: core got %q, want %q", name, v, want)
		}
	}
	for _, f := range got {
		if f.Name == "authorization" && !f.Sensitive {
			t.Error("authorization may enter a compression table")
		}
	}
}

func TestAuthenticationAndAuthorization(t *testing.T) {
	core := newFakeCore(t)
	ci, other := core.apiKey("ci", time.Time{}), core.apiKey("other", time.Time{})
	expired := core.apiKey("old", time.Now().Add(-time.Hour))
	r := joined(t, core)
	billing, elsewhere, nobody := core.clientCertificate("billing", time.Hour), core.clientCertificate("elsewhere", time.Hour), core.clientCertificate("nobody", time.Hour)
	// A certificate of another installation, for the same name.
	foreign := newFakeCore(t).clientCertificate("billing", time.Hour)

	const sayPath, chatPath, deniedPath = "/" + echoName + "/Say", "/" + echoName + "/Chat", "/" + echoName + "/Count"
	for _, c := range []struct {
		what   string
		cert   *pki.Credentials
		auth   []string
		method string
		want   codes.Code
		about  string
	}{
		{"public, nobody", nil, nil, chatPath, codes.OK, ""},
		{"public, bad key", nil, []string{"Bearer spk_wrong"}, chatPath, codes.Unauthenticated, ""},
		{"public, good certificate without a grant", nobody, nil, chatPath, codes.OK, ""},
		{"public, certificate of another CA", foreign, nil, chatPath, codes.Unauthenticated, "client certificate"},
		{"guarded, nobody", nil, nil, sayPath, codes.Unauthenticated, ""},
		{"guarded, key with a grant", nil, []string{"Bearer " + ci}, sayPath, codes.OK, ""},
		{"guarded, key without a grant", nil, []string{"Bearer " + other}, sayPath, codes.PermissionDenied, ""},
		{"guarded, expired key", nil, []string{"Bearer " + expired}, sayPath, codes.Unauthenticated, "expired"},
		{"guarded, empty authorization", nil, []string{""}, sayPath, codes.Unauthenticated, ""},
		{"guarded, two keys", nil, []string{"Bearer " + ci, "Bearer " + ci}, sayPath, codes.Unauthenticated, "more than one"},
		{"guarded, certificate with a grant through this proxy", billing, nil, sayPath, codes.OK, ""},
		{"guarded, certificate with a grant through another proxy", elsewhere, nil, sayPath, codes.PermissionDenied, ""},
		{"guarded, certificate of another CA", foreign, nil, sayPath, codes.Unauthenticated, "client certificate"},
		{"guarded, certificate of another CA and good key", foreign, []string{"Bearer " + ci}, sayPath, codes.Unauthenticated, "client certificate"},
		{"guarded, good certificate and bad key", billing, []string{"Bearer spk_wrong"}, sayPath, codes.Unauthenticated, ""},
		{"no row", nil, []string{"Bearer " + ci}, deniedPath, codes.PermissionDenied, ""},
		{"health, nobody", nil, nil, "/grpc.health.v1.Health/Check", codes.OK, ""},
		{"health, bad key", nil, []string{"Bearer spk_wrong"}, "/grpc.health.v1.Health/Check", codes.Unauthenticated, ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		for _, a := range c.auth {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a)
		}
		var header metadata.MD
		err := invoke(ctx, r.dial(c.cert), c.method, &header)
		if status.Code(err) != c.want || !strings.Contains(status.Convert(err).Message(), c.about) {
			t.Errorf("%s: %v, want %s about %q", c.what, err, c.want, c.about)
		}
		if c.want == codes.OK && len(header.Get(relay.HeaderRequestID)) != 1 {
			t.Errorf("%s: request id %q", c.what, header.Get(relay.HeaderRequestID))
		}
		cancel()
	}

	// What core is told of a certificate that was good.
	for len(core.calls) > 0 {
		<-core.calls
	}
	if err := say(t.Context(), r.dial(billing)); err != nil {
		t.Fatal(err)
	}
	claim, err := policy.ParseClaim(get(<-core.calls, relay.HeaderClientCert))
	if err != nil || claim.ID != "spiffe://test.internal/client/billing" || claim.ClientCA != "" {
		t.Errorf("claim %+v, %v", claim, err)
	}
}

// invoke makes one call of whatever kind and reads its first answer.
func invoke(ctx context.Context, cc *grpc.ClientConn, method string, header *metadata.MD) error {
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	_ = stream.SendMsg(&demo.SayRequest{})
	_ = stream.CloseSend()
	err = stream.RecvMsg(&demo.SayResponse{})
	*header, _ = stream.Header()
	return err
}

func TestChangesHoldAtOnce(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := joined(t, core)
	cc := r.dial(nil)
	if err := say(withKey(t.Context(), key), cc); err != nil {
		t.Fatal(err)
	}
	core.change(func(p *control.ProxyPart) { p.ApiKeys = nil })
	if err := say(withKey(t.Context(), key), cc); status.Code(err) != codes.Unauthenticated {
		t.Errorf("revoked key: %v", err)
	}
	core.change(func(p *control.ProxyPart) { p.Policy = []byte("[methods]\n\"/" + echoName + "/Say\" = [\"public\"]\n") })
	if err := say(t.Context(), cc); err != nil {
		t.Errorf("opened method: %v", err)
	}
}

func TestWithoutCore(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	dir := t.TempDir()
	r := runProxy(t, core, configs.Proxy{DataDir: dir, Join: core.token.String()})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	cc := r.dial(nil)
	if err := say(withKey(t.Context(), key), cc); err != nil {
		t.Fatal(err)
	}
	core.disconnect()
	r.until(false)
	if err := say(withKey(t.Context(), key), cc); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "proxy dmz1: core is not connected") {
		t.Errorf("%v, want Unavailable that names the hop", err)
	}
	// Who may call what is still known.
	if err := say(t.Context(), cc); status.Code(err) != codes.Unauthenticated {
		t.Errorf("nobody: %v", err)
	}
	if s, err := healthOf(t.Context(), cc, ""); err != nil || s != notServing {
		t.Errorf("health %v, %v", s, err)
	}
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if err := say(withKey(t.Context(), key), cc); err != nil {
		t.Errorf("core is back: %v", err)
	}

	// The proxy is restarted, without a token.
	core.disconnect()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = runProxy(t, core, configs.Proxy{DataDir: dir})
	if r.info.Name != "dmz1" {
		t.Errorf("it calls itself %q", r.info.Name)
	}
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if err := say(withKey(t.Context(), key), r.dial(nil)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestNoCertificateYet(t *testing.T) {
	core := newFakeCore(t)
	core.refuse = true
	r := runProxy(t, core, configs.Proxy{Join: core.token.String()})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	for {
		if err := r.until(false); strings.Contains(err.Error(), "no certificate") {
			break
		}
	}
	if _, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil)); err == nil {
		t.Error("a handshake succeeded without a certificate")
	}
	core.mu.Lock()
	core.refuse = false
	core.mu.Unlock()
	r.until(true)
}

func TestHealth(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	cc := r.dial(nil)
	for service, want := range map[string]healthpb.HealthCheckResponse_ServingStatus{"": serving, echoName: serving, "grpc.health.v1.Health": serving} {
		if s, err := healthOf(t.Context(), cc, service); err != nil || s != want {
			t.Errorf("%q: %v, %v", service, s, err)
		}
	}
	if _, err := healthOf(t.Context(), cc, "nobody.Has"); status.Code(err) != codes.NotFound {
		t.Errorf("unknown service: %v", err)
	}
	watch, err := healthpb.NewHealthClient(cc).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: echoName})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []healthpb.HealthCheckResponse_ServingStatus{serving, notServing, serviceUnknown} {
		if out, err := watch.Recv(); err != nil || out.Status != want {
			t.Fatalf("watch %d: %v, %v, want %v", i, out, err, want)
		}
		switch i {
		case 0:
			core.change(func(p *control.ProxyPart) { p.Services[0].Available = false })
		case 1:
			core.change(func(p *control.ProxyPart) { p.Services = nil })
		}
	}
	core.change(func(p *control.ProxyPart) {
		p.Services = []*control.Service{{Name: echoName}, {Name: "secret.Service"}}
	})
	list, err := healthpb.NewHealthClient(cc).List(t.Context(), &healthpb.HealthListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if list.Statuses[""].GetStatus() != serving || list.Statuses[echoName].GetStatus() != notServing || list.Statuses["secret.Service"] != nil {
		t.Errorf("list %v", list.Statuses)
	}
}

func TestReflectionIsFilteredByCaller(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := joined(t, core)
	methods := func(ctx context.Context) (names string) {
		t.Helper()
		stream, err := reflectionpb.NewServerReflectionClient(r.dial(nil)).ServerReflectionInfo(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: echoName}}); err != nil {
			t.Fatal(err)
		}
		out, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range filesIn(t, out) {
			for _, s := range f.GetService() {
				for _, m := range s.GetMethod() {
					names += m.GetName() + " "
				}
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		return names
	}
	if got := methods(t.Context()); got != "Chat " {
		t.Errorf("nobody sees %q, want what is public", got)
	}
	if got := methods(withKey(t.Context(), key)); got != "Say Chat " {
		t.Errorf("the key's owner sees %q", got)
	}
	core.change(func(p *control.ProxyPart) { p.Policy = []byte("[methods]\n\"/" + echoName + "/Say\" = [\"public\"]\n") })
	stream, err := reflectionpb.NewServerReflectionClient(r.dial(nil)).ServerReflectionInfo(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	if c := status.Code(err); c != codes.Unauthenticated && c != codes.PermissionDenied {
		t.Errorf("reflection without a row: %v", err)
	}
}

func TestStrangersAreAnswered(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	exchange := func(nc net.Conn, text string) string {
		t.Helper()
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(nc, text)
		var out bytes.Buffer
		_, _ = io.Copy(&out, nc)
		return out.String()
	}
	plain := func() net.Conn {
		nc, err := net.Dial("tcp", r.info.PublicAddress)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}
	over := func(version uint16, protocols ...string) (net.Conn, error) {
		c := r.tls(nil)
		c.NextProtos, c.MaxVersion = protocols, version
		return tls.Dial("tcp", r.info.PublicAddress, c)
	}
	if got := exchange(plain(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400") || !strings.Contains(got, "TLS") {
		t.Errorf("plain HTTP: %q", got)
	}
	if got := exchange(plain(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); !strings.Contains(got, "TLS") {
		t.Errorf("plain HTTP/2: %q", got)
	}
	for _, protocols := range [][]string{nil, {"http/1.1"}} {
		nc, err := over(tls.VersionTLS13, protocols...)
		if err != nil {
			t.Fatal(err)
		}
		if got := exchange(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 505") || !strings.Contains(got, "gRPC") {
			t.Errorf("HTTP/1.1 over TLS, offering %q: %q", protocols, got)
		}
	}
	nc, err := over(tls.VersionTLS13)
	if err != nil {
		t.Fatal(err)
	}
	if got := exchange(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); !strings.Contains(got, "ALPN") {
		t.Errorf("HTTP/2 without ALPN: %q", got)
	}
	if _, err := over(tls.VersionTLS13, "sallyport-relay/1"); err == nil {
		t.Error("a component's protocol is spoken at the public port")
	}
	if _, err := over(tls.VersionTLS11, "h2"); err == nil {
		t.Error("TLS 1.1 is spoken at the public port")
	}
	nc, err = over(tls.VersionTLS12, "h2")
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestDenialsAreReported(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a report, which comes every 5 s")
	}
	core := newFakeCore(t)
	other := core.apiKey("other", time.Time{})
	r := joined(t, core)
	cc := r.dial(nil)
	for range 3 {
		_ = say(t.Context(), cc)
		_ = say(withKey(t.Context(), other), cc)
	}
	want := []string{"127.0.0.1/32 UNAUTHENTICATED 3", "apikey:other PERMISSION_DENIED 3"}
	var got []string
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		core.mu.Lock()
		got = nil
		for _, d := range core.denials {
			got = append(got, fmt.Sprintf("%s %s %d", d.GetCaller(), d.GetCode(), d.GetCount()))
		}
		core.mu.Unlock()
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
	}
	t.Errorf("reported %q, want %q", got, want)
}

func TestDrain(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	cc := r.dial(nil)
	chat, err := demo.NewEchoClient(cc).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() {
		t.Helper()
		if err := chat.Send(&demo.SayRequest{Text: "still there"}); err != nil {
			t.Fatal(err)
		}
		if _, err := chat.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	r.until(false)
	exchange()
	if _, err := net.DialTimeout("tcp", r.info.PublicAddress, time.Second); err == nil {
		// The port may still be closing; a call must not get through in any case.
		if err := say(t.Context(), r.dial(nil)); err == nil {
			t.Error("a new call was taken while draining")
		}
	}
	exchange()
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestDrainTimeEnds(t *testing.T) {
	core := newFakeCore(t)
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), DrainTimeout: 100 * time.Millisecond})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	chat, err := demo.NewEchoClient(r.dial(nil)).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := chat.Send(&demo.SayRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chat.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := chat.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("%v, want Unavailable that says why", err)
	}
}

func TestCertificateFromFilesIsReplacedWhileCallsRun(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	dir := t.TempDir()
	put := func() uint64 {
		t.Helper()
		k, err := pki.NewKey("p256")
		if err != nil {
			t.Fatal(err)
		}
		issued, err := core.authority.IssueLeaf(pki.LeafRequest{PublicKey: k.Public(), Server: true, DNS: []string{"localhost"}, Lifetime: time.Hour}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		text, err := pki.MarshalKeyPEM(k)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "tls.key"), text)
		write(t, filepath.Join(dir, "tls.crt"), issued.PEM())
		return issued.Chain[0].SerialNumber.Uint64()
	}
	first := put()
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), TLS: "files", TLSCert: filepath.Join(dir, "tls.crt"), TLSKey: filepath.Join(dir, "tls.key")})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if len(core.requests) != 0 {
		t.Errorf("core was asked for %q", core.requests)
	}
	serves := func() uint64 {
		t.Helper()
		nc, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		return nc.ConnectionState().PeerCertificates[0].SerialNumber.Uint64()
	}
	if serves() != first {
		t.Fatal("serves another certificate than the files hold")
	}
	cc := r.dial(nil)
	if err := say(withKey(t.Context(), key), cc); err != nil {
		t.Fatal(err)
	}
	second := put()
	for end := time.Now().Add(15 * time.Second); serves() != second; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new files were not taken into service")
		}
	}
	if err := say(withKey(t.Context(), key), cc); err != nil {
		t.Errorf("the open connection: %v", err)
	}
}

func TestHealthOnTheComponentPort(t *testing.T) {
	core := newFakeCore(t)
	r := runProxy(t, core, configs.Proxy{Join: core.token.String()})
	core.join(r.info.GRPCAddress)
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} // a probe that asks nothing else
	cc, err := grpc.NewClient("passthrough:///"+r.info.GRPCAddress, grpc.WithTransportCredentials(grpccreds.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if s, err := healthOf(t.Context(), cc, ""); err != nil || s != notServing {
		t.Errorf("without core: %v, %v", s, err)
	}
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if s, err := healthOf(t.Context(), cc, ""); err != nil || s != serving {
		t.Errorf("with core: %v, %v", s, err)
	}
	if err := say(t.Context(), cc); status.Code(err) != codes.Unimplemented {
		t.Errorf("another service on that port: %v", err)
	}
}
