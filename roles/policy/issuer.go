package policy

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"sallyport/configs"
)

// Issuer is an [[issuer]]: whose tokens are believed, and what they may grant.
// How a token is verified is the matter of package token.
type Issuer struct {
	URL              string   // the iss of its tokens, byte for byte
	Audience         string   // the aud that its tokens have to name
	PermissionClaims []string // claims that hold permissions: a name, or a path with dots
	MayGrant         []string // what these may give: exact words, and prefixes ending in *
	JWKSFile         string   // its keys, in a file of core's host; empty: by discovery at URL
	line             int
}

// Grants says whether a claim of the issuer's tokens may give a permission.
func (i *Issuer) Grants(permission string) bool {
	if permission == public || checkPermission(permission) != nil {
		return false
	}
	return slices.ContainsFunc(i.MayGrant, func(pattern string) bool { return mayGrant(pattern, permission) })
}

func mayGrant(pattern, permission string) bool {
	if prefix, wild := strings.CutSuffix(pattern, "*"); wild {
		return strings.HasPrefix(permission, prefix)
	}
	return pattern == permission
}

// Issuers are the issuers of the file, in its order.
func (p *Policy) Issuers() []Issuer { return p.issuers }

// maxSubject bounds the subject of a token. OpenID Connect allows 255.
const maxSubject = 255

// TokenIdentity is a token's caller as grants, logs and upstreams name it:
// ISSUER#SUBJECT. It is false for a subject that cannot be one. An issuer's URL
// has no #, so two identities never share a spelling.
func TokenIdentity(issuer, subject string) (string, bool) {
	if subject == "" || len(subject) > maxSubject || !printable(subject) {
		return "", false
	}
	return issuer + "#" + subject, true
}

// issuer reads one [[issuer]].
func (f *file) issuer(at configs.Position, t *configs.Table) {
	i := Issuer{line: at.Line}
	f.keys("[[issuer]]", t, "url", "audience", "permission_claims", "may_grant", "jwks_file")
	address, audience := f.text(t, "url"), f.text(t, "audience")
	if address == nil || audience == nil {
		f.bad(at, "an issuer has a url, and an audience that its tokens are made for", `write url = "https://…" and audience = "…"; a token for another service must not open this one`)
		return
	}
	i.URL, i.Audience = address.Text, audience.Text
	if err := checkIssuer(i.URL); err != nil {
		f.refuse(address.Pos, err)
		return
	}
	if i.Audience == "" || len(i.Audience) > 512 || !printable(i.Audience) {
		f.bad(audience.Pos, "this is no audience", "write what the issuer puts into aud of tokens for this service")
	}
	for _, other := range f.p.issuers {
		if other.URL == i.URL {
			f.bad(address.Pos, fmt.Sprintf("%s has an [[issuer]] in line %d already", i.URL, other.line), "put all of it into one")
		}
	}
	i.PermissionClaims = f.words(t, "permission_claims", func(s string) error {
		if s == "" || len(s) > 256 || !printable(s) {
			return fmt.Errorf("%q is no name of a claim; write it as the tokens have it", s)
		}
		return nil
	})
	i.MayGrant = f.words(t, "may_grant", func(s string) error {
		if s == "*" {
			return nil
		}
		if s == public {
			return fmt.Errorf(`"public" is no permission that one can hold; remove it`)
		}
		return checkPermission(strings.TrimSuffix(s, "*"))
	})
	switch {
	case len(i.PermissionClaims) > 0 && len(i.MayGrant) == 0:
		f.bad(at, "permission_claims without may_grant give nothing", `write may_grant = ["…"]: exact permissions, or prefixes such as "user:*"`)
	case len(i.PermissionClaims) == 0 && len(i.MayGrant) > 0:
		f.bad(at, "may_grant without permission_claims gives nothing", `write permission_claims = ["scope"], or what the issuer calls it`)
	}
	if v := f.text(t, "jwks_file"); v != nil {
		if i.JWKSFile = v.Text; !filepath.IsAbs(i.JWKSFile) {
			f.bad(v.Pos, "jwks_file is a path on core's host, and this one depends on where core was started", "write it with a / in front")
		}
	}
	if len(f.p.issuers) == maxIssuers {
		f.bad(at, fmt.Sprintf("there are more than %d issuers", maxIssuers), "name those whose tokens callers have")
		return
	}
	f.p.issuers = append(f.p.issuers, i)
}

// maxIssuers bounds the issuers of a policy: core asks each of them for keys.
const maxIssuers = 64

// words reads a list of texts.
func (f *file) words(t *configs.Table, key string, check func(string) error) []string {
	v := t.Get(key)
	if v == nil {
		return nil
	}
	if v.Kind != "list" {
		f.bad(v.Pos, key+" is a list", "write "+key+` = ["…"]`)
		return nil
	}
	var list []string
	for _, item := range v.List {
		switch err := check(item.Text); {
		case item.Kind != "string":
			f.bad(item.Pos, "an element of "+key+" is no text", "write each in quotes")
		case err != nil:
			f.refuse(item.Pos, err)
		case slices.Contains(list, item.Text):
			f.bad(item.Pos, fmt.Sprintf("%q is listed twice", item.Text), "list it once")
		default:
			list = append(list, item.Text)
		}
	}
	return list
}

// checkIssuer accepts what OpenID Connect allows as an issuer: an https URL
// without query and fragment.
func checkIssuer(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > 512 || !printable(s) || u.Host == "" || u.User != nil || u.RawQuery != "" || strings.ContainsAny(s, "?# "):
		return fmt.Errorf("%q is no issuer; write its URL as the iss of its tokens has it, such as https://login.example.org", s)
	case u.Scheme != "https":
		return fmt.Errorf("%s is not https, so its keys could be anybody's; write the https URL of the issuer", s)
	}
	return nil
}

// parseTokenCaller reads ISSUER#SUBJECT.
func parseTokenCaller(s string) (holderKey, error) {
	issuer, subject, _ := strings.Cut(s, "#")
	if err := checkIssuer(issuer); err != nil {
		return holderKey{}, err
	}
	id, ok := TokenIdentity(issuer, subject)
	if !ok {
		return holderKey{}, fmt.Errorf("%q names no subject; write the issuer's url, #, and the sub of the tokens", s)
	}
	return holderKey{kind: Token, id: id}, nil
}

// printable says whether s is text without control characters.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 })
}
