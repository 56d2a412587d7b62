package pki

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Role is the first path element of an identity: what its owner may be.
type Role string

const (
	RoleCore    Role = "core"
	RoleProxy   Role = "proxy"
	RoleGateway Role = "gateway"
	RoleClient  Role = "client"
	RoleService Role = "service"
)

// Component reports whether r is one of the product's own three roles, whose
// certificates only the component intermediate makes.
func (r Role) Component() bool {
	return r == RoleCore || r == RoleProxy || r == RoleGateway
}

// Leaf reports whether r is a role of callers and services, whose certificates
// the other intermediate makes.
func (r Role) Leaf() bool { return r == RoleClient || r == RoleService }

// ID is an identity, written spiffe://TRUST-DOMAIN/ROLE/NAME.
type ID struct {
	TrustDomain string
	Role        Role
	Name        string
}

// IsZero reports whether id names nobody.
func (id ID) IsZero() bool { return id == ID{} }

// String is the SPIFFE ID. It is what certificates carry and tables compare.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.TrustDomain + "/" + string(id.Role) + "/" + id.Name
}

// URI is String as a URL.
func (id ID) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/" + string(id.Role) + "/" + id.Name}
}

// Validate says what is wrong with an identity that was put together by hand.
func (id ID) Validate() error {
	if err := ValidTrustDomain(id.TrustDomain); err != nil {
		return err
	}
	if !id.Role.Component() && !id.Role.Leaf() {
		return fmt.Errorf("identity %s: %q is not a role: core, proxy, gateway, client or service", id, string(id.Role))
	}
	return ValidName(id.Name)
}

// ParseID reads spiffe://TRUST-DOMAIN/ROLE/NAME and nothing else: one spelling
// per identity, so that comparing texts compares identities.
func ParseID(s string) (ID, error) {
	if len(s) > 512 {
		return ID{}, fmt.Errorf("identity of %d bytes is too long", len(s))
	}
	sid, err := spiffeid.FromString(s)
	if err != nil {
		return ID{}, fmt.Errorf("%q is not an identity: %w", s, err)
	}
	role, name, ok := strings.Cut(strings.TrimPrefix(sid.Path(), "/"), "/")
	if !ok {
		return ID{}, fmt.Errorf("%q is not an identity: it has to look like spiffe://TRUST-DOMAIN/ROLE/NAME", s)
	}
	id := ID{TrustDomain: sid.TrustDomain().Name(), Role: Role(role), Name: name}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("%q is not an identity: %w", s, err)
	}
	if id.String() != s {
		return ID{}, fmt.Errorf("%q is not written as identities are; it should be %q", s, id.String())
	}
	return id, nil
}

// ValidName accepts the names of components, callers and services: DNS labels,
// lower case.
func ValidName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("a name is missing: use up to 63 of a-z, 0-9 and -, such as office-1")
	case len(name) > 63:
		return fmt.Errorf("name %q has %d characters, 63 are allowed", name[:16]+"…", len(name))
	case name[0] == '-' || name[len(name)-1] == '-':
		return fmt.Errorf("name %q must not begin or end with a hyphen", name)
	}
	for i := range len(name) {
		if c := name[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("name %q: use up to 63 of a-z, 0-9 and -", name)
		}
	}
	return nil
}

// ValidTrustDomain accepts lower-case DNS names of at most 64 characters (they
// also stand in the organization of CA certificates) whose last label is not a
// number, since name constraints do not work for IP addresses.
func ValidTrustDomain(td string) error {
	if td == "" {
		return fmt.Errorf("the trust domain is missing: use a DNS name such as sallyport.internal")
	}
	if len(td) > 64 {
		return fmt.Errorf("trust domain of %d characters: 64 are allowed", len(td))
	}
	labels := strings.Split(td, ".")
	for _, l := range labels {
		if err := ValidName(l); err != nil {
			return fmt.Errorf("trust domain %q is not a lower-case DNS name such as sallyport.internal", td)
		}
	}
	if last := labels[len(labels)-1]; last[0] >= '0' && last[0] <= '9' {
		return fmt.Errorf("trust domain %q looks like an IP address: use a DNS name such as sallyport.internal", td)
	}
	return nil
}
