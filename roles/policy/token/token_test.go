package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sallyport/roles/policy"
)

const (
	home     = "https://login.example.org"
	audience = "api.example.org"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// signer makes tokens with one key.
type signer struct {
	key       crypto.Signer
	id        string
	algorithm jose.SignatureAlgorithm
}

func ec(t testing.TB, id string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key, id, jose.ES256}
}

// set is a key set as an issuer publishes it.
func published(t testing.TB, signers ...*signer) *Keys {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range signers {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.key.Public(), KeyID: s.id, Use: "sig"})
	}
	raw, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys(raw)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// sign signs any bytes, with any further members of the header.
func (s *signer) sign(t testing.TB, payload []byte, header map[jose.HeaderKey]any) string {
	t.Helper()
	o := &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{}}
	if s.id != "" {
		o.ExtraHeaders["kid"] = s.id
	}
	maps.Copy(o.ExtraHeaders, header)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: s.algorithm, Key: s.key}, o)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

type claims map[string]any

// usual are the claims of a good token, with changes; nil removes one.
func usual(changes claims) claims {
	c := claims{"iss": home, "aud": audience, "sub": "anna", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "scope": "user:read admin"}
	for name, v := range changes {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	return c
}

func (s *signer) token(t testing.TB, changes claims) string {
	t.Helper()
	payload, err := json.Marshal(usual(changes))
	if err != nil {
		t.Fatal(err)
	}
	return s.sign(t, payload, nil)
}

func issuer(url string, keys *Keys) Issuer {
	return Issuer{policy.Issuer{URL: url, Audience: audience, PermissionClaims: []string{"scope", "https://example.org/roles", "realm.roles"}, MayGrant: []string{"user:*"}}, keys}
}

func TestGoodTokens(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signers := []*signer{ec(t, "e"), {edKey, "d", jose.EdDSA}, {p384, "p384", jose.ES384}, {p521, "p521", jose.ES512}}
	for _, a := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512} {
		signers = append(signers, &signer{rsaKey, "r", a})
	}
	s := NewSet([]Issuer{issuer(home, published(t, signers[:5]...))}, nil)
	for _, one := range signers {
		for range 2 { // the second from the cache
			c, no := s.Verify(one.token(t, nil), now)
			if no != nil || c.Kind != policy.Token || c.ID != home+"#anna" || !slices.Equal(c.Permissions, []string{"user:read"}) || !c.Expires.Equal(now.Add(time.Hour)) {
				t.Fatalf("%s: %+v, %v", one.algorithm, c, no)
			}
		}
	}
	// A token need not name its key.
	nameless := *signers[0]
	nameless.id = ""
	if _, no := s.Verify(nameless.token(t, nil), now); no != nil {
		t.Errorf("without kid: %v", no)
	}
	for name, changes := range map[string]claims{
		"audience among others":     {"aud": []string{"x", audience}},
		"clock a little ahead":      {"iat": now.Add(50 * time.Second).Unix(), "nbf": now.Add(50 * time.Second).Unix()},
		"fractions":                 {"exp": float64(now.Unix()) + 1.5},
		"a subject with every sign": {"sub": "anna|b c/ü%,"},
	} {
		if _, no := s.Verify(signers[0].token(t, changes), now); no != nil {
			t.Errorf("%s: %v", name, no)
		}
	}
}

// TestAttacks: each of these is refused, for the reason given.
func TestAttacks(t *testing.T) {
	good, other, unknown := ec(t, "k1"), ec(t, "k1"), ec(t, "k9")
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	r := &signer{rsaKey, "r1", jose.RS256}
	s := NewSet([]Issuer{issuer(home, published(t, good, r)), issuer("https://other.example.org", published(t, other)), issuer("https://new.example.org", nil)}, nil)

	b64 := base64.RawURLEncoding.EncodeToString
	raw := func(header, payload, signature string) string {
		return b64([]byte(header)) + "." + b64([]byte(payload)) + "." + signature
	}
	plain, _ := json.Marshal(usual(nil))
	hmacWith := func(secret []byte, id string) string {
		input := b64([]byte(`{"alg":"HS256","kid":"`+id+`"}`)) + "." + b64(plain)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return input + "." + b64(mac.Sum(nil))
	}
	der, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	valid := good.token(t, nil)
	head, rest, _ := strings.Cut(valid, ".")
	body, signature, _ := strings.Cut(rest, ".")
	forged := unknown
	forged.id = "k1"
	embedded := jose.JSONWebKey{Key: unknown.key.Public(), KeyID: "k1", Algorithm: "ES256"}

	for name, c := range map[string]struct{ token, code string }{
		"alg none":                     {raw(`{"alg":"none"}`, string(plain), ""), "token_malformed"},
		"alg none with a signature":    {raw(`{"alg":"none"}`, string(plain), "AAAA"), "token_algorithm"},
		"alg None":                     {raw(`{"alg":"nOnE","kid":"k1"}`, string(plain), signature), "token_algorithm"},
		"no alg":                       {raw(`{"kid":"k1"}`, string(plain), signature), "token_algorithm"},
		"alg is no text":               {raw(`{"alg":["ES256"],"kid":"k1"}`, string(plain), signature), "token_algorithm"},
		"HS256 with the DER key":       {hmacWith(der, "r1"), "token_algorithm"},
		"HS256 with the PEM key":       {hmacWith(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "r1"), "token_algorithm"},
		"HS256 with the modulus":       {hmacWith(rsaKey.N.Bytes(), "r1"), "token_algorithm"},
		"RS256 named for an EC key":    {raw(`{"alg":"RS256","kid":"k1"}`, string(plain), signature), "token_algorithm"},
		"ES384 named for a P-256 key":  {raw(`{"alg":"ES384","kid":"k1"}`, string(plain), signature), "token_algorithm"},
		"another audience":             {good.token(t, claims{"aud": "other"}), "token_audience"},
		"no audience":                  {good.token(t, claims{"aud": nil}), "token_audience"},
		"audience as a prefix":         {good.token(t, claims{"aud": audience + ".evil"}), "token_audience"},
		"audience with a number":       {good.token(t, claims{"aud": []any{audience, 1}}), "token_audience"},
		"another issuer":               {good.token(t, claims{"iss": "https://evil.example.org"}), "token_issuer"},
		"issuer with a slash":          {good.token(t, claims{"iss": home + "/"}), "token_issuer"},
		"issuer in capitals":           {good.token(t, claims{"iss": "https://LOGIN.example.org"}), "token_issuer"},
		"no issuer":                    {good.token(t, claims{"iss": nil}), "token_issuer"},
		"issuer is a list":             {good.token(t, claims{"iss": []string{home}}), "token_issuer"},
		"two issuers with equal kid":   {good.token(t, claims{"iss": "https://other.example.org"}), "token_signature"},
		"the other's key for this":     {other.token(t, nil), "token_signature"},
		"expired":                      {good.token(t, claims{"exp": now.Add(-time.Second).Unix()}), "token_expired"},
		"expires now":                  {good.token(t, claims{"exp": now.Unix()}), "token_expired"},
		"no expiry":                    {good.token(t, claims{"exp": nil}), "token_malformed"},
		"expiry is a text":             {good.token(t, claims{"exp": "4102444800"}), "token_malformed"},
		"expiry beyond all bounds":     {good.token(t, claims{"exp": 1e300}), "token_malformed"},
		"negative expiry":              {good.token(t, claims{"exp": -1}), "token_malformed"},
		"nbf in the future":            {good.token(t, claims{"nbf": now.Add(61 * time.Second).Unix()}), "token_not_yet_valid"},
		"iat in the future":            {good.token(t, claims{"iat": now.Add(61 * time.Second).Unix()}), "token_not_yet_valid"},
		"nbf is a text":                {good.token(t, claims{"nbf": "1"}), "token_malformed"},
		"no subject":                   {good.token(t, claims{"sub": nil}), "token_subject"},
		"empty subject":                {good.token(t, claims{"sub": ""}), "token_subject"},
		"subject with a line":          {good.token(t, claims{"sub": "a\r\nsallyport-caller: b"}), "token_subject"},
		"long subject":                 {good.token(t, claims{"sub": strings.Repeat("a", 256)}), "token_subject"},
		"subject is a number":          {good.token(t, claims{"sub": 7}), "token_subject"},
		"unknown kid":                  {ec(t, "k7").token(t, nil), "token_key_unknown"},
		"kid like a path":              {(&signer{unknown.key, "../../dev/null", jose.ES256}).token(t, nil), "token_key_unknown"},
		"kid of a foreign key":         {forged.token(t, nil), "token_signature"},
		"key in the header":            {forged.sign(t, plain, map[jose.HeaderKey]any{"jwk": embedded}), "token_signature"},
		"key elsewhere":                {forged.sign(t, plain, map[jose.HeaderKey]any{"jku": "https://evil.example.org/jwks"}), "token_signature"},
		"critical extension":           {good.sign(t, plain, map[jose.HeaderKey]any{"crit": []string{"b64"}, "b64": false}), "token_extension"},
		"type of something else":       {good.sign(t, plain, map[jose.HeaderKey]any{"typ": "dpop+jwt"}), "token_type"},
		"issuer whose keys are absent": {good.token(t, claims{"iss": "https://new.example.org"}), "token_keys_unknown"},
		"huge":                         {good.token(t, claims{"x": strings.Repeat("a", 16<<10)}), "token_too_large"},
		"deep":                         {good.token(t, claims{"x": json.RawMessage(strings.Repeat("[", 2000) + strings.Repeat("]", 2000))}), "token_malformed"},
		"changed claims":               {head + "." + b64(append(plain[:len(plain)-1:len(plain)-1], `,"x":1}`...)) + "." + signature, "token_signature"},
		"no signature":                 {head + "." + body + ".", "token_malformed"},
		"four parts":                   {valid + ".AAAA", "token_malformed"},
		"two parts":                    {head + "." + body, "token_malformed"},
		"padding":                      {valid + "=", "token_malformed"},
		"line break":                   {head + ".\n" + body + "." + signature, "token_malformed"},
		"issuer twice":                 {good.sign(t, []byte(`{"iss":"https://evil.example.org",`+string(plain[1:])), nil), "token_malformed"},
		"issuer twice, escaped":        {good.sign(t, []byte(`{"\u0069ss":"https://evil.example.org",`+string(plain[1:])), nil), "token_malformed"},
		"issuer in two spellings":      {good.sign(t, []byte(`{"ISS":"https://evil.example.org",`+string(plain[1:])), nil), "token_malformed"},
		"expiry twice":                 {good.sign(t, []byte(`{"exp":4102444800,`+string(plain[1:])), nil), "token_malformed"},
		"twice further in":             {good.token(t, claims{"x": json.RawMessage(`{"a":1,"a":2}`)}), "token_malformed"},
		"more behind":                  {good.sign(t, append(slices.Clone(plain), `{"sub":"eve"}`...), nil), "token_malformed"},
		"no object":                    {good.sign(t, []byte(`[1]`), nil), "token_malformed"},
		"null":                         {good.sign(t, []byte(`null`), nil), "token_malformed"},
		"bad UTF-8":                    {good.sign(t, []byte("{\"sub\":\"\xff\","+string(plain[1:])), nil), "token_malformed"},
		"header twice":                 {raw(`{"alg":"none","alg":"ES256","kid":"k1"}`, string(plain), signature), "token_malformed"},
		"header in two spellings":      {raw(`{"ALG":"none","alg":"ES256","kid":"k1"}`, string(plain), signature), "token_malformed"},
	} {
		caller, no := s.Verify(c.token, now)
		if no == nil {
			t.Errorf("%s: accepted as %+v", name, caller)
			continue
		}
		if no.Code != c.code {
			t.Errorf("%s: %s (%s), want %s", name, no.Code, no.Message, c.code)
		}
		if caller.ID != "" || strings.Contains(no.Message, "anna") || strings.Contains(no.Message, "evil") || strings.Contains(no.Message, "eyJ") {
			t.Errorf("%s: the answer repeats the token: %+v %s", name, caller, no.Message)
		}
		if wants := map[string]string{"token_key_unknown": home, "token_keys_unknown": "https://new.example.org"}[c.code]; no.Unknown != wants {
			t.Errorf("%s: newer keys are wanted of %q, want %q", name, no.Unknown, wants)
		}
	}
	if _, no := s.Verify(valid, now); no != nil {
		t.Errorf("the token that the attacks are made of is refused: %v", no)
	}
}

// TestClaimsGiveNoMoreThanMayGrant also for claims of unusual form.
func TestClaimsGiveNoMoreThanMayGrant(t *testing.T) {
	k := ec(t, "k")
	s := NewSet([]Issuer{issuer(home, published(t, k))}, nil)
	for name, c := range map[string]struct {
		claims claims
		want   []string
	}{
		"scope":        {claims{"scope": "user:read admin public user:write user:read"}, []string{"user:read", "user:write"}},
		"list":         {claims{"scope": []any{"user:read", "admin", 7, "user:a,b", "user:*"}}, []string{"user:read"}},
		"other claim":  {claims{"scope": nil, "roles": []string{"user:read"}}, nil},
		"with dots":    {claims{"scope": nil, "https://example.org/roles": []string{"user:read"}}, []string{"user:read"}},
		"by path":      {claims{"scope": nil, "realm": claims{"roles": []string{"user:read"}}}, []string{"user:read"}},
		"object":       {claims{"scope": claims{"user:read": true}}, nil},
		"lines":        {claims{"scope": "user:read\nadmin"}, nil},
		"Scope":        {claims{"scope": nil, "Scope": "user:read"}, nil},
		"nothing":      {claims{"scope": nil}, nil},
		"several ones": {claims{"scope": "user:b", "realm": claims{"roles": "user:a user:b"}}, []string{"user:a", "user:b"}},
	} {
		caller, no := s.Verify(k.token(t, c.claims), now)
		if no != nil || !slices.Equal(caller.Permissions, c.want) {
			t.Errorf("%s: %q, %v; want %q", name, caller.Permissions, no, c.want)
		}
	}
}

func TestAuthenticate(t *testing.T) {
	k := ec(t, "k")
	set := NewSet([]Issuer{issuer(home, published(t, k))}, nil)
	secret, _, err := policy.NewAPIKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := policy.HashAPIKey(secret)
	keys := policy.NewKeys([]policy.Key{{Name: "ci", SHA256: sum}})
	for header, want := range map[string]string{
		"":                                 "",
		"Bearer " + secret:                 "apikey:ci",
		"bearer  " + secret:                "apikey:ci",
		"Bearer " + k.token(t, nil):        home + "#anna",
		"Bearer ya29.opaque":               "token_not_supported",
		"Bearer 7f3d7b1c":                  "token_not_supported",
		"Bearer a.b.c.d.e":                 "token_encrypted",
		"Basic YTpi":                       "bad_authorization",
		"Bearer":                           "bad_authorization",
		"Bearer spk_a.b.c":                 "malformed_api_key",
		"Bearer " + k.token(t, nil) + " x": "token_malformed",
	} {
		caller, no := Authenticate(keys, set, header, now)
		got := caller.ID
		if no != nil {
			got = no.Code
		}
		if got != want {
			t.Errorf("%.20q: %q, want %q", header, got, want)
		}
		if want == "token_not_supported" && !strings.Contains(no.Message, "opaque OAuth2 tokens are not supported") {
			t.Errorf("the answer to an opaque token: %s", no.Message)
		}
	}
	if _, no := Authenticate(keys, NewSet(nil, nil), "Bearer "+k.token(t, nil), now); no == nil || !strings.Contains(no.Message, "no issuer of tokens is trusted here") {
		t.Errorf("without issuers: %v", no)
	}
}

// TestCacheIsBoundedAndEnds: what is cached expires, is limited in number, and
// is gone with the keys.
func TestCacheIsBoundedAndEnds(t *testing.T) {
	k := ec(t, "k")
	s := NewSet([]Issuer{issuer(home, published(t, k))}, nil)
	token := k.token(t, nil)
	if _, no := s.Verify(token, now); no != nil {
		t.Fatal(no)
	}
	if _, no := s.Verify(token, now.Add(time.Hour)); no == nil || no.Code != "token_expired" {
		t.Errorf("from the cache after its end: %v", no)
	}
	if again := NewSet([]Issuer{issuer(home, published(t, k))}, s); again != s {
		t.Error("the same issuers and keys lose what was verified")
	}
	wider := issuer(home, published(t, k))
	wider.MayGrant = []string{"admin"}
	if c, no := NewSet([]Issuer{wider}, s).Verify(token, now); no != nil || !slices.Equal(c.Permissions, []string{"admin"}) {
		t.Errorf("after may_grant changed: %+v, %v", c, no)
	}
	if _, no := NewSet([]Issuer{issuer(home, published(t, ec(t, "k2")))}, s).Verify(token, now); no == nil {
		t.Error("a token goes on after its key was withdrawn")
	}
	var c cache
	for i := range 4 * cacheShards * cacheHalf {
		c.put(sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)}), policy.Caller{})
	}
	n := 0
	for i := range c.shards {
		n += len(c.shards[i].newer) + len(c.shards[i].older)
	}
	if n > 2*cacheShards*cacheHalf {
		t.Errorf("%d tokens are kept", n)
	}
	// By what they hold, too: tokens may have thousands of permissions.
	large := make([]string, 1000)
	for i := range large {
		large[i] = strings.Repeat("p", 16)
	}
	c = cache{}
	for i := range 4 * cacheShards * cacheHalf {
		c.put(sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)}), policy.Caller{Permissions: large})
	}
	n = 0
	for i := range c.shards {
		n += len(c.shards[i].newer) + len(c.shards[i].older)
	}
	if most := (64 << 20) / (16 * len(large)); n > most {
		t.Errorf("%d large tokens are kept, and there is room for %d", n, most)
	}
}

func TestKeySets(t *testing.T) {
	k := ec(t, "k")
	one := string(published(t, k).JWKS())
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.key, KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	small, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: weak.Public(), KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	inner := strings.TrimSuffix(strings.TrimPrefix(one, `{"keys":[`), "]}")
	for name, c := range map[string]struct {
		raw  string
		keys int
		want string
	}{
		"one":             {one, 1, ""},
		"unknown kinds":   {`{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"},{"kty":"new"},{"kty":"oct","k":"c2VjcmV0"},7,` + inner + `]}`, 1, ""},
		"for encryption":  {strings.Replace(one, `"use":"sig"`, `"use":"enc"`, 1), 0, "no key that can verify"},
		"symmetric alone": {`{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, 0, "no key that can verify"},
		"none":            {`{"keys":[]}`, 0, "no key that can verify"},
		"a private key":   {string(private), 0, "private key"},
		"a weak key":      {string(small), 0, "1024 bits"},
		"a weak key more": {strings.TrimSuffix(string(small), "]}") + "," + inner + "]}", 1, ""},
		"no set":          {`{"error":"unavailable"}`, 0, "no JSON Web Key Set"},
		"no JSON":         {"<html>", 0, "no JSON Web Key Set"},
		"too large":       {strings.Repeat(" ", maxJWKS+1), 0, "larger than"},
		"too many":        {`{"keys":[` + strings.Repeat("1,", maxKeys) + `1]}`, 0, "101 keys"},
	} {
		keys, err := ParseKeys([]byte(c.raw))
		if keys.Len() != c.keys || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %d keys, %v", name, keys.Len(), err)
		}
		// What no issuer means to say is an answer that has gone wrong; the rest is one.
		garbled := strings.HasPrefix(c.want, "no JSON") || strings.HasPrefix(c.want, "larger") || strings.HasPrefix(c.want, "101")
		if errors.Is(err, ErrWithdrawn) != (err != nil && !garbled) {
			t.Errorf("%s: keys from before go on: %v", name, err)
		}
	}
}

// FuzzToken: whatever the bytes, only what the issuer signed is accepted.
func FuzzToken(f *testing.F) {
	k := ec(f, "k")
	good := k.token(f, nil)
	s := NewSet([]Issuer{issuer(home, published(f, k))}, nil)
	f.Add(good)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add(strings.Repeat("eyJhIjp7", 20) + ".e30.AA")
	f.Fuzz(func(t *testing.T, token string) {
		if _, no := s.Verify(token, now); no == nil && token != good {
			head, _, _ := strings.Cut(token, ".")
			if want, _, _ := strings.Cut(good, "."); head != want {
				t.Fatalf("accepted %q", token)
			}
		}
	})
}

// FuzzKeySet: what is read is read again as the same, and holds no secret.
func FuzzKeySet(f *testing.F) {
	f.Add(published(f, ec(f, "k")).JWKS())
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"oct","k":"AA"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keys, err := ParseKeys(raw)
		if err != nil {
			return
		}
		again, err := ParseKeys(keys.JWKS())
		if err != nil || !again.Equal(keys) {
			t.Fatalf("%s is read as %s: %v", keys.JWKS(), again.JWKS(), err)
		}
	})
}

func BenchmarkCachedToken(b *testing.B) {
	k := ec(b, "k")
	s := NewSet([]Issuer{issuer(home, published(b, k))}, nil)
	header := "Bearer " + k.token(b, claims{"x": strings.Repeat("a", 600)})
	b.ReportAllocs()
	for b.Loop() {
		if _, no := Authenticate(nil, s, header, now); no != nil {
			b.Fatal(no)
		}
	}
}

func BenchmarkAPIKey(b *testing.B) {
	secret, _, err := policy.NewAPIKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	sum, _ := policy.HashAPIKey(secret)
	keys, header := policy.NewKeys([]policy.Key{{Name: "ci", SHA256: sum}}), "Bearer "+secret
	b.ReportAllocs()
	for b.Loop() {
		if _, no := Authenticate(keys, nil, header, now); no != nil {
			b.Fatal(no)
		}
	}
}

func BenchmarkFreshToken(b *testing.B) {
	k := ec(b, "k")
	one := issuer(home, published(b, k))
	token := k.token(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, no := NewSet([]Issuer{one}, nil).Verify(token, now); no != nil {
			b.Fatal(no)
		}
	}
}
