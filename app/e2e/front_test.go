package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBehindNginx has nginx end TLS and speak HTTP/2 without it to a proxy with
// --tls off: tokens count where nginx says that the caller used TLS, and nowhere
// else; the caller's address is the one that nginx saw.
func TestBehindNginx(t *testing.T) {
	t.Parallel()
	nginx := tool(t, "nginx", "/usr/sbin/nginx")
	d := deploy(t, `
[methods]
"/sallyport.demo.v1.Echo/*" = ["echo"]

[[grant]]
apikey = "ci"
permissions = ["echo"]
`)
	key := strings.TrimSpace(run(t, d.coreEnv, "apikey", "create", "ci"))
	d.proxy.stop(t, 20*time.Second)
	d.proxy.env = append(d.proxy.env, "SALLYPORT_TLS=off", "SALLYPORT_TRUSTED_FRONT=127.0.0.1/32", "SALLYPORT_ACCESS_LOG=all")
	d.proxy.start(t)
	d.waitReady("proxy")
	d.addGateway("g1", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "g1")

	cert, certKey, _ := d.issue("front", "--server", "--dns", "localhost", "--ip", "127.0.0.1")
	dir := t.TempDir()
	secure, lying := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	server := func(address, proto string) string {
		return fmt.Sprintf(`  server {
    listen %s ssl http2;
    ssl_certificate %s;
    ssl_certificate_key %s;
    location / {
      grpc_pass grpc://%s;
      grpc_set_header x-forwarded-for $proxy_add_x_forwarded_for;
      grpc_set_header x-forwarded-proto %s;
    }
  }
`, address, cert, certKey, d.public, proto)
	}
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
%[2]s%[3]s}
`, dir, server(secure, "$scheme"), server(lying, "http"))
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log := background(t, nil, nginx, "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", file)
	eventually(t, 10*time.Second, "nginx listens", func() error {
		c, err := net.Dial("tcp", lying)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, log.String())
		}
		return c.Close()
	})
	call := func(address string, more ...string) error {
		_, errOut, err := tryRun([]string{"SALLYPORT_API_KEY=" + key}, append([]string{"call", "--address", address, "--ca", d.caFile,
			"sallyport.demo.v1.Echo/Say", `{"text":"hello"}`}, more...)...)
		if err != nil {
			return errors.New(errOut)
		}
		return nil
	}
	if err := call(secure); err != nil {
		t.Errorf("through nginx: %v", err)
	}
	// Here the caller stands where a front may stand, so that what he says of
	// somebody behind him counts.
	if err := call(secure, "-H", "x-forwarded-for: 203.0.113.9"); err != nil {
		t.Errorf("through nginx, with a header of its own: %v", err)
	}
	if err := call(lying); err == nil || !strings.Contains(strings.ToLower(err.Error()), "unauthenticated") || !strings.Contains(err.Error(), "x-forwarded-proto") {
		t.Errorf("a token that came to the front in the clear: %v", err)
	}
	eventually(t, 10*time.Second, "the access log has the caller's address", func() error {
		for line := range strings.Lines(d.proxy.log.String()) {
			if strings.Contains(line, "sallyport.demo.v1.Echo/Say") && strings.Contains(line, "203.0.113.9") {
				return nil
			}
		}
		return errors.New(tail(d.proxy.log.String()))
	})
}
