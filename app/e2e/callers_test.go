package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
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
		{"key is not shown what it may not call", byKey, count, "no method Count"},
		{"certificate may say", billing, say, `"caller": "spiffe://sallyport.internal/client/billing"`},
		{"certificate may count", billing, count, `"text"`},
		{"another proxy's word", elsewhere, say, "no service"},
		{"certificate without grant", nobody, say, "no service"},
		{"nobody", nil, say, "no service"},
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

	// Who does not ask reflection first is refused all the same.
	for _, c := range []struct {
		name   string
		as     []string
		method string
		want   codes.Code
	}{
		{"key may say", byKey, say, codes.OK},
		{"key may not count", byKey, count, codes.PermissionDenied},
		{"certificate may say", billing, say, codes.OK},
		{"another proxy's word", elsewhere, say, codes.PermissionDenied},
		{"certificate without grant", nobody, say, codes.PermissionDenied},
		{"nobody", nil, say, codes.Unauthenticated},
		{"nobody, a method that does not exist", nil, "sallyport.demo.v1.Echo/None", codes.Unauthenticated},
		{"certificate, a method that does not exist", billing, "sallyport.demo.v1.Echo/None", codes.PermissionDenied},
	} {
		t.Run("direct/"+c.name, func(t *testing.T) {
			if err := d.direct(c.as, "/"+c.method); status.Code(err) != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
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
		waitLog(t, d.proxy, "/sallyport.demo.v1.Echo/Count", "apikey:ci", "PermissionDenied")
	})

	t.Run("a revoked key is refused", func(t *testing.T) {
		run(t, d.coreEnv, "apikey", "revoke", "ci")
		eventually(t, 2*time.Second, "the key is worthless", func() error {
			out, err := d.call(append(append([]string{}, byKey...), say, `{}`)...)
			if err == nil || !strings.Contains(err.Error(), "Unauthenticated") {
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

// direct makes one unary call with an empty message, as the flags of
// `sallyport call` say who calls.
func (d *deployment) direct(as []string, method string) error {
	d.t.Helper()
	pem, err := os.ReadFile(d.caFile)
	if err != nil {
		d.t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	config.RootCAs.AppendCertsFromPEM(pem)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	switch {
	case len(as) == 4:
		pair, err := tls.LoadX509KeyPair(as[1], as[3])
		if err != nil {
			d.t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	case len(as) == 2:
		key, err := os.ReadFile(as[1])
		if err != nil {
			d.t.Fatal(err)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(key)))
	}
	cc, err := grpc.NewClient(d.public, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		d.t.Fatal(err)
	}
	defer cc.Close()
	return cc.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
}

// TestPolicyChanges: what is not listed is closed, a typo is reported, and
// a change counts at once.
func TestPolicyChanges(t *testing.T) {
	t.Parallel()
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
