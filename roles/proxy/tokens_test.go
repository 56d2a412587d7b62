package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/relay"
)

const (
	login       = "https://login.example.org"
	tokenPolicy = testPolicy + `
[[issuer]]
url = "https://login.example.org"
audience = "api"
permission_claims = ["scope"]
may_grant = ["echo"]
`
)

// signing makes tokens and the key set that verifies them.
type signing struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	id  string
}

func newSigning(t *testing.T, id string) *signing {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signing{t, key, id}
}

func (s *signing) known() []*control.IssuerKeys {
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key.Public(), KeyID: s.id}}})
	if err != nil {
		s.t.Fatal(err)
	}
	return []*control.IssuerKeys{{Url: login, Jwks: raw}}
}

func (s *signing) token(changes map[string]any) string {
	s.t.Helper()
	claims := map[string]any{"iss": login, "aud": "api", "sub": "anna", "exp": time.Now().Add(time.Hour).Unix(), "scope": "echo"}
	for name, v := range changes {
		claims[name] = v
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.key}, (&jose.SignerOptions{}).WithHeader("kid", s.id))
	if err != nil {
		s.t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// TestTokensAtTheEdge: the proxy verifies by the keys in its snapshot, passes on
// what core alone can decide, and holds to it while calls are open.
func TestTokensAtTheEdge(t *testing.T) {
	core := newFakeCore(t)
	mine, other := newSigning(t, "k1"), newSigning(t, "k2")
	core.part.Policy, core.part.Issuers = []byte(tokenPolicy), mine.known()
	r := joined(t, core)
	cc := r.dial(nil)
	const sayPath, chatPath, health = "/" + echoName + "/Say", "/" + echoName + "/Chat", "/grpc.health.v1.Health/Check"
	for _, c := range []struct {
		what, token, method string
		want                codes.Code
		about               string
		asked               bool // core is
	}{
		{"good", mine.token(nil), sayPath, codes.OK, "", true},
		{"good, public method", mine.token(map[string]any{"scope": ""}), chatPath, codes.OK, "", true},
		{"good, for health", mine.token(nil), health, codes.OK, "", false},
		{"grants nothing", mine.token(map[string]any{"scope": "admin"}), sayPath, codes.PermissionDenied, login + "#anna", false},
		{"expired, public method", mine.token(map[string]any{"exp": 1}), chatPath, codes.Unauthenticated, "expired", false},
		{"another audience", mine.token(map[string]any{"aud": "x"}), sayPath, codes.Unauthenticated, "another service", false},
		{"opaque", "0123456789abcdef", sayPath, codes.Unauthenticated, "opaque OAuth2 tokens are not supported", false},
		{"huge", mine.token(map[string]any{"x": strings.Repeat("a", 20<<10)}), sayPath, codes.Unauthenticated, "16 KiB", false},
		{"a key that core may know", other.token(nil), sayPath, codes.OK, "", true}, // this core lets everything in
		{"a key that core may know, for health", other.token(nil), health, codes.Unauthenticated, "does not publish", false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var header metadata.MD
		err := invoke(withKey(ctx, c.token), cc, c.method, &header)
		cancel()
		if status.Code(err) != c.want || !strings.Contains(status.Convert(err).Message(), c.about) {
			t.Errorf("%s: %v, want %s about %q", c.what, err, c.want, c.about)
		}
		if asked := len(core.calls) > 0; asked != c.asked {
			t.Errorf("%s: core was asked: %v", c.what, asked)
		}
		for len(core.calls) > 0 {
			<-core.calls
		}
	}

	// Core is not asked about any number of them.
	asked := 0
	for range 60 {
		if err := say(withKey(t.Context(), other.token(nil)), cc); err == nil {
			asked++
		} else if status.Code(err) != codes.Unauthenticated {
			t.Fatal(err)
		}
	}
	if asked == 0 || asked > 50 {
		t.Errorf("core was asked %d times about tokens with keys of nobody", asked)
	}

	chat := func(token string) grpc.BidiStreamingClient[demo.SayRequest, demo.SayResponse] {
		t.Helper()
		ctx, cancel := context.WithTimeout(withKey(t.Context(), token), 30*time.Second)
		t.Cleanup(cancel)
		stream, err := demo.NewEchoClient(cc).Chat(ctx)
		if err == nil {
			err = stream.Send(&demo.SayRequest{Text: "a"})
		}
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	stays := chat(mine.token(nil))
	short := chat(mine.token(map[string]any{"exp": time.Now().Add(4 * time.Second).Unix()}))
	if _, err := short.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("a token that expired during the call: %v", err)
	}
	if err := stays.Send(&demo.SayRequest{Text: "b"}); err != nil {
		t.Error(err)
	}
	if m, err := stays.Recv(); err != nil || m.GetText() != "b" {
		t.Errorf("a token that goes on: %v", err)
	}
	core.change(func(p *control.ProxyPart) {
		p.Policy = []byte(strings.Replace(tokenPolicy, `Chat" = ["public"]`, `Chat" = ["admin"]`, 1))
	})
	if _, err := stays.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "the policy has changed") {
		t.Errorf("a method that was narrowed: %v", err)
	}
}

// TestLimitsPerSource count before anybody is authenticated; those per caller
// hold here for what core does not see.
func TestLimitsPerSource(t *testing.T) {
	core := newFakeCore(t)
	core.part.Policy = []byte(testPolicy + `
[[limit]]
match = "/sallyport.demo.v1.Echo/Say"
per = "source"
rate = "1/h"
burst = 3
[[limit]]
match = "/sallyport.demo.v1.Echo/Chat"
per = "source"
count = "messages"
rate = "1/h"
burst = 2
[[limit]]
match = "/grpc.health.v1.Health/*"
per = "caller"
rate = "1/h"
burst = 2
`)
	key := core.apiKey("ci", time.Time{})
	r := joined(t, core)
	cc := r.dial(nil)
	for _, c := range []struct {
		key  string
		want codes.Code
	}{{"spk_wrong", codes.Unauthenticated}, {key, codes.OK}, {"spk_wrong", codes.Unauthenticated}, {"spk_wrong", codes.ResourceExhausted}, {key, codes.ResourceExhausted}} {
		var trailer metadata.MD
		err := say(withKey(t.Context(), c.key), cc, grpc.Trailer(&trailer))
		if status.Code(err) != c.want {
			t.Errorf("with %.7s: %v, want %s", c.key, err, c.want)
		}
		if c.want != codes.ResourceExhausted {
			continue
		}
		retry := time.Duration(0)
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				retry = info.GetRetryDelay().AsDuration()
			}
		}
		if retry <= 0 || len(trailer.Get(relay.HeaderRequestID)) != 1 || !strings.Contains(err.Error(), "1 call an hour per source address") {
			t.Errorf("%v, RetryInfo %v, %v", err, retry, trailer)
		}
	}
	stream, err := demo.NewEchoClient(cc).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		_ = stream.Send(&demo.SayRequest{Text: "a"})
		if _, err = stream.Recv(); n < 2 && err != nil {
			t.Fatal(err)
		}
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the third message: %v", err)
	}
	for n := range 3 {
		_, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if want := map[bool]codes.Code{true: codes.OK, false: codes.ResourceExhausted}[n < 2]; status.Code(err) != want {
			t.Errorf("health check %d: %v", n, err)
		}
	}
}

// TestTheProxysOwnStreamsEndWithTheirToken: core does not see them, so nobody
// else ends them when the issuer withdraws the key.
func TestTheProxysOwnStreamsEndWithTheirToken(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	mine, other := newSigning(t, "k1"), newSigning(t, "k2")
	core.part.Policy, core.part.Issuers = []byte(tokenPolicy), mine.known()
	r := joined(t, core)
	ctx, cancel := context.WithTimeout(withKey(t.Context(), mine.token(nil)), 20*time.Second)
	defer cancel()
	watch, err := healthpb.NewHealthClient(r.dial(nil)).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	core.change(func(p *control.ProxyPart) { p.Issuers = other.known() })
	if _, err := watch.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "do not hold any more") {
		t.Errorf("a stream whose key was withdrawn: %v", err)
	}
}
