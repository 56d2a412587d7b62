// Package link makes the authenticated connections between the components of
// Sallyport: how a newcomer becomes a component (joining), and how core, its
// proxies and its gateways talk afterwards. Both ends of everything are here.
//
// # One purpose per connection
//
// A connection is TLS 1.3 and serves one purpose, chosen by ALPN: joining,
// renewal, the control session, relayed calls, east-west calls, or (as "h2",
// without a client certificate) the standard health service. The [Port] is the
// listening side, the [Dialler] the other. Both ends prove themselves on every
// connection; [Self] holds what they prove and what they believe, and is read
// anew by each handshake, so that a renewed certificate or a new revocation
// counts from the next handshake on.
//
// After the handshake the listener says on every ALPN but "h2" that it accepts
// the dialler: two bytes, the length of an identity preface, followed by that
// preface. While the listener's TLS certificate is its embedded identity, the
// length is zero. In TLS 1.3 the dialler's handshake ends before its
// certificate has been judged; without these bytes a refusal would show only
// in the middle of whatever came next.
//
// A port may show the world a certificate of its own instead, from files or of a
// public CA (modes files and acme). Then the preface carries the identity's chain and a signature that is bound to
// this TLS session, and the dialler verifies both certificates. So the outside
// check is added, and nothing is lost.
//
// # Identities are renewed, links replaced
//
// The [Renewer] of a component keeps its identity good: new key, on disk before
// its request leaves; new certificate, on disk before it is used. What expired,
// or slept through a rotation of the CA, recovers on sallyport-renew/1. Every
// side of a link knows when it is due ([Conn].Due); who dialled brings up the
// next one before the former stops taking work ([KeepFresh]). What is open on
// the former may end there, for as long as its [Tenure] lasts.
//
// Which key of an identity counts is for core's registry to say; this package
// makes sure that a component never looks like its own clone: one key asks at a
// time, the same one again until it has its answer, and only on a connection
// that the identity in force has opened.
//
// # Refusals say why
//
// A TLS alert cannot say why. The refusing side logs cause and remedy. The
// refused dialler asks once, with the same certificate, by the Why RPC on
// sallyport-renew/1, where any certificate completes the handshake, and gets
// the same [pki.Refusal] as its error. What is not TLS at all is recognised by
// its first bytes and answered in its own language.
//
// # Threats answered
//
// A stranger who reaches the port: is bounded in time, number and bytes until
// he has proven an identity, learns nothing but the verdict about his own
// certificate, and cannot fill a log. A component that has been taken over:
// can act as itself only; its frames are bounded in size, number of fields and
// rate; its sessions, when two of them compete, raise an alarm. Somebody in
// the middle: see the comment at [Newcomer] for joining; on all other
// connections both certificates are verified against the component
// intermediates of the embedded CA, with the role expected.
//
// Order inside: a check that runs in the handshake ([tls.Config.VerifyConnection])
// runs, on the listening side, before the dialler has proven that it holds the
// key. Such checks only refuse. Whatever records, alarms or counts against an
// identity runs after the handshake ([Port.Check]).
package link
