package policy

import (
	"slices"
	"time"

	"google.golang.org/grpc/codes"
)

// Policy is a policy file, compiled. It is immutable: a change is a new Policy.
type Policy struct {
	text    []byte
	rows    []*row       // of the file, and the built-in ones
	treats  []*treatment // of the file
	grants  []*grant     // of the file
	issuers []Issuer     // of the file
	limits  []*Limit     // of the file
	entries []entry      // every pattern that occurs, in order of the patterns
	index   matcher[*entry]
	holders map[holderKey]*holder
}

// entry is what holds for one pattern: the row and the treatment that are
// most specific for it, each by its own rule.
type entry struct {
	pattern   string
	row       *row // nil: denied
	treatment Treatment
	limits    *Limits // nil: none
}

// row is a row of [methods].
type row struct {
	pattern string
	needs   []string // any one is enough; none: closed
	set     bits
	public  bool
	builtIn bool
	held    bool // some grant gives one of them
	line    int
}

// treatment is a row of [[method]].
type treatment struct {
	match string
	Treatment
	line int
}

// grant is a [[grant]].
type grant struct {
	key         holderKey
	permissions []string
	viaProxy    []string
	viaGateway  []string
	listener    string // of a gateway; empty: all of them
	name        string // as decisions name it
	line        int
}

// holderKey is a caller as the table knows one.
type holderKey struct {
	kind     CallerKind
	id       string
	clientCA string
}

// holder is what a caller holds, by the neighbour whose word there is of it.
type holder struct {
	direct    *holding            // needs nobody's word; of a gateway, by any of its listeners
	proxies   map[string]*holding // by proxy
	gateways  map[string]*holding // by gateway
	listeners map[string]*holding // of a gateway: by one of its listeners, what it holds by any included
}

// holding is permissions and the grants that they come from.
type holding struct {
	permissions []string // sorted
	set         bits
	grants      []string
}

// bits is a set of permissions, numbered by Parse.
type bits []uint64

func (b bits) has(i int) bool { return i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0 }

func (b *bits) add(i int) {
	for len(*b) <= i/64 {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bits) meets(c bits) bool {
	for i := range min(len(b), len(c)) {
		if b[i]&c[i] != 0 {
			return true
		}
	}
	return false
}

// Text is the file as it was parsed.
func (p *Policy) Text() []byte { return p.text }

// CallerKind is how a caller is known.
type CallerKind uint8

// The kinds of caller.
const (
	Anonymous   CallerKind = iota // sent no credentials
	Certificate                   // a client certificate, on the word of ViaProxy or ViaGateway
	APIKey                        // an API key of ours
	Token                         // a token of an issuer
	Gateway                       // a gateway itself, proven by its own link
)

// Caller is who calls, as far as it is proven and by whose word.
type Caller struct {
	Kind        CallerKind
	ID          string   // spiffe://…, cn:NAME, apikey:NAME, ISSUER#SUBJECT; empty for anonymous
	ClientCA    string   // the foreign CA that ID belongs to; empty: ours
	ViaProxy    string   // the proxy that saw the certificate
	ViaGateway  string   // the gateway that saw the certificate
	Listener    string   // of a Gateway: the label of the entrance by which the call came; empty: it has none
	Permissions []string // what a verified token grants by itself, sorted, within its issuer's may_grant

	Expires time.Time // when the key or token that proved it ends; zero: not by itself
}

// Decision is the answer to one call.
type Decision struct {
	Allowed     bool
	Code        codes.Code // OK when allowed
	Reason      string     // stable: one of the Reason constants
	Message     string     // to the caller; says nothing of the table
	Row         string     // the row that decided, empty for none
	Grants      []string   // the caller's grants that count here; shared, not to be changed
	Permissions []string   // what the caller holds, sorted; shared, not to be changed
	Treatment   Treatment
	Limits      *Limits // nil: none
}

// Treatment is how the calls of a method are handled.
type Treatment struct {
	ForwardAuthorization bool          // else the header ends at core
	MaxMessage           uint64        // bytes of a message, in either direction; 0: any
	MaxDeadline          time.Duration // how long a call may take; 0: any
}

// Why a call was allowed or denied.
const (
	ReasonPublic        = "public"            // the row is public
	ReasonGranted       = "granted"           // the caller holds a permission that the row names
	ReasonMalformed     = "malformed_method"  // the path is no method name
	ReasonNoRow         = "no_row"            // nothing is said of the method
	ReasonClosed        = "closed"            // the row names no permission
	ReasonNoCredentials = "no_credentials"    // the caller sent none
	ReasonNoPermission  = "no_permission"     // the caller holds none that the row names
	ReasonNotBelieved   = "word_not_believed" // the caller has grants, none by the word of this neighbour
	ReasonListener      = "other_listener"    // the gateway has grants, none for this listener of its
)

const (
	messageMalformed = "malformed method name"
	messageNobody    = "this method needs credentials: a client certificate, or the header authorization: Bearer with an API key or a token"
	messageDenied    = " may not call this method"
)

// Decide answers one call. It runs on the path of every call: it takes no
// lock and allocates only the message of a denial.
func (p *Policy) Decide(path string, c Caller) Decision {
	if _, ok := ParseMethod(path); !ok {
		return Decision{Code: codes.Unimplemented, Reason: ReasonMalformed, Message: messageMalformed}
	}
	var d Decision
	var r *row
	if e, ok := p.index.find(path); ok {
		r, d.Treatment, d.Limits = e.row, e.treatment, e.limits
	}
	held, known := p.holding(&c)
	switch {
	case held != nil && len(c.Permissions) > 0:
		d.Permissions, d.Grants = union(held.permissions, c.Permissions), held.grants
	case held != nil:
		d.Permissions, d.Grants = held.permissions, held.grants
	case c.Kind == Token:
		d.Permissions = c.Permissions
	}
	switch {
	case r == nil:
		d.Reason = ReasonNoRow
	default:
		d.Row = r.pattern
		switch {
		case r.public:
			d.Reason = ReasonPublic
		case held != nil && r.set.meets(held.set), c.Kind == Token && meet(r.needs, c.Permissions):
			d.Reason = ReasonGranted
		case len(r.needs) == 0:
			d.Reason = ReasonClosed
		case c.Kind == Anonymous:
			d.Reason = ReasonNoCredentials
		case known && held == nil && c.Kind == Gateway:
			d.Reason = ReasonListener
		case known && held == nil:
			d.Reason = ReasonNotBelieved
		default:
			d.Reason = ReasonNoPermission
		}
	}
	if d.Reason == ReasonPublic || d.Reason == ReasonGranted {
		d.Allowed = true
		return d
	}
	if c.Kind == Anonymous {
		d.Code, d.Message = codes.Unauthenticated, messageNobody
		return d
	}
	d.Code, d.Message = codes.PermissionDenied, PercentEncode(c.ID)+messageDenied // it is logged too
	return d
}

// holding is what a caller holds on the word of the neighbour that reports
// it. known says that it would hold something on another's.
func (p *Policy) holding(c *Caller) (h *holding, known bool) {
	if c.Kind == Anonymous {
		return nil, false
	}
	of, ok := p.holders[holderKey{c.Kind, c.ID, c.ClientCA}]
	switch {
	case !ok:
		return nil, false
	case c.Kind == Gateway && of.listeners[c.Listener] != nil:
		return of.listeners[c.Listener], true
	case c.Kind != Certificate:
		return of.direct, true
	case c.ViaProxy != "":
		return of.proxies[c.ViaProxy], true
	case c.ViaGateway != "":
		return of.gateways[c.ViaGateway], true
	}
	return nil, true
}

// union is both lists, sorted, each word once.
func union(a, b []string) []string {
	list := append(slices.Clone(a), b...)
	slices.Sort(list)
	return slices.Compact(list)
}

func meet(a, b []string) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}
