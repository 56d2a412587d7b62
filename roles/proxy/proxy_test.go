package proxy

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
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
		if c.about == "more than one" && len(header.Get(relay.HeaderRequestID)) != 1 {
			t.Errorf("%s: what the engine refuses has no request id: %v", c.what, header)
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
	if err != nil { // a status alone is read as trailers
		*header = metadata.Join(*header, stream.Trailer())
	}
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

	// A certificate is revoked while its connection is open.
	billing := core.clientCertificate("billing", time.Hour)
	mine := r.dial(billing)
	if err := say(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	core.change(func(*control.ProxyPart) { core.revoked = []*control.Revocation{{Serial: pki.Serial(billing.Chain[0])}} })
	if err := say(t.Context(), mine); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked certificate: %v", err)
	}
}

// TestAnotherCore: a directory in which there was an identity of another core.
// What that core said counts no more, also when the proxy is killed the moment
// it has its new identity on disk.
func TestAnotherCore(t *testing.T) {
	former := newFakeCore(t)
	dir, killed := t.TempDir(), filepath.Join(t.TempDir(), "killed")
	r := runProxy(t, former, configs.Proxy{DataDir: dir, Join: former.token.String()})
	former.join(r.info.GRPCAddress)
	former.connect(r.info.GRPCAddress)
	r.until(true)
	former.disconnect()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "proxy")); err != nil {
		t.Fatal(err)
	}

	core := newFakeCore(t)
	core.began = 1
	core.stored = func() {
		if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
			t.Error(err)
		}
	}
	r = runProxy(t, core, configs.Proxy{DataDir: dir, Join: core.token.String()})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	core.disconnect()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	if err := os.Chmod(filepath.Join(killed, "proxy", "identity.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	r = runProxy(t, core, configs.Proxy{DataDir: killed})
	core.connect(r.info.GRPCAddress)
	r.until(true)
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
