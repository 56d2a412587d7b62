package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// issuingCore is a core alone: enough to make certificates.
func issuingCore(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{t: t, dir: t.TempDir()}
	d.coreEnv = []string{"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, "core")}
	d.core = &process{name: "core", log: &buffer{}, env: baseEnv(d.coreEnv...), args: []string{binary, "--role", "core",
		"--grpc-address", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--health-address", fmt.Sprintf("127.0.0.1:%d", freePort(t))}}
	t.Cleanup(d.close)
	d.core.start(t)
	eventually(t, 15*time.Second, "core answers on its admin socket", func() error {
		_, errOut, err := tryRun(d.coreEnv, "status")
		if err != nil {
			return fmt.Errorf("%s", errOut)
		}
		return nil
	})
	return d
}

// background starts another program and ends it with the test.
func background(t *testing.T, env []string, args ...string) *buffer {
	t.Helper()
	log := &buffer{}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return log
}

// nginx serves a page with the files of `cert issue`; clients are verified,
// as "on" or "optional" says.
func (d *deployment) nginx(cert, key, ca, verifyClient string) (address string) {
	d.t.Helper()
	program := tool(d.t, "nginx", "/usr/sbin/nginx")
	dir := d.t.TempDir()
	address = fmt.Sprintf("127.0.0.1:%d", freePort(d.t))
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server {
    listen %[2]s ssl;
    ssl_certificate %[3]s;
    ssl_certificate_key %[4]s;
    ssl_client_certificate %[5]s;
    ssl_verify_client %[6]s;
    ssl_verify_depth 3;
    location / { default_type text/html; return 200 "<p>hello from nginx, $ssl_client_verify</p>"; }
  }
}
`, dir, address, cert, key, ca, verifyClient)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		d.t.Fatal(err)
	}
	log := background(d.t, nil, program, "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", file)
	eventually(d.t, 10*time.Second, "nginx listens", func() error {
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, log.String())
		}
		return c.Close()
	})
	return address
}

// TestCertificatesInNginx: nginx serves with the files of `cert issue` as they
// are, and lets only clients in that have such files too.
func TestCertificatesInNginx(t *testing.T) {
	notWithShort(t)
	tool(t, "nginx", "/usr/sbin/nginx")
	d := issuingCore(t)
	cert, key, ca := d.issue("web", "--server", "--dns", "localhost", "--ip", "127.0.0.1")
	clientCert, clientKey, clientCA := d.issue("browser", "--client")
	address := d.nginx(cert, key, ca, "on")
	pool := x509.NewCertPool()
	text, err := os.ReadFile(clientCA)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatalf("ca.crt: %v", err)
	}
	get := func(certs ...tls.Certificate) string {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: certs}}}
		resp, err := client.Get("https://" + address + "/")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return fmt.Sprint(resp.StatusCode, " ", string(body))
	}
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	if got := get(pair); !strings.HasPrefix(got, "200") || !strings.Contains(got, "hello from nginx, SUCCESS") {
		t.Errorf("with a certificate: %s", got)
	}
	if got := get(); !strings.HasPrefix(got, "400") {
		t.Errorf("without a certificate: %s", got)
	}
	// A certificate for a server is none for a client.
	server, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if got := get(server); strings.HasPrefix(got, "200") {
		t.Errorf("with the server's certificate: %s", got)
	}
}

// TestCertificatesInOpenSSL: `openssl verify` takes every key type that `cert
// issue` makes, for its purpose and no other.
func TestCertificatesInOpenSSL(t *testing.T) {
	notWithShort(t)
	openssl := tool(t, "openssl")
	d := issuingCore(t)
	for _, kind := range []string{"p256", "p384", "ed25519", "rsa2048"} {
		cert, key, ca := d.issue("server-"+kind, "--server", "--dns", "db.internal", "--key-type", kind)
		verify := func(args ...string) (string, error) {
			args = append(append([]string{"verify", "-x509_strict", "-CAfile", ca, "-untrusted", cert}, args...), cert)
			out, err := exec.Command(openssl, args...).CombinedOutput()
			return string(out), err
		}
		if out, err := verify("-purpose", "sslserver", "-verify_hostname", "db.internal"); err != nil {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
		if out, err := verify("-purpose", "sslclient"); err == nil {
			t.Errorf("%s: a server's certificate is one for clients: %s", kind, out)
		}
		if out, err := verify("-purpose", "sslserver", "-verify_hostname", "other.internal"); err == nil {
			t.Errorf("%s: any name is good: %s", kind, out)
		}
		if out, err := exec.Command(openssl, "pkey", "-in", key, "-noout", "-check").CombinedOutput(); err != nil {
			t.Errorf("%s: key: %v\n%s", kind, err, out)
		}
	}
	// And the CRL that core makes counts for openssl.
	cert, _, ca := d.issue("gone", "--client")
	run(t, d.coreEnv, "cert", "revoke", cert)
	crl := filepath.Join(d.dir, "ca.crl")
	eventually(t, 10*time.Second, "openssl finds the certificate revoked", func() error {
		if err := os.WriteFile(crl, []byte(run(t, d.coreEnv, "ca", "crl")), 0o644); err != nil {
			return err
		}
		out, err := exec.Command(openssl, "verify", "-crl_check", "-CRLfile", crl, "-CAfile", ca, "-untrusted", cert, cert).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "certificate revoked") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}

// TestNodeUpstream: a server written with @grpc/grpc-js that requires client
// certificates, with the files of `cert issue`, behind a gateway.
func TestNodeUpstream(t *testing.T) {
	notWithShort(t)
	root := nodeRoot(t)
	d := deploy(t, foreignPolicy)
	serverCert, serverKey, ca := d.issue("node-upstream", "--server", "--dns", "localhost", "--ip", "127.0.0.1")
	gatewayCert, gatewayKey, _ := d.issue("office-gateway", "--client")
	portfile := filepath.Join(d.dir, "port")
	log := background(t, []string{"NODE_MODULES_ROOT=" + root}, "node", "testdata/echo_server.js", portfile, serverKey, serverCert, ca)
	var port string
	eventually(t, 20*time.Second, "the Node server listens", func() error {
		b, err := os.ReadFile(portfile)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, log.String())
		}
		port = string(b)
		return nil
	})
	// It lets nobody in without a certificate.
	c, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err == nil {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		for err == nil { // its first frames may come before its refusal
			_, err = c.Read(make([]byte, 4096))
		}
		c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "handshake") {
		t.Errorf("the Node server takes a client without a certificate: %v", err)
	}

	config := filepath.Join(d.dir, "gateway.toml")
	settings := fmt.Sprintf("[[upstream]]\nname = \"node\"\naddress = \"tls://127.0.0.1:%s\"\nservices = [\"foreign.v1.Echo\"]\nca = %q\ncert = %q\nkey = %q\nserver_name = \"localhost\"\n",
		port, ca, gatewayCert, gatewayKey)
	if err := os.WriteFile(config, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	d.addGateway("office", nil, "SALLYPORT_CONFIG="+config)
	d.waitRouted("foreign.v1.Echo", "office")
	cert, key, ca := d.issue("billing", "--client")
	runForeign(t, []string{"NODE_MODULES_ROOT=" + root}, "node", "testdata/echo_client.js", d.public, ca, cert, key, "spiffe://sallyport.internal/client/billing")
}

// TestCertificateInChromium: the browser shows a page of nginx with a
// certificate of `cert issue` once the CA is installed, and not before.
func TestCertificateInChromium(t *testing.T) {
	notWithShort(t)
	chromium, certutil := tool(t, "chromium", "chromium-browser", "google-chrome"), tool(t, "certutil")
	d := issuingCore(t)
	cert, key, ca := d.issue("web", "--server", "--dns", "localhost", "--ip", "127.0.0.1")
	address := d.nginx(cert, key, ca, "off")

	browse := func(home string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
			"--user-data-dir="+filepath.Join(home, "profile"), "--dump-dom", "https://"+address+"/")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := cmd.Run(); err != nil {
			t.Logf("chromium: %v\n%s", err, errOut.String())
		}
		return out.String()
	}
	home := func(install bool) string {
		t.Helper()
		home := t.TempDir()
		db := filepath.Join(home, ".pki", "nssdb")
		if err := os.MkdirAll(db, 0o700); err != nil {
			t.Fatal(err)
		}
		steps := [][]string{{"-N", "--empty-password"}}
		if install {
			steps = append(steps, []string{"-A", "-t", "C,,", "-n", "sallyport", "-i", ca})
		}
		for _, args := range steps {
			if out, err := exec.Command(certutil, append([]string{"-d", "sql:" + db}, args...)...).CombinedOutput(); err != nil {
				t.Fatalf("certutil %v: %v\n%s", args, err, out)
			}
		}
		return home
	}
	if page := browse(home(true)); !strings.Contains(page, "hello from nginx") {
		t.Errorf("with the CA installed: %s", page)
	}
	if page := browse(home(false)); strings.Contains(page, "hello from nginx") {
		t.Errorf("without the CA: %s", page)
	}
}
