package token

import (
	"strings"
	"time"

	"sallyport/roles/policy"
)

// Authenticate reads the raw value of an authorization header: an API key of
// keys, or a token of an issuer in set. Either may be nil. An empty value is an
// anonymous caller. A refusal is answered with UNAUTHENTICATED and its message,
// also where the method is public.
func Authenticate(keys *policy.Keys, set *Set, authorization string, now time.Time) (policy.Caller, *Refusal) {
	raw, no := policy.Bearer(authorization)
	switch {
	case no != nil:
		return policy.Caller{}, refuse(no.GetCode(), no.GetCause())
	case raw == "":
		return policy.Caller{}, nil
	case policy.IsAPIKey(raw) || set == nil || len(set.issuers) == 0:
		caller, no := keys.Lookup(authorization, now)
		if no != nil {
			return caller, refuse(no.GetCode(), no.GetCause())
		}
		return caller, nil
	}
	switch strings.Count(raw, ".") {
	case 2:
		return set.Verify(raw, now)
	case 4:
		return policy.Caller{}, refuse("token_encrypted", "encrypted tokens (JWE) are not supported: send a signed one (JWT)")
	}
	opaque := policy.Opaque()
	return policy.Caller{}, refuse(opaque.GetCode(), opaque.GetCause())
}
