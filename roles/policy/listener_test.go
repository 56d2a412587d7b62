package policy

import (
	"strings"
	"testing"
)

const listenerPolicy = `
[methods]
"/a.S/Read"  = ["read"]
"/a.S/Write" = ["write"]
"/a.S/Open"  = ["public"]

[[grant]]
caller = "spiffe://example.org/gateway/shop"
permissions = ["read"]

[[grant]]
caller = "spiffe://example.org/gateway/shop"
listener = "batch"
permissions = ["write"]

[[grant]]
caller = "spiffe://example.org/gateway/till"
listener = "batch"
permissions = ["read"]
`

// TestListener: what is granted to a gateway holds by each of its listeners, what
// is granted to one of them by that one alone, with the rest.
func TestListener(t *testing.T) {
	p, err := Parse("test", []byte(listenerPolicy))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		gateway, listener, method string
		reason                    string
		holds                     string
	}{
		{"shop", "", "Read", ReasonGranted, "read"},
		{"shop", "", "Write", ReasonNoPermission, "read"},
		{"shop", "batch", "Read", ReasonGranted, "read,write"},
		{"shop", "batch", "Write", ReasonGranted, "read,write"},
		{"shop", "other", "Read", ReasonGranted, "read"},
		{"shop", "other", "Write", ReasonNoPermission, "read"},
		{"till", "batch", "Read", ReasonGranted, "read"},
		{"till", "", "Read", ReasonListener, ""},
		{"till", "other", "Read", ReasonListener, ""},
		{"till", "other", "Open", ReasonPublic, ""},
		{"none", "batch", "Read", ReasonNoPermission, ""},
	} {
		caller := CallerGateway("spiffe://example.org/gateway/"+c.gateway, c.listener)
		d := p.Decide("/a.S/"+c.method, caller)
		if d.Reason != c.reason || d.Allowed != (c.reason == ReasonGranted || c.reason == ReasonPublic) || strings.Join(d.Permissions, ",") != c.holds {
			t.Errorf("%s by %q, %s: %s, holds %q; want %s, %q", c.gateway, c.listener, c.method, d.Reason, d.Permissions, c.reason, c.holds)
		}
		parsed, err := ParseCaller(caller.Name(), "", "")
		if err != nil || parsed.ID != caller.ID || parsed.Listener != caller.Listener || parsed.Kind != Gateway {
			t.Errorf("ParseCaller(%q) = %+v, %v", caller.Name(), parsed, err)
		}
		if e := p.Explain("/a.S/"+c.method, caller); e.Allowed != d.Allowed || d.Reason == ReasonGranted && len(e.Deciding) != 1 {
			t.Errorf("explained: %+v", e)
		}
	}
	// A certificate that says it is the gateway is not it.
	if d := p.Decide("/a.S/Read", Caller{Kind: Certificate, ID: "spiffe://example.org/gateway/shop", ViaProxy: "dmz1"}); d.Allowed {
		t.Error("a certificate passed for a gateway")
	}
	for text, words := range map[string]string{
		"caller = \"spiffe://example.org/client/x\"\nlistener = \"batch\"": "this caller is none",
		"apikey = \"ci\"\nlistener = \"batch\"":                            "this caller is none",
		"caller = \"spiffe://example.org/gateway/x\"\nlistener = \"A B\"":  "no label",
		"caller = \"spiffe://example.org/gateway/x\"\nlistener = 7":        "is a text",
	} {
		if _, err := Parse("test", []byte("[[grant]]\npermissions = [\"p\"]\n"+text+"\n")); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
	for _, bad := range []string{"spiffe://example.org/client/x;listener=batch", "spiffe://example.org/gateway/x;listener=", "apikey:ci;listener=batch", "anonymous;listener=a"} {
		if c, err := ParseCaller(bad, "", ""); err == nil {
			t.Errorf("ParseCaller(%q) = %+v", bad, c)
		}
	}
}
