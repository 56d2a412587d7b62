package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const foreignPolicy = `
[methods]
"/foreign.v1.Echo/Unary"        = ["echo"]
"/foreign.v1.Echo/ServerStream" = ["echo"]
"/foreign.v1.Echo/ClientStream" = ["echo"]
"/foreign.v1.Echo/Bidi"         = ["echo"]

[[grant]]
caller = "spiffe://sallyport.internal/client/billing"
permissions = ["echo"]
via_proxy = ["dmz1"]
`

// python returns an interpreter that can import grpc: Debian's own, not the
// one a version manager may have put in front.
func python(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(p, "-c", "import grpc").Run() == nil {
			return p
		}
	}
	need(t, false, "python3 with grpcio")
	return ""
}

// nodeRoot returns a directory whose node_modules has @grpc/grpc-js.
func nodeRoot(t *testing.T) string {
	t.Helper()
	tool(t, "node")
	root := os.Getenv("SALLYPORT_NODE_ROOT")
	_, err := os.Stat(filepath.Join(root, "node_modules", "@grpc", "grpc-js"))
	need(t, root != "" && err == nil, "SALLYPORT_NODE_ROOT, a directory where npm installed @grpc/grpc-js")
	return root
}

// issue makes a certificate with `cert issue` and returns the paths of the
// certificate, the key and the CA.
func (d *deployment) issue(name string, flags ...string) (cert, key, ca string) {
	d.t.Helper()
	out := filepath.Join(d.dir, "certs-"+name)
	run(d.t, d.coreEnv, append([]string{"cert", "issue", name, "--out", out}, flags...)...)
	return filepath.Join(out, name+".crt"), filepath.Join(out, name+".key"), filepath.Join(out, "ca.crt")
}

// foreignDeployment has a Python upstream that requires client certificates.
func foreignDeployment(t *testing.T) (d *deployment, cert, key, ca string) {
	py := python(t)
	d = deploy(t, foreignPolicy)
	serverCert, serverKey, ca := d.issue("py-upstream", "--server", "--dns", "localhost", "--ip", "127.0.0.1")
	gatewayCert, gatewayKey, _ := d.issue("office-gateway", "--client")
	portfile := filepath.Join(d.dir, "port")
	server := exec.Command(py, filepath.Join("testdata", "echo_server.py"), portfile, serverKey, serverCert, ca)
	log := &buffer{}
	server.Stdout, server.Stderr = log, log
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	var port string
	eventually(t, 20*time.Second, "the Python server listens", func() error {
		b, err := os.ReadFile(portfile)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, log.String())
		}
		port = string(b)
		return nil
	})
	config := filepath.Join(d.dir, "gateway.toml")
	text := fmt.Sprintf("[[upstream]]\nname = \"py\"\naddress = \"tls://127.0.0.1:%s\"\nservices = [\"foreign.v1.Echo\"]\nca = %q\ncert = %q\nkey = %q\nserver_name = \"localhost\"\n",
		port, ca, gatewayCert, gatewayKey)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.addGateway("office", nil, "SALLYPORT_CONFIG="+config)
	d.waitRouted("foreign.v1.Echo", "office")
	cert, key, ca = d.issue("billing", "--client")
	return d, cert, key, ca
}

func TestPythonClientAndUpstream(t *testing.T) {
	notWithShort(t)
	d, cert, key, ca := foreignDeployment(t)
	runForeign(t, nil, python(t), "testdata/echo_client.py", d.public, ca, cert, key, "spiffe://sallyport.internal/client/billing")
}

func TestNodeClient(t *testing.T) {
	notWithShort(t)
	root := nodeRoot(t)
	d, cert, key, ca := foreignDeployment(t)
	runForeign(t, []string{"NODE_MODULES_ROOT=" + root}, "node", "testdata/echo_client.js", d.public, ca, cert, key, "spiffe://sallyport.internal/client/billing")
}

func runForeign(t *testing.T, env []string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "ok") {
		t.Errorf("%s: %v\n%s", args[1], err, out)
	}
}
