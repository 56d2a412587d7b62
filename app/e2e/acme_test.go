package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/acmetest"
)

// TestPublicCertificates: core's gRPC port and the proxy's public port have
// certificates of a public CA, in three processes joined by the printed lines.
// Gateways verify core's by --grpc-ca, and both ends prove their identities as
// ever. One domain of three cannot be had, and that is all that is wrong.
func TestPublicCertificates(t *testing.T) {
	t.Parallel()
	coreHTTP, proxyHTTP := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	portOf := func(address string) (n int) {
		fmt.Sscanf(address[strings.LastIndex(address, ":"):], ":%d", &n)
		return n
	}
	forCore := acmetest.Start(t, acmetest.Options{HTTPPort: portOf(coreHTTP), TLSPort: 1})
	d := deployCore(t, "[methods]\n\"/sallyport.demo.v1.Echo/*\" = [\"public\"]\n", "--grpc-domain", "core.example.org", "--http-address", coreHTTP, "--acme-agree-tos",
		"--acme-email", "certificates@example.org", "--acme-directory", forCore.URL, "--acme-root", forCore.Root)

	// The gateway's token says which mode and name core's port has.
	gateway := d.inviteGateway("inside", nil)
	gateway.start(t)
	eventually(t, 30*time.Second, "a gateway without --grpc-ca says what it lacks", func() error {
		if log := gateway.log.String(); !strings.Contains(log, "--grpc-ca") {
			return errors.New(log)
		}
		return nil
	})
	gateway.kill()
	gateway.env = append(gateway.env, "SALLYPORT_GRPC_CA="+forCore.Issuer)
	gateway.start(t)
	d.waitReady("inside")
	d.waitRouted("sallyport.demo.v1.Echo", "inside")

	// What a stranger sees there is the CA's certificate.
	roots, err := os.ReadFile(forCore.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	nc, err := tls.Dial("tcp", d.coreAddr, &tls.Config{RootCAs: pool, ServerName: "core.example.org", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatalf("core's gRPC port: %v", err)
	}
	nc.Close()
	if status := run(t, d.coreEnv, "status"); !strings.Contains(status, "core.example.org, by ACME") {
		t.Errorf("status does not show it:\n%s", status)
	}

	// Both identities are proven behind it: a core that is another, with the same
	// outside certificate, gets no gateway, see TestStolenOutsideCertificate; and whoever trusts
	// the outside certificate but has no identity here gets nothing from core.
	stranger, err := tls.Dial("tcp", d.coreAddr, &tls.Config{RootCAs: pool, ServerName: "core.example.org", NextProtos: []string{"sallyport-control/1"}})
	if err == nil {
		stranger.SetDeadline(time.Now().Add(20 * time.Second))
		if n, err := stranger.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Error("a stranger who trusts the certificate is let in")
		}
		stranger.Close()
	}

	// Now the public port.
	forProxy := acmetest.Start(t, acmetest.Options{HTTPPort: portOf(proxyHTTP), TLSPort: portOf(d.public)})
	d.proxy.stop(t, 20*time.Second)
	d.proxy.env = append(d.proxy.env, "SALLYPORT_DOMAIN=api.example.org no.bad.example web.example.org", "SALLYPORT_HTTP_ADDRESS="+proxyHTTP,
		"SALLYPORT_ACME_AGREE_TOS=true", "SALLYPORT_ACME_DIRECTORY="+forProxy.URL, "SALLYPORT_ACME_ROOT="+forProxy.Root)
	d.proxy.start(t)
	d.waitReady("proxy")
	for _, name := range []string{"api.example.org", "web.example.org"} {
		eventually(t, 60*time.Second, "a call to "+name, func() error {
			_, errOut, err := tryRun(nil, "call", "--address", d.public, "--ca", forProxy.Issuer, "--server-name", name, "sallyport.demo.v1.Echo/Say", `{"text":"hello"}`)
			if err != nil {
				return errors.New(errOut)
			}
			return nil
		})
	}
	for alpn, name := range map[string]string{"h2": "no.bad.example", "acme-tls/1": "api.example.org"} {
		if c, err := tls.Dial("tcp", d.public, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{alpn}}); err == nil {
			c.Close()
			t.Errorf("a certificate is shown for %s by %s", name, alpn)
		}
	}
	eventually(t, 60*time.Second, "status names the one that cannot be had", func() error {
		out, errOut, err := tryRun(d.coreEnv, "status")
		all := out + errOut
		for _, w := range []string{"no.bad.example, by ACME", "there is none", "refused it", "api.example.org, by ACME"} {
			if err != nil || !strings.Contains(all, w) {
				return fmt.Errorf("%q is missing in: %s", w, all)
			}
		}
		return nil
	})
	metrics := get(t, "http://"+d.health["proxy"]+"/metrics", 200)
	for _, w := range []string{`sallyport_acme_failed_orders{domain="no.bad.example",role="proxy"}`, `sallyport_acme_certificate_expires_timestamp_seconds{domain="api.example.org",role="proxy"}`} {
		if !strings.Contains(metrics, w) {
			t.Errorf("%s is not among the metrics", w)
		}
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequest(http.MethodGet, "http://"+proxyHTTP+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "api.example.org"
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if want := fmt.Sprintf("https://api.example.org:%d/x", portOf(d.public)); response.Header.Get("Location") != want {
		t.Errorf("plain HTTP is sent to %q, want %q", response.Header.Get("Location"), want)
	}

	// The proxy's gRPC port has one too, which core verifies by --proxy-grpc-ca.
	// A restart of core orders nothing.
	orders := forCore.Count(acmetest.NewOrder)
	d.core.stop(t, 20*time.Second)
	d.core.args = append(d.core.args, "--proxy-grpc-ca", forProxy.Issuer)
	d.core.start(t)
	d.waitReady("core")
	if n := forCore.Count(acmetest.NewOrder); n != orders || orders != 1 {
		t.Errorf("%d orders for core before its restart, %d after", orders, n)
	}
	run(t, d.coreEnv, "proxy", "set", "dmz1", "--grpc-tls", "acme", "--server-name", "dmz.example.org")
	d.proxy.stop(t, 20*time.Second)
	// Without plain HTTP the CA can only have come to the public port.
	d.proxy.env = append(d.proxy.env, "SALLYPORT_GRPC_DOMAIN=dmz.example.org", "SALLYPORT_HTTP_ADDRESS=off")
	d.proxy.start(t)
	d.waitReady("proxy")
	d.waitRouted("sallyport.demo.v1.Echo", "inside")
	outside := x509.NewCertPool()
	if roots, err = os.ReadFile(forProxy.Issuer); err != nil {
		t.Fatal(err)
	}
	outside.AppendCertsFromPEM(roots)
	if nc, err = tls.Dial("tcp", d.proxyGRPC, &tls.Config{RootCAs: outside, ServerName: "dmz.example.org", NextProtos: []string{"h2"}}); err != nil {
		t.Fatalf("the proxy's gRPC port: %v", err)
	}
	nc.Close()
	eventually(t, 60*time.Second, "a call over both", func() error {
		_, errOut, err := tryRun(nil, "call", "--address", d.public, "--ca", forProxy.Issuer, "--server-name", "web.example.org", "sallyport.demo.v1.Echo/Say", `{"text":"hello"}`)
		if err != nil {
			return errors.New(errOut)
		}
		return nil
	})

	// Nothing secret lies about.
	for _, role := range []string{"core", "proxy"} {
		for _, name := range []string{"acme.db", "acme.key"} {
			path := filepath.Join(d.dir, role, name)
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", path, info, err)
			}
			if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "PRIVATE KEY") {
				t.Errorf("%s holds a key in the clear (%v)", path, err)
			}
		}
	}
}

func get(t *testing.T, url string, status int) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != status {
		t.Fatalf("%s: %s, %v", url, r.Status, err)
	}
	return string(text)
}
