package policy

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"sallyport/roles/control"
)

func TestAPIKey(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	secret, prefix, err := NewAPIKey(rand.Reader)
	if err != nil || !strings.HasPrefix(secret, "spk_") || !strings.HasPrefix(secret, prefix) || len(prefix) != 10 {
		t.Fatal(secret, prefix, err)
	}
	sum, ok := HashAPIKey(secret)
	if !ok || sum != sha256.Sum256([]byte(secret)) {
		t.Fatal("the hash is not the SHA-256 of the secret")
	}
	other, _, _ := NewAPIKey(rand.Reader)
	otherSum, _ := HashAPIKey(other)
	keys, err := KeysFromProto([]*control.APIKey{
		{Name: "ci", Sha256: sum[:]},
		{Name: "old", Sha256: otherSum[:], ExpiresUnix: now.Unix()},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"Bearer " + secret, "bearer " + secret, "BEARER   " + secret + " "} {
		c, r := keys.Lookup(h, now)
		if r != nil || c.Kind != APIKey || c.ID != "apikey:ci" {
			t.Errorf("%q: %+v %v", h, c, r)
		}
	}
	if c, r := keys.Lookup("", now); r != nil || c.Kind != Anonymous {
		t.Errorf("no header: %+v %v", c, r)
	}
	if _, r := keys.Lookup("Bearer "+other, now.Add(-time.Second)); r != nil {
		t.Errorf("a key before its end: %v", r)
	}
	unknown, _, _ := NewAPIKey(rand.Reader)
	for header, want := range map[string]string{
		"Bearer " + other:                      "expired_api_key",
		"Bearer " + unknown:                    "unknown_api_key",
		"Bearer " + secret[:46]:                "malformed_api_key",
		"Bearer " + secret + "A":               "malformed_api_key",
		"Bearer " + strings.ToUpper(secret):    "token_not_supported",
		"Bearer spk_":                          "malformed_api_key",
		"Bearer":                               "bad_authorization",
		"Bearer ":                              "bad_authorization",
		secret:                                 "bad_authorization",
		"Basic dXNlcjpwYXNz":                   "bad_authorization",
		"Bearer\t" + secret:                    "bad_authorization",
		" Bearer " + secret:                    "bad_authorization",
		"Bearer " + secret + " " + secret:      "malformed_api_key",
		"Bearer eyJhbGciOiJub25lIn0.e30.":      "token_not_supported",
		"Bearer ya29.opaque":                   "token_not_supported",
		"Bearer " + strings.Repeat("x", 1<<20): "token_not_supported",
	} {
		c, r := keys.Lookup(header, now)
		if r == nil || r.Code != want || r.Cause == "" || r.Remedy == "" {
			t.Errorf("%.40q: %+v %v, want %s", header, c, r, want)
			continue
		}
		if _, token, ok := strings.Cut(header, " "); ok && len(token) > 5 && strings.Contains(r.String(), token) {
			t.Errorf("the refusal repeats the credential: %v", r)
		}
	}
	var none *Keys
	if _, r := none.Lookup("Bearer "+secret, now); r == nil {
		t.Error("an empty set knows a key")
	}
}

// TestAPIKeyHasOneSpelling changes the last character to those that decode to
// the same bytes in a lenient decoder.
func TestAPIKeyHasOneSpelling(t *testing.T) {
	secret, _, err := NewAPIKey(bytes.NewReader(make([]byte, 32)))
	if err != nil || !strings.HasSuffix(secret, "AAA") {
		t.Fatal(secret, err)
	}
	for _, last := range "BCD" {
		if _, ok := HashAPIKey(secret[:len(secret)-1] + string(last)); ok {
			t.Errorf("a key that ends in %c is taken", last)
		}
	}
	for _, bad := range []string{secret[:20] + "\n" + secret[21:], secret[:20] + "+" + secret[21:], secret[:46] + "=", "spk-" + secret[4:]} {
		if _, ok := HashAPIKey(bad); ok {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, _, err := NewAPIKey(bytes.NewReader(nil)); err == nil {
		t.Error("a key was made without randomness")
	}
}

func TestKeysFromProto(t *testing.T) {
	for _, k := range []*control.APIKey{{Name: "x", Sha256: make([]byte, 31)}, {Sha256: make([]byte, 32)}, nil} {
		if _, err := KeysFromProto([]*control.APIKey{k}); err == nil {
			t.Errorf("%v is taken", k)
		}
	}
}

func TestClaim(t *testing.T) {
	for text, c := range map[string]Claim{
		"spiffe://example.org/client/billing":       {ID: "spiffe://example.org/client/billing"},
		"spiffe://x/client/a;partner":               {ID: "spiffe://x/client/a", ClientCA: "partner"},
		"spiffe://x/gateway/a;partner":              {ID: "spiffe://x/gateway/a", ClientCA: "partner"},
		"cn:grpc-client;partner":                    {ID: "cn:grpc-client", ClientCA: "partner"},
		"cn:Bj%C3%B6rk%20%25%3B%2C%22%0041;partner": {},
		"cn:Bj%C3%B6rk%20%25%3B%2C%22;partner":      {ID: `cn:Björk %;,"`, ClientCA: "partner"},
	} {
		got, err := ParseClaim(text)
		if c == (Claim{}) {
			if !errors.Is(err, ErrClaim) {
				t.Errorf("%s: %+v %v", text, got, err)
			}
			continue
		}
		if err != nil || got != c || EncodeClaim(c) != text {
			t.Errorf("%s: %+v %v; written as %s", text, got, err, EncodeClaim(c))
		}
	}
	for _, bad := range []string{
		"", ";", "cn:x", "cn:;partner", "cn:x;", "cn:x;Partner", "cn:x;a;b", "cn:%41;partner", "cn:%c3%b6;partner", "cn:%;partner", "cn:%4;partner", "cn:a b;partner", "cn:\xff;partner",
		"apikey:ci", "anonymous", "spiffe://x", "spiffe://x/client/a;", "spiffe://x/client//a", "spiffe://x/gateway/a", "spiffe://x/proxy/a", "spiffe://x/core/core",
		"spiffe://X/client/a", "spiffe://x/client/a?b", "spiffe://x/client/../gateway/a", "cn:" + strings.Repeat("x", 9000) + ";partner",
	} {
		if c, err := ParseClaim(bad); !errors.Is(err, ErrClaim) {
			t.Errorf("%.60q: %+v %v", bad, c, err)
		}
	}
	for _, bad := range []Claim{{}, {ID: "cn:x"}, {ID: "x"}, {ID: "cn:x", ClientCA: "a;b"}, {ID: "spiffe://x/gateway/a"}} {
		if s := EncodeClaim(bad); s != "" {
			t.Errorf("%+v is written as %q", bad, s)
		}
	}
	c := Claim{ID: "cn:x", ClientCA: "partner"}.CallerVia("dmz1")
	if c.Kind != Certificate || c.ID != "cn:x" || c.ClientCA != "partner" || c.ViaProxy != "dmz1" || c.ViaGateway != "" {
		t.Errorf("%+v", c)
	}
}
