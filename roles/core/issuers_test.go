package core

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	"sallyport/roles/control"
	"sallyport/roles/policy/token"
	"sallyport/roles/relay"
)

const login = "https://login.example.org"

// fakeIssuer is an issuer of tokens whose endpoint does what the test wants.
type fakeIssuer struct {
	t       testing.TB
	fetches atomic.Int32

	mu    sync.Mutex // guards what follows
	keys  map[string]*ecdsa.PrivateKey
	fail  error
	block chan struct{} // answers wait until it is closed
}

func newFakeIssuer(t testing.TB, ids ...string) *fakeIssuer {
	i := &fakeIssuer{t: t, keys: map[string]*ecdsa.PrivateKey{}}
	i.rotate(ids...)
	return i
}

// rotate makes these the names of its keys; new ones get new keys.
func (i *fakeIssuer) rotate(ids ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	next := map[string]*ecdsa.PrivateKey{}
	for _, id := range ids {
		if next[id] = i.keys[id]; next[id] == nil {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				i.t.Fatal(err)
			}
			next[id] = key
		}
	}
	i.keys = next
}

func (i *fakeIssuer) down(err error, block chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fail, i.block = err, block
}

func (i *fakeIssuer) jwks() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for id, key := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: id, Use: "sig"})
	}
	raw, err := json.Marshal(set)
	if err != nil {
		i.t.Error(err)
	}
	return raw
}

func (i *fakeIssuer) fetch(ctx context.Context, issuer string) (*token.Keys, error) {
	i.fetches.Add(1)
	i.mu.Lock()
	fail, block := i.fail, i.block
	i.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil || issuer != login {
		return nil, fmt.Errorf("%s: %w", issuer, errors.Join(fail, errors.New("no answer")))
	}
	return token.ParseKeys(i.jwks())
}

// token signs with a key, which need not be published any more.
func (i *fakeIssuer) token(id string, changes map[string]any) string {
	i.t.Helper()
	i.mu.Lock()
	key := i.keys[id]
	i.mu.Unlock()
	return signed(i.t, key, id, changes)
}

func signed(t testing.TB, key *ecdsa.PrivateKey, id string, changes map[string]any) string {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	claims := map[string]any{"iss": login, "aud": "api", "sub": "anna", "exp": time.Now().Add(time.Hour).Unix(), "scope": "orders:read admin"}
	for name, v := range changes {
		claims[name] = v
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
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

const tokenPolicy = `
[methods]
"/acme.v1.Orders/Get" = ["orders:read"]
"/acme.v1.Orders/Drop" = ["admin"]
[[issuer]]
url = "https://login.example.org"
audience = "api"
permission_claims = ["scope"]
may_grant = ["orders:*"]
`

// federated is a core with an issuer, a gateway and a proxy.
func federated(t *testing.T, i *fakeIssuer, text string) (*running, *gateway, *proxy) {
	t.Helper()
	r := startDeps(t, settings(t), Deps{fetch: i.fetch})
	r.apply(text)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	r.service("acme.v1.Orders", "orders", "routed")
	return r, g, p
}

func bearer(token string) []string { return []string{"authorization", "Bearer " + token} }

// TestCoreVerifiesTokens by itself: the proxy here verifies nothing.
func TestCoreVerifiesTokens(t *testing.T) {
	t.Parallel()
	i := newFakeIssuer(t, "k1")
	r, g, p := federated(t, i, tokenPolicy+`
[[grant]]
caller = "https://login.example.org#bert|1"
permissions = ["admin"]
`)
	if _, err := p.call("/acme.v1.Orders/Get", bearer(i.token("k1", map[string]any{"sub": "anna;ca=x é"}))...); err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, f := range <-g.seen {
		seen[f.Name] = f.Value
	}
	if seen["sallyport-caller"] != "https://login.example.org#anna%3Bca=x%20%C3%A9" || seen["sallyport-permissions"] != "orders:read" || seen["authorization"] != "" {
		t.Errorf("the service reads %v", seen)
	}
	expectStatus(t, second(p.call("/acme.v1.Orders/Drop", bearer(i.token("k1", nil))...)), codes.PermissionDenied, "https://login.example.org#anna")
	if _, err := p.call("/acme.v1.Orders/Drop", bearer(i.token("k1", map[string]any{"sub": "bert|1"}))...); err != nil {
		t.Errorf("a caller whom the grant names: %v", err)
	}
	for name, c := range map[string]struct{ token, says string }{
		"audience":      {i.token("k1", map[string]any{"aud": "other"}), "another service"},
		"issuer":        {i.token("k1", map[string]any{"iss": "https://evil.example.org"}), "not trusted"},
		"expired":       {i.token("k1", map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}), "expired"},
		"wrong key":     {signed(t, nil, "k1", nil), "signature"},
		"opaque":        {"ya29.a0AfH6SMBx", "opaque OAuth2 tokens are not supported"},
		"alg none":      {"eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2xvZ2luLmV4YW1wbGUub3JnIn0.AAAA", "not signed by an algorithm"},
		"unsigned body": {strings.Join(strings.Split(i.token("k1", nil), ".")[:2], ".") + ".", "malformed"},
	} {
		err := second(p.call("/acme.v1.Orders/Get", bearer(c.token)...))
		t.Log(name)
		expectStatus(t, err, codes.Unauthenticated, c.says)
	}
	// Nothing of a token is in the log, or in what is kept.
	for _, secret := range []string{"eyJ", "ya29"} {
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("the log holds %s", secret)
		}
	}
	explain := func(in *control.ExplainPolicyRequest) *control.ExplainPolicyResponse {
		t.Helper()
		in.Method = "/acme.v1.Orders/Get"
		out, err := r.admin.ExplainPolicy(context.Background(), in)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if e := explain(&control.ExplainPolicyRequest{Token: i.token("k1", nil)}); !e.GetAllowed() || e.GetCaller() != login+"#anna" || len(e.GetGrants()) != 1 {
		t.Errorf("explained as %v", e)
	}
	if e := explain(&control.ExplainPolicyRequest{Token: signed(t, nil, "k1", nil)}); e.GetAllowed() || e.GetReason() != "token_signature" || e.GetRefused() == "" {
		t.Errorf("explained as %v", e)
	}
	if e := explain(&control.ExplainPolicyRequest{Caller: login + "#eve", Claims: []string{"orders:read", "admin"}}); !e.GetAllowed() || strings.Join(e.GetHolds(), " ") != "orders:read" {
		t.Errorf("explained as %v", e)
	}
	if e := explain(&control.ExplainPolicyRequest{Caller: login + "#eve", Claims: []string{"admin"}}); e.GetAllowed() {
		t.Errorf("explained as %v", e)
	}
}

// TestKeysRotate: a token by a key that is not known yet waits for one fetch;
// many such tokens cause no more.
func TestKeysRotate(t *testing.T) {
	t.Parallel()
	i := newFakeIssuer(t, "k1")
	r, _, p := federated(t, i, tokenPolicy)
	if _, err := p.call("/acme.v1.Orders/Get", bearer(i.token("k1", nil))...); err != nil {
		t.Fatal(err)
	}
	old := i.token("k1", nil)
	i.rotate("k2")
	r.forgetFetch()
	if _, err := p.call("/acme.v1.Orders/Get", bearer(i.token("k2", nil))...); err != nil {
		t.Errorf("the first token by the new key: %v", err)
	}
	expectStatus(t, second(p.call("/acme.v1.Orders/Get", bearer(old)...)), codes.Unauthenticated, "does not publish")
	before := i.fetches.Load()
	for n := range 50 {
		expectStatus(t, second(p.call("/acme.v1.Orders/Get", bearer(signed(t, nil, "k"+itoa(n+10), nil))...)), codes.Unauthenticated, "does not publish")
	}
	if n := i.fetches.Load() - before; n > 2 {
		t.Errorf("50 tokens with keys of nobody caused %d fetches", n)
	}
}

// forgetFetch lets the next token with an unknown key cause a fetch at once.
func (r *running) forgetFetch() {
	s := issuersOf(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.known {
		i.began = time.Time{}
	}
}

func issuersOf(r *running) *issuers { return r.admin.(*admin).core.issuers }

// TestTheIssuerIsDown or slow: tokens by known keys go on, others are refused,
// and no call waits for what it does not need.
func TestTheIssuerIsDown(t *testing.T) {
	t.Parallel()
	i := newFakeIssuer(t, "k1")
	r, _, p := federated(t, i, tokenPolicy)
	if _, err := p.call("/acme.v1.Orders/Get", bearer(i.token("k1", nil))...); err != nil {
		t.Fatal(err)
	}
	i.down(errors.New("connection refused"), nil)
	i.rotate("k1", "k2")
	r.forgetFetch()
	expectStatus(t, second(p.call("/acme.v1.Orders/Get", bearer(i.token("k2", nil))...)), codes.Unauthenticated, "does not publish")
	if _, err := p.call("/acme.v1.Orders/Get", bearer(i.token("k1", map[string]any{"sub": "bert"}))...); err != nil {
		t.Errorf("a new token by a known key: %v", err)
	}
	eventually(t, "the operator reads of it", func() error {
		s, err := r.admin.Status(context.Background(), &control.StatusRequest{})
		if err != nil || !strings.Contains(strings.Join(s.GetWarnings(), "\n"), "cannot be had again") {
			return fmt.Errorf("%v, %q", err, s.GetWarnings())
		}
		return nil
	})

	// Now it takes connections and says nothing: the call that needs it waits,
	// and nobody behind it on the same link.
	block := make(chan struct{})
	i.down(nil, block)
	r.forgetFetch()
	waits := make(chan error, 1)
	go func() { waits <- second(p.call("/acme.v1.Orders/Get", bearer(i.token("k2", nil))...)) }()
	eventually(t, "the fetch is under way", func() error {
		s := issuersOf(r)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.known[login].running {
			return errors.New("no fetch")
		}
		return nil
	})
	for range 20 {
		if _, err := p.call("/acme.v1.Orders/Get", bearer(i.token("k1", nil))...); err != nil {
			t.Fatalf("a call beside the one that waits: %v", err)
		}
	}
	close(block)
	if err := <-waits; err != nil {
		t.Errorf("the call that waited for the slow issuer: %v", err)
	}

	// A new issuer that cannot be reached: fail closed.
	r.apply(strings.ReplaceAll(tokenPolicy, login, "https://new.example.org"))
	expectStatus(t, second(p.call("/acme.v1.Orders/Get", bearer(i.token("k1", map[string]any{"iss": "https://new.example.org"}))...)), codes.Unauthenticated, "could not be fetched")
	out, err := r.admin.CheckPolicy(context.Background(), &control.CheckPolicyRequest{})
	if err != nil || !strings.Contains(strings.Join(out.GetWarnings(), "\n"), "tokens of https://new.example.org cannot be verified") {
		t.Errorf("the check says %v, %v", out.GetWarnings(), err)
	}
}

// TestCoreStartsWhileTheIssuerIsDown: the keys that it had before hold, as long
// as if it had gone on running, and for issuers of the policy alone.
func TestCoreStartsWhileTheIssuerIsDown(t *testing.T) {
	t.Parallel()
	i := newFakeIssuer(t, "k1")
	r, g, _ := federated(t, i, tokenPolicy)
	_ = g
	s := r.set
	eventually(t, "the keys are kept", func() error {
		raw, err := os.ReadFile(filepath.Join(s.DataDir, issuerFile))
		if err == nil && !strings.Contains(string(raw), `"k1"`) {
			err = errors.New(string(raw))
		}
		return err
	})
	r.end()
	i.down(errors.New("connection refused"), nil)
	raw := i.token("k1", nil)
	explain := func(want bool, reason string) {
		t.Helper()
		r := startDeps(t, s, Deps{fetch: i.fetch})
		defer r.end()
		e, err := r.admin.ExplainPolicy(context.Background(), &control.ExplainPolicyRequest{Token: raw, Method: "/acme.v1.Orders/Get"})
		if err != nil || e.GetAllowed() != want || reason != "" && e.GetReason() != reason {
			t.Errorf("%v, %v; want %v, %s", e, err, want, reason)
		}
	}
	explain(true, "")
	file := filepath.Join(s.DataDir, issuerFile)
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for _, changed := range []string{
		strings.Replace(string(body), time.Now().UTC().Format("2006-"), "2001-", 1), // fetched long ago
		strings.Replace(string(body), "login.example.org", "other.example.org", 1),
		"{", "",
	} {
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		explain(false, "token_keys_unknown")
	}
}

// TestKeysFromAFile need no network, and follow the file.
func TestKeysFromAFile(t *testing.T) {
	t.Parallel()
	i := newFakeIssuer(t, "k1")
	file := filepath.Join(t.TempDir(), "keys.json")
	write := func() {
		t.Helper()
		if err := os.WriteFile(file+".new", i.jwks(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write()
	_, _, p := federated(t, i, tokenPolicy+fmt.Sprintf("jwks_file = %q\n", file))
	if _, err := p.call("/acme.v1.Orders/Get", bearer(i.token("k1", nil))...); err != nil {
		t.Fatal(err)
	}
	old := i.token("k1", nil)
	i.rotate("k2")
	write()
	eventually(t, "the new key is in force and the old one is not", func() error {
		_, now := p.call("/acme.v1.Orders/Get", bearer(i.token("k2", nil))...)
		if _, before := p.call("/acme.v1.Orders/Get", bearer(old)...); now != nil || before == nil {
			return fmt.Errorf("new: %v, old: %v", now, before)
		}
		return nil
	})
	if n := i.fetches.Load(); n != 0 {
		t.Errorf("%d fetches beside the file", n)
	}
	// Keys that were withdrawn do not go on as if the issuer were away.
	now := i.token("k2", nil)
	i.rotate()
	write()
	eventually(t, "an empty set withdraws every key", func() error {
		if _, err := p.call("/acme.v1.Orders/Get", bearer(now)...); err == nil {
			return errors.New("its token is good")
		}
		return nil
	})
	i.rotate("k3")
	write()
	eventually(t, "the next key is in force", func() error {
		return second(p.call("/acme.v1.Orders/Get", bearer(i.token("k3", nil))...))
	})
	var keys []*control.IssuerKeys
	snapshot, _ := p.last()
	if keys = snapshot.GetProxy().GetIssuers(); len(keys) != 1 || keys[0].GetUrl() != login || strings.Contains(string(keys[0].GetJwks()), `"d"`) {
		t.Errorf("proxies are told %v", keys)
	}
}

// TestAuthorizationHoldsForTheWholeCall: what takes away the right to a call
// ends it while it is open.
func TestAuthorizationHoldsForTheWholeCall(t *testing.T) {
	t.Parallel()
	i := newFakeIssuer(t, "k1")
	r, _, p := federated(t, i, tokenPolicy)
	key, err := r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	granted := tokenPolicy + "[[grant]]\napikey = \"ci\"\npermissions = [\"orders:read\"]\n"
	r.apply(granted)
	stays := p.streams(1, bearer(key.GetSecret())...)
	end := func(what string, ended chan error, code codes.Code, words ...string) {
		t.Helper()
		for n := range cap(ended) {
			select {
			case err := <-ended:
				expectStatus(t, err, code, words...)
			case <-time.After(patience):
				t.Fatalf("%s: %d of %d streams are still open", what, cap(ended)-n, cap(ended))
			}
		}
	}

	expiring := p.streams(20, bearer(i.token("k1", map[string]any{"exp": time.Now().Add(4 * time.Second).Unix()}))...)
	end("the token expires", expiring, codes.Unauthenticated, "the call was ended", "expired")

	open := p.streams(1500, bearer(i.token("k1", nil))...)
	r.apply(strings.Replace(granted, `may_grant = ["orders:*"]`, `may_grant = ["orders:write"]`, 1))
	end("the issuer may grant less", open, codes.PermissionDenied, "the policy has changed")

	r.apply(granted)
	open = p.streams(20, bearer(i.token("k1", nil))...)
	r.apply(granted[:strings.Index(granted, "[[issuer]]")] + granted[strings.Index(granted, "[[grant]]"):])
	end("the issuer is gone", open, codes.Unauthenticated, "the call was ended")

	r.apply(granted)
	open = p.streams(20, bearer(i.token("k1", nil))...)
	i.rotate("k2")
	r.forgetFetch()
	_, _ = p.call("/acme.v1.Orders/Get", bearer(i.token("k2", nil))...)
	end("the key is withdrawn", open, codes.Unauthenticated, "the call was ended")

	select {
	case err := <-stays:
		t.Fatalf("a caller whose rights never changed lost the call: %v", err)
	default:
	}
	r.apply(tokenPolicy)
	end("the grant is gone", stays, codes.PermissionDenied, "apikey:ci")
	r.apply(granted)
	open = p.streams(20, bearer(key.GetSecret())...)
	r.apply(strings.Replace(granted, `"/acme.v1.Orders/Get" = ["orders:read"]`, `"/acme.v1.Orders/Get" = ["admin"]`, 1))
	end("the method asks for more", open, codes.PermissionDenied)
}

// said makes the proxy say where calls come from.
func (p *proxy) said(source string) {
	p.say = func(h []relay.Field) []relay.Field {
		return append(append([]relay.Field{}, h...), relay.Field{Name: relay.HeaderSource, Value: source})
	}
}
