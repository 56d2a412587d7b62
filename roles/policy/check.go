package policy

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"sallyport/configs"
)

// ServiceMethods is one announced service. Methods is empty when the service
// was listed by hand; Service may then be a pattern ending in .*.
type ServiceMethods struct {
	Service string
	Methods []string
}

// Inventory is what a policy is compared with. A nil list, like an empty
// trust domain, is not known and not compared.
type Inventory struct {
	Services    []ServiceMethods
	TrustDomain string
	Proxies     []string
	Gateways    []string
	APIKeys     []string
}

// edge is what a proxy serves itself.
var edge = []ServiceMethods{
	{HealthService, []string{"Check", "List", "Watch"}},
	{"grpc.reflection.v1.ServerReflection", []string{"ServerReflectionInfo"}},
	{"grpc.reflection.v1alpha.ServerReflection", []string{"ServerReflectionInfo"}},
}

// Check compares the policy with the announced services. warnings are
// sentences, denied lists announced methods without a row.
func (p *Policy) Check(services []ServiceMethods) (warnings, denied []string) {
	return p.CheckAll(Inventory{Services: services})
}

// CheckAll is Check that also knows who is there.
func (p *Policy) CheckAll(inv Inventory) (warnings, denied []string) {
	c := &checker{p: p, inv: inv}
	if inv.Services != nil {
		c.services = append(slices.Clone(inv.Services), edge...)
		c.rows()
		denied = c.denied()
	}
	c.permissions()
	c.grants()
	c.issuers()
	sort.SliceStable(c.found, func(i, j int) bool { return c.found[i].line < c.found[j].line })
	for _, w := range c.found {
		warnings = append(warnings, fmt.Sprintf("line %d: %s", w.line, w.text))
	}
	return warnings, denied
}

type checker struct {
	p        *Policy
	inv      Inventory
	services []ServiceMethods
	found    []warning
}

type warning struct {
	line int
	text string
}

func (c *checker) warn(line int, format string, args ...any) {
	c.found = append(c.found, warning{line, fmt.Sprintf(format, args...)})
}

// rows looks for rows that concern nothing there is.
func (c *checker) rows() {
	for _, r := range c.p.rows {
		if !r.builtIn && !c.announced(r.pattern) {
			c.warn(r.line, "no announced service has %s%s", r.pattern, c.meant(r.pattern))
		}
	}
	for _, t := range c.p.treats {
		switch {
		case !c.announced(t.match):
			c.warn(t.line, "no announced service has %s%s", t.match, c.meant(t.match))
		case !c.hasRow(t.match):
			c.warn(t.line, "%s is treated here and has no row in [methods], so its calls are denied", t.match)
		}
	}
	for _, l := range c.p.limits {
		if !c.announced(l.Match) {
			c.warn(l.line, "no announced service has %s%s", l.Match, c.meant(l.Match))
		}
	}
}

func (c *checker) hasRow(pattern string) bool {
	return slices.ContainsFunc(c.p.rows, func(r *row) bool { return covers(r.pattern, pattern) || covers(pattern, r.pattern) })
}

// announced says whether a pattern covers something that is announced.
func (c *checker) announced(pattern string) bool {
	for _, s := range c.services {
		if !overlap(pattern, s.Service) {
			continue
		}
		if len(s.Methods) == 0 || strings.HasSuffix(pattern, "*") {
			return true
		}
		for _, m := range s.Methods {
			if pattern == "/"+s.Service+"/"+m {
				return true
			}
		}
	}
	return false
}

// meant suggests what a pattern could have meant.
func (c *checker) meant(pattern string) string {
	var names []string
	wild := strings.HasSuffix(pattern, "*")
	for _, s := range c.services {
		if wild {
			names = append(names, "/"+s.Service+"/*")
		}
		for _, m := range s.Methods {
			if !wild {
				names = append(names, "/"+s.Service+"/"+m)
			}
		}
	}
	near := configs.Nearest(pattern, names)
	if near == "" || !akin(pattern, near) {
		return ""
	}
	return "; did you mean " + near + "?"
}

// akin says whether two methods differ in their service or in their method
// alone, or in letters' case.
func akin(a, b string) bool {
	if strings.EqualFold(a, b) {
		return true
	}
	i, j := strings.LastIndexByte(a, '/'), strings.LastIndexByte(b, '/')
	return a[:i] == b[:j] || a[i:] == b[j:]
}

// denied lists what is announced and has no row.
func (c *checker) denied() []string {
	var list []string
	for _, s := range c.inv.Services {
		if slices.ContainsFunc(edge, func(e ServiceMethods) bool { return e.Service == s.Service }) {
			continue
		}
		if len(s.Methods) == 0 {
			pattern := "/" + s.Service + "/*"
			if strings.HasSuffix(s.Service, ".*") {
				pattern = "/" + s.Service
			}
			if !c.hasRow(pattern) {
				list = append(list, pattern)
			}
			continue
		}
		for _, m := range s.Methods {
			path := "/" + s.Service + "/" + m
			if e, ok := c.p.index.find(path); !ok || e.row == nil {
				list = append(list, path)
			}
		}
	}
	sort.Strings(list)
	return slices.Compact(list)
}

// permissions looks for rows that nobody can satisfy.
func (c *checker) permissions() {
	given := map[string]bool{}
	var all []string
	for _, g := range c.p.grants {
		for _, perm := range g.permissions {
			if !given[perm] {
				given[perm] = true
				all = append(all, perm)
			}
		}
	}
	for _, r := range c.p.rows {
		if r.public || r.held || len(r.needs) == 0 {
			continue
		}
		meant := ""
		for _, need := range r.needs {
			if near := configs.Nearest(need, all); near != "" {
				meant = fmt.Sprintf("; did you mean %q?", near)
			}
		}
		gives := "no grant gives"
		if len(c.p.issuers) > 0 {
			gives = "no grant and no issuer gives"
		}
		c.warn(r.line, "%s %s, so nobody can call %s%s", gives, oneOf(r.needs), r.pattern, meant)
	}
}

// grants looks for grants that nobody can use.
func (c *checker) grants() {
	var needed []string
	for _, r := range c.p.rows {
		if !r.public {
			needed = append(needed, r.needs...)
		}
	}
	for _, g := range c.p.grants {
		id := g.key.id
		for _, perm := range g.permissions {
			if !slices.Contains(needed, perm) {
				meant := ""
				if near := configs.Nearest(perm, needed); near != "" {
					meant = fmt.Sprintf("; did you mean %q?", near)
				}
				c.warn(g.line, "no method needs %q, which is granted to %s%s", perm, id, meant)
			}
		}
		switch g.key.kind {
		case APIKey:
			name := strings.TrimPrefix(id, "apikey:")
			if c.inv.APIKeys != nil && !slices.Contains(c.inv.APIKeys, name) {
				c.warn(g.line, "there is no API key %q%s; 'sallyport apikey create %s' makes it", name, didYouMean(name, c.inv.APIKeys), name)
			}
			continue
		case Certificate:
			if len(g.viaProxy)+len(g.viaGateway) == 0 {
				c.warn(g.line, "nobody's word is believed about %s, so nobody can use this grant; add via_proxy = [\"NAME\"]", id)
			}
		}
		if g.key.kind == Token {
			c.issued(g)
			continue
		}
		if td := c.inv.TrustDomain; td != "" && g.key.clientCA == "" && !strings.HasPrefix(id, "spiffe://"+td+"/") {
			c.warn(g.line, "%s is not of the trust domain %s, so no certificate of the embedded CA has this identity", id, td)
		}
		c.known(g, "proxy", g.viaProxy, c.inv.Proxies)
		c.known(g, "gateway", g.viaGateway, c.inv.Gateways)
	}
}

// issued looks for grants to callers whose tokens nobody believes.
func (c *checker) issued(g *grant) {
	issuer, _, _ := strings.Cut(g.key.id, "#")
	var urls []string
	for _, i := range c.p.issuers {
		urls = append(urls, i.URL)
	}
	if !slices.Contains(urls, issuer) {
		c.warn(g.line, "there is no [[issuer]] with url = %q%s, so no token of %s is accepted", issuer, didYouMean(issuer, urls), g.key.id)
	}
}

// issuers looks for issuers whose tokens open nothing, or everything.
func (c *checker) issuers() {
	var needed []string
	for _, r := range c.p.rows {
		if !r.public {
			needed = append(needed, r.needs...)
		}
	}
	for _, i := range c.p.issuers {
		named := slices.ContainsFunc(c.p.grants, func(g *grant) bool { return g.key.kind == Token && strings.HasPrefix(g.key.id, i.URL+"#") })
		if len(i.MayGrant) == 0 && !named {
			c.warn(i.line, "tokens of %s are accepted and open nothing: it has no may_grant, and no grant names a caller %s#…", i.URL, i.URL)
		}
		for _, pattern := range i.MayGrant {
			if pattern == "*" {
				c.warn(i.line, "%s may grant every permission there is, by what it writes into a token", i.URL)
			} else if !slices.ContainsFunc(needed, func(need string) bool { return mayGrant(pattern, need) }) {
				c.warn(i.line, "no method needs %q, which %s may grant%s", pattern, i.URL, didYouMean(pattern, needed))
			}
		}
	}
}

func (c *checker) known(g *grant, role string, names, there []string) {
	if there == nil {
		return
	}
	for _, n := range names {
		if !slices.Contains(there, n) {
			c.warn(g.line, "there is no %s %q%s", role, n, didYouMean(n, there))
		}
	}
}

func didYouMean(word string, list []string) string {
	if near := configs.Nearest(word, list); near != "" {
		return fmt.Sprintf(" (did you mean %q?)", near)
	}
	return ""
}

func oneOf(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(q, " or ")
}
