// Package policy decides who may call what.
//
// A policy is one TOML file: [methods] maps full gRPC methods to permissions,
// any one of which is enough; [[grant]] gives permissions to callers;
// [[issuer]] says whose tokens are believed and what they may give; [[method]]
// says how a method's calls are treated, [[limit]] how often they may come. What
// is not listed is denied. The same compiled table answers at the proxy, again at core, and, as
// the slice that RulesFor cuts, a third time at the gateway.
//
// # Methods
//
// A row is a full method /pkg.Service/Method, all methods of a service
// /pkg.Service/*, or all services of a package and of those below it /pkg.*.
// The most specific row that covers a method decides, alone: permissions of
// wider rows do not add to it, and an empty list closes a method that a wider
// row would open. There is no row for everything. The one permission "public"
// opens a method to callers without credentials. The health service is public
// unless the file has a row for it, because probes have no credentials; so is
// reflection, because it shows each caller what he may call and nothing else.
//
// Names are compared byte by byte. A path that is not exactly
// /[package.]Service/Method of letters, digits and underscores (doubled or
// trailing slashes, percent-encoding, queries) is no method at all, and no
// row can match it. Otherwise one method would have two spellings, and a row
// that closes one would leave the other open.
//
// # Callers, and whose word about them is believed
//
// An API key is verified by core itself. A client certificate is seen only by
// the proxy, which could lie, since it stands where attackers are. So a grant
// to a certificate names the proxies (via_proxy) or gateways (via_gateway)
// whose word about it counts; a grant that names none is held by nobody. The
// identity of a certificate of a foreign CA belongs to that CA (client_ca)
// and is never one of ours, however it is spelled. Credentials that were sent
// and are bad are refused on public methods too: a caller who believes to be
// known must not be taken for a stranger.
//
// The caller of a token is ISSUER#SUBJECT. Package token verifies it; what its
// claims give is cut to what the issuer may grant before Decide sees it, and a
// grant may name it like any other caller. No claim makes a caller of another
// kind.
//
// # Limits
//
// A [[limit]] counts calls or messages, per caller or per source address, in a
// token bucket that all methods of its row share. For each of these four kinds
// the most specific row that covers a method counts, alone. Limiter keeps the
// buckets, in bounded space.
//
// Messages to callers say what they may do about it and nothing about the
// table: a denied method and a method that does not exist read the same.
//
// # Speed
//
// Decide runs once per call on the thread that reads frames. Parse turns
// permissions into bits and callers into one map, so that a decision is a few
// map lookups, allocates nothing when it allows, and takes no lock.
package policy
