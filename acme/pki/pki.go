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
// component hierarchy.
//
// Requests become certificates in two steps. A prepare function checks a raw
// request and returns a prepared one; issue takes nothing else, signs, parses
// the result and passes it through the verifier that peers will use. What does
// not pass does not leave. Names come from core's records; of a CSR the key is
// used and nothing more.
//
// The key of the next root exists from the first day, so that join tokens can
// pin it and stay good over a rotation.
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
// The authority is a directory of PEM files, keys 0600, which appears whole by
// one rename and is never overwritten. A component's key, chain and trust
// bundle are one file, identity.pem, replaced by rename after it is durable: at
// every moment there is the former or the new one. A new key is stored as
// pending.key before its CSR leaves, so that a lost answer can be asked for
// again with the same key. A private key that others may read is refused.
package pki
