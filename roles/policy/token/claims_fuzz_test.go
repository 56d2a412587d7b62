package token

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// FuzzClaims signs whatever the bytes are. What is accepted says the same to a
// reader who takes the last of two members and looks not at case, and gives no
// more than the issuer may grant.
func FuzzClaims(f *testing.F) {
	k := ec(f, "k")
	one := issuer(home, published(f, k))
	good, err := json.Marshal(usual(nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(strings.Replace(string(good), `"sub"`, `"Sub":"eve","sub"`, 1)))
	f.Add([]byte(strings.Replace(string(good), `"sub"`, `"\u0073ub":"eve","sub"`, 1)))
	f.Add([]byte(strings.Replace(string(good), `"scope":"user:read admin"`, `"scope":["user:read",["admin"],{"a":"b"}],"realm":{"roles":"user:x"}`, 1)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) > 8<<10 {
			return
		}
		s := NewSet([]Issuer{one}, nil)
		caller, no := s.Verify(k.sign(t, payload, nil), now)
		if no != nil {
			if caller.ID != "" || no.Code == "" || no.Message == "" {
				t.Fatalf("refused as %+v, %+v", no, caller)
			}
			return
		}
		var seen struct {
			Iss, Sub string
			Exp      float64
			Aud      any
		}
		if err := json.Unmarshal(payload, &seen); err != nil {
			t.Fatalf("%s is accepted and cannot be read: %v", payload, err)
		}
		if seen.Iss != home || caller.ID != home+"#"+seen.Sub || seen.Exp <= float64(now.Unix()) || !caller.Expires.After(now) {
			t.Fatalf("%s is read as %+v", payload, caller)
		}
		switch aud := seen.Aud.(type) {
		case string:
			if aud != audience {
				t.Fatalf("%s has another audience", payload)
			}
		case []any:
			if !slices.Contains(aud, any(audience)) {
				t.Fatalf("%s has other audiences", payload)
			}
		default:
			t.Fatalf("%s has no audience", payload)
		}
		for _, p := range caller.Permissions {
			if !strings.HasPrefix(p, "user:") {
				t.Fatalf("%s gives %q", payload, p)
			}
		}
	})
}
