package policy

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// FuzzPolicyFile reads any bytes as a policy. What is accepted denies what is
// no method, and cuts slices that compile and are never wider than the whole.
func FuzzPolicyFile(f *testing.F) {
	f.Add([]byte(sample), "/acme.data.v1.DataService/Get")
	f.Add(Default(true).Text(), "/sallyport.demo.v1.Echo/Say")
	if text, err := os.ReadFile("../../configs/examples/policy.toml"); err == nil {
		f.Add(text, "/acme.stock.v1.Stock/Get")
	}
	f.Add([]byte("methods.\"/a.B/C\" = ['public']\n[[method]]\nmatch = \"/a.*\"\n"), "/a.B/C")
	f.Add([]byte("method = [{match = '/a.B/*', forward_authorization = true}]\ngrant = [{apikey = 'x', permissions = ['y']}]"), "//a.B/C")
	f.Add([]byte(federated), "/a.B/Read")
	f.Add([]byte("[[limit]]\nmatch = '/a.B/*'\nper = 'source'\nrate = '1/h'\nburst = 3\n[[method]]\nmatch = '/a.*'\nmax_message = '1KiB'\nmax_deadline = '1s'"), "/a.B/C")
	f.Fuzz(func(t *testing.T, text []byte, path string) {
		p, err := Parse("policy.toml", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "policy.toml:") {
				t.Fatalf("no place in: %v", err)
			}
			return
		}
		m, ok := ParseMethod(path)
		d := p.Decide(path, Caller{})
		if d.Allowed && (!ok || d.Reason != ReasonPublic) {
			t.Fatalf("%q is allowed to a stranger: %+v", path, d)
		}
		p.CheckAll(Inventory{Services: []ServiceMethods{{"a.B", []string{"C"}}, {"a.*", nil}}, TrustDomain: "x", Proxies: []string{}, APIKeys: []string{}})
		for _, l := range []*Limits{p.Limits(path), d.Limits} {
			if l != nil && (!ok || l.CallsPerCaller != nil && l.CallsPerCaller.Rate <= 0) {
				t.Fatalf("%q has limits %+v", path, l)
			}
		}
		for _, c := range []Caller{billing, ci, {Kind: Gateway, ID: "spiffe://x/gateway/a"}, {Kind: Token, ID: "https://login.example.org#anna", Permissions: []string{"user:read"}}} {
			d, e := p.Decide(path, c), p.Explain(path, c)
			if d.Allowed != e.Allowed {
				t.Fatalf("Decide says %v and Explain %v", d.Allowed, e.Allowed)
			}
			if !d.Allowed || !ok {
				continue
			}
			rules, err := NewRules(p.RulesFor([]string{m.Service}))
			if err != nil {
				t.Fatal(err)
			}
			if treatment, ok := rules.Match(path); !ok || treatment != d.Treatment {
				t.Fatalf("core allows %q and the gateway does not, or treats it otherwise", path)
			}
		}
	})
}

var methodForm = regexp.MustCompile(`\A/(?:[A-Za-z_][A-Za-z0-9_]*\.)*[A-Za-z_][A-Za-z0-9_]*/[A-Za-z_][A-Za-z0-9_]*\z`)

// FuzzParseMethod compares the parser with the form as an expression.
func FuzzParseMethod(f *testing.F) {
	f.Add("/acme.orders.v1.Orders/Get")
	for _, s := range tricks("/acme.orders.v1.Orders/Get") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		m, ok := ParseMethod(path)
		if want := len(path) <= maxPath && methodForm.MatchString(path); ok != want {
			t.Fatalf("%q: %v, want %v", path, ok, want)
		}
		if ok && "/"+m.Service+"/"+m.Name != path {
			t.Fatalf("%q is split into %q and %q", path, m.Service, m.Name)
		}
	})
}

// FuzzClaim proves that a claim has one spelling.
func FuzzClaim(f *testing.F) {
	for _, s := range []string{"spiffe://x/client/a", "cn:x;partner", "cn:%C3%B6;p", "cn:%41;p", "spiffe://x/gateway/a;p", ";", "%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseClaim(s)
		if err != nil {
			if c != (Claim{}) {
				t.Fatalf("a refused claim has content: %+v", c)
			}
			return
		}
		if EncodeClaim(c) != s {
			t.Fatalf("%q is written again as %q", s, EncodeClaim(c))
		}
		for i := range len(s) {
			if s[i] <= ' ' || s[i] >= 0x7f {
				t.Fatalf("%q is no value of a header", s)
			}
		}
		if c.ClientCA == "" && !strings.HasPrefix(c.ID, "spiffe://") {
			t.Fatalf("%+v claims one of our identities", c)
		}
	})
}
