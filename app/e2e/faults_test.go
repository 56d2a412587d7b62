package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// faulty is the path of a sallyport whose points of package fault kill.
var faulty = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(filepath.Dir(binary)), "faults", "sallyport")
	if out, err := exec.Command("go", "build", "-tags", "faults", "-o", path, "sallyport").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build with faults: %w\n%s", err, out)
	}
	return path, nil
})

// mortal lets p, which has not been started, die at points that arm names.
func (d *deployment) mortal(p *process) {
	d.t.Helper()
	path, err := faulty()
	if err != nil {
		d.t.Fatal(err)
	}
	if p.args[0] == binary {
		p.args[0] = path
	}
	p.env = append(p.env, "SALLYPORT_FAULTS="+d.faults(p.name), "PATH="+filepath.Dir(path)+string(os.PathListSeparator)+os.Getenv("PATH"))
}

func (d *deployment) faults(process string) string {
	dir := filepath.Join(d.dir, "faults-"+process)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	return dir
}

func (d *deployment) arm(process, point string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.faults(process), point), nil, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// died waits until p was killed at a point.
func (d *deployment) died(p *process, point string) {
	d.t.Helper()
	select {
	case <-p.done:
	case <-time.After(90 * time.Second):
		d.t.Fatalf("%s did not come to %s", p.name, point)
	}
	if status, ok := p.state.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		d.t.Fatalf("%s at %s: %v", p.name, point, p.state)
	}
	if left, _ := filepath.Glob(filepath.Join(d.faults(p.name), "*")); len(left) != 0 {
		d.t.Fatalf("%s died elsewhere than at %s", p.name, left)
	}
}

// sound waits until the gateways are connected and serve, and calls go
// through; and sees that there are no others, and that nothing raised an alarm.
func (d *deployment) sound(after string, gateways ...string) {
	d.t.Helper()
	eventually(d.t, 20*time.Second, after+": everybody is connected", func() error {
		var list struct {
			Components []struct{ Name, State string }
		}
		out, errOut, err := tryRun(d.coreEnv, "gateway", "ls", "--json")
		if err != nil {
			return errors.New(errOut)
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		n := 0
		for _, g := range list.Components {
			if slices.Contains(gateways, g.Name) && g.State == "connected" {
				n++
			}
		}
		if n != len(gateways) {
			return errors.New(out)
		}
		return nil
	})
	for _, g := range gateways {
		d.waitRouted(testService, g)
	}
	client := testgrpc.NewTestServiceClient(d.dial())
	eventually(d.t, 20*time.Second, after+": calls go through", func() error {
		_, err := client.EmptyCall(d.t.Context(), &testgrpc.Empty{})
		return err
	})
	if out := run(d.t, d.coreEnv, "audit", "ls", "--limit", "500"); strings.Contains(out, "alarm") {
		d.t.Errorf("%s: an alarm:\n%s", after, out)
	}
}

// soundEdges waits until calls go through each of these edges.
func (d *deployment) soundEdges(after string, publics ...string) {
	d.t.Helper()
	for _, public := range publics {
		callsGoThrough(d.t, d.clientAt(public), "after "+after+" at "+public)
	}
}

// joinings counts how often core has let a component join.
func (d *deployment) joinings(component string) (n int) {
	d.t.Helper()
	for line := range strings.SplitSeq(run(d.t, d.coreEnv, "audit", "ls", "--limit", "500"), "\n") {
		if strings.Contains(line, "component.join") && slices.Contains(strings.Fields(line), component) {
			n++
		}
	}
	return n
}

// serveTests lets several gateways serve one service.
var serveTests = []string{"--serve", testService}

// mortalCore is deployCore with a core that dies at points.
func mortalCore(t *testing.T, coreFlags ...string) *deployment {
	d := deployCore(t, interopPolicy, coreFlags...)
	d.core.stop(t, 40*time.Second)
	d.mortal(d.core)
	d.core.start(t)
	d.waitReady("core")
	return d
}

// TestKilledAnywhere kills -9 at every step of joining, renewal, recovery,
// rotation and restoring. Whoever was killed is started again as he was, and nothing else is
// done: everything is then as before the step or as after it, and everybody is
// connected.
func TestKilledAnywhere(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	t.Run("join", killedJoining)
	t.Run("renewal", killedRenewing)
	t.Run("rotation", func(t *testing.T) {
		killedRotating(t, [3]string{"publish-intended", "authority.age-written", "retire-settled"},
			[3]string{"authority.age-written", "activate-settled", "authority.age-placed"})
	})
	t.Run("another rotation", func(t *testing.T) {
		killedRotating(t, [3]string{"authority.age-placed", "activate-intended", "retire-intended"},
			[3]string{"publish-settled", "authority.age-placed", "authority.age-written"})
	})
	t.Run("rollback", killedRollingBack)
	t.Run("a CA that is known to others", killedDisowning)
	t.Run("recovery", killedRecovering)
	t.Run("core's own renewal", killedRenewingCore)
	t.Run("restore", killedRestoring)
}

func killedJoining(t *testing.T) {
	t.Parallel()
	d := mortalCore(t)
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	var gateways, proxies []string
	var edges []string
	gateway := func() *process {
		gateways = append(gateways, fmt.Sprintf("g%d", len(gateways)+1))
		return d.inviteGateway(gateways[len(gateways)-1], serveTests, upstream)
	}
	proxy := func() *process {
		proxies = append(proxies, fmt.Sprintf("p%d", len(proxies)+1))
		p, public := d.inviteProxy(proxies[len(proxies)-1])
		edges = append(edges, public)
		return p
	}
	points := []string{"pending.key-written", "pending.key-placed", "join-key-saved", "join-request-sent",
		"join-grant-received", "identity.pem-written", "identity.pem-placed", "join-stored"}
	for _, invite := range []func() *process{gateway, proxy} {
		for _, point := range points { // the newcomer dies
			p := invite()
			d.mortal(p)
			d.arm(p.name, point)
			p.start(t)
			d.died(p, point)
			p.start(t)
		}
	}
	d.sound("newcomers", gateways...)
	d.soundEdges("newcomers", edges...)
	for _, invite := range []func() *process{gateway, proxy} {
		for _, point := range []string{"join-decided", "join-recorded"} { // core dies
			p := invite()
			d.arm("core", point)
			p.start(t)
			d.died(d.core, point)
			d.core.start(t)
			d.waitReady(p.name)
			d.sound(point, gateways...)
		}
	}
	d.soundEdges("core", edges...)
	for _, name := range gateways {
		if n := d.joinings("gateway/" + name); n != 1 {
			t.Errorf("gateway %s joined %d times", name, n)
		}
	}
	for _, name := range proxies {
		if n := d.joinings("proxy/" + name); n != 1 {
			t.Errorf("proxy %s joined %d times", name, n)
		}
	}
}

func killedRenewing(t *testing.T) {
	t.Parallel()
	d := mortalCore(t, "--cert-lifetime", "1m")
	upstream := "SALLYPORT_UPSTREAM=interop=" + startInteropServer(t)
	points := []string{"renewal-key-saved", "renewal-requested", "renewal-chain-received", "identity.pem-written", "identity.pem-placed", "renewal-stored"}
	var names []string
	for i := range points {
		g := d.inviteGateway(fmt.Sprintf("g%d", i+1), serveTests, upstream, "SALLYPORT_RENEW_BEFORE=45s")
		d.mortal(g)
		g.start(t)
		d.waitReady(g.name)
		names = append(names, g.name)
	}
	for i, name := range names { // each dies when it renews
		d.arm(name, points[i])
	}
	for i, name := range names {
		d.died(d.gateways[name], points[i])
		d.gateways[name].start(t)
	}
	d.sound("renewing", names...)
	for _, point := range []string{"renewal-decided", "renewal-recorded"} { // core dies
		d.arm("core", point)
		d.died(d.core, point)
		d.core.start(t)
		d.sound(point, names...)
	}
	before := d.certificates()["gateway"]
	eventually(t, 45*time.Second, "renewing goes on", func() error {
		if n := d.certificates()["gateway"]; n < before+len(names) {
			return fmt.Errorf("%d, then %d", before, n)
		}
		return nil
	})
	d.sound("after it", names...)
}

func killedRestoring(t *testing.T) {
	t.Parallel()
	d := mortalCore(t)
	d.addGateway("office", nil, "SALLYPORT_UPSTREAM=interop="+startInteropServer(t))
	d.waitRouted(testService, "office")
	pass, file := filepath.Join(d.dir, "passphrase"), filepath.Join(d.dir, "core.backup")
	if err := os.WriteFile(pass, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, d.coreEnv, "backup", file, "--passphrase-file", pass)
	restore := func(point string) {
		t.Helper()
		p := &process{name: "restore", log: &buffer{}, args: []string{binary, "restore", file, "--passphrase-file", pass, "--force"}, env: baseEnv(d.coreEnv...)}
		d.mortal(p)
		d.arm("restore", point)
		p.start(t)
		d.died(p, point)
		d.core.start(t)
		d.sound(point, "office")
	}
	for i, point := range []string{"restore-unpacked", "restore-staged", "restore-decided", "restore-copied", "restore-prepared", "restore-database", "restore-awaits"} {
		later := fmt.Sprintf("later%d", i)
		run(t, d.coreEnv, "gateway", "add", later, "--ip", "127.0.0.1")
		d.core.stop(t, 40*time.Second)
		restore(point)
		old := strings.Contains(run(t, d.coreEnv, "gateway", "ls"), later)
		if want := i < 2; old != want {
			t.Errorf("%s: the former state: %v, want %v", point, old, want)
		}
	}
	for _, point := range []string{"restore-decided", "restore-database", "restore-ca-aside", "restore-ca", "restore-awaits"} { // on a fresh host
		d.core.kill()
		d.coreEnv = []string{"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, "fresh-"+point)}
		d.core.env = baseEnv(d.coreEnv...)
		restore(point)
	}
}
