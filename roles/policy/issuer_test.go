package policy

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const federated = `
[methods]
"/a.B/Read" = ["user:read", "admin"]
"/a.B/Write" = ["user:write"]
"/a.B/Drop" = ["admin"]

[[issuer]]
url = "https://login.example.org"
audience = "api.example.org"
permission_claims = ["permissions", "scope"]
may_grant = ["user:*"]

[[grant]]
caller = "https://login.example.org#anna"
permissions = ["admin"]
`

func TestTokenCallers(t *testing.T) {
	p := parse(t, federated)
	anna := Caller{Kind: Token, ID: "https://login.example.org#anna"}
	bert := Caller{Kind: Token, ID: "https://login.example.org#bert", Permissions: []string{"user:read"}}
	for _, c := range []struct {
		path   string
		caller Caller
		want   string
	}{
		{"/a.B/Drop", anna, ReasonGranted},
		{"/a.B/Read", anna, ReasonGranted},
		{"/a.B/Write", anna, ReasonNoPermission},
		{"/a.B/Read", bert, ReasonGranted},
		{"/a.B/Write", bert, ReasonNoPermission},
		{"/a.B/Drop", bert, ReasonNoPermission},
		// The same words from another kind of caller are not this caller.
		{"/a.B/Drop", Caller{Kind: Certificate, ID: anna.ID, ViaProxy: "dmz1"}, ReasonNoPermission},
		{"/a.B/Drop", Caller{Kind: APIKey, ID: anna.ID}, ReasonNoPermission},
	} {
		d := p.Decide(c.path, c.caller)
		if d.Reason != c.want || d.Allowed != (c.want == ReasonGranted) {
			t.Errorf("%s as %+v: %+v", c.path, c.caller, d)
		}
		if e := p.Explain(c.path, c.caller); e.Allowed != d.Allowed || d.Allowed && len(e.Deciding) == 0 {
			t.Errorf("%s as %+v: explained as %+v", c.path, c.caller, e)
		}
	}
	anna.Permissions = []string{"user:read"}
	if d := p.Decide("/a.B/Read", anna); !slices.Equal(d.Permissions, []string{"admin", "user:read"}) {
		t.Errorf("holds %q", d.Permissions)
	}
	if c, err := ParseCaller("https://login.example.org#anna", "", ""); err != nil || c.Kind != Token {
		t.Errorf("%+v, %v", c, err)
	}
	// A proxy's claim about a certificate is never a token's caller.
	if _, err := ParseClaim(escape(anna.ID)); err == nil {
		t.Error("a claim about a certificate made its bearer the caller of a token")
	}
}

func TestMayGrant(t *testing.T) {
	i := Issuer{MayGrant: []string{"user:*", "data:export"}}
	for word, want := range map[string]bool{"user:read": true, "user:": true, "data:export": true, "data:export2": false, "admin": false, "public": false,
		"user:a,b": false, "user:a b": false, "user:*": false, "": false, "user:\n": false} {
		if got := i.Grants(word); got != want {
			t.Errorf("%q: %v", word, got)
		}
	}
	if all := (&Issuer{MayGrant: []string{"*"}}); all.Grants("public") || !all.Grants("admin") {
		t.Error("an issuer makes methods public, or its * is no wildcard")
	}
}

// TestGatewaysLearnWhatTokensMayOpen: a row that only claims can satisfy is
// not closed at gateways.
func TestGatewaysLearnWhatTokensMayOpen(t *testing.T) {
	p := parse(t, federated)
	rules, err := NewRules(p.RulesFor([]string{"a.B"}))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"/a.B/Read": true, "/a.B/Write": true, "/a.B/Drop": true, "/a.B/Other": false} {
		if _, ok := rules.Match(path); ok != want {
			t.Errorf("%s: %v", path, ok)
		}
	}
}

func TestRefusedIssuersAndLimits(t *testing.T) {
	issuer := func(rest string) string {
		return "[[issuer]]\nurl = \"https://x.org\"\naudience = \"a\"\n" + rest
	}
	limit := func(rest string) string { return "[[limit]]\nmatch = \"/a.B/*\"\n" + rest }
	for text, want := range map[string]string{
		"[[issuer]]\nurl = \"https://x.org\"":                                                   "has a url, and an audience",
		"[[issuer]]\nurl = \"http://x.org\"\naudience = \"a\"":                                  "is not https",
		"[[issuer]]\nurl = \"https://x.org?a\"\naudience = \"a\"":                               "is no issuer",
		"[[issuer]]\nurl = \"https://x.org#a\"\naudience = \"a\"":                               "is no issuer",
		"[[issuer]]\nurl = \"https://u:p@x.org\"\naudience = \"a\"":                             "is no issuer",
		"[[issuer]]\nurl = \"https://x.org\"\naudience = \"\"":                                  "is no audience",
		issuer("may_grant = [\"x\"]"):                                                           "may_grant without permission_claims",
		issuer("permission_claims = [\"x\"]"):                                                   "permission_claims without may_grant",
		issuer("permission_claims = [\"x\"]\nmay_grant = [\"public\"]"):                         "no permission that one can hold",
		issuer("permission_claims = [\"x\"]\nmay_grant = [\"a*b\"]"):                            "wildcard",
		issuer("permission_claims = \"x\"\nmay_grant = [\"a\"]"):                                "is a list",
		issuer("jwks_file = \"keys.json\""):                                                     "path on core's host",
		issuer("jwks_fil = \"x\""):                                                              "did you mean jwks_file?",
		issuer("") + issuer(""):                                                                 "in line 1 already",
		"[[limit]]\nrate = \"1/s\"":                                                             "names no method",
		limit("rate = \"1/s\""):                                                                 "does not say whom",
		limit("per = \"method\"\nrate = \"1/s\""):                                               "nobody to count",
		limit("per = \"caller\""):                                                               "limits nothing",
		limit("per = \"caller\"\nrate = \"1\""):                                                 "is no rate",
		limit("per = \"caller\"\nrate = \"0/s\""):                                               "is no rate",
		limit("per = \"caller\"\nrate = \"1/d\""):                                               "is no rate",
		limit("per = \"caller\"\nrate = \"1/s\"\nburst = 0"):                                    "burst is a number",
		limit("per = \"caller\"\nrate = \"1/s\"\ncount = \"bytes\""):                            "nothing to count",
		limit("per = \"caller\"\nrate = \"1/s\"\n") + limit("per = \"caller\"\nrate = \"2/s\""): "in line 1 already",
		"[[grant]]\ncaller = \"https://x.org\"\npermissions = [\"a\"]":                          "names no subject",
		"[[grant]]\ncaller = \"http://x.org#a\"\npermissions = [\"a\"]":                         "is not https",
		"[[grant]]\ncaller = \"https://x.org#a\"\npermissions = [\"a\"]\nvia_proxy = [\"p\"]":   "core verifies a token itself",
	} {
		_, err := Parse("policy.toml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngives %v, want %q", text, err, want)
		}
	}
}

func TestLimitsOfAMethod(t *testing.T) {
	p := parse(t, `
[methods]
"/a.B/C" = ["x"]
[[limit]]
match = "/a.*"
per = "caller"
rate = "100/m"
[[limit]]
match = "/a.B/C"
per = "caller"
rate = "10/s"
burst = 20
[[limit]]
match = "/a.B/*"
per = "source"
rate = "1/h"
[[limit]]
match = "/a.B/*"
per = "caller"
count = "messages"
rate = "5/s"
[[method]]
match = "/a.B/*"
max_message = "64KiB"
max_deadline = "90s"
`)
	l := p.Limits("/a.B/C")
	if l == nil || l.CallsPerCaller.Match != "/a.B/C" || l.CallsPerCaller.Burst != 20 || l.CallsPerSource.Burst != 1 || l.MessagesPerCaller.Rate != 5 || l.MessagesPerSource != nil {
		t.Fatalf("%+v", l)
	}
	if l := p.Limits("/a.B/D"); l.CallsPerCaller.Match != "/a.*" || l.CallsPerSource == nil {
		t.Errorf("%+v", l)
	}
	if p.Limits("/b.B/C") != nil || p.Limits("//a.B/C") != nil {
		t.Error("limits of what no row covers")
	}
	d := p.Decide("/a.B/C", Caller{Kind: APIKey, ID: "apikey:x"})
	if want := (Treatment{MaxMessage: 64 << 10, MaxDeadline: 90 * time.Second}); d.Treatment != want || d.Limits != l {
		t.Errorf("%+v", d)
	}
	rules, err := NewRules(p.RulesFor([]string{"a.B"}))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := rules.Match("/a.B/C"); got != d.Treatment {
		t.Errorf("the gateway treats it as %+v", got)
	}
	for l, want := range map[*Limit]string{
		{Rate: 10}: "10 calls a second per caller", {Rate: 100.0 / 60, Messages: true}: "100 messages a minute per caller", {Rate: 1.0 / 3600, Source: true}: "1 call an hour per source address",
	} {
		if got := l.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestCheckOfIssuersAndLimits(t *testing.T) {
	p := parse(t, federated+`
[[issuer]]
url = "https://other.example.org"
audience = "x"
[[issuer]]
url = "https://third.example.org"
audience = "x"
permission_claims = ["scope"]
may_grant = ["usr:*", "*"]
[[grant]]
caller = "https://login.example.com#anna"
permissions = ["admin"]
[[limit]]
match = "/a.B/Raed"
per = "caller"
rate = "1/s"
`)
	warnings, _ := p.CheckAll(Inventory{Services: []ServiceMethods{{"a.B", []string{"Read", "Write", "Drop"}}}, TrustDomain: "x"})
	all := strings.Join(warnings, "\n")
	for _, want := range []string{
		"tokens of https://other.example.org are accepted and open nothing",
		`no method needs "usr:*"`,
		"https://third.example.org may grant every permission",
		`no [[issuer]] with url = "https://login.example.com" (did you mean "https://login.example.org"?)`,
		"no announced service has /a.B/Raed; did you mean /a.B/Read?",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "trust domain") || len(warnings) != 5 {
		t.Errorf("%d warnings:\n%s", len(warnings), all)
	}
}
