package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRotationWaitRunsOut: a rotation that has waited long enough goes on by
// itself, in both phases, without the one that is away. That one was named all
// the time, and is led over when it comes back.
func TestRotationWaitRunsOut(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	d := deployCore(t, interopPolicy, "--cert-lifetime", "2m") // who is there is led over within seconds
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	d.addGateway("office", serveTests, upstream)
	away := d.addGateway("away", serveTests, upstream)
	d.waitRouted(testService, "office")
	away.stop(t, 20*time.Second)
	start := d.roots()
	l := &loads{d: d, all: map[string]*load{}}
	l.add("dmz1", d.public)

	overdue := func(phase string) {
		t.Helper()
		eventually(t, time.Minute, "it goes on from "+phase, func() error {
			return logs(d.core, "goes on without those that did not come in time", phase, "gateway/away")
		})
	}
	d.rotate("--wait", "1h")
	d.waitRotation("published", "gateway/away")
	out := run(t, d.coreEnv, "ca", "rotate", "--status")
	for _, want := range []string{"gateway/away: is not connected (last seen ", "waits until "} {
		if !strings.Contains(out, want) {
			t.Errorf("the status does not say %q:\n%s", want, out)
		}
	}
	d.rotate("--wait", "20s") // from now, and in the next phase again
	if r := d.rotate("--status"); r.Phase != "published" || !slices.ContainsFunc(r.Blockers, func(b string) bool { return strings.HasPrefix(b, "gateway/away: ") }) {
		t.Errorf("while it waits still: %+v", r)
	}
	overdue("published")
	d.waitRotation("activated", "gateway/away") // office and the proxy have come over
	overdue("activated")
	d.waitRotation("steady")
	if now := d.roots(); len(now) != 2 || now[0] != start[1] || slices.Contains(now, start[0]) {
		t.Errorf("the roots are %q, before %q", now, start)
	}

	before := d.component("gateway", "away").NotAfter
	away.start(t)
	d.waitReady("away")
	d.waitState("gateway", "away", "connected")
	waitLog(t, d.core, "recovered its identity", "away")
	if c := d.component("gateway", "away"); !c.NotAfter.After(before) {
		t.Errorf("it is connected with its former certificate: %+v", c)
	}
	d.waitRouted(testService, "away")
	l.stop()
}

// TestRotationAtClients: a caller that knows the former root alone is led over
// for one rotation. After the next, and at once after --compromised, it is
// refused and reads what to do; a certificate of the CA that was given up is
// nobody's.
func TestRotationAtClients(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	grpcurl := tool(t, "grpcurl")
	d := deployCore(t, callersPolicy, "--cert-lifetime", "2m")
	d.addGateway("office", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "office")
	const say = "sallyport.demo.v1.Echo/Say"
	cert, key, _ := d.issue("billing", "--client")
	shown := []string{"--cert", cert, "--key", key}
	roots := func(name string) string {
		t.Helper()
		file := filepath.Join(d.dir, name)
		if err := os.WriteFile(file, []byte(run(t, d.coreEnv, "ca", "export")), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	call := func(ca string) error {
		_, errOut, err := tryRun(nil, append([]string{"call", say, `{"text":"x"}`, "--address", d.public, "--ca", ca}, shown...)...)
		if err != nil {
			err = fmt.Errorf("%s", errOut)
		}
		return err
	}
	works := func(ca, when string) {
		t.Helper()
		eventually(t, 20*time.Second, "a call with "+filepath.Base(ca)+", "+when, func() error { return call(ca) })
	}
	refused := func(ca, when string) {
		t.Helper()
		err := call(ca)
		if err == nil {
			t.Fatalf("a call with %s went through, %s", filepath.Base(ca), when)
		}
		for _, want := range []string{"signed by an authority that is not in " + ca, "the CA may have been rotated", "sallyport ca export"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("with %s, %s, it does not say %q: %v", filepath.Base(ca), when, want, err)
			}
		}
		out, err := exec.Command(grpcurl, "-cacert", ca, "-servername", "localhost", d.public, "list").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "certificate signed by unknown authority") {
			t.Errorf("grpcurl with %s, %s: %v\n%s", filepath.Base(ca), when, err, out)
		}
	}
	rotated := func() {
		t.Helper()
		d.rotate()
		d.waitRotation("steady")
	}
	first := roots("first.pem")
	works(first, "before")
	rotated()
	second := roots("second.pem")
	works(second, "after a rotation")
	for i, block := range strings.SplitAfter(run(t, d.coreEnv, "ca", "export"), "-----END CERTIFICATE-----\n") {
		if alone := filepath.Join(d.dir, fmt.Sprintf("root%d.pem", i)); strings.Contains(block, "BEGIN") {
			if err := os.WriteFile(alone, []byte(block), 0o644); err != nil {
				t.Fatal(err)
			}
			works(alone, "alone, after a rotation: the edge has a certificate of the new CA, and a chain to the former")
		}
	}
	works(first, "after a rotation")
	rotated()
	third := roots("third.pem")
	works(third, "after two rotations")
	works(second, "after two rotations")
	eventually(t, 20*time.Second, "the edge has a certificate of the third CA", func() error {
		if call(first) == nil {
			return errors.New("a call with first.pem goes through")
		}
		return nil
	})
	refused(first, "after two rotations")

	d.rotate("--compromised")
	d.gateways["office"].kill()
	d.proxy.kill()
	for _, dir := range []string{"office", "proxy"} {
		if err := os.RemoveAll(filepath.Join(d.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	d.joinAgain()
	d.addGateway("office", nil)
	d.waitRouted("sallyport.demo.v1.Echo", "office")
	fourth := roots("fourth.pem")
	refused(first, "after --compromised")
	refused(third, "after --compromised")
	if err := call(fourth); err == nil || !strings.Contains(err.Error(), "the CA was replaced") || !strings.Contains(err.Error(), "cert issue") {
		t.Errorf("a client certificate of the CA that was given up: %v", err)
	}
	cert, key, _ = d.issue("billing", "--client", "--force")
	shown = []string{"--cert", cert, "--key", key}
	works(fourth, "after --compromised, with a certificate of the new CA")
}
