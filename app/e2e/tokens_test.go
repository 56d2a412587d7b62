package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// loginServer is an issuer of tokens: discovery and keys, over TLS on loopback.
type loginServer struct {
	*httptest.Server
	roots string // file with the certificate that it shows

	mu   sync.Mutex // guards what follows
	keys map[string]*ecdsa.PrivateKey
}

func newLoginServer(t *testing.T, ids ...string) *loginServer {
	t.Helper()
	l := &loginServer{keys: map[string]*ecdsa.PrivateKey{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, l.URL, l.URL+"/keys")
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		l.mu.Lock()
		defer l.mu.Unlock()
		var set jose.JSONWebKeySet
		for id, key := range l.keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: id, Use: "sig"})
		}
		_ = json.NewEncoder(w).Encode(set)
	})
	l.Server = httptest.NewTLSServer(mux)
	t.Cleanup(l.Close)
	for _, id := range ids {
		l.add(t, id)
	}
	l.roots = filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(l.roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *loginServer) add(t *testing.T, id string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.keys[id] = key
	l.mu.Unlock()
}

func (l *loginServer) token(t *testing.T, id string, changes map[string]any) string {
	t.Helper()
	claims := map[string]any{"iss": l.URL, "aud": "api.example.org", "sub": "anna", "exp": time.Now().Add(time.Hour).Unix(), "scope": "echo:say echo:chat admin"}
	for name, v := range changes {
		claims[name] = v
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	key := l.keys[id]
	l.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", id))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const tokensPolicy = `
[methods]
"/sallyport.demo.v1.Echo/Say"    = ["echo:say"]
"/sallyport.demo.v1.Echo/Chat"   = ["echo:chat"]
"/sallyport.demo.v1.Echo/Count"  = ["admin"]

[[method]]
match = "/sallyport.demo.v1.Echo/Say"
max_message = "1KiB"

[[issuer]]
url = "%s"
audience = "api.example.org"
permission_claims = ["scope"]
may_grant = ["echo:*"]

[[limit]]
match = "/sallyport.demo.v1.Echo/Chat"
per = "caller"
count = "messages"
rate = "1/h"
burst = 5
`

// TestTokenCallers: callers with tokens of an issuer, through three processes.
func TestTokenCallers(t *testing.T) {
	t.Parallel()
	login := newLoginServer(t, "k1")
	policy := fmt.Sprintf(tokensPolicy, login.URL)
	d := deployEnv(t, "failures", policy, []string{"SSL_CERT_FILE=" + login.roots})
	d.addGateway("office", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "office")

	roots, err := os.ReadFile(d.caFile)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	config.RootCAs.AppendCertsFromPEM(roots)
	cc, err := grpc.NewClient(d.public, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	const say, chat, count = "/sallyport.demo.v1.Echo/Say", "/sallyport.demo.v1.Echo/Chat", "/sallyport.demo.v1.Echo/Count"
	as := func(token string) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		t.Cleanup(cancel)
		if token == "" {
			return ctx
		}
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	unary := func(method, token string) error {
		return cc.Invoke(as(token), method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	stream := func(method, token string) grpc.ClientStream {
		t.Helper()
		s, err := cc.NewStream(as(token), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := login.token(t, "k1", nil)
	eventually(t, 20*time.Second, "core has the issuer's keys", func() error { return unary(say, good) })

	b64 := base64.RawURLEncoding.EncodeToString
	payload := strings.Split(good, ".")[1]
	der, err := x509.MarshalPKIXPublicKey(login.keys["k1"].Public())
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, der)
	symmetric := b64([]byte(`{"alg":"HS256","kid":"k1"}`)) + "." + payload
	mac.Write([]byte(symmetric))
	for _, c := range []struct {
		what, method, token string
		want                codes.Code
		says                string
	}{
		{"good", say, good, codes.OK, ""},
		{"beyond may_grant", count, good, codes.PermissionDenied, login.URL + "#anna"},
		{"alg none", say, b64([]byte(`{"alg":"none"}`)) + "." + payload + ".", codes.Unauthenticated, ""},
		{"HS256 with the public key", say, symmetric + "." + b64(mac.Sum(nil)), codes.Unauthenticated, "algorithm"},
		{"another audience", say, login.token(t, "k1", map[string]any{"aud": "other"}), codes.Unauthenticated, "another service"},
		{"another issuer", say, login.token(t, "k1", map[string]any{"iss": "https://evil.example.org"}), codes.Unauthenticated, "not trusted"},
		{"expired", say, login.token(t, "k1", map[string]any{"exp": 1}), codes.Unauthenticated, "expired"},
		{"of the future", say, login.token(t, "k1", map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}), codes.Unauthenticated, "future"},
		{"huge", say, login.token(t, "k1", map[string]any{"x": strings.Repeat("a", 20<<10)}), codes.Unauthenticated, "16 KiB"},
		{"opaque", say, "ya29.a0AfH6SMBx", codes.Unauthenticated, "opaque OAuth2 tokens are not supported"},
		{"a method of a tricked name", "/sallyport.demo.v1.Echo/../Echo/Say", good, codes.Unimplemented, "malformed"},
		{"none", say, "", codes.Unauthenticated, ""},
	} {
		for _, streaming := range []bool{false, true} {
			var err error
			if streaming {
				s := stream(c.method, c.token)
				_ = s.SendMsg(&emptypb.Empty{})
				_ = s.CloseSend()
				err = s.RecvMsg(&emptypb.Empty{})
			} else {
				err = unary(c.method, c.token)
			}
			if status.Code(err) != c.want || !strings.Contains(status.Convert(err).Message(), c.says) {
				t.Errorf("%s (streaming %v): %v, want %v about %q", c.what, streaming, err, c.want, c.says)
			}
		}
	}

	// A key that is new at the issuer holds with the first token by it, at most
	// ten seconds after the last time that core asked.
	login.add(t, "k2")
	eventually(t, 30*time.Second, "the new key", func() error { return unary(say, login.token(t, "k2", nil)) })

	t.Run("explain", func(t *testing.T) {
		file := filepath.Join(d.dir, "anna.jwt")
		if err := os.WriteFile(file, []byte(good+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := run(t, d.coreEnv, "policy", "explain", say[1:], "--as-token", file); !strings.Contains(out, "allowed: "+login.URL+"#anna may call") || !strings.Contains(out, "claims of the token") {
			t.Error(out)
		}
		if out := run(t, d.coreEnv, "policy", "explain", count[1:], "--as", login.URL+"#anna", "--claims", "admin,echo:say"); !strings.Contains(out, "denied: ") || !strings.Contains(out, "caller holds: echo:say") {
			t.Error(out)
		}
		if err := os.WriteFile(file, []byte(good+"x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := run(t, d.coreEnv, "policy", "explain", say[1:], "--as-token", file); !strings.Contains(out, "the token is not accepted") {
			t.Error(out)
		}
		_ = os.Remove(file)
	})

	t.Run("the call ends with the token", func(t *testing.T) {
		s := stream(chat, login.token(t, "k1", map[string]any{"sub": "short", "exp": time.Now().Add(4 * time.Second).Unix()}))
		if err := s.SendMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(&emptypb.Empty{}); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired") {
			t.Error(err)
		}
	})
	t.Run("messages are limited and capped", func(t *testing.T) {
		s := stream(chat, login.token(t, "k1", map[string]any{"sub": "chatty"}))
		var err error
		n := 0
		for ; n < 10 && err == nil; n++ {
			_ = s.SendMsg(&emptypb.Empty{})
			err = s.RecvMsg(&emptypb.Empty{})
		}
		if status.Code(err) != codes.ResourceExhausted || n != 6 || len(status.Convert(err).Details()) != 1 {
			t.Errorf("message %d: %v", n, err)
		}
		out, err := d.call("sallyport.demo.v1.Echo/Say", `{"text":"`+strings.Repeat("a", 2000)+`"}`, "--api-key-file", tokenFile(t, good))
		if err == nil || !strings.Contains(err.Error(), "1024") {
			t.Errorf("a large message: %s, %v", out, err)
		}
	})
	t.Run("the policy narrows", func(t *testing.T) {
		s := stream(chat, login.token(t, "k1", map[string]any{"sub": "narrow"}))
		_ = s.SendMsg(&emptypb.Empty{})
		if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		d.applyPolicy(strings.Replace(policy, `may_grant = ["echo:*"]`, `may_grant = ["echo:say"]`, 1))
		if err := s.RecvMsg(&emptypb.Empty{}); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "the policy has changed") {
			t.Error(err)
		}
	})
	t.Run("mistakes are found before they are applied", func(t *testing.T) {
		typo := filepath.Join(d.dir, "typo.toml")
		text := strings.Replace(policy, "Echo/Count", "Echo/Cuont", 1) + "[[issuer]]\nurl = \"https://127.0.0.1:1/none\"\naudience = \"a\"\n"
		if err := os.WriteFile(typo, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out := run(t, d.coreEnv, "policy", "check", typo)
		for _, want := range []string{"no announced service has /sallyport.demo.v1.Echo/Cuont; did you mean /sallyport.demo.v1.Echo/Count?",
			"denied to everybody: /sallyport.demo.v1.Echo/Count", "tokens of https://127.0.0.1:1/none cannot be verified", "are accepted and open nothing"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		d.applyPolicy(text)
		if err := unary(count, good); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a method whose row has a typo: %v", err)
		}
		d.applyPolicy(policy)
	})
	t.Run("the issuer is down", func(t *testing.T) {
		login.Close()
		if err := unary(say, login.token(t, "k1", map[string]any{"sub": "late"})); err != nil {
			t.Errorf("a new token by a known key: %v", err)
		}
		login.add(t, "k3")
		if err := unary(say, login.token(t, "k3", nil)); status.Code(err) != codes.Unauthenticated {
			t.Errorf("a token by a key that cannot be fetched: %v", err)
		}
	})

	// Nothing of a token is kept or logged, anywhere.
	secret := strings.Split(good, ".")[2][:20]
	for _, p := range []*process{d.core, d.proxy, d.gateways["office"]} {
		if strings.Contains(p.log.String(), secret) || strings.Contains(p.log.String(), payload[:40]) {
			t.Errorf("the log of %s holds a token", p.name)
		}
	}
	err = filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if raw, err := os.ReadFile(path); err == nil && strings.Contains(string(raw), secret) {
			t.Errorf("%s holds a token", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func tokenFile(t *testing.T, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
