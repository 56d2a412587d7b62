package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/reflection"

	"sallyport/firewall/netns"
)

const (
	coreAt, coreMovedTo   = "10.9.0.1", "10.9.0.11"
	proxyAt               = "10.9.0.2"
	officeAt, neighbourAt = "10.9.0.3", "10.9.0.4"
)

// farHost is a host of the test, and what runs there.
type farHost struct {
	*netns.Host
	t   *testing.T
	dir string
}

// process is a line that is run on the host, as its user would paste it.
func (s *farHost) process(name, line string, env ...string) *process {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	p := &process{name: name, log: &buffer{}, args: []string{"ip", "netns", "exec", s.Name, "sh", "-c", "exec " + line},
		env: baseEnv(append([]string{"SALLYPORT_DATA_DIR=" + dir}, env...)...)}
	s.t.Cleanup(func() {
		p.kill()
		if s.t.Failed() {
			s.t.Logf("--- log of %s\n%s", name, p.log)
		}
	})
	return p
}

// guard loads the rules of what a role says into its host's kernel, and follows.
func (s *farHost) guard(role, dataDir string) *process {
	s.t.Helper()
	p := s.process("guard-"+role, fmt.Sprintf("%s firewall apply --role %s --from %s --watch --run-dir %s", binary, role, filepath.Join(dataDir, "firewall.json"), filepath.Join(s.dir, "run-"+role)))
	p.start(s.t)
	return p
}

// reaches reports whether a TCP connection opens, and stays open, between the host
// at from and an address.
func (s *farHost) reaches(from, address string) error {
	nc, err := s.Dial("tcp", from+":0", address, 300*time.Millisecond)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	var b [16]byte
	n, err := nc.Read(b[:])
	if e, ok := errors.AsType[net.Error](err); n == 0 && ok && e.Timeout() {
		return nil
	}
	return fmt.Errorf("closed after %d bytes: %v", n, err)
}

// established counts the connections with a peer.
func (s *farHost) established(peer string) int {
	return strings.Count(s.Run("ss", "-Htn", "state", "established", "dst", peer), "\n")
}

// serve runs an upstream on the host.
func (s *farHost) serve() string {
	l := s.Listen("tcp", "127.0.0.1:0")
	server := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	reflection.Register(server)
	go server.Serve(l)
	s.t.Cleanup(server.Stop)
	return l.Addr().String()
}

// TestFourHosts: core, a proxy and gateways on hosts of their own, with the
// rules loaded on both that listen, joined by the printed lines alone.
func TestFourHosts(t *testing.T) {
	t.Parallel()
	netns.Available(t, "nft", "ss")
	dir := t.TempDir()
	host := func(label string) *farHost { return &farHost{netns.New(t, label), t, dir} }
	coreHost, proxyHost, officeHost, neighbour := host("core"), host("proxy"), host("office"), host("neighbour")
	netns.Switch(t, coreHost.Host, proxyHost.Host, officeHost.Host, neighbour.Host)
	for s, address := range map[*farHost]string{coreHost: coreAt, proxyHost: proxyAt, officeHost: officeAt, neighbour: neighbourAt} {
		s.AddAddress("eth0", address+"/24")
	}
	coreEnv := []string{"SALLYPORT_DATA_DIR=" + filepath.Join(dir, "core")}
	core := coreHost.process("core", "sallyport --role core --advertise "+coreAt+":50055")
	core.start(t)
	coreGuard := coreHost.guard("core", filepath.Join(dir, "core"))
	eventually(t, 20*time.Second, "core answers", func() error {
		_, errOut, err := tryRun(coreEnv, "status")
		if err != nil {
			return errors.New(errOut)
		}
		return nil
	})
	waitLog(t, coreGuard, "loaded", "nobody")
	policy := filepath.Join(dir, "policy.toml")
	if err := os.WriteFile(policy, []byte(interopPolicy), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, coreEnv, "policy", "apply", policy)

	line := strings.TrimSpace(run(t, coreEnv, "proxy", "add", "dmz1", "--address", proxyAt+":50051", "--core-ip", coreAt))
	proxy := proxyHost.process("proxy", line)
	proxy.start(t)
	proxyGuard := proxyHost.guard("proxy", filepath.Join(dir, "proxy"))
	line = strings.TrimSpace(run(t, coreEnv, "gateway", "add", "office", "--ip", officeAt))
	office := officeHost.process("office", line, "SALLYPORT_UPSTREAM=interop="+officeHost.serve())
	office.start(t)

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(run(t, coreEnv, "ca", "export")))
	cc, err := grpc.NewClient("passthrough:///127.0.0.1:8443", grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})),
		grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) {
			return proxyHost.Dial("tcp", "", address, 5*time.Second)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	client := testgrpc.NewTestServiceClient(cc)
	eventually(t, 30*time.Second, "calls go from host to host", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := client.EmptyCall(ctx, &testgrpc.Empty{})
		return err
	})
	waitLog(t, coreGuard, "loaded", "1 IPv4")
	waitLog(t, proxyGuard, "loaded", "1 IPv4")
	for log, p := range map[string]*process{"core": core, "proxy": proxy} { // at first try
		if strings.Contains(p.log.String(), "address_not_a_peer") {
			t.Errorf("%s refused somebody", log)
		}
	}
	if officeHost.reaches(officeAt, coreAt+":50055") != nil || neighbour.reaches(neighbourAt, coreAt+":50055") == nil ||
		coreHost.reaches(coreAt, proxyAt+":50051") != nil || officeHost.reaches(officeAt, proxyAt+":50051") == nil {
		t.Error("a port is open to others than its peers, or not to them")
	}

	// A gateway is added and removed while calls run.
	calls := startLoad(paced{client}, 4)
	line = strings.TrimSpace(run(t, coreEnv, "gateway", "add", "billing", "--ip", neighbourAt, "--serve", "acme.*"))
	began := time.Now()
	eventually(t, 10*time.Second, "the new gateway's host reaches core", func() error { return neighbour.reaches(neighbourAt, coreAt+":50055") })
	t.Logf("the port was open %v after the gateway was added", time.Since(began).Round(time.Millisecond))
	billing := neighbour.process("billing", line, "SALLYPORT_UPSTREAM=interop="+neighbour.serve())
	billing.start(t)
	eventually(t, 20*time.Second, "billing has its links", func() error {
		if n := coreHost.established(neighbourAt); n < 2 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})

	// Its host has a copy of the other gateway's disk.
	stolen := filepath.Join(dir, "stolen")
	if out, err := exec.Command("cp", "-a", filepath.Join(dir, "office"), stolen).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	thief := neighbour.process("stolen", "sallyport --role gateway --health-address 127.0.0.1:8081", "SALLYPORT_UPSTREAM=interop="+neighbour.serve())
	thief.start(t)
	says := "the identity of gateway office was used from " + neighbourAt + ", which is an address of gateway billing"
	waitLog(t, core, "ALARM", says)
	waitLog(t, thief, says)
	if out := run(t, coreEnv, "audit", "ls"); !strings.Contains(out, "alarm.wrong_address") {
		t.Errorf("the alarm is not audited:\n%s", out)
	}
	if _, warnings, err := tryRun(coreEnv, "status"); err != nil || !strings.Contains(warnings, "office was used from "+neighbourAt) {
		t.Errorf("status does not say it: %v\n%s", err, warnings)
	}
	thief.kill()

	began = time.Now()
	run(t, coreEnv, "gateway", "rm", "billing")
	eventually(t, 10*time.Second, "the removed gateway's connections are gone", func() error {
		if n := coreHost.established(neighbourAt); n > 0 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	t.Logf("they were gone %v after the verb was started", time.Since(began).Round(time.Millisecond))
	eventually(t, 10*time.Second, "its host does not reach core any more", func() error {
		if neighbour.reaches(neighbourAt, coreAt+":50055") == nil {
			return errors.New("it does")
		}
		return nil
	})
	billing.kill()
	calls.stop()
	calls.wantAll(t, "calls by way of the other gateway")

	// Core moves: the proxy's host says who was refused, and what to do.
	coreHost.AddAddress("eth0", coreMovedTo+"/24")
	coreHost.Run("ip", "route", "replace", proxyAt+"/32", "dev", "eth0", "src", coreMovedTo)
	core.kill()
	core.start(t)
	waitLog(t, proxyGuard, coreMovedTo, "--core-ip "+coreMovedTo)
	proxy.kill()
	proxy.env = append(proxy.env, "SALLYPORT_CORE_IP="+coreMovedTo)
	proxy.start(t)
	callsGoThrough(t, client, "core at its new address")
	if out := run(t, coreEnv, "proxy", "ls"); !strings.Contains(out, "dmz1") {
		t.Error(out)
	}
}
