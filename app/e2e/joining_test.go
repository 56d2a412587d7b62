package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// token takes the join token out of a printed line.
func token(t *testing.T, line string) string {
	t.Helper()
	for _, w := range strings.Fields(line) {
		if strings.HasPrefix(w, "sp1.") {
			return w
		}
	}
	t.Fatalf("no token in %q", line)
	return ""
}

// startRefused starts a process that is expected to be refused and waits until
// its log holds want.
func (d *deployment) startRefused(name string, args []string, env []string, want ...string) *process {
	d.t.Helper()
	p := &process{name: name, log: &buffer{}, args: append([]string{binary}, args...),
		env: baseEnv(append([]string{"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, name),
			fmt.Sprintf("SALLYPORT_HEALTH_ADDRESS=127.0.0.1:%d", freePort(d.t))}, env...)...)}
	d.gateways[name] = p
	p.start(d.t)
	waitLog(d.t, p, want...)
	return p
}

// waitLog waits until one log line of p holds every word.
func waitLog(t *testing.T, p *process, want ...string) {
	t.Helper()
	eventually(t, 15*time.Second, fmt.Sprintf("%s logs %q in one line", p.name, want), func() error { return logs(p, want...) })
}

// logs is nil if one log line of p holds every word.
func logs(p *process, want ...string) error {
lines:
	for line := range strings.SplitSeq(strings.ToLower(p.log.String()), "\n") {
		for _, w := range want {
			if !strings.Contains(line, strings.ToLower(w)) {
				continue lines
			}
		}
		return nil
	}
	return fmt.Errorf("log of %s:\n%s", p.name, p.log.String())
}

// TestJoinRefusals: each refusal is told with cause and remedy on both sides.
func TestJoinRefusals(t *testing.T) {
	notWithShort(t)
	d := deploy(t, "")
	line := strings.TrimSpace(run(t, d.coreEnv, "gateway", "add", "office", "--ip", "127.0.0.1"))
	tok := token(t, line)

	t.Run("token of the other role", func(t *testing.T) {
		out, errOut, err := tryRun([]string{"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, "wrong-role")}, "--role", "proxy", "--join", tok)
		if err == nil || !strings.Contains(errOut, "gateway") || !strings.Contains(errOut, "proxy add") {
			t.Errorf("err %v\n%s%s", err, out, errOut)
		}
	})
	t.Run("tampered token", func(t *testing.T) {
		_, errOut, err := tryRun([]string{"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, "damaged")}, "--role", "gateway", "--join", tok[:len(tok)-6]+"AAAAAA")
		if err == nil || !strings.Contains(errOut, "damaged") {
			t.Errorf("err %v\n%s", err, errOut)
		}
	})
	t.Run("token that core never made", func(t *testing.T) {
		other, err := pki.ParseToken(tok)
		if err != nil {
			t.Fatal(err)
		}
		other.Seed[0] ^= 1
		d.startRefused("tampered", []string{"--role", "gateway", "--join", other.String()}, nil, "token", "gateway add")
		waitLog(t, d.core, "unknown", "gateway add")
	})
	t.Run("second key on a used token", func(t *testing.T) {
		g := &process{name: "office", log: &buffer{}, args: []string{binary, "--role", "gateway", "--join", tok},
			env: baseEnv("SALLYPORT_DATA_DIR="+filepath.Join(d.dir, "office"), fmt.Sprintf("SALLYPORT_HEALTH_ADDRESS=127.0.0.1:%d", freePort(t)))}
		d.gateways["office"] = g
		g.start(t)
		eventually(t, 15*time.Second, "office is connected", func() error {
			if out := run(t, d.coreEnv, "gateway", "ls"); !strings.Contains(out, "connected") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		d.startRefused("thief", []string{"--role", "gateway", "--join", tok}, nil, "token", "another key")
		waitLog(t, d.core, "alarm", "office", "another key")
		if out := run(t, d.coreEnv, "audit", "ls"); !strings.Contains(out, "alarm") {
			t.Errorf("no alarm in the audit log:\n%s", out)
		}
	})
	t.Run("a spent token is ignored with an identity on disk", func(t *testing.T) {
		g := d.gateways["office"]
		g.kill()
		g.start(t)
		eventually(t, 15*time.Second, "office is connected again", func() error {
			if out := run(t, d.coreEnv, "gateway", "ls"); !strings.Contains(out, "connected") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	})
	t.Run("removed gateway", func(t *testing.T) {
		run(t, d.coreEnv, "gateway", "add", "neighbour", "--ip", "127.0.0.1") // the port stays open to the address
		run(t, d.coreEnv, "gateway", "rm", "office")
		waitLog(t, d.gateways["office"], "removed", "gateway add office")
		waitLog(t, d.gateways["office"], "revoked", "add it again")
		waitLog(t, d.core, "gateway/office", "revoked")
	})
	t.Run("plaintext", func(t *testing.T) {
		for _, addr := range []string{d.coreAddr, d.proxyGRPC, d.public} {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			var answer [512]byte
			n, _ := c.Read(answer[:])
			c.Close()
			if !strings.Contains(string(answer[:n]), "400") || !strings.Contains(string(answer[:n]), "TLS") {
				t.Errorf("%s answered %q", addr, answer[:n])
			}
		}
		waitLog(t, d.core, "plaintext", "TLS")
		waitLog(t, d.proxy, "plaintext", "TLS")
	})
}

// TestSeedStaysHome: the token's seed is neither on the wire nor in any file
// of either side once both components have joined.
func TestSeedStaysHome(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	tcpdump := tool(t, "tcpdump")
	need(t, os.Geteuid() == 0, "root, to capture packets")
	d := deployLogging(t, "all", "")
	line := strings.TrimSpace(run(t, d.coreEnv, "gateway", "add", "office", "--ip", "127.0.0.1"))
	tok := token(t, line)
	parsed, err := pki.ParseToken(tok)
	if err != nil {
		t.Fatal(err)
	}

	pcap := filepath.Join(d.dir, "capture")
	_, port, _ := net.SplitHostPort(d.coreAddr)
	dump := exec.Command(tcpdump, "-i", "lo", "-U", "-s", "0", "-Z", "root", "-w", pcap, "tcp", "port", port)
	log := &buffer{}
	dump.Stderr = log
	dump.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "tcpdump listens", func() error {
		if !strings.Contains(log.String(), "listening on") {
			return fmt.Errorf("%s", log.String())
		}
		return nil
	})
	g := &process{name: "office", log: &buffer{}, args: []string{"sh", "-c", "exec " + line},
		env: baseEnv("SALLYPORT_DATA_DIR="+filepath.Join(d.dir, "office"), fmt.Sprintf("SALLYPORT_HEALTH_ADDRESS=127.0.0.1:%d", freePort(t)))}
	d.gateways["office"] = g
	g.start(t)
	eventually(t, 15*time.Second, "office is connected", func() error {
		if out := run(t, d.coreEnv, "gateway", "ls"); !strings.Contains(out, "connected") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	var captured []byte
	eventually(t, 10*time.Second, "the capture holds the handshakes", func() error {
		captured, _ = os.ReadFile(pcap)
		for _, alpn := range []string{"sallyport-join/1", "sallyport-control/1"} {
			if !bytes.Contains(captured, []byte(alpn)) {
				return fmt.Errorf("no %s in %d bytes", alpn, len(captured))
			}
		}
		return nil
	})
	dump.Process.Signal(syscall.SIGTERM)
	dump.Wait()
	captured, _ = os.ReadFile(pcap)

	forms := map[string][]byte{
		"raw":   parsed.Seed[:],
		"hex":   []byte(hex.EncodeToString(parsed.Seed[:])),
		"token": []byte(tok[len("sp1."):]),
	}
	for shift := range 3 { // base64 text differs with the position modulo three
		enc := base64.RawURLEncoding.EncodeToString(append(make([]byte, shift), parsed.Seed[:]...))
		forms[fmt.Sprintf("base64+%d", shift)] = []byte(enc[4 : len(enc)-4])
	}
	search := func(where string, b []byte) {
		for form, f := range forms {
			if bytes.Contains(b, f) {
				t.Errorf("the seed (%s) is in %s", form, where)
			}
		}
	}
	search("the packet capture", captured)
	for _, p := range []*process{d.core, d.proxy, g} {
		search("the log of "+p.name, []byte(p.log.String()))
	}
	files := 0
	filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || path == pcap {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		files++
		search(path, b)
		return nil
	})
	if files < 6 {
		t.Errorf("only %d files looked at", files)
	}
}
