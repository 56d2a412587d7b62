package e2e

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStateInMemory: a proxy and a gateway without a disk join by a reusable
// token, leave no file, and join anew after kill -9. The proxy's former
// certificate is revoked; the gateway's instances count against --uses.
func TestStateInMemory(t *testing.T) {
	t.Parallel()
	d := deploy(t, "[methods]\n\"/sallyport.demo.v1.Echo/*\" = [\"public\"]\n")
	d.proxy.stop(t, 10*time.Second)
	run(t, d.coreEnv, "proxy", "rm", "dmz1")
	line := strings.TrimSpace(run(t, d.coreEnv, "proxy", "add", "edge", "--address", d.proxyGRPC, "--core-ip", "127.0.0.1", "--reusable", "--ttl", "1h"))
	if !strings.Contains(line, "--state memory") {
		t.Errorf("the printed line keeps state on a disk: %s", line)
	}
	d.proxy.args = []string{"sh", "-c", "exec " + line}
	d.proxy.start(t)
	d.waitReady("proxy")
	g := d.addGateway("burst", []string{"--reusable", "--ttl", "1h", "--uses", "2"})

	call := func() error {
		_, err := d.call("sallyport.demo.v1.Echo/Say", `{"text":"hello"}`)
		return err
	}
	eventually(t, 20*time.Second, "a call travels through three roles", call)
	g.kill()
	d.proxy.kill()
	d.proxy.start(t)
	g.start(t)
	d.waitReady("proxy")
	d.waitReady("burst")
	eventually(t, 20*time.Second, "a call travels after both were killed", call)
	if out := run(t, d.coreEnv, "audit", "ls"); !strings.Contains(out, "edge") || !strings.Contains(out, "revoke") {
		t.Errorf("the former certificate of the proxy was not revoked:\n%s", out)
	}
	for _, name := range []string{"burst", "edge"} {
		if _, err := os.Stat(filepath.Join(d.dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has left files: %v", name, err)
		}
	}
	d.startRefused("third", []string{"--role", "gateway", "--state", "memory", "--join", token(t, g.args[2])}, nil, "live instances")
}

// TestGatewayBehindProxy: a gateway whose network lets nothing out but through
// an HTTP proxy, and which cannot resolve core's name, serves calls. The proxy
// sees a tunnel to core's port and nothing else.
func TestGatewayBehindProxy(t *testing.T) {
	t.Parallel()
	d := deploy(t, "[methods]\n\"/sallyport.demo.v1.Echo/*\" = [\"public\"]\n")
	_, port, _ := net.SplitHostPort(d.coreAddr)
	asked := make(chan string, 16)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Method + " " + r.Host:
		default:
		}
		if r.Host != "core.test:"+port {
			http.Error(w, "not allowed", http.StatusForbidden)
			return
		}
		to, err := net.Dial("tcp", d.coreAddr)
		if err != nil {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		defer to.Close()
		from, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer from.Close()
		io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(to, from)
		io.Copy(from, to)
	}))
	defer proxy.CloseClientConnections()
	d.addGateway("office", nil, "HTTPS_PROXY="+proxy.URL, "SALLYPORT_CORE=core.test:"+port)
	eventually(t, 20*time.Second, "a call travels", func() error {
		_, err := d.call("sallyport.demo.v1.Echo/Say", `{"text":"hello"}`)
		return err
	})
	if first := <-asked; first != "CONNECT core.test:"+port {
		t.Errorf("the proxy was asked %q", first)
	}
}
