package e2e

import (
	"errors"
	"io/fs"
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
