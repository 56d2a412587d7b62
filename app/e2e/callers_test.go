package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const callersPolicy = `
[methods]
"/sallyport.demo.v1.Echo/Say"    = ["echo:say"]
"/sallyport.demo.v1.Echo/Count"  = ["echo:count"]

[[grant]]
apikey = "ci"
permissions = ["echo:say"]

[[grant]]
caller = "spiffe://sallyport.internal/client/billing"
permissions = ["echo:say", "echo:count"]
via_proxy = ["dmz1"]

[[grant]]
caller = "spiffe://sallyport.internal/client/elsewhere"
permissions = ["echo:say"]
via_proxy = ["dmz2"]
`

// TestCallers: who may call what, by API key and by client certificate, as a
// user types it.
func TestCallers(t *testing.T) {
	d := deploy(t, callersPolicy)
	d.addGateway("office", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "office")
	key := strings.TrimSpace(run(t, d.coreEnv, "apikey", "create", "ci"))
	keyFile := filepath.Join(d.dir, "ci.key")
	if err := os.WriteFile(keyFile, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	certificate := func(name string) []string {
		cert, keyPath, _ := d.issue(name, "--client")
		return []string{"--cert", cert, "--key", keyPath}
	}
	byKey := []string{"--api-key-file", keyFile}
	billing, elsewhere, nobody := certificate("billing"), certificate("elsewhere"), certificate("nobody")
	const say, count = "sallyport.demo.v1.Echo/Say", "sallyport.demo.v1.Echo/Count"

	for _, c := range []struct {
		name   string
		as     []string
		method string
		want   string // part of the output, or of the error
	}{
		{"key may say", byKey, say, `"caller": "apikey:ci"`},
		{"key may not count", byKey, count, "PERMISSION_DENIED"},
		{"certificate may say", billing, say, `"caller": "spiffe://sallyport.internal/client/billing"`},
		{"certificate may count", billing, count, `"text"`},
		{"another proxy's word", elsewhere, say, "PERMISSION_DENIED"},
		{"certificate without grant", nobody, say, "PERMISSION_DENIED"},
		{"nobody", nil, say, "UNAUTHENTICATED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := `{"text":"hello"}`
			if c.method == count {
				body = `{"to":2}`
			}
			eventually(t, 5*time.Second, c.name, func() error { // the key travels to the proxy
				out, err := d.call(append(append([]string{}, c.as...), c.method, body)...)
				if err != nil {
					out += err.Error()
				}
				if !strings.Contains(out, c.want) {
					return fmt.Errorf("%s", out)
				}
				return nil
			})
		})
	}

	t.Run("reflection shows what the caller may call", func(t *testing.T) {
		for _, as := range [][]string{byKey, billing} {
			out, err := d.call(append(append([]string{}, as...), "--list")...)
			if err != nil || !strings.Contains(out, "sallyport.demo.v1.Echo") {
				t.Errorf("%v: %s %v", as, out, err)
			}
		}
		out, err := d.call(append(append([]string{}, nobody...), "--list")...)
		if strings.Contains(out, "sallyport.demo") {
			t.Errorf("a caller without permissions sees %s (%v)", out, err)
		}
	})

	t.Run("denials are logged and audited", func(t *testing.T) {
		waitLog(t, d.proxy, "/sallyport.demo.v1.Echo/Count", "apikey:ci", "PERMISSION_DENIED")
	})

	t.Run("a revoked key is refused", func(t *testing.T) {
		run(t, d.coreEnv, "apikey", "revoke", "ci")
		eventually(t, 2*time.Second, "the key is worthless", func() error {
			out, err := d.call(append(append([]string{}, byKey...), say, `{}`)...)
			if err == nil || !strings.Contains(err.Error(), "UNAUTHENTICATED") {
				return fmt.Errorf("%s %v", out, err)
			}
			return nil
		})
	})

	t.Run("the audit chain holds", func(t *testing.T) {
		out := run(t, d.coreEnv, "audit", "ls", "--json")
		var list struct {
			Verified bool
			Rows     []struct{ Action, Subject string }
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		if !list.Verified {
			t.Errorf("not verified: %s", out)
		}
		for _, want := range []string{"apikey.revoke", "component.join", "policy.apply", "certificate.issue"} {
			found := false
			for _, r := range list.Rows {
				found = found || r.Action == want
			}
			if !found {
				t.Errorf("no %s in %s", want, out)
			}
		}
	})
}

// TestPolicyChanges: what is not listed is closed, a typo is reported, and
// a change counts at once.
func TestPolicyChanges(t *testing.T) {
	d := deploy(t, "")
	d.addGateway("office", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "office")
	const say = "/sallyport.demo.v1.Echo/Say"
	if out, err := d.call(strings.TrimPrefix(say, "/"), "{}"); err == nil {
		t.Fatalf("open without a policy: %s", out)
	}
	file := filepath.Join(d.dir, "typo.toml")
	if err := os.WriteFile(file, []byte("[methods]\n\"/sallyport.demo.v1.Echo/Sya\" = [\"public\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errOut, _ := tryRun(d.coreEnv, "policy", "check", file)
	if !strings.Contains(out+errOut, "Echo/Sya") || !strings.Contains(out+errOut, "Echo/Say") {
		t.Errorf("a typo is not reported:\n%s%s", out, errOut)
	}
	if out, errOut, err := tryRun(d.coreEnv, "policy", "check", "--strict", file); err == nil {
		t.Errorf("--strict accepts a row that no service has:\n%s%s", out, errOut)
	}
	if err := os.WriteFile(file, []byte("[methods\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, err := tryRun(d.coreEnv, "policy", "apply", file); err == nil || !strings.Contains(errOut, "typo.toml:1") {
		t.Errorf("a broken file: %v\n%s", err, errOut)
	}
	d.applyPolicy("[methods]\n\"" + say + "\" = [\"public\"]\n")
	eventually(t, 2*time.Second, "the method is open", func() error {
		_, err := d.call(strings.TrimPrefix(say, "/"), "{}")
		return err
	})
	d.applyPolicy("[methods]\n\"" + say + "\" = [\"admin\"]\n")
	eventually(t, 2*time.Second, "the method is closed again", func() error {
		if _, err := d.call(strings.TrimPrefix(say, "/"), "{}"); err == nil {
			return fmt.Errorf("still open")
		}
		return nil
	})
}
