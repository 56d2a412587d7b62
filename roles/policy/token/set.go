package token

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/coreos/go-oidc/v3/oidc"

	"sallyport/roles/policy"
)

// Leeway is how far nbf and iat of a token may lie ahead, for clocks that
// differ. exp has none.
const Leeway = time.Minute

// Issuer is an issuer of the policy with what is known of its keys.
type Issuer struct {
	policy.Issuer
	Keys *Keys // nil: not known yet
}

// Set verifies the tokens of some issuers.
type Set struct {
	issuers map[string]*Issuer
	cache   cache
}

// NewSet makes a set. It keeps what former has verified when that had the same
// issuers with the same keys; former may be nil, and is returned itself then.
func NewSet(issuers []Issuer, former *Set) *Set {
	s := &Set{issuers: make(map[string]*Issuer, len(issuers))}
	for i := range issuers {
		s.issuers[issuers[i].URL] = &issuers[i]
	}
	if former.same(s) {
		return former
	}
	return s
}

func (s *Set) same(other *Set) bool {
	if s == nil || len(s.issuers) != len(other.issuers) {
		return false
	}
	for url, a := range s.issuers {
		b := other.issuers[url]
		if b == nil || a.Audience != b.Audience || !slices.Equal(a.PermissionClaims, b.PermissionClaims) || !slices.Equal(a.MayGrant, b.MayGrant) || !a.Keys.Equal(b.Keys) {
			return false
		}
	}
	return true
}

// Refusal says why a token is not accepted. Message is for the caller and holds
// nothing of the token.
type Refusal struct {
	Code    string // stable, snake_case
	Message string
	Unknown string // the issuer that may have newer keys than are known here; empty: that would not help
}

func refuse(code, message string) *Refusal { return &Refusal{Code: code, Message: message} }

// Verify verifies a token and says who its caller is.
func (s *Set) Verify(token string, now time.Time) (policy.Caller, *Refusal) {
	if len(token) > maxToken {
		return policy.Caller{}, refuse("token_too_large", "the token is larger than 16 KiB")
	}
	sum := sha256.Sum256(unsafe.Slice(unsafe.StringData(token), len(token))) // without a copy: this is on the path of every call
	caller, known := s.cache.get(sum)
	if !known {
		var no *Refusal
		if caller, no = s.verify(token, now); no != nil {
			return policy.Caller{}, no
		}
	}
	if !now.Before(caller.Expires) {
		return policy.Caller{}, refuse("token_expired", "the token has expired: get a new one")
	}
	if !known {
		s.cache.put(sum, caller)
	}
	return caller, nil
}

func (s *Set) verify(raw string, now time.Time) (policy.Caller, *Refusal) {
	var none policy.Caller
	p, err := split(raw)
	if err != nil {
		return none, refuse("token_malformed", "the token is malformed: "+err.Error())
	}
	algorithm, id, no := s.head(p.header)
	if no != nil {
		return none, no
	}
	iss, _, err := text(p.claims, "iss")
	issuer := s.issuers[iss]
	if err != nil || issuer == nil {
		return none, refuse("token_issuer", "the token is of an issuer that is not trusted here")
	}
	if !names(p.claims, issuer.Audience) {
		return none, refuse("token_audience", "the token was made for another service: its audience (aud) is not the one expected here")
	}
	expires, no := lifetime(p.claims, now)
	if no != nil {
		return none, no
	}
	subject, _, err := text(p.claims, "sub")
	identity, ok := policy.TokenIdentity(iss, subject)
	if err != nil || !ok {
		return none, refuse("token_subject", "the token does not say whose it is: it has no usable subject (sub)")
	}
	if no := issuer.signature(raw, algorithm, id); no != nil {
		return none, no
	}
	return policy.Caller{Kind: policy.Token, ID: identity, Permissions: permissions(p.claims, &issuer.Issuer), Expires: expires}, nil
}

// head judges the header and returns the algorithm and the name of the key.
func (s *Set) head(header map[string]any) (algorithm, id string, no *Refusal) {
	algorithm, _, err := text(header, "alg")
	if err != nil || !slices.ContainsFunc(algorithms, func(a jwa) bool { return string(a) == algorithm }) {
		return "", "", refuse("token_algorithm", "the token is not signed by an algorithm that is accepted: RS, PS or ES with 256, 384 or 512, or EdDSA")
	}
	if _, critical := header["crit"]; critical {
		return "", "", refuse("token_extension", "the token has critical extensions, which are not supported")
	}
	kind, _, err := text(header, "typ")
	kind = strings.TrimPrefix(strings.ToLower(kind), "application/")
	if err != nil || kind != "" && kind != "jwt" && kind != "at+jwt" {
		return "", "", refuse("token_type", "the token is of a type that is for something else (typ)")
	}
	if id, _, err = text(header, "kid"); err != nil || len(id) > maxKeyID {
		return "", "", refuse("token_malformed", "the token names its key (kid) in a way that cannot be read")
	}
	return algorithm, id, nil
}

// lifetime judges exp, nbf and iat, and returns exp.
func lifetime(claims map[string]any, now time.Time) (time.Time, *Refusal) {
	expires, there, err := moment(claims, "exp")
	switch {
	case err != nil || !there:
		return expires, refuse("token_malformed", "the token does not say when it ends (exp)")
	case !now.Before(expires):
		return expires, refuse("token_expired", "the token has expired: get a new one")
	}
	for _, name := range []string{"nbf", "iat"} {
		from, there, err := moment(claims, name)
		switch {
		case err != nil:
			return expires, refuse("token_malformed", "the token has a time that cannot be read ("+name+")")
		case there && from.After(now.Add(Leeway)):
			return expires, refuse("token_not_yet_valid", "the token is from the future ("+name+"): check the clock of who made it, more than a minute off is refused")
		}
	}
	return expires, nil
}

// signature verifies by the issuer's keys.
func (i *Issuer) signature(raw, algorithm, id string) *Refusal {
	const newer = "; if the issuer has just changed its keys, try again in a moment"
	if i.Keys == nil {
		return &Refusal{"token_keys_unknown", "the keys of the token's issuer could not be fetched yet: try again in a moment", i.URL}
	}
	keys, known := i.Keys.find(id, algorithm)
	if len(keys) == 0 {
		if known {
			return refuse("token_algorithm", "the token's algorithm is not that of the key that it names")
		}
		return &Refusal{"token_key_unknown", "the token is signed with a key that its issuer does not publish" + newer, i.URL}
	}
	_, err := oidc.NewVerifier(i.URL, verifier(keys), &oidc.Config{ClientID: i.Audience, SkipExpiryCheck: true, SupportedSigningAlgs: accepted}).Verify(context.Background(), raw)
	switch {
	case err == nil:
		return nil
	case id == "":
		return &Refusal{"token_signature", "the token's signature is wrong" + newer, i.URL}
	}
	return refuse("token_signature", "the token's signature is wrong")
}
