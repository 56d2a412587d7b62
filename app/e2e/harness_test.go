package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var binary string // the built sallyport

func TestMain(m *testing.M) {
	if role := os.Getenv("SALLYPORT_E2E_HELPER"); role != "" {
		os.Exit(helperMain(role))
	}
	dir, err := os.MkdirTemp("", "sallyport-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "bin", "sallyport")
	args := []string{"build", "-o", binary}
	if os.Getenv("SALLYPORT_E2E_RACE") != "" {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "sallyport")...)
	if shipped := os.Getenv("SALLYPORT_E2E_BINARY"); shipped != "" { // the one that CI makes for the image
		build = exec.Command("install", "-D", shipped, binary)
	}
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		// The parallel tests mostly wait: for certificates to end, for others.
		flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// need skips a test that lacks a tool, and fails it where everything is required.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("SALLYPORT_TEST_REQUIRE") == "all" {
		t.Fatalf("needs %s, and SALLYPORT_TEST_REQUIRE=all", what)
	}
	t.Skipf("needs %s", what)
}

// notWithShort skips what the race detector has little to find in: CI has it
// run the binary with -short. Long waits for certificates to end are of that
// kind, and the software of others.
func notWithShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("not with -short")
	}
}

func tool(t *testing.T, names ...string) string {
	t.Helper()
	for _, n := range names {
		if p, err := exec.LookPath(n); err == nil {
			return p
		}
	}
	need(t, false, strings.Join(names, " or "))
	return ""
}

// freePort returns a loopback port that was free a moment ago, below the
// ephemeral range so that no outgoing connection takes it in between.
var portMu sync.Mutex
var nextPort = 18000 + os.Getpid()%4000

func freePort(t *testing.T) int {
	t.Helper()
	portMu.Lock()
	defer portMu.Unlock()
	for range 2000 {
		nextPort++
		if nextPort > 32000 {
			nextPort = 18000
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", nextPort))
		if err != nil {
			continue
		}
		l.Close()
		return nextPort
	}
	t.Fatal("no free port")
	return 0
}

// buffer is a goroutine-safe log of a process.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// process is one running sallyport.
type process struct {
	name  string
	args  []string // for shell: the line
	env   []string
	log   *buffer
	cmd   *exec.Cmd
	done  chan struct{}
	state *os.ProcessState
}

// start runs the process; the log goes on in the same buffer after a restart.
func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Env = p.env
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	done := make(chan struct{})
	p.done = done
	cmd := p.cmd
	go func() {
		cmd.Wait()
		p.state = cmd.ProcessState
		close(done)
	}()
}

func (p *process) kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	p.cmd.Process.Kill()
	<-p.done
}

// stop asks with SIGTERM and waits.
func (p *process) stop(t *testing.T, limit time.Duration) {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(limit):
		t.Errorf("%s did not stop within %v of SIGTERM", p.name, limit)
		p.kill()
	}
}

func baseEnv(extra ...string) []string {
	env := []string{
		"PATH=" + filepath.Dir(binary) + string(os.PathListSeparator) + os.Getenv("PATH"),
		"HOME=" + os.Getenv("HOME"),
	}
	return append(env, extra...)
}

// run runs one verb to its end and returns stdout; it fails the test on a
// non-zero exit.
func run(t *testing.T, env []string, args ...string) string {
	t.Helper()
	out, errOut, err := tryRun(env, args...)
	if err != nil {
		t.Fatalf("sallyport %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut)
	}
	return out
}

func tryRun(env []string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = baseEnv(env...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err = cmd.Run()
	return o.String(), e.String(), err
}

// eventually polls until f returns nil.
func eventually(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// deployment is core, a proxy and any number of gateways as a user would run
// them on three hosts.
type deployment struct {
	t         *testing.T
	access    string // which access log the components write
	dir       string
	core      *process
	proxy     *process
	gateways  map[string]*process
	health    map[string]string // process name → health address
	coreEnv   []string
	coreAddr  string
	proxyGRPC string
	public    string // host:port of the edge
	caFile    string
}

// deploy starts core and joins one proxy, with the given policy applied.
func deploy(t *testing.T, policy string) *deployment { return deployCore(t, policy) }

// deployCore is deploy with more flags for core.
func deployCore(t *testing.T, policy string, coreFlags ...string) *deployment {
	t.Helper()
	return deployLogging(t, "failures", policy, coreFlags...)
}

// deployLogging is deployCore where every component has the access log that
// access names: all of it, under load, is more than the harness should keep.
func deployLogging(t *testing.T, access, policy string, coreFlags ...string) *deployment {
	t.Helper()
	return deployEnv(t, access, policy, nil, coreFlags...)
}

// deployEnv is deployLogging with more in core's environment.
func deployEnv(t *testing.T, access, policy string, coreEnv []string, coreFlags ...string) *deployment {
	t.Helper()
	d := &deployment{
		t: t, access: access, dir: t.TempDir(), gateways: map[string]*process{}, health: map[string]string{},
		coreAddr:  fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		proxyGRPC: fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		public:    fmt.Sprintf("127.0.0.1:%d", freePort(t)),
	}
	d.coreEnv = []string{"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, "core")}
	t.Cleanup(d.close)

	d.health["core"] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	d.core = &process{name: "core", log: &buffer{},
		args: append([]string{binary, "--role", "core", "--grpc-address", d.coreAddr, "--health-address", d.health["core"], "--access-log", access}, coreFlags...),
		env:  baseEnv(append(coreEnv, d.coreEnv...)...)}
	d.core.start(t)
	eventually(t, 15*time.Second, "core answers on its admin socket", func() error {
		_, errOut, err := tryRun(d.coreEnv, "status")
		if err != nil {
			return errors.New(errOut)
		}
		return nil
	})
	if policy != "" {
		d.applyPolicy(policy)
	}
	d.caFile = filepath.Join(d.dir, "ca.pem")
	d.exportRoots()

	line := strings.TrimSpace(run(t, d.coreEnv, "proxy", "add", "dmz1", "--address", d.proxyGRPC, "--core-ip", "127.0.0.1"))
	d.health["proxy"] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	d.proxy = &process{name: "proxy", log: &buffer{}, args: []string{"sh", "-c", "exec " + line},
		env: baseEnv("SALLYPORT_DATA_DIR="+filepath.Join(d.dir, "proxy"),
			"SALLYPORT_GRPC_ADDRESS="+d.proxyGRPC, "SALLYPORT_PUBLIC_ADDRESS="+d.public,
			"SALLYPORT_HEALTH_ADDRESS="+d.health["proxy"], "SALLYPORT_ACCESS_LOG="+access)}
	d.proxy.start(t)
	d.waitReady("proxy")
	return d
}

// exportRoots gives callers the roots that count now.
func (d *deployment) exportRoots() {
	d.t.Helper()
	if err := os.WriteFile(d.caFile, []byte(run(d.t, d.coreEnv, "ca", "export")), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deployment) applyPolicy(policy string) {
	d.t.Helper()
	file := filepath.Join(d.dir, "policy.toml")
	if err := os.WriteFile(file, []byte(policy), 0o644); err != nil {
		d.t.Fatal(err)
	}
	run(d.t, d.coreEnv, "policy", "apply", file)
}

// addGateway joins a gateway by the line that core printed; upstreams and other
// settings come from the environment, as `extraEnv` names them.
func (d *deployment) addGateway(name string, addFlags []string, extraEnv ...string) *process {
	d.t.Helper()
	g := d.inviteGateway(name, addFlags, extraEnv...)
	g.start(d.t)
	d.waitReady(name)
	return g
}

func (d *deployment) inviteGateway(name string, addFlags []string, extraEnv ...string) *process {
	d.t.Helper()
	args := append([]string{"gateway", "add", name, "--ip", "127.0.0.1"}, addFlags...)
	line := strings.TrimSpace(run(d.t, d.coreEnv, args...))
	d.health[name] = fmt.Sprintf("127.0.0.1:%d", freePort(d.t))
	env := baseEnv(append([]string{
		"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, name),
		"SALLYPORT_HEALTH_ADDRESS=" + d.health[name],
		"SALLYPORT_ACCESS_LOG=" + d.access,
	}, extraEnv...)...)
	g := &process{name: name, log: &buffer{}, args: []string{"sh", "-c", "exec " + line}, env: env}
	d.gateways[name] = g
	return g
}

func (d *deployment) waitReady(name string) {
	d.t.Helper()
	eventually(d.t, 20*time.Second, name+" is ready", func() error {
		resp, err := http.Get("http://" + d.health[name] + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 200 {
			return fmt.Errorf("%d: %s", resp.StatusCode, body)
		}
		return nil
	})
}

// waitRouted waits until core routes service to gateway.
func (d *deployment) waitRouted(service, gateway string) {
	d.t.Helper()
	d.waitService(service, gateway, "routed")
}

func (d *deployment) waitService(service, gateway, state string) {
	d.t.Helper()
	eventually(d.t, 20*time.Second, service+" is "+state+" at "+gateway, func() error {
		out := run(d.t, d.coreEnv, "service", "ls", "--json")
		var list struct {
			Services []struct{ Service, Gateway, State string }
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, s := range list.Services {
			if s.Service == service && s.Gateway == gateway && s.State == state {
				return nil
			}
		}
		return errors.New(out)
	})
}

// call runs `sallyport call` against the edge.
func (d *deployment) call(args ...string) (string, error) {
	out, errOut, err := tryRun(nil, append([]string{"call", "--address", d.public, "--ca", d.caFile}, args...)...)
	if err != nil {
		return out, errors.New(errOut)
	}
	return out, nil
}

func (d *deployment) close() {
	all := []*process{d.proxy, d.core}
	for _, g := range d.gateways {
		all = append(all, g)
	}
	for _, p := range all {
		if p != nil {
			p.kill()
		}
	}
	if d.t.Failed() {
		for _, p := range all {
			if p != nil {
				d.t.Logf("--- log of %s\n%s", p.name, p.log.String())
			}
		}
	}
}
