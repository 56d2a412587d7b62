package policy

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"

	"sallyport/roles/control"
)

// API keys are recognisable, so that scanners for leaked secrets find them:
// spk_ and 256 random bits in base64url. Only their SHA-256 is stored; with so
// many random bits a slow hash would add nothing.
const (
	keyPrefix = "spk_"
	keyLength = len(keyPrefix) + 43
	keyShown  = len(keyPrefix) + 6
)

var keyEncoding = base64.RawURLEncoding.Strict()

// NewAPIKey makes the secret of an API key, and the prefix that it is
// recognised by in lists.
func NewAPIKey(rand io.Reader) (secret, prefix string, err error) {
	var b [32]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return "", "", fmt.Errorf("make an API key: %w", err)
	}
	secret = keyPrefix + keyEncoding.EncodeToString(b[:])
	return secret, secret[:keyShown], nil
}

// HashAPIKey is what is stored of a secret. It is false for a text that is no
// API key of ours.
func HashAPIKey(secret string) ([sha256.Size]byte, bool) {
	var text [keyLength]byte
	if len(secret) != keyLength || secret[:len(keyPrefix)] != keyPrefix {
		return [sha256.Size]byte{}, false
	}
	copy(text[:], secret)
	var raw [33]byte
	if n, err := keyEncoding.Decode(raw[:], text[len(keyPrefix):]); err != nil || n != 32 {
		return [sha256.Size]byte{}, false
	}
	return sha256.Sum256(text[:]), true
}

// Key is one API key as it is stored.
type Key struct {
	Name    string
	SHA256  [sha256.Size]byte
	Expires time.Time // zero: never
}

// Keys is an immutable set of API keys. The zero set and a nil one are empty.
type Keys struct {
	bySum map[[sha256.Size]byte]key
}

type key struct {
	caller  Caller
	expires time.Time
}

// NewKeys makes a set.
func NewKeys(keys []Key) *Keys {
	k := &Keys{bySum: make(map[[sha256.Size]byte]key, len(keys))}
	for _, one := range keys {
		k.bySum[one.SHA256] = key{Caller{Kind: APIKey, ID: "apikey:" + one.Name, Expires: one.Expires}, one.Expires}
	}
	return k
}

// KeysFromProto makes the set of a snapshot.
func KeysFromProto(keys []*control.APIKey) (*Keys, error) {
	list := make([]Key, len(keys))
	for i, k := range keys {
		if len(k.GetSha256()) != sha256.Size || k.GetName() == "" {
			return nil, fmt.Errorf("API key %q of the snapshot has a hash of %d bytes instead of %d", k.GetName(), len(k.GetSha256()), sha256.Size)
		}
		list[i].Name = k.GetName()
		copy(list[i].SHA256[:], k.GetSha256())
		if k.GetExpiresUnix() != 0 {
			list[i].Expires = time.Unix(k.GetExpiresUnix(), 0)
		}
	}
	return NewKeys(list), nil
}

// Lookup reads the raw value of an authorization header. An empty value is an
// anonymous caller. A refusal is answered with UNAUTHENTICATED and its Cause,
// also where the method is public.
func (k *Keys) Lookup(authorization string, now time.Time) (Caller, *control.Refusal) {
	token, no := Bearer(authorization)
	if token == "" {
		return Caller{}, no
	}
	sum, ok := HashAPIKey(token)
	if !ok {
		return Caller{}, noKey(token)
	}
	if k != nil {
		if found, ok := k.bySum[sum]; ok {
			if !found.expires.IsZero() && !now.Before(found.expires) {
				return Caller{}, refusal("expired_api_key", "the API key has expired", "ask the operator for a new one")
			}
			return found.caller, nil
		}
	}
	return Caller{}, refusal("unknown_api_key", "the API key is not known; it was revoked or belongs to another installation", "ask the operator for a new one")
}

// Bearer is the token of an authorization header, empty for an empty header
// and with a refusal.
func Bearer(authorization string) (token string, no *control.Refusal) {
	if authorization == "" {
		return "", nil
	}
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return "", refusal("bad_authorization", "the authorization header is not of the form Bearer TOKEN", "send authorization: Bearer and an API key or a token")
	}
	if token = strings.Trim(token, " "); token == "" {
		return "", refusal("bad_authorization", "the authorization header holds no token", "send authorization: Bearer and an API key or a token")
	}
	return token, nil
}

// IsAPIKey says whether a token means to be an API key of ours.
func IsAPIKey(token string) bool { return strings.HasPrefix(token, keyPrefix) }

// noKey says what a token is that is no API key. The token itself is not
// repeated: what is sent as a credential is one somewhere.
func noKey(token string) *control.Refusal {
	switch {
	case IsAPIKey(token):
		return refusal("malformed_api_key", "the API key is incomplete or altered", "send all of it as 'apikey create' printed it")
	case strings.HasPrefix(token, "eyJ") && strings.Count(token, ".") == 2:
		return refusal("token_not_supported", "this looks like a JWT, and no issuer of tokens is trusted here", "send an API key (spk_…) or a client certificate")
	}
	return Opaque()
}

// Opaque is the answer to a token that says nothing by itself.
func Opaque() *control.Refusal {
	return refusal("token_not_supported", "this is neither an API key nor a signed token (JWT): opaque OAuth2 tokens are not supported", "send an API key (spk_…), a JWT or a client certificate")
}

func refusal(code, cause, remedy string) *control.Refusal {
	return &control.Refusal{Code: code, Cause: cause, Remedy: remedy}
}
