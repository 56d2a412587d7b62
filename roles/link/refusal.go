package link

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// The refusals of joining. Core's Adopt returns them; they are here so that
// both ends and all callers use the same code and words.

// RefuseTokenUnknown: core has no such token, or the component was removed.
func RefuseTokenUnknown() *pki.Refusal {
	return &pki.Refusal{Code: "token_unknown",
		Cause:  "core does not know this join token: it was made by another core, or its component has been removed",
		Remedy: "add the component again on this core (sallyport gateway add, or proxy add) and use the new token"}
}

// RefuseTokenExpired: the time in which the token could be used is over.
func RefuseTokenExpired(at time.Time) *pki.Refusal {
	return &pki.Refusal{Code: pki.CodeTokenExpired,
		Cause:  "the join token expired at " + at.UTC().Format(time.RFC3339),
		Remedy: "add the component again on core and use the new token within its lifetime; if the token is fresh, compare the two hosts' clocks"}
}

// RefuseTokenRole: the token was made for another role than the one using it.
func RefuseTokenRole(token, wanted pki.Role) *pki.Refusal {
	return &pki.Refusal{Code: "token_other_role",
		Cause:  fmt.Sprintf("the join token is for a %s, and a %s tries to use it", token, wanted),
		Remedy: fmt.Sprintf("start the %s with the token that 'sallyport %s add' printed", wanted, wanted)}
}

// RefuseTokenBound: another key has already joined with this token. Core
// raises an alarm with both addresses.
func RefuseTokenBound(first, second string) *pki.Refusal {
	return &pki.Refusal{Code: "token_used_by_another_key",
		Cause:  fmt.Sprintf("the join token has already been used with another key, from %s; this attempt comes from %s", orUnknown(first), orUnknown(second)),
		Remedy: "if both were you (the data directory was lost), remove the component and add it again; if not, the token has leaked: remove the component, and find out who is at the other address"}
}

// RefuseTokenClosed: the token did its work, its component has joined.
func RefuseTokenClosed() *pki.Refusal {
	return &pki.Refusal{Code: "token_closed",
		Cause:  "the join token has been used and is closed",
		Remedy: "a component with its identity on disk needs no token; if that was lost, add the component again on core"}
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown address"
	}
	return s
}

// The refusals of connections.

// refuseDeniedAddress: the listener closed its port to the address that this
// side comes from. Which one that is, after any NAT, only the listener's log
// says.
func refuseDeniedAddress(listener pki.Role, local netip.AddrPort) *pki.Refusal {
	r := &pki.Refusal{Code: CodeAddress,
		Cause:  "the other side's port is closed to the address that this side comes from",
		Remedy: "its log names the address that it saw; let core know it: sallyport gateway set NAME --ip ADDRESS"}
	if local.IsValid() {
		r.Cause += fmt.Sprintf(" (here it is %s; behind NAT it is another one there)", local.Addr())
	}
	if listener == pki.RoleProxy {
		r.Remedy = "the proxy's log names the address that it saw: start the proxy with --core-ip ADDRESS, or, while core still reaches it from another address, run: sallyport proxy set NAME --core-ip ADDRESS"
	}
	return r
}

func refuseNoALPN() *pki.Refusal {
	return &pki.Refusal{Code: "alpn_missing",
		Cause:  "the TLS client named no application protocol (ALPN)",
		Remedy: "this port is for Sallyport components; callers' gRPC clients belong to the proxy's public port"}
}

func refuseForeignALPN(offered []string, served []string) *pki.Refusal {
	return &pki.Refusal{Code: "alpn_foreign",
		Cause:  fmt.Sprintf("the TLS client offered the protocols %q, this port speaks %q", clipAll(offered), served),
		Remedy: "if it is a Sallyport component, bring both to the same version and check that it dials the right port; callers' gRPC clients belong to the proxy's public port"}
}

func refuseNotJoined() *pki.Refusal {
	return &pki.Refusal{Code: "not_joined",
		Cause:  "this component has not joined yet and has no identity",
		Remedy: "let it join first: start it with the token that core's add command printed"}
}

func refuseNoCertificate() *pki.Refusal {
	return &pki.Refusal{Code: pki.CodeCertificateRequired,
		Cause:  "the peer presented no certificate",
		Remedy: "only joined components may connect here; join it with a token from core"}
}

func refuseNoJoinExpected() *pki.Refusal {
	return &pki.Refusal{Code: "join_not_expected",
		Cause:  "this component is not waiting to join: it has its identity already, or was started without a token",
		Remedy: "to join it anew, remove it on core, delete its data directory and start it with a new token"}
}

func refuseNotBootstrap() *pki.Refusal {
	return &pki.Refusal{Code: "bootstrap_certificate_missing",
		Cause:  "the peer wants to join but presented a certificate that no join token made",
		Remedy: "start it with the token that core's add command printed; a component with an identity does not join again"}
}

func refuseOtherBootstrap() *pki.Refusal {
	return &pki.Refusal{Code: "bootstrap_key_other",
		Cause:  "the component at this address presents another key than its join token makes: it was started with another token, has joined already, or is something else",
		Remedy: "check the address given to 'sallyport proxy add', and start the proxy with the token that the same command printed"}
}

func refuseUnreadableCSR(err error) *pki.Refusal {
	return &pki.Refusal{Code: "csr_bad",
		Cause:  "the certificate request cannot be used: " + err.Error(),
		Remedy: "bring both components to the same version; a certificate request of ours always passes this check"}
}

func refuseProtocol(what string) *pki.Refusal {
	return &pki.Refusal{Code: "protocol_violation",
		Cause:  "the peer broke the protocol: " + what,
		Remedy: "bring both components to the same version; if they are, the peer is not what it claims to be"}
}

// refusalOf finds the refusal in err, or explains err as pki.Explain does.
func refusalOf(err error) *pki.Refusal {
	if err == nil {
		return nil
	}
	if r, ok := pki.AsRefusal(err); ok {
		return r
	}
	r := pki.Explain(err)
	return &r
}

func sourceText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// clipAll bounds what a stranger can make us log.
func clipAll(list []string) []string {
	out := make([]string, 0, min(len(list), 8))
	for i, s := range list {
		if i == 8 {
			out = append(out, "…")
			break
		}
		out = append(out, clip(s, 64))
	}
	return out
}

// clip is the beginning of s, valid UTF-8: protobuf sends no other strings.
func clip(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return strings.ToValidUTF8(s, "·")
}

// protoOf is r as it travels: causes may quote bytes that a stranger chose.
func protoOf(r *pki.Refusal) *control.Refusal {
	if r == nil {
		return nil
	}
	return &control.Refusal{Code: r.Code, Cause: printable(r.Cause, 1024), Remedy: printable(r.Remedy, 1024)}
}

// printable is what a peer says, bounded and without what a terminal obeys.
func printable(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, clip(s, n))
}
