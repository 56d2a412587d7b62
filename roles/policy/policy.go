package policy

import (
	"crypto/sha256"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/roles/control"
)

// Policy is a policy file, compiled. It is immutable: a change is a new Policy.
type Policy struct{ text []byte }

// Parse reads a policy file. name is what error messages call it.
func Parse(name string, text []byte) (*Policy, error) { return nil, errors.New("incomplete") }

// Text is the file as it was parsed.
func (p *Policy) Text() []byte { return p.text }

// Method is a full method name in its two parts.
type Method struct {
	Service string // acme.orders.v1.Orders
	Name    string // Get
}

// ParseMethod splits /[package.]Service/Method. It is strict, byte by byte,
// and allocates nothing: whatever it accepts has one spelling.
func ParseMethod(path string) (Method, bool) { return Method{}, false }

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
	ID          string   // spiffe://…, cn:NAME, apikey:NAME; empty for anonymous
	ClientCA    string   // the foreign CA that ID belongs to; empty: ours
	ViaProxy    string   // the proxy that saw the certificate
	ViaGateway  string   // the gateway that saw the certificate
	Permissions []string // what a verified token grants by itself
}

// Decision is the answer to one call.
type Decision struct {
	Allowed     bool
	Code        codes.Code // OK when allowed
	Reason      string     // stable, lower_snake_case
	Message     string     // to the caller; says nothing of the table
	Row         string     // the row that decided, empty for none
	Grants      []string   // the caller's grants that count here
	Permissions []string   // what the caller holds, sorted; shared, not to be changed
	Treatment   Treatment
}

// Treatment is how the calls of a method are handled.
type Treatment struct {
	ForwardAuthorization bool
	MaxMessage           uint64        // bytes, 0: no cap
	MaxDeadline          time.Duration // 0: no cap
}

// Decide answers one call.
func (p *Policy) Decide(path string, c Caller) Decision { return Decision{Code: codes.Unimplemented} }

// Explanation is a decision with its grounds, for the operator.
type Explanation struct {
	Decision
	BuiltIn  bool     // the row is ours and not in the file
	Needs    []string // permissions, any one of which is enough
	Holds    []string // permissions the caller holds
	Deciding []string // the grants that decided, or that would if their via_… named the neighbour
}

// Explain decides and says why.
func (p *Policy) Explain(path string, c Caller) Explanation { return Explanation{} }

// ServiceMethods is one announced service. Methods is empty when the service
// was listed by hand; Service may then be a pattern ending in .*.
type ServiceMethods struct {
	Service string
	Methods []string
}

// Inventory is what a policy is compared with. A nil list is not compared.
type Inventory struct {
	Services    []ServiceMethods
	TrustDomain string
	Proxies     []string
	Gateways    []string
	APIKeys     []string
}

// Check compares the policy with the announced services. warnings are
// sentences, denied lists announced methods without a row.
func (p *Policy) Check(services []ServiceMethods) (warnings, denied []string) {
	return p.CheckAll(Inventory{Services: services})
}

// CheckAll is Check that also knows who is there.
func (p *Policy) CheckAll(inv Inventory) (warnings, denied []string) { return nil, nil }

// RulesFor is the slice of the policy that a gateway with these services
// needs to check calls by itself.
func (p *Policy) RulesFor(services []string) []*control.MethodRule { return nil }

// Rules is such a slice, compiled, at the gateway.
type Rules struct{}

// NewRules compiles what RulesFor made.
func NewRules(rules []*control.MethodRule) (*Rules, error) { return &Rules{}, nil }

// Match finds the most specific rule for a method.
func (r *Rules) Match(path string) (Treatment, bool) { return Treatment{}, false }

// Patterns is a set of method patterns: a gateway's --allow ceiling.
type Patterns struct{}

// ParsePatterns compiles patterns. None at all match everything: no ceiling.
func ParsePatterns(patterns []string) (*Patterns, error) { return &Patterns{}, nil }

// Match says whether a method is under the ceiling.
func (p *Patterns) Match(path string) bool { return false }

// Default is the policy of an installation that was given none. The health
// service is open; with demo the built-in Echo and reflection are too.
func Default(demo bool) *Policy { return &Policy{} }

// Key is one API key as it is stored.
type Key struct {
	Name    string
	SHA256  [sha256.Size]byte
	Expires time.Time // zero: never
}

// Keys is an immutable set of API keys.
type Keys struct{}

// NewKeys makes a set.
func NewKeys(keys []Key) *Keys { return &Keys{} }

// KeysFromProto makes the set of a snapshot.
func KeysFromProto(keys []*control.APIKey) (*Keys, error) { return &Keys{}, nil }

// Lookup reads the raw value of an authorization header. An empty value is an
// anonymous caller. A refusal is answered with UNAUTHENTICATED and its Cause,
// also where the method is public.
func (k *Keys) Lookup(authorization string, now time.Time) (Caller, *control.Refusal) {
	return Caller{}, nil
}

// NewAPIKey makes the secret of an API key, and the prefix that it is
// recognised by in lists.
func NewAPIKey(rand io.Reader) (secret, prefix string, err error) { return "", "", nil }

// HashAPIKey is what is stored of a secret. It is false for a text that is no
// API key of ours.
func HashAPIKey(secret string) ([sha256.Size]byte, bool) { return [32]byte{}, false }

// Claim is what a proxy says of a client certificate that it verified.
type Claim struct {
	ID       string // spiffe://… or cn:NAME
	ClientCA string // the foreign CA it was verified under; empty: ours
}

// EncodeClaim writes a claim as the value of a header between components.
func EncodeClaim(c Claim) string { return "" }

// ParseClaim reads what EncodeClaim wrote, and nothing else.
func ParseClaim(s string) (Claim, error) { return Claim{}, errors.New("incomplete") }

// CallerVia is the caller a claim names, on the word of a proxy.
func (c Claim) CallerVia(proxy string) Caller {
	return Caller{Kind: Certificate, ID: c.ID, ClientCA: c.ClientCA, ViaProxy: proxy}
}
