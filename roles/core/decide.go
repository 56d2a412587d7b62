package core

import (
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/policy"
	"sallyport/roles/policy/token"
	"sallyport/roles/relay"
)

// verdict is what core decided about a call.
type verdict struct {
	policy.Decision
	caller policy.Caller
	denied string // who is counted for a refusal: the identity, or where a stranger came from
	source string // who is limited as the source of the call: an address by the proxy's word, or the gateway
	apps   bool   // source is a gateway
	newer  string // the issuer whose newer keys might change it
}

// neighbour is the component that a call came from, as its link proves it.
type neighbour struct {
	role pki.Role
	name string // as grants name it: an instance of a reusable gateway has the name of that
	id   string // its identity, likewise
	link string // its own name, which of an instance is another one
}

// claimed is the caller of whom the neighbour says that he has a certificate.
func (n *neighbour) claimed(c policy.Claim) policy.Caller {
	if n.role == pki.RoleGateway {
		return c.CallerViaGateway(n.name)
	}
	return c.CallerVia(n.name)
}

// stranger is who is counted for a caller without a name. Apps beside a gateway
// are on one host with it, or in one network: it answers for them.
func (n *neighbour) stranger(source string) string {
	if n.role == pki.RoleGateway {
		return "gateway " + n.name
	}
	return prefix(source)
}

// judge decides about a call that came from a proxy or a gateway. Nothing that
// the neighbour decided counts: credentials that core can verify, it verifies;
// its word about a client certificate is passed to the policy as its word. A
// gateway, whose own identity is proven, may call by itself: it says so with the
// label of a listener.
func (r *ruling) judge(path string, header []relay.Field, from *neighbour, now time.Time) verdict {
	var authorization, claim, source, listener string
	own := false
	for _, f := range header {
		switch f.Name {
		case "authorization":
			authorization = f.Value
		case relay.HeaderClientCert:
			claim = f.Value
		case relay.HeaderSource:
			source = f.Value
		case relay.HeaderListener:
			listener, own = f.Value, from.role == pki.RoleGateway
		}
	}
	var v verdict
	if authorization != "" {
		caller, refusal := token.Authenticate(r.keys, r.tokens, authorization, now)
		if refusal != nil {
			v.Decision = policy.Decision{Code: codes.Unauthenticated, Reason: refusal.Code, Message: refusal.Message}
			v.denied, v.newer = from.stranger(source), refusal.Unknown
			return v
		}
		v.caller = caller
	} else if claim != "" {
		c, err := policy.ParseClaim(claim)
		if err != nil {
			v.Decision = policy.Decision{Code: codes.Unauthenticated, Reason: "claim_unreadable", Message: "the client certificate cannot be judged"}
			v.denied = from.stranger(source)
			return v
		}
		v.caller = from.claimed(c)
	} else if own {
		if listener != "" && !policy.ListenerLabel(listener) {
			v.Decision = policy.Decision{Code: codes.Unauthenticated, Reason: "claim_unreadable", Message: "the gateway's listener cannot be judged"}
			v.denied = from.stranger(source)
			return v
		}
		v.caller = policy.CallerGateway(from.id, listener)
	}
	v.Decision = r.policy.Decide(path, v.caller)
	if v.source = source; from.role == pki.RoleGateway {
		v.source, v.apps = from.stranger(source), true
	}
	if !v.Allowed {
		switch v.denied = v.caller.Name(); {
		case v.caller.Kind == policy.Gateway:
			v.denied = policy.PercentEncode(v.caller.ID) // labels are the gateway's own choice, and many at will
		case v.denied == "":
			v.denied = from.stranger(source)
		}
	}
	return v
}

// party is whose limits count: the caller's, or the source's of a stranger.
func (v *verdict) party() string {
	switch v.caller.Kind {
	case policy.Anonymous:
		if v.apps {
			return v.source
		}
		return policy.SourceOf(v.source)
	case policy.Gateway:
		return v.caller.ID // whatever it says of its listeners
	}
	return v.caller.Name()
}

// prefix is the network that a stranger is counted under: /24, or /64.
func prefix(source string) string {
	a, err := netip.ParseAddr(source)
	if err != nil {
		ap, err := netip.ParseAddrPort(source)
		if err != nil {
			return "unknown"
		}
		a = ap.Addr()
	}
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return "unknown"
	}
	return p.String()
}

// onward is the header of a call as core sends it to a gateway: what the
// caller sent, without what only components may say, and with what core says.
func onward(in []relay.Field, v *verdict, requestID string) []relay.Field {
	out := make([]relay.Field, 0, len(in)+3)
	for _, f := range in {
		switch {
		case relay.Reserved(f.Name):
			continue
		case f.Name == "authorization" && !v.Treatment.ForwardAuthorization:
			continue
		case f.Name == relay.HeaderTraceparent && !validTraceparent(f.Value):
			continue
		}
		out = append(out, f)
	}
	out = append(out, relay.Field{Name: relay.HeaderRequestID, Value: requestID})
	if v.caller.ID != "" {
		out = append(out, relay.Field{Name: relay.HeaderCaller, Value: v.caller.Name()})
	}
	if len(v.Permissions) > 0 {
		out = append(out, relay.Field{Name: relay.HeaderPermissions, Value: policy.PercentEncode(strings.Join(v.Permissions, ","))})
	}
	return out
}

// validTraceparent accepts version 00 of the W3C format.
func validTraceparent(s string) bool {
	if len(s) != 55 || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return false
	}
	for i := 3; i < len(s); i++ {
		c := s[i]
		if i != 35 && i != 52 && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
