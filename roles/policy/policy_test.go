package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"sallyport/roles/control"
)

const sample = `
[methods]
"/acme.user.v1.UserService/GetUser"    = ["user:read", "admin"]
"/acme.user.v1.UserService/DeleteUser" = ["admin"]
"/acme.data.v1.DataService/*"          = ["data:export", "admin"]
"/acme.data.v1.DataService/Status"     = ["status"]
"/acme.data.v1.DataService/Internal"   = []
"/acme.news.v1.News/List"              = ["public"]
"/acme.wide.*"                         = ["wide"]
"/acme.wide.deep.*"                    = ["deep"]
"/Bare/Call"                           = ["bare"]

[[method]]
match = "/acme.data.v1.DataService/*"
forward_authorization = true

[[method]]
match = "/acme.data.v1.DataService/Small"

[[grant]]
caller = "spiffe://example.org/client/billing"
permissions = ["user:read"]
via_proxy = ["dmz1"]

[[grant]]
caller = "spiffe://example.org/client/billing"
permissions = ["data:export"]
via_proxy = ["dmz1", "dmz2"]
via_gateway = ["east"]

[[grant]]
apikey = "ci"
permissions = ["wide", "status"]

[[grant]]
caller = "cn:grpc-client"
client_ca = "partner"
permissions = ["deep"]
via_proxy = ["dmz1"]

[[grant]]
caller = "spiffe://example.org/client/nobody"
permissions = ["admin"]

[[grant]]
caller = "spiffe://example.org/gateway/east"
permissions = ["wide"]

[[grant]]
caller = "spiffe://example.org/client/billing"
client_ca = "partner"
permissions = ["bare"]
via_proxy = ["dmz1"]
`

func parse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse("policy.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	billing  = Caller{Kind: Certificate, ID: "spiffe://example.org/client/billing", ViaProxy: "dmz1"}
	ci       = Caller{Kind: APIKey, ID: "apikey:ci"}
	nobody   = Caller{Kind: Certificate, ID: "spiffe://example.org/client/nobody", ViaProxy: "dmz1"}
	stranger = Caller{Kind: Certificate, ID: "spiffe://example.org/client/stranger", ViaProxy: "dmz1"}
)

func with(c Caller, change func(*Caller)) Caller { change(&c); return c }

func TestDecide(t *testing.T) {
	p := parse(t, sample)
	dmz2 := with(billing, func(c *Caller) { c.ViaProxy = "dmz2" })
	for _, c := range []struct {
		path   string
		caller Caller
		code   codes.Code
		reason string
		row    string
	}{
		{"/acme.user.v1.UserService/GetUser", billing, codes.OK, ReasonGranted, "/acme.user.v1.UserService/GetUser"},
		{"/acme.user.v1.UserService/GetUser", dmz2, codes.PermissionDenied, ReasonNoPermission, "/acme.user.v1.UserService/GetUser"},
		{"/acme.user.v1.UserService/GetUser", with(billing, func(c *Caller) { c.ViaProxy = "dmz3" }), codes.PermissionDenied, ReasonNotBelieved, "/acme.user.v1.UserService/GetUser"},
		{"/acme.user.v1.UserService/GetUser", with(billing, func(c *Caller) { c.ViaProxy = "" }), codes.PermissionDenied, ReasonNotBelieved, "/acme.user.v1.UserService/GetUser"},
		{"/acme.user.v1.UserService/DeleteUser", billing, codes.PermissionDenied, ReasonNoPermission, "/acme.user.v1.UserService/DeleteUser"},
		{"/acme.user.v1.UserService/Other", billing, codes.PermissionDenied, ReasonNoRow, ""},
		{"/acme.user.v1.UserService/Other", Caller{}, codes.Unauthenticated, ReasonNoRow, ""},
		{"/acme.user.v1.UserService/GetUser", Caller{}, codes.Unauthenticated, ReasonNoCredentials, "/acme.user.v1.UserService/GetUser"},

		// The word of a proxy is no word of a gateway, and the other way round.
		{"/acme.data.v1.DataService/Get", dmz2, codes.OK, ReasonGranted, "/acme.data.v1.DataService/*"},
		{"/acme.data.v1.DataService/Get", with(billing, func(c *Caller) { c.ViaProxy = "east" }), codes.PermissionDenied, ReasonNotBelieved, "/acme.data.v1.DataService/*"},
		{"/acme.data.v1.DataService/Get", with(billing, func(c *Caller) { c.ViaProxy, c.ViaGateway = "", "east" }), codes.OK, ReasonGranted, "/acme.data.v1.DataService/*"},
		{"/acme.data.v1.DataService/Get", with(billing, func(c *Caller) { c.ViaProxy, c.ViaGateway = "", "dmz1" }), codes.PermissionDenied, ReasonNotBelieved, "/acme.data.v1.DataService/*"},

		// The most specific row decides alone.
		{"/acme.data.v1.DataService/Status", billing, codes.PermissionDenied, ReasonNoPermission, "/acme.data.v1.DataService/Status"},
		{"/acme.data.v1.DataService/Status", ci, codes.OK, ReasonGranted, "/acme.data.v1.DataService/Status"},
		{"/acme.data.v1.DataService/Internal", billing, codes.PermissionDenied, ReasonClosed, "/acme.data.v1.DataService/Internal"},
		{"/acme.wide.A/M", ci, codes.OK, ReasonGranted, "/acme.wide.*"},
		{"/acme.wide.other.A/M", ci, codes.OK, ReasonGranted, "/acme.wide.*"},
		{"/acme.wide.deep.A/M", ci, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.deep.*"},
		{"/acme.wide.deep.er.A/M", ci, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.deep.*"},
		{"/acme.wideA/M", ci, codes.PermissionDenied, ReasonNoRow, ""},
		{"/acme.wide/M", ci, codes.PermissionDenied, ReasonNoRow, ""},

		// Public, with and without credentials.
		{"/acme.news.v1.News/List", Caller{}, codes.OK, ReasonPublic, "/acme.news.v1.News/List"},
		{"/acme.news.v1.News/List", stranger, codes.OK, ReasonPublic, "/acme.news.v1.News/List"},
		{"/grpc.health.v1.Health/Check", Caller{}, codes.OK, ReasonPublic, "/grpc.health.v1.Health/*"},
		{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Caller{}, codes.OK, ReasonPublic, "/grpc.reflection.v1.ServerReflection/*"},

		// A grant without via is nobody's.
		{"/acme.user.v1.UserService/DeleteUser", nobody, codes.PermissionDenied, ReasonNotBelieved, "/acme.user.v1.UserService/DeleteUser"},

		// Identities belong to their CA and to their kind of proof.
		{"/acme.wide.deep.A/M", Caller{Kind: Certificate, ID: "cn:grpc-client", ClientCA: "partner", ViaProxy: "dmz1"}, codes.OK, ReasonGranted, "/acme.wide.deep.*"},
		{"/acme.wide.deep.A/M", Caller{Kind: Certificate, ID: "cn:grpc-client", ViaProxy: "dmz1"}, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.deep.*"},
		{"/acme.wide.deep.A/M", Caller{Kind: Certificate, ID: "cn:grpc-client", ClientCA: "other", ViaProxy: "dmz1"}, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.deep.*"},
		{"/acme.user.v1.UserService/GetUser", with(billing, func(c *Caller) { c.ClientCA = "partner" }), codes.PermissionDenied, ReasonNoPermission, "/acme.user.v1.UserService/GetUser"},
		{"/Bare/Call", with(billing, func(c *Caller) { c.ClientCA = "partner" }), codes.OK, ReasonGranted, "/Bare/Call"},
		{"/Bare/Call", billing, codes.PermissionDenied, ReasonNoPermission, "/Bare/Call"},
		{"/acme.wide.A/M", Caller{Kind: Certificate, ID: "apikey:ci", ViaProxy: "dmz1"}, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.*"},
		{"/acme.wide.A/M", Caller{Kind: Certificate, ID: "spiffe://example.org/gateway/east", ViaProxy: "dmz1"}, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.*"},
		{"/acme.wide.A/M", Caller{Kind: Gateway, ID: "spiffe://example.org/gateway/east"}, codes.OK, ReasonGranted, "/acme.wide.*"},
		{"/acme.user.v1.UserService/GetUser", Caller{Kind: APIKey, ID: billing.ID}, codes.PermissionDenied, ReasonNoPermission, "/acme.user.v1.UserService/GetUser"},
		{"/acme.wide.A/M", Caller{Kind: Token, ID: "x", Permissions: []string{"wide"}}, codes.OK, ReasonGranted, "/acme.wide.*"},
		{"/acme.wide.A/M", Caller{Kind: Token, ID: "apikey:ci", Permissions: []string{"narrow"}}, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.*"},
		{"/acme.data.v1.DataService/Internal", Caller{Kind: Token, ID: "x", Permissions: []string{""}}, codes.PermissionDenied, ReasonClosed, "/acme.data.v1.DataService/Internal"},
		{"/acme.wide.A/M", Caller{Kind: 77, ID: "apikey:ci"}, codes.PermissionDenied, ReasonNoPermission, "/acme.wide.*"},
	} {
		d := p.Decide(c.path, c.caller)
		if d.Code != c.code || d.Allowed != (c.code == codes.OK) || d.Reason != c.reason || d.Row != c.row {
			t.Errorf("%s by %+v:\n got %v %s %q, want %v %s %q", c.path, c.caller, d.Code, d.Reason, d.Row, c.code, c.reason, c.row)
		}
	}
}

func TestDecisionCarriesWhatIsHeld(t *testing.T) {
	p := parse(t, sample)
	d := p.Decide("/acme.data.v1.DataService/Get", billing)
	if !slices.Equal(d.Permissions, []string{"data:export", "user:read"}) || len(d.Grants) != 2 || !strings.Contains(d.Grants[0], "(line ") {
		t.Errorf("%q %q", d.Permissions, d.Grants)
	}
	if want := (Treatment{ForwardAuthorization: true}); d.Treatment != want {
		t.Errorf("%+v, want %+v", d.Treatment, want)
	}
	// The most specific [[method]] counts alone as well, and where a row and
	// a [[method]] have different patterns each finds its own.
	d = p.Decide("/acme.data.v1.DataService/Small", billing)
	if !d.Allowed || d.Row != "/acme.data.v1.DataService/*" || d.Treatment != (Treatment{}) {
		t.Errorf("%+v", d)
	}
	if d = p.Decide("/acme.data.v1.DataService/Status", ci); !d.Treatment.ForwardAuthorization {
		t.Errorf("a row of its own took the treatment of its service away: %+v", d)
	}
	if d = p.Decide("/acme.news.v1.News/List", ci); !slices.Equal(d.Permissions, []string{"status", "wide"}) {
		t.Errorf("a public method is called by somebody known: %+v", d)
	}
}

// tricks are spellings that are not the method they resemble.
func tricks(path string) []string {
	service, method, _ := strings.Cut(path[1:], "/")
	return []string{
		"/" + path, path + "/", "//" + service + "//" + method, path[1:], service + "." + method,
		strings.ToLower(path), strings.ToUpper(path), path + "?x=1", path + "#x", path + ";x", path + " ", " " + path, path + "\x00", path + "%00", path + "\n",
		strings.Replace(path, ".", "%2E", 1), strings.Replace(path, "/"+method, "%2F"+method, 1), strings.Replace(path, "/"+method, "\\"+method, 1),
		"/./" + path[1:], "/../" + path[1:], "/x/.." + path, "/" + service + "/./" + method, "/" + service + "/../" + service + "/" + method,
		"/" + service + "./" + method, "/." + service + "/" + method, "/" + strings.Replace(service, ".", "..", 1) + "/" + method,
		"/" + service + "/*", "/" + service + "/", "/*", "/" + service, "*", "", "/", "//", "/" + service + "/" + method + "/" + method,
		"http://localhost" + path, "/" + service + "/" + strings.Replace(method, "i", "\u0456", 1), "/" + service + "/" + method + "\u200b",
		"/" + service + "/%" + fmt.Sprintf("%02x", method[0]) + method[1:], "/" + service + "/1" + method, "/" + service + "/-" + method,
	}
}

// TestTrickedNamesNeverMatch proves that no other spelling of a method finds
// its row, at any of the three places that look rows up.
func TestTrickedNamesNeverMatch(t *testing.T) {
	const path = "/acme.news.v1.News/List"
	p := parse(t, "[methods]\n\""+path+"\" = [\"public\"]\n\"/Acme.*\" = [\"public\"]\n")
	exact := parse(t, "[methods]\n\""+path+"\" = [\"public\"]\n\"/acme.news.v1.News/*\" = []\n")
	rules, err := NewRules(p.RulesFor([]string{"acme.*"}))
	if err != nil {
		t.Fatal(err)
	}
	ceiling, err := ParsePatterns([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := rules.Match(path); !ok || !ceiling.Match(path) || !p.Decide(path, Caller{}).Allowed {
		t.Fatal("the method itself is not allowed")
	}
	for _, s := range tricks(path) {
		if p.Decide(s, Caller{}).Allowed || exact.Decide(s, Caller{}).Allowed {
			t.Errorf("%q is allowed", s)
		}
		if _, ok := rules.Match(s); ok {
			t.Errorf("%q is allowed by the gateway's rules", s)
		}
		if ceiling.Match(s) {
			t.Errorf("%q is under the ceiling", s)
		}
	}
	none, err := ParsePatterns(nil)
	if err != nil || !none.Match(path) || none.Match("//"+path) {
		t.Error("no ceiling lets every method through, and nothing else")
	}
}

// TestMessagesRevealNothing compares what callers read of methods that are in
// the table and of methods that are not.
func TestMessagesRevealNothing(t *testing.T) {
	p := parse(t, sample)
	for _, c := range []Caller{{}, billing, ci, stranger, nobody} {
		unknown := p.Decide("/no.Such/Method", c)
		for _, path := range []string{"/acme.user.v1.UserService/DeleteUser", "/acme.data.v1.DataService/Internal"} {
			d := p.Decide(path, c)
			if d.Allowed || d.Code != unknown.Code || d.Message != unknown.Message || d.Message == "" {
				t.Errorf("%s by %+v: %v %q; a method that is not there gives %v %q", path, c, d.Code, d.Message, unknown.Code, unknown.Message)
			}
			for _, secret := range []string{"admin", "user:read", "acme", "dmz", "line"} {
				if strings.Contains(d.Message, secret) {
					t.Errorf("%q reveals %q", d.Message, secret)
				}
			}
		}
	}
}

func TestMostSpecificRowAgainstAScan(t *testing.T) {
	// Every pattern over a small alphabet, each subset chosen by the bits of n.
	patterns := []string{"/a.*", "/a.b.*", "/a.b.c.*", "/a.S/*", "/a.b.S/*", "/a.b.S/M", "/a.b.c.S/M", "/a.b.c.S/*", "/S/*", "/S/M"}
	var paths []string
	for _, s := range []string{"S", "a.S", "a.b.S", "a.b.c.S", "a.b.c.d.S", "a.b", "b.S", "a.b.c", "ab.S"} {
		paths = append(paths, "/"+s+"/M", "/"+s+"/N")
	}
	for n := range 1 << len(patterns) {
		var text strings.Builder
		text.WriteString("[methods]\n")
		var chosen []string
		for i, pattern := range patterns {
			if n>>i&1 == 1 {
				chosen = append(chosen, pattern)
				fmt.Fprintf(&text, "%q = [\"public\"]\n", pattern)
			}
		}
		p := parse(t, text.String())
		for _, path := range paths {
			want := "" // the longest that covers is the most specific
			for _, pattern := range chosen {
				prefix, wild := strings.CutSuffix(pattern, "*")
				if (path == pattern || wild && strings.HasPrefix(path, prefix)) && len(prefix) > len(strings.TrimSuffix(want, "*")) {
					want = pattern
				}
			}
			if got := p.Decide(path, Caller{}).Row; got != want {
				t.Fatalf("%s under %v: row %q, want %q", path, chosen, got, want)
			}
		}
	}
}

func TestRefusedFiles(t *testing.T) {
	for text, want := range map[string][]string{
		"x = 1":                                                                                  {"policy.toml:1:1", "unknown key x"},
		"[method]\nmatch = \"/a.B/C\"":                                                           {":1:2", "write [[method]]"},
		"[[methods]]":                                                                            {"write [methods]"},
		"[[grants]]":                                                                             {"did you mean grant?"},
		"[methods]\n\"acme.A/B\" = [\"x\"]":                                                      {":2:1", "begin with a slash"},
		"[methods]\n\"/*\" = [\"x\"]":                                                            {"every method"},
		"[methods]\n\"/a.B/C*\" = [\"x\"]":                                                       {"is no method name"},
		"[methods]\n\"/a.B/C/\" = [\"x\"]":                                                       {"is no method name"},
		"[methods]\n\"/a%2eB/C\" = [\"x\"]":                                                      {"is no service name"},
		"[methods]\n\"/a.B/C\" = \"x\"":                                                          {":2:12", "in brackets"},
		"[methods]\n\"/a.B/C\" = [7]":                                                            {"in quotes"},
		"[methods]\n\"/a.B/C\" = [\"a,b\"]":                                                      {"is no permission"},
		"[methods]\n\"/a.B/C\" = [\"user:*\"]":                                                   {"wildcard"},
		"[methods]\n\"/a.B/C\" = [\"\"]":                                                         {"is no permission"},
		"[methods]\n\"/a.B/C\" = [\"x\", \"x\"]":                                                 {"twice"},
		"[methods]\n\"/a.B/C\" = [\"public\", \"x\"]":                                            {`["public"] alone`},
		"[methods]\n\"/a.B/C\" = [\"x\"]\n\"/a.B/C\" = [\"y\"]":                                  {"policy.toml:3"},
		"[[method]]\nmatch = \"/a.B/C\"\nmax_message = \"16 MB\"":                                {":3:15", "is no size of a message"},
		"[[method]]\nmatch = \"/a.B/C\"\nmax_message = \"4GiB\"":                                 {"is no size of a message"},
		"[[method]]\nmatch = \"/a.B/C\"\nmax_message = 5":                                        {"write it in quotes"},
		"[[method]]\nmatch = \"/a.B/C\"\nmax_deadline = \"5\"":                                   {"is no deadline"},
		"[[method]]\nmatch = \"/a.B/C\"\nmax_deadline = \"-5s\"":                                 {"is no deadline"},
		"[[method]]\nforward_authorization = true":                                               {"names no method"},
		"[[method]]\nmatch = \"/a.B/C\"\nforward_authorization = \"no\"":                         {"without quotes"},
		"[[method]]\nmatch = \"/a.B/C\"\nforward_auth = true":                                    {"unknown key forward_auth"},
		"[[method]]\nmatch = \"/a.B/C\"\n[[method]]\nmatch = \"/a.B/C\"":                         {":4:9", "line 1 already"},
		"[[grant]]\npermissions = [\"x\"]":                                                       {"names one caller"},
		"[[grant]]\ncaller = \"spiffe://x/client/a\"\napikey = \"b\"":                            {"names one caller"},
		"[[grant]]\ncaller = \"spiffe://x/client/a\"":                                            {"gives nothing"},
		"[[grant]]\napikey = \"ci\"\npermissions = []":                                           {"gives nothing"},
		"[[grant]]\napikey = \"ci\"\npermissions = [\"public\"]":                                 {"no permission that one can hold"},
		"[[grant]]\napikey = \"ci\"\npermissions = [\"x\"]\nvia_proxy = [\"a\"]":                 {"itself"},
		"[[grant]]\napikey = \"ci\"\npermissions = [\"x\"]\nclient_ca = \"a\"":                   {"concerns certificates"},
		"[[grant]]\ncaller = \"apikey:ci\"\npermissions = [\"x\"]":                               {`apikey = "ci"`},
		"[[grant]]\ncaller = \"billing\"\npermissions = [\"x\"]":                                 {"is no caller"},
		"[[grant]]\ncaller = \"spiffe://x\"\npermissions = [\"x\"]":                              {"is no caller"},
		"[[grant]]\ncaller = \"spiffe://x/client//a\"\npermissions = [\"x\"]":                    {"is no caller"},
		"[[grant]]\ncaller = \"spiffe://x/core/a\"\npermissions = [\"x\"]":                       {"makes no calls"},
		"[[grant]]\ncaller = \"spiffe://x/proxy/a\"\npermissions = [\"x\"]":                      {"makes no calls"},
		"[[grant]]\ncaller = \"cn:x\"\npermissions = [\"x\"]":                                    {"add client_ca"},
		"[[grant]]\ncaller = \"cn:x\"\nclient_ca = \"A B\"\npermissions = [\"x\"]":               {"no name of a client CA"},
		"[[grant]]\ncaller = \"spiffe://x/client/a\"\npermissions=[\"x\"]\nvia_proxy=\"a\"":      {"is a list"},
		"[[grant]]\ncaller = \"spiffe://x/client/a\"\npermissions=[\"x\"]\nvia_proxi=[\"a\"]":    {"did you mean via_proxy?"},
		"[[grant]]\ncaller = \"spiffe://x/client/a\"\npermissions=[\"x\"]\nvia_proxy=[\"*\"]":    {"no name of a component"},
		"[[grant]]\ncaller = \"spiffe://x/gateway/a\"\npermissions=[\"x\"]\nvia_gateway=[\"a\"]": {"itself"},
	} {
		_, err := Parse("policy.toml", []byte(text))
		if err == nil {
			t.Errorf("accepted: %s", text)
			continue
		}
		for _, w := range append(want, "policy.toml:") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q is missing in: %v", w, err)
			}
		}
	}
}

func TestDefault(t *testing.T) {
	const echo, reflection = "/sallyport.demo.v1.Echo/Say", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	for _, demo := range []bool{true, false} {
		p := Default(demo)
		for path, want := range map[string]bool{echo: demo, reflection: true, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": true,
			"/grpc.health.v1.Health/Check": true, "/acme.A/B": false} {
			if p.Decide(path, Caller{}).Allowed != want {
				t.Errorf("demo %v: %s is allowed: %v", demo, path, !want)
			}
		}
		if again, err := Parse("x", p.Text()); err != nil || !reflect.DeepEqual(again.RulesFor([]string{"sallyport.*"}), p.RulesFor([]string{"sallyport.*"})) {
			t.Errorf("the text of the default does not parse as itself: %v", err)
		}
	}
}

func TestHealthCanBeClosed(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                     true,
		"[methods]\n\"/grpc.*\" = [\"admin\"]": true, // the built-in row is more specific
		"[methods]\n\"/grpc.health.v1.Health/*\" = [\"admin\"]":     false,
		"[methods]\n\"/grpc.health.v1.Health/Check\" = [\"admin\"]": false,
		"[methods]\n\"/grpc.health.v1.Health/Watch\" = [\"admin\"]": true,
	} {
		if got := parse(t, text).Decide("/grpc.health.v1.Health/Check", Caller{}).Allowed; got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestReflectionCanBeClosed(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                       true,
		"[methods]\n\"/grpc.*\" = [\"admin\"]":   false,
		"[methods]\n\"/grpc.reflection.*\" = []": false,
		"[methods]\n\"/grpc.reflection.v1.ServerReflection/*\" = [\"admin\"]":                    false,
		"[methods]\n\"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo\" = [\"admin\"]": false,
		"[methods]\n\"/grpc.reflection.v1alpha.*\" = [\"admin\"]":                                true,
	} {
		if got := parse(t, text).Decide("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Caller{}).Allowed; got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestRulesFor(t *testing.T) {
	p := parse(t, sample)
	match := func(services ...string) (list []string) {
		for _, r := range p.RulesFor(services) {
			list = append(list, r.Match)
		}
		return list
	}
	if got, want := match("acme.user.v1.UserService"), []string{"/acme.user.v1.UserService/DeleteUser", "/acme.user.v1.UserService/GetUser"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got, want := match("acme.wide.deep.A"), []string{"/acme.wide.*", "/acme.wide.deep.*"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := match("acme.data.*"); len(got) != 4 {
		t.Errorf("%q", got)
	}
	if got := match("acme.wide.deep.er.*"); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if got := match(); got != nil {
		t.Errorf("%q", got)
	}
	if got := match("acme.w.A"); got != nil {
		t.Errorf("%q", got)
	}

	// The slice decides as the whole does, for what somebody may call.
	rules, err := NewRules(p.RulesFor([]string{"acme.data.v1.DataService", "acme.news.v1.News", "acme.wide.*"}))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/acme.data.v1.DataService/Get": true, "/acme.data.v1.DataService/Internal": false, "/acme.news.v1.News/List": true,
		"/acme.news.v1.News/Other": false, "/acme.wide.deep.A/B": true, "/acme.user.v1.UserService/GetUser": false,
	} {
		treatment, got := rules.Match(path)
		if got != want {
			t.Errorf("%s: %v", path, got)
		}
		if d := p.Decide(path, billing); want && treatment != d.Treatment {
			t.Errorf("%s: %+v, want %+v", path, treatment, d.Treatment)
		}
	}
	held := parse(t, "[methods]\n\"/a.B/C\" = [\"unheld\"]\n")
	if r := held.RulesFor([]string{"a.B"}); len(r) != 1 || r[0].Allow {
		t.Errorf("a method that nobody can call is allowed at the gateway: %v", r)
	}
	var none *Rules
	if _, ok := none.Match("/a.B/C"); ok {
		t.Error("a gateway without rules lets calls through")
	}
	if _, err := NewRules([]*control.MethodRule{{Match: "/*", Allow: true}}); err == nil {
		t.Error("a rule for everything is accepted")
	}
}

func TestExplain(t *testing.T) {
	p := parse(t, sample)
	e := p.Explain("/acme.data.v1.DataService/Get", with(billing, func(c *Caller) { c.ViaProxy = "" }))
	if !e.Allowed || !slices.Equal(e.Via, []string{"gateway:east", "proxy:dmz1", "proxy:dmz2"}) || len(e.Deciding) != 1 ||
		!slices.Equal(e.Needs, []string{"data:export", "admin"}) || !slices.Equal(e.Holds, []string{"data:export", "user:read"}) {
		t.Errorf("%+v", e)
	}
	if e = p.Explain("/acme.user.v1.UserService/GetUser", with(billing, func(c *Caller) { c.ViaProxy = "dmz2" })); e.Allowed || !slices.Equal(e.Via, []string{"proxy:dmz1"}) {
		t.Errorf("%+v", e)
	}
	if e = p.Explain("/acme.user.v1.UserService/DeleteUser", with(nobody, func(c *Caller) { c.ViaProxy = "" })); e.Allowed || e.Reason != ReasonNotBelieved || len(e.Deciding) != 1 || len(e.Holds) != 0 {
		t.Errorf("%+v", e)
	}
	if e = p.Explain("/grpc.health.v1.Health/Check", Caller{}); !e.Allowed || !e.BuiltIn {
		t.Errorf("%+v", e)
	}
	if e = p.Explain("/a//b", ci); e.Allowed || e.Reason != ReasonMalformed {
		t.Errorf("%+v", e)
	}
}

func TestParseCaller(t *testing.T) {
	for _, c := range []struct {
		caller, ca, via string
		want            Caller
	}{
		{"anonymous", "", "", Caller{}},
		{"apikey:ci", "", "proxy:dmz1", Caller{Kind: APIKey, ID: "apikey:ci", ViaProxy: "dmz1"}},
		{"spiffe://x/client/a", "", "gateway:e", Caller{Kind: Certificate, ID: "spiffe://x/client/a", ViaGateway: "e"}},
		{"spiffe://x/gateway/a", "", "", Caller{Kind: Gateway, ID: "spiffe://x/gateway/a"}},
		{"cn:x", "partner", "", Caller{Kind: Certificate, ID: "cn:x", ClientCA: "partner"}},
	} {
		if got, err := ParseCaller(c.caller, c.ca, c.via); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: %+v %v", c, got, err)
		}
	}
	for _, c := range [][3]string{{"bob", "", ""}, {"cn:x", "", ""}, {"apikey:", "", ""}, {"anonymous", "", "dmz1"}, {"anonymous", "", "core:x"}} {
		if got, err := ParseCaller(c[0], c[1], c[2]); err == nil {
			t.Errorf("%q: %+v", c, got)
		}
	}
}
