package policy

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	p := parse(t, `
[methods]
"/acme.user.v1.UserService/GetUsr" = ["user:raed"]
"/acme.user.v1.UserService/DeleteUser" = ["admin"]
"/acme.usr.v1.UserService/ListUsers" = ["admin"]
"/acme.gone.v1.Gone/*" = ["admin"]
"/acme.hand.v1.Hand/Whatever" = ["admin"]
"/acme.stock.v1.Stock/Get" = ["admin"]
"/grpc.reflection.v1.ServerReflection/*" = ["public"]

[[method]]
match = "/acme.user.v1.UserService/Unlisted"
forward_authorization = true

[[grant]]
caller = "spiffe://example.org/client/a"
permissions = ["user:read", "admin"]

[[grant]]
apikey = "cli"
permissions = ["admin"]

[[grant]]
caller = "spiffe://other.org/client/a"
permissions = ["admin"]
via_proxy = ["dmz"]
via_gateway = ["east"]
`)
	inv := Inventory{
		Services: []ServiceMethods{
			{"acme.user.v1.UserService", []string{"GetUser", "DeleteUser", "ListUsers", "Unlisted"}},
			{"acme.hand.v1.Hand", nil},
			{"acme.stock.v1.*", nil},
			{"acme.quiet.v1.*", nil},
			{"grpc.health.v1.Health", []string{"Check"}},
		},
		TrustDomain: "example.org",
		Proxies:     []string{"dmz1"},
		Gateways:    []string{"east"},
		APIKeys:     []string{"ci"},
	}
	warnings, denied := p.CheckAll(inv)
	for _, want := range []string{
		`line 3: no announced service has /acme.user.v1.UserService/GetUsr; did you mean /acme.user.v1.UserService/GetUser?`,
		`line 3: no grant gives "user:raed", so nobody can call /acme.user.v1.UserService/GetUsr; did you mean "user:read"?`,
		`line 5: no announced service has /acme.usr.v1.UserService/ListUsers; did you mean /acme.user.v1.UserService/ListUsers?`,
		`line 6: no announced service has /acme.gone.v1.Gone/*`,
		`line 11: /acme.user.v1.UserService/Unlisted is treated here and has no row in [methods], so its calls are denied`,
		`line 15: no method needs "user:read", which is granted to spiffe://example.org/client/a; did you mean "user:raed"?`,
		`line 15: nobody's word is believed about spiffe://example.org/client/a, so nobody can use this grant; add via_proxy = ["NAME"]`,
		`line 19: there is no API key "cli" (did you mean "ci"?); 'sallyport apikey create cli' makes it`,
		`line 23: spiffe://other.org/client/a is not of the trust domain example.org, so no certificate of the embedded CA has this identity`,
		`line 23: there is no proxy "dmz" (did you mean "dmz1"?)`,
	} {
		if i := slices.Index(warnings, want); i < 0 {
			t.Errorf("missing: %s", want)
		} else {
			warnings = slices.Delete(warnings, i, i+1)
		}
	}
	if len(warnings) > 0 {
		t.Errorf("not expected:\n%s", strings.Join(warnings, "\n"))
	}
	if want := []string{"/acme.quiet.v1.*", "/acme.user.v1.UserService/GetUser", "/acme.user.v1.UserService/ListUsers", "/acme.user.v1.UserService/Unlisted"}; !slices.Equal(denied, want) {
		t.Errorf("denied %q, want %q", denied, want)
	}
}

// TestCheckWithoutInventory compares nothing with what is not known.
func TestCheckWithoutInventory(t *testing.T) {
	p := parse(t, "[methods]\n\"/a.B/C\" = [\"x\"]\n[[grant]]\napikey = \"ci\"\npermissions = [\"x\"]\n")
	if warnings, denied := p.Check(nil); len(warnings)+len(denied) > 0 {
		t.Errorf("%q %q", warnings, denied)
	}
	if warnings, _ := p.Check([]ServiceMethods{}); len(warnings) != 1 {
		t.Errorf("nothing is announced, and of one row: %q", warnings)
	}
}

func TestDefaultsHaveNoWarnings(t *testing.T) {
	demo := []ServiceMethods{{"sallyport.demo.v1.Echo", []string{"Say", "Count", "Gather", "Chat"}}}
	if warnings, denied := Default(true).Check(demo); len(warnings)+len(denied) > 0 {
		t.Errorf("%q %q", warnings, denied)
	}
	if warnings, denied := Default(false).Check([]ServiceMethods{}); len(warnings)+len(denied) > 0 {
		t.Errorf("%q %q", warnings, denied)
	}
}

// TestExample reads the sample that is shipped and compares it with the
// services that it is written for.
func TestExample(t *testing.T) {
	text, err := os.ReadFile("../../configs/examples/policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse("policy.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	warnings, denied := p.CheckAll(Inventory{
		Services: []ServiceMethods{
			{"acme.orders.v1.Orders", []string{"Get", "Create", "Delete", "Export", "Rebuild"}},
			{"acme.stock.v1.Stock", []string{"Get"}},
			{"acme.news.v1.News", []string{"List"}},
		},
		TrustDomain: "example.org", Proxies: []string{"dmz1"}, APIKeys: []string{"ci"},
	})
	if len(warnings)+len(denied) > 0 {
		t.Errorf("%q %q", warnings, denied)
	}
}
