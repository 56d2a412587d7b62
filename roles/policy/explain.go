package policy

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
)

// Explanation is a decision with its grounds, for the operator.
type Explanation struct {
	Decision
	BuiltIn  bool     // the row is ours and not in the file
	Needs    []string // permissions, any one of which is enough
	Holds    []string // permissions the caller holds, by the word asked about
	Deciding []string // grants that give what is needed
	Via      []string // neighbours by whose word those grants count: proxy:NAME, gateway:NAME
}

// Explain decides and says why. For a certificate without ViaProxy and
// ViaGateway it answers for the best neighbour there is, and Via names those
// that are as good.
func (p *Policy) Explain(path string, c Caller) Explanation {
	e := Explanation{Decision: p.Decide(path, c)}
	if e.Reason == ReasonMalformed {
		return e
	}
	var r *row
	if found, ok := p.index.find(path); ok {
		r = found.row
	}
	if r != nil {
		e.BuiltIn, e.Needs = r.builtIn, r.needs
	}
	e.Holds = e.Permissions
	if c.Kind == Anonymous {
		return e
	}
	key := holderKey{c.Kind, c.ID, c.ClientCA}
	anywhere := c.Kind == Certificate && c.ViaProxy == "" && c.ViaGateway == ""
	var holds []string
	for _, g := range p.grants {
		if g.key != key || g.listener != "" && g.listener != c.Listener {
			continue
		}
		if anywhere && len(g.viaProxy)+len(g.viaGateway) > 0 {
			holds = append(holds, g.permissions...)
		}
		if r == nil || r.public || !meet(r.needs, g.permissions) {
			continue
		}
		e.Deciding = append(e.Deciding, g.name)
		for _, n := range g.viaProxy {
			e.Via = append(e.Via, "proxy:"+n)
		}
		for _, n := range g.viaGateway {
			e.Via = append(e.Via, "gateway:"+n)
		}
	}
	if c.Kind == Token && r != nil && !r.public && meet(r.needs, c.Permissions) {
		e.Deciding = append(e.Deciding, "claims of the token")
	}
	slices.Sort(e.Via)
	e.Via = slices.Compact(e.Via)
	if anywhere {
		slices.Sort(holds)
		e.Holds = slices.Compact(holds)
		if !e.Allowed && len(e.Via) > 0 {
			e.Allowed, e.Code, e.Reason, e.Message = true, codes.OK, ReasonGranted, ""
			e.Permissions, e.Grants = e.Holds, e.Deciding
		}
	}
	return e
}

// ParseCaller reads a caller as an operator writes one: spiffe://…, cn:NAME
// with the CA whose names these are, apikey:NAME, ISSUER#SUBJECT or anonymous; a
// gateway's may end in ;listener=LABEL; via is
// proxy:NAME, gateway:NAME or empty.
func ParseCaller(caller, clientCA, via string) (Caller, error) {
	c := Caller{}
	caller, listener, listened := strings.Cut(caller, ";listener=")
	if name, ok := strings.CutPrefix(caller, "apikey:"); ok && plain(name) {
		c = Caller{Kind: APIKey, ID: caller}
	} else if caller != "anonymous" && caller != "" {
		key, err := parseIdentity(caller, clientCA)
		if err != nil {
			return c, err
		}
		c = Caller{Kind: key.kind, ID: key.id, ClientCA: key.clientCA}
	}
	if listened {
		if c.Kind != Gateway || !label(listener) {
			return c, fmt.Errorf("%q names a listener and no gateway's; write spiffe://TRUST-DOMAIN/gateway/NAME;listener=LABEL", caller)
		}
		c.Listener = listener
	}
	role, name, _ := strings.Cut(via, ":")
	switch {
	case via == "":
	case role == "proxy" && label(name):
		c.ViaProxy = name
	case role == "gateway" && label(name):
		c.ViaGateway = name
	default:
		return c, fmt.Errorf("%q is no neighbour; write proxy:NAME or gateway:NAME", via)
	}
	return c, nil
}
