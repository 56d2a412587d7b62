// Package token verifies what callers send in the authorization header: API
// keys, which package policy knows by their hash, and signed tokens (JWT, RFC
// 7519 and 9068) of the policy's issuers.
//
// # What a token must be
//
// Three parts of base64url, at most 16 KiB, signed by RS, PS, ES or EdDSA with a
// public key that its issuer publishes. The issuer is found by iss, byte for
// byte, and only that issuer's keys are tried, so that two issuers may call
// their keys the same. Keys in the token's own header (jwk, jku, x5c) are
// nothing; critical extensions are refused; symmetric algorithms and "none" are
// not known here at all. A key signs with the algorithms of its type and curve,
// and with one alone if its issuer says so.
//
// aud has to name the issuer's audience. exp is required and has no leeway: a
// token ends when it says. nbf and iat may lie up to a minute ahead (Leeway),
// for clocks that differ. A member that occurs twice, or in another spelling of
// upper and lower case, refuses the token, because two readers could read two
// tokens in it.
//
// # What a token gives
//
// The caller is ISSUER#SUBJECT. Its permissions are those words of the issuer's
// permission_claims that may_grant allows, and what the policy grants to that
// caller by name. A claim can never give what may_grant does not say.
//
// # Where it is done
//
// Core fetches keys (Fetch) and verifies; proxies verify by the keys in their
// snapshot, before core does it again. A Set is immutable but for its cache:
// what was verified is known by the SHA-256 of the token until it expires, in
// bounded space, and a change of keys or issuers is a new Set. A token whose key
// is not known yet is no verdict: Refusal.Unknown says that core should look
// whether the issuer has newer keys.
//
// Nothing of a token is ever logged or repeated in a message.
package token
