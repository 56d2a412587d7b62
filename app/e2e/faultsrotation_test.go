package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// waitPhase waits for the phase, also of a core that is not up yet.
func (d *deployment) waitPhase(want string) {
	d.t.Helper()
	often(d.t, 40*time.Second, "the CA is "+want, func() error {
		out, errOut, err := tryRun(d.coreEnv, "ca", "rotate", "--status", "--json")
		if err != nil || !strings.Contains(out, `"`+want+`"`) {
			return errors.New(out + errOut)
		}
		return nil
	})
}

// killedRotating rotates the CA as often as there are rotations; core dies once
// in publishing, in activating and in retiring.
func killedRotating(t *testing.T, rotations ...[3]string) {
	t.Parallel()
	d := mortalCore(t, "--cert-lifetime", "1m")
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	d.addGateway("office", serveTests, upstream)
	// The rotation waits in each phase for one that is away, so that the state
	// after each step can be looked at.
	away := d.addGateway("away", serveTests, upstream)
	root := run(t, d.coreEnv, "ca", "export")
	for _, moments := range rotations {
		d.exportRoots() // callers are led over one rotation, not two
		away.kill()
		d.arm("core", moments[0])
		tryRun(d.coreEnv, "ca", "rotate")
		d.died(d.core, moments[0])
		d.core.start(t)
		d.waitPhase("published")
		d.sound("publish: "+moments[0], "office")

		d.arm("core", moments[1])
		away.start(t)
		d.died(d.core, moments[1])
		away.kill()
		d.core.start(t)
		d.waitPhase("activated")
		d.sound("activate: "+moments[1], "office")

		d.arm("core", moments[2])
		away.start(t)
		d.died(d.core, moments[2])
		d.core.start(t)
		d.waitPhase("steady")
		d.sound("retire: "+moments[2], "office", "away")
	}
	if now := run(t, d.coreEnv, "ca", "export"); now == root {
		t.Error("the root is the same as before")
	}
}

// killedRollingBack takes a rotation back, from each phase; core dies at each
// step of that.
func killedRollingBack(t *testing.T) {
	t.Parallel()
	d := mortalCore(t, "--cert-lifetime", "1m")
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	office := d.addGateway("office", serveTests, upstream)
	away := d.addGateway("away", serveTests, upstream)
	start := d.roots()
	back := func(after string) {
		t.Helper()
		d.waitPhase("steady")
		if now := d.roots(); len(start) != 2 || !slices.Equal(now, start) {
			t.Errorf("%s: the roots are %q, before the rotation %q", after, now, start)
		}
	}

	for _, point := range []string{"rollback-intended", "authority.age-written", "authority.age-placed", "rollback-settled"} {
		away.kill()
		d.rotate()
		d.waitPhase("published")
		d.arm("core", point)
		tryRun(d.coreEnv, "ca", "rotate", "--rollback")
		d.died(d.core, point)
		d.core.start(t)
		back("from published, " + point)
		d.sound(point, "office")
	}

	for _, points := range [][2]string{{"rollback-intended", "rollback-settled"}, {"authority.age-placed", "authority.age-written"}} {
		// To activated, with one that has a certificate of the new root and one
		// that is away with its old one.
		away.kill()
		d.rotate()
		d.waitPhase("published")
		d.arm("core", "activate-settled")
		away.start(t)
		d.died(d.core, "activate-settled")
		away.kill()
		d.core.start(t)
		d.waitReady("core")
		d.waitRotation("activated", "gateway/away")
		office.kill()

		d.arm("core", points[0])
		tryRun(d.coreEnv, "ca", "rotate", "--rollback")
		d.died(d.core, points[0])
		d.core.start(t)
		d.waitReady("core")
		d.waitRotation("published", "gateway/office") // and not further: its certificate is of the new root
		d.arm("core", points[1])
		office.start(t)
		d.died(d.core, points[1])
		d.core.start(t)
		back("from activated, " + points[0] + ", " + points[1])
		away.start(t)
		d.sound("from activated", "office", "away")
	}
}

// killedDisowning replaces the CA with --compromised; core dies at each step.
func killedDisowning(t *testing.T) {
	t.Parallel()
	d := mortalCore(t)
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	office := d.addGateway("office", serveTests, upstream)
	for _, point := range []string{"compromised-intended", "authority.age-written", "authority.age-placed", "compromised-settled"} {
		d.sound("before "+point, "office")
		former := d.roots()
		d.arm("core", point)
		tryRun(d.coreEnv, "ca", "rotate", "--compromised")
		d.died(d.core, point)
		d.core.start(t)
		d.waitPhase("steady")
		often(t, 20*time.Second, point+": both roots are others", func() error {
			if now := d.roots(); len(now) != 2 || slices.Contains(former, now[0]) || slices.Contains(former, now[1]) {
				return fmt.Errorf("they are %q, before %q", now, former)
			}
			return nil
		})
		for _, c := range [][2]string{{"gateway", "office"}, {"proxy", "dmz1"}} {
			often(t, 20*time.Second, point+": "+c[1]+" is refused", func() error {
				if m := d.component(c[0], c[1]); m.State == "connected" || m.Detail == "" {
					return fmt.Errorf("%+v", m)
				}
				return nil
			})
		}

		// Whoever is added again is under the new root.
		office.kill()
		d.proxy.kill()
		for _, dir := range []string{"office", "proxy"} {
			if err := os.RemoveAll(filepath.Join(d.dir, dir)); err != nil {
				t.Fatal(err)
			}
		}
		d.joinAgain()
		office = d.addGateway("office", serveTests, upstream)
	}
	d.sound("after all", "office")
}

// joinAgain removes the proxy and the gateway office, and starts the proxy as
// its next incarnation.
func (d *deployment) joinAgain() {
	d.t.Helper()
	run(d.t, d.coreEnv, "gateway", "rm", "office")
	run(d.t, d.coreEnv, "proxy", "rm", "dmz1")
	line := strings.TrimSpace(run(d.t, d.coreEnv, "proxy", "add", "dmz1", "--address", d.proxyGRPC, "--core-ip", "127.0.0.1"))
	d.proxy.args = []string{"sh", "-c", "exec " + line}
	d.proxy.start(d.t)
	d.waitReady("proxy")
	d.exportRoots()
}
