package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// often polls as eventually does, but leaves the machine to what is tested:
// each look is a process.
func often(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	eventually(t, limit, what, func() error {
		err := f()
		if err != nil && time.Now().Before(deadline) {
			time.Sleep(300 * time.Millisecond)
		}
		return err
	})
}

// rotation is what `ca rotate` answers.
type rotation struct {
	Phase             string
	Blockers, Skipped []string
	Warnings          []string
}

func (d *deployment) rotate(args ...string) (r rotation) {
	d.t.Helper()
	out := run(d.t, d.coreEnv, append([]string{"ca", "rotate", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
	return r
}

// waitRotation waits until the rotation is at phase and waits for exactly the
// components of waitsFor.
func (d *deployment) waitRotation(phase string, waitsFor ...string) {
	d.t.Helper()
	often(d.t, 40*time.Second, fmt.Sprintf("the CA is %s and waits for %q", phase, waitsFor), func() error {
		r := d.rotate("--status")
		var names []string
		for _, b := range r.Blockers {
			name, _, _ := strings.Cut(b, ":")
			names = append(names, name)
		}
		slices.Sort(names)
		if r.Phase != phase || !slices.Equal(names, waitsFor) {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}

// roots are the pins of the present root and of the next one.
func (d *deployment) roots() []string {
	d.t.Helper()
	var ca struct {
		Pins []string `json:"root_pins"`
	}
	out := run(d.t, d.coreEnv, "ca", "show", "--json")
	if err := json.Unmarshal([]byte(out), &ca); err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
	return ca.Pins
}

// component is what core says of a gateway or proxy.
type component struct {
	Name, State, Detail string
	NotAfter            time.Time `json:"certificate_not_after"`
}

func (d *deployment) component(role, name string) component {
	d.t.Helper()
	var list struct{ Components []component }
	out := run(d.t, d.coreEnv, role, "ls", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
	for _, c := range list.Components {
		if c.Name == name {
			return c
		}
	}
	d.t.Fatalf("core knows no %s %s: %s", role, name, out)
	return component{}
}

func (d *deployment) waitState(role, name string, states ...string) {
	d.t.Helper()
	often(d.t, 20*time.Second, fmt.Sprintf("%s %s is %q", role, name, states), func() error {
		if c := d.component(role, name); !slices.Contains(states, c.State) {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

// addProxy joins another proxy and returns where it takes calls.
func (d *deployment) addProxy(name string) (public string) {
	d.t.Helper()
	p, public := d.inviteProxy(name)
	p.start(d.t)
	d.waitReady(name)
	return public
}

// inviteProxy adds a proxy, to be started by the line that core printed.
func (d *deployment) inviteProxy(name string) (p *process, public string) {
	d.t.Helper()
	grpcAddr, public := fmt.Sprintf("127.0.0.1:%d", freePort(d.t)), fmt.Sprintf("127.0.0.1:%d", freePort(d.t))
	line := strings.TrimSpace(run(d.t, d.coreEnv, "proxy", "add", name, "--address", grpcAddr, "--core-ip", "127.0.0.1"))
	d.health[name] = fmt.Sprintf("127.0.0.1:%d", freePort(d.t))
	p = &process{name: name, log: &buffer{}, args: []string{"sh", "-c", "exec " + line},
		env: baseEnv("SALLYPORT_DATA_DIR="+filepath.Join(d.dir, name), "SALLYPORT_GRPC_ADDRESS="+grpcAddr,
			"SALLYPORT_PUBLIC_ADDRESS="+public, "SALLYPORT_HEALTH_ADDRESS="+d.health[name])}
	d.gateways[name] = p
	return p, public
}

// clientAt is a client of the edge at public that trusts the roots of now, and
// leaves a little time between its calls.
func (d *deployment) clientAt(public string) testgrpc.TestServiceClient {
	d.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(run(d.t, d.coreEnv, "ca", "export")))
	cc, err := grpc.NewClient(public, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cc.Close() })
	return paced{testgrpc.NewTestServiceClient(cc)}
}

// callsGoThrough waits until a call succeeds.
func callsGoThrough(t *testing.T, client testgrpc.TestServiceClient, what string) {
	t.Helper()
	eventually(t, 20*time.Second, "calls go through "+what, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := client.EmptyCall(ctx, &testgrpc.Empty{})
		return err
	})
}

// loads is a light load on every edge that is up.
type loads struct {
	d   *deployment
	all map[string]*load
}

func (l *loads) add(name, public string) {
	l.d.t.Helper()
	client := l.d.clientAt(public)
	callsGoThrough(l.d.t, client, name)
	l.all[name] = startLoad(client, 2)
}

func (l *loads) stop() {
	l.d.t.Helper()
	for name, load := range l.all {
		load.stop()
		load.wantAll(l.d.t, "calls by "+name)
	}
}

// TestRotationWithAbsentees: rollback from each phase, then a whole rotation,
// with components that are away and others that join in each phase. No call
// fails on what is up.
func TestRotationWithAbsentees(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	// Short lifetimes: who is led over comes within seconds.
	d := deployCore(t, interopPolicy, "--cert-lifetime", "2m")
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	serving := []string{"--serve", "grpc.testing.*"}
	join := func(gateway string) {
		t.Helper()
		d.addGateway(gateway, serving, upstream)
		d.waitRouted(testService, gateway)
	}
	join("office")
	away := d.addGateway("away", []string{"--serve", "acme.*"})
	away.stop(t, 20*time.Second) // before anything is published
	late := d.addGateway("late", []string{"--serve", "acme.*"})
	start := d.roots()
	l := &loads{d: d, all: map[string]*load{}}
	l.add("dmz1", d.public)

	// Back from the first phase.
	d.rotate()
	d.waitRotation("published", "gateway/away")
	if out := run(t, d.coreEnv, "ca", "rotate", "--status"); !strings.Contains(out, "gateway/away: is not connected (last seen ") {
		t.Errorf("the status does not say that away is away:\n%s", out)
	}
	d.rotate("--rollback")
	d.waitRotation("steady")
	if now := d.roots(); len(start) != 2 || !slices.Equal(now, start) {
		t.Errorf("after the rollback from published the roots are %q, before %q", now, start)
	}

	// Back from the second, which late holds up, with what joined in it.
	d.rotate()
	d.waitRotation("published", "gateway/away")
	late.stop(t, 20*time.Second)
	d.rotate("--skip", "away")
	d.waitRotation("activated", "gateway/late")
	join("turned")
	d.rotate("--rollback")
	d.waitRotation("steady")
	if now := d.roots(); !slices.Equal(now, start) {
		t.Errorf("after the rollback from activated the roots are %q, before %q", now, start)
	}
	late.start(t)
	d.waitReady("late")

	// Forward, one gateway and one proxy joining in each phase.
	d.rotate()
	d.waitRotation("published", "gateway/away")
	join("published")
	l.add("dmz-published", d.addProxy("dmz-published"))
	d.waitRotation("published", "gateway/away")
	late.stop(t, 20*time.Second)
	if r := d.rotate("--skip", "gateway/away"); !slices.Contains(r.Skipped, "gateway/away") {
		t.Errorf("skipped: %+v", r)
	}
	d.waitRotation("activated", "gateway/late")
	join("activated")
	l.add("dmz-activated", d.addProxy("dmz-activated"))

	away.start(t)
	d.waitReady("away")
	d.waitState("gateway", "away", "connected")
	d.waitRotation("activated", "gateway/late")
	late.start(t)
	d.waitReady("late")
	d.waitRotation("steady")
	if now := d.roots(); len(now) != 2 || now[0] != start[1] || now[1] == start[0] {
		t.Errorf("the rotation ended with the roots %q, before %q", now, start)
	}
	join("after")
	l.add("dmz-after", d.addProxy("dmz-after"))
	for _, g := range []string{"office", "away", "late", "turned", "published", "activated", "after"} {
		d.waitState("gateway", g, "connected")
	}
	l.stop()
}

// TestCompromisedCA: after `ca rotate --compromised` nothing trusts the old
// root; who is added again goes on.
func TestCompromisedCA(t *testing.T) {
	t.Parallel()
	d := deploy(t, interopPolicy)
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	office := d.addGateway("office", nil, upstream)
	d.waitRouted(testService, "office")
	before := d.clientAt(d.public)
	callsGoThrough(t, before, "before")
	oldRoots := d.roots()
	invited := d.inviteGateway("invited", nil) // with a token that pins the old root

	r := d.rotate("--compromised")
	for _, who := range []string{"gateway/office", "proxy/dmz1"} {
		if !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.HasPrefix(w, who+" has to join again") }) {
			t.Errorf("nobody says that %s has to join again: %q", who, r.Warnings)
		}
	}
	if now := d.roots(); len(now) != 2 || slices.Contains(oldRoots, now[0]) || slices.Contains(oldRoots, now[1]) {
		t.Errorf("the roots are %q, before %q", now, oldRoots)
	}
	refused := func(when string) {
		t.Helper()
		for _, c := range [][2]string{{"gateway", "office"}, {"proxy", "dmz1"}} {
			often(t, 20*time.Second, c[0]+"/"+c[1]+" is not connected, "+when, func() error {
				m := d.component(c[0], c[1])
				if m.State == "connected" || m.Detail == "" {
					return fmt.Errorf("%+v", m)
				}
				return nil
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := before.EmptyCall(ctx, &testgrpc.Empty{}); err == nil {
			t.Errorf("a call went through, %s", when)
		}
	}
	refused("at once")
	status := run(t, d.coreEnv, "status")
	for _, who := range []string{"gateway/office", "proxy/dmz1"} {
		if !slices.ContainsFunc(strings.Split(status, "\n"), func(line string) bool {
			return strings.HasPrefix(line, who) && (strings.Contains(line, "the CA was replaced") || strings.Contains(line, "is not trusted"))
		}) {
			t.Errorf("status does not say why %s is away:\n%s", who, status)
		}
	}
	office.kill()
	d.proxy.kill()
	office.log, d.proxy.log = &buffer{}, &buffer{}
	office.start(t)
	d.proxy.start(t)
	invited.start(t)
	waitLog(t, office, "unknown_authority", "is not trusted here")
	waitLog(t, invited, "is not under the root CA that the join token pins")
	refused("after a restart")
	if s := d.component("gateway", "invited").State; s == "connected" || s == "joined" {
		t.Errorf("a token that pins the old root was good: invited is %s", s)
	}

	// Removed and added again they go on.
	office.kill()
	invited.kill()
	d.proxy.kill()
	for _, dir := range []string{"office", "proxy"} {
		if err := os.RemoveAll(filepath.Join(d.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	d.joinAgain()
	d.addGateway("office", nil, upstream)
	d.waitRouted(testService, "office")
	callsGoThrough(t, d.clientAt(d.public), "the edge that joined again")
}

// TestAbsenceAndClones: with certificates of one minute, a gateway and a proxy
// that were down until theirs had ended recover by themselves, and so do a
// gateway and a proxy on hosts that slept; a copy of a gateway is refused with
// an alarm, also when its certificate has ended, and so is the original when
// the copy has renewed first.
func TestAbsenceAndClones(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	d := deployCore(t, interopPolicy, "--cert-lifetime", "1m")
	office := d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted(testService, "office")
	client := d.clientAt(d.public)
	callsGoThrough(t, client, "before")

	original := d.addGateway("original", []string{"--serve", "acme.a.*"})
	victim := d.addGateway("victim", []string{"--serve", "acme.b.*"})
	third := d.addGateway("third", []string{"--serve", "acme.c.*"})
	sleeper := d.addGateway("sleeper", []string{"--serve", "acme.d.*"})
	sleepingEdge, public := d.inviteProxy("dmz-sleeper")
	sleepingEdge.start(t)
	d.waitReady("dmz-sleeper")
	d.waitState("proxy", "dmz-sleeper", "connected")
	// clone copies the disk of a gateway that is stopped.
	clone := func(of *process) *process {
		t.Helper()
		name := of.name + "-clone"
		if out, err := exec.Command("cp", "-a", filepath.Join(d.dir, of.name), filepath.Join(d.dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		d.health[name] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		p := &process{name: name, log: &buffer{}, args: of.args, env: append(slices.Clone(of.env),
			"SALLYPORT_DATA_DIR="+filepath.Join(d.dir, name), "SALLYPORT_HEALTH_ADDRESS="+d.health[name])}
		d.gateways[name] = p
		return p
	}
	for _, p := range []*process{original, victim, third} {
		p.stop(t, 20*time.Second)
	}
	originalEnds, victimEnds := d.component("gateway", "original").NotAfter, d.component("gateway", "victim").NotAfter
	thirdEnds := d.component("gateway", "third").NotAfter
	copied, copyFirst, copyLate := clone(original), clone(victim), clone(third)
	original.start(t)
	copyFirst.start(t)
	third.start(t)
	for _, p := range []*process{sleeper, sleepingEdge} {
		p.cmd.Process.Signal(syscall.SIGSTOP)
	}
	sleeperEnds, edgeEnds := d.component("gateway", "sleeper").NotAfter, d.component("proxy", "dmz-sleeper").NotAfter
	office.stop(t, 20*time.Second)
	d.proxy.stop(t, 20*time.Second)
	officeEnds, proxyEnds := d.component("gateway", "office").NotAfter, d.component("proxy", "dmz1").NotAfter

	renewed := func(name string, from time.Time) {
		t.Helper()
		often(t, 70*time.Second, name+" has renewed", func() error {
			if c := d.component("gateway", name); c.State != "connected" || !c.NotAfter.After(from) {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
	}
	// alarmed waits until p is refused and told so, and core has raised the alarm.
	alarmed := func(p *process, name string) {
		t.Helper()
		p.start(t)
		waitLog(t, p, "a copy of it", "gateway rm "+name)
		waitLog(t, d.core, "alarm", "gateway/"+name, "a copy of it")
		out := run(t, d.coreEnv, "audit", "ls")
		if !slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
			return strings.Contains(line, "alarm") && strings.Contains(line, "gateway/"+name)
		}) {
			t.Errorf("no alarm about %s in the audit:\n%s", name, out)
		}
	}
	renewed("original", originalEnds)
	alarmed(copied, "original")
	if c := d.component("gateway", "original"); c.State != "connected" {
		t.Errorf("the original does not go on: %+v", c)
	}
	renewed("victim", victimEnds)
	alarmed(victim, "victim")

	// The two that were down all the time.
	for _, ends := range []time.Time{officeEnds, proxyEnds, thirdEnds, sleeperEnds, edgeEnds} {
		time.Sleep(time.Until(ends.Add(2 * time.Second)))
	}
	for _, c := range [][2]string{{"gateway", "office"}, {"proxy", "dmz1"}} {
		if m := d.component(c[0], c[1]); m.State == "connected" || time.Now().Before(m.NotAfter) {
			t.Fatalf("%s has not been away until its certificate ended: %+v", c[1], m)
		}
	}
	for _, c := range [][2]string{{"gateway", "sleeper"}, {"proxy", "dmz-sleeper"}} {
		if m := d.component(c[0], c[1]); m.State == "connected" {
			t.Errorf("%s sleeps and counts as connected: %+v", c[1], m)
		}
	}
	office.start(t)
	d.proxy.start(t)
	for _, p := range []*process{sleeper, sleepingEdge} {
		p.cmd.Process.Signal(syscall.SIGCONT)
	}
	callsGoThrough(t, client, "when both are back")
	callsGoThrough(t, d.clientAt(public), "the edge that slept")
	for _, who := range []string{"office", "dmz1", "sleeper", "dmz-sleeper"} {
		waitLog(t, d.core, "recovered its identity", `"`+who+`"`)
	}

	// A copy whose certificate has ended: of a key that is superseded.
	renewed("third", thirdEnds)
	alarmed(copyLate, "third")
	if c := d.component("gateway", "third"); c.State != "connected" {
		t.Errorf("third does not go on: %+v", c)
	}
	for _, c := range [][2]string{{"gateway", "office"}, {"proxy", "dmz1"}, {"gateway", "sleeper"}, {"proxy", "dmz-sleeper"}} {
		d.waitState(c[0], c[1], "connected")
		often(t, 10*time.Second, c[1]+" has another certificate", func() error {
			if m := d.component(c[0], c[1]); time.Now().After(m.NotAfter) {
				return errors.New("it has ended")
			}
			return nil
		})
	}
}
