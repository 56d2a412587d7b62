package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestFirstCommand: --role all without any other setting (but ports, because
// tests run beside each other) prints a line that works as it stands.
func TestFirstCommand(t *testing.T) {
	notWithShort(t)
	dir := t.TempDir()
	env := baseEnv("SALLYPORT_DATA_DIR="+dir, "NO_COLOR=1")
	public := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	config := filepath.Join(dir, "all.toml")
	text := fmt.Sprintf("[core]\ngrpc_address = \"127.0.0.1:%d\"\n[proxy]\ngrpc_address = \"127.0.0.1:%d\"\npublic_address = %q\n", freePort(t), freePort(t), public)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &process{name: "all", log: &buffer{}, env: env,
		args: []string{binary, "--role", "all", "--config", config, "--health-address", fmt.Sprintf("127.0.0.1:%d", freePort(t))}}
	t.Cleanup(p.kill)

	find := func(word string) (line string) {
		eventually(t, 15*time.Second, "the banner has a line with "+word, func() error {
			for l := range strings.SplitSeq(p.log.String(), "\n") {
				if i := strings.Index(l, word); i >= 0 {
					line = l[i:]
					return nil
				}
			}
			return fmt.Errorf("%s", p.log.String())
		})
		return line
	}
	try := func(line string) {
		t.Helper()
		cmd := exec.Command("sh", "-c", line)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil || !regexp.MustCompile(`"text":\s*"`).Match(out) {
			t.Errorf("%s: %v\n%s\n--- log\n%s", line, err, out, p.log.String())
		}
	}

	began := time.Now()
	p.start(t)
	line := find("sallyport call ")
	t.Logf("banner after %v", time.Since(began).Round(time.Millisecond))
	try(line)

	twin := find("grpcurl -cacert ")
	t.Run("grpcurl", func(t *testing.T) {
		tool(t, "grpcurl")
		try(twin)
	})

	// Everything but the demo, its reflection and health is closed.
	out, errOut, err := tryRun([]string{"SALLYPORT_DATA_DIR=" + dir}, "call", "--address", public, "--list")
	if err != nil || !strings.Contains(out, "sallyport.demo.v1.Echo") {
		t.Errorf("call --list: %v\n%s%s", err, out, errOut)
	}

	// A second start needs no new join and serves again.
	p.stop(t, 15*time.Second)
	if !p.state.Success() {
		t.Errorf("exit status %v", p.state)
	}
	p.log = &buffer{}
	p.start(t)
	try(find("sallyport call "))
	p.stop(t, 15*time.Second)
}
