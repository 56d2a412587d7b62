// Package pki is the embedded certificate authority and everything that gives
// a component its identity: who may be called what, how a newcomer and core
// recognise each other the first time, what a certificate must look like to be
// believed, and how keys lie on disk.
//
// # Identities
//
// An identity is spiffe://TRUST-DOMAIN/ROLE/NAME, the only spiffe:// URI in a
// certificate. The roles core, proxy and gateway are components; client and
// service are their users. A component's certificate also has an incarnation
// (the serialNumber of its subject), so that a name that was removed can be
// given again without reviving the certificates of its former owner.
//
// # The authority
//
// One root signs two intermediates and nothing else. The component
// intermediate makes components' certificates only, is bound to URIs of the
// trust domain by name constraints and marked by a certificate policy; the
// other makes those of callers and services. The threat is that some path
// through the product (a verb, a CSR, an imported CA) yields a certificate that
// a component port takes for core's. So component links anchor on the component
// intermediates alone; where only a root is known, at joining and renewal, the
// verifier asks for the mark on the issuer; and the profile of callers refuses
// every component role. An imported CA replaces the callers' issuer, never the
// component hierarchy: one that may have CAs below it signs an intermediate of
// ours and its key is not kept, one that may not issues itself.
//
// Requests become certificates in two steps. A prepare function checks a raw
// request and returns a prepared one; issue takes nothing else, signs, parses
// the result and passes it through the verifier that peers will use. What does
// not pass does not leave. Names come from core's records; of a CSR the key is
// used and nothing more.
//
// # Rotation
//
// An Authority is a value that does not change. A step of its life (Publish,
// Activate, Retire, Rollback, Compromised, ImportCallers, Reseal) stores the
// new state and returns the Authority to use from then on.
//
//	steady     the root issues; the key of the next one exists and tokens pin it
//	published  the next root and its intermediates are trusted too
//	activated  the next hierarchy issues, the old one is trusted still
//	steady     the old keys are gone
//
// When to go on is for core to decide, who knows which component has heard and
// renewed. Each root is also signed by the one before it. Core shows that
// certificate where it joins and recovers components (RecoveryChain), so that
// one that slept through up to three rotations, and a token made before the
// last, still find their way; with callers' certificates it leads over who has
// installed the old CA file. On links it counts for nothing. The issuer of
// components that was retired recovers its last certificates' owners for 120
// days; the issuer of callers stays until its last certificate has ended.
// After a compromise none of this is left: everything is made anew, and nothing
// leads from the old to the new.
//
// # Verifying
//
// The standard library's verification accepts CA certificates as end entities,
// missing extended key usages and more. Verifier adds what it leaves open:
// exactly one URI, expected role and name, both usages, key usage, basic
// constraints, strong keys, marked issuer, revocation. Every refusal is a
// *Refusal: a stable code, the cause, and the remedy. Explain gives errors of
// crypto/tls, crypto/x509 and the network the same form and the same names.
//
// Recover accepts a component's certificate up to 30 days after its end, for the
// one RPC that gives it the next. Verify is for people: it goes through a chain
// step by step and names the one that fails.
//
// # Revocation
//
// What is revoked stands in a list of identities (with the incarnations so
// far), serial numbers and keys, append-only and hash-chained, which the
// component intermediate signs and every component holds. A core that is
// restored from an older backup merges what its components hold, and so forgets
// no revocation. Other software gets CRLs of every issuer.
//
// # Join tokens
//
// A token is a seed and not a bearer secret. Core and the newcomer derive an
// Ed25519 key from it, with every other field of the token in the derivation.
// The newcomer shows that key in its first TLS handshake, and core, which has
// stored only the public half, recognises it; the newcomer looks in core's
// chain for a root that the token pins, believes that root alone, and requires
// the role core. Neither side trusts on first use, the seed never crosses the
// wire, and core's database holds nothing that a thief could join with.
//
// A token is "sp1." and then, in unpadded base64url, big-endian numbers and
// byte-counted texts:
//
//	role       1  1 proxy, 2 gateway
//	flags      1  bit 0: reusable
//	listener   1  0 internal, 1 acme, 2 files
//	expires    8  seconds since 1970
//	name       1+n
//	core       1+n  HOST:PORT, empty for proxies
//	server     1+n  expected server name, may be empty
//	peers      1 + (1+n) each
//	pins       1 + 32 each
//	seed       32
//	checksum   4  first bytes of the SHA-256 of all before, against bad pastes
//
// Every token has one encoding; everything else is refused.
//
// # On disk
//
// The authority is one file, authority.age: certificates and private keys, as
// JSON, encrypted and authenticated by age to a passphrase or to the identity
// in a key file elsewhere (Secret). Its directory appears whole by one rename
// and is never made over another. Each step replaces the file by rename, so
// that kill -9 at any point leaves the state before it or after it; when
// another process has changed it meanwhile, nothing is written. ca.crt beside
// it is for other people's software and is never read.
//
// A component's key, chain and trust bundle are one file, identity.pem, replaced
// by rename after it is durable: at every moment there is the former or the new
// one. A new key is stored as pending.key before its CSR leaves, so that a lost
// answer can be asked for again with the same key. A private key that others may
// read is refused.
package pki
