package token

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxJWKS  = 512 << 10
	maxKeys  = 100
	maxTried = 8 // keys that are tried for a token that names none
	minRSA   = 2048
	maxRSA   = 8192
	maxKeyID = 512
)

// algorithms is what tokens may be signed with.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Keys are the public keys of an issuer. They are immutable.
type Keys struct {
	list []jose.JSONWebKey
	raw  []byte
}

// ErrWithdrawn is a key set by which no token can be believed: its issuer has
// answered, and keys that it published before must not go on as if it were away.
var ErrWithdrawn = errors.New("its tokens are refused")

// ParseKeys reads a JSON Web Key Set (RFC 7517) of at most 512 KiB. Keys for
// other purposes, weak ones, and those of kinds that sign no tokens here are left
// out. A set without any other is ErrWithdrawn, and so is one with a private key,
// which everybody has who can read it.
func ParseKeys(raw []byte) (*Keys, error) {
	if len(raw) > maxJWKS {
		return nil, fmt.Errorf("the key set is larger than %d KiB", maxJWKS>>10)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &set); err != nil || set.Keys == nil {
		return nil, errors.New("this is no JSON Web Key Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the key set holds %d keys, and %d are read at most", len(set.Keys), maxKeys)
	}
	k, weak := &Keys{}, ""
	for _, one := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(one, &key); err != nil {
			continue // of a kind that we do not know, or broken
		}
		if !key.IsPublic() {
			if _, symmetric := key.Key.([]byte); symmetric {
				continue
			}
			return nil, fmt.Errorf("the key set holds a private key, %w: publish the public half, and make a new one", ErrWithdrawn)
		}
		if key.Use != "" && key.Use != "sig" || !key.Valid() || len(key.KeyID) > maxKeyID {
			continue
		}
		if r, ok := key.Key.(*rsa.PublicKey); ok && (r.N.BitLen() < minRSA || r.N.BitLen() > maxRSA) {
			weak = fmt.Sprintf(": one has %d bits, and %d to %d are accepted", r.N.BitLen(), minRSA, maxRSA)
			continue
		}
		if key.Algorithm != "" && !fits(&key, key.Algorithm) {
			continue
		}
		// Only what verification needs: certificates and thumbprints are left out.
		k.list = append(k.list, jose.JSONWebKey{Key: key.Key, KeyID: key.KeyID, Algorithm: key.Algorithm, Use: "sig"})
	}
	if len(k.list) == 0 {
		return nil, fmt.Errorf("the key set holds no key that can verify tokens (RSA, EC or Ed25519, for signatures)%s; %w", weak, ErrWithdrawn)
	}
	var err error
	if k.raw, err = json.Marshal(jose.JSONWebKeySet{Keys: k.list}); err != nil {
		return nil, fmt.Errorf("the key set cannot be written again: %w", err)
	}
	return k, nil
}

// JWKS is the set as ParseKeys reads it, with nothing in it but what verifying
// needs.
func (k *Keys) JWKS() []byte { return k.raw }

// Equal says whether two sets are the same. Nil sets are.
func (k *Keys) Equal(other *Keys) bool {
	if k == nil || other == nil {
		return k == other
	}
	return bytes.Equal(k.raw, other.raw)
}

// Len is the number of keys.
func (k *Keys) Len() int {
	if k == nil {
		return 0
	}
	return len(k.list)
}

// fits says whether a key can sign with an algorithm.
func fits(key *jose.JSONWebKey, algorithm string) bool {
	if key.Algorithm != "" && key.Algorithm != algorithm {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		return len(algorithm) == 5 && (strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS"))
	case *ecdsa.PublicKey:
		return map[string]string{"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm] == public.Params().Name
	case ed25519.PublicKey:
		return algorithm == string(jose.EdDSA)
	}
	return false
}

// find returns the keys that may have signed a token, at most maxTried. known
// says that the issuer has a key of that name, whether it fits or not.
func (k *Keys) find(id, algorithm string) (fitting []*jose.JSONWebKey, known bool) {
	if k == nil {
		return nil, false
	}
	for i := range k.list {
		key := &k.list[i]
		if id != "" && key.KeyID != id {
			continue
		}
		known = known || id != ""
		if fits(key, algorithm) && len(fitting) < maxTried {
			fitting = append(fitting, key)
		}
	}
	return fitting, known
}

// verifier verifies a signature by some keys; it is the oidc.KeySet of one
// token.
type verifier []*jose.JSONWebKey

var errSignature = errors.New("no key of the issuer verifies the signature")

// VerifySignature implements oidc.KeySet.
func (v verifier) VerifySignature(_ context.Context, jwt string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(jwt, algorithms)
	if err != nil {
		return nil, err
	}
	for _, key := range v {
		if payload, err := jws.Verify(key.Key); err == nil {
			return payload, nil
		}
	}
	return nil, errSignature
}
