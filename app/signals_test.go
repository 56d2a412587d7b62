package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSignals: the first signal makes the process unready and lets a call
// under way go on; the second one does not wait for it.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "sallyport")
	if out, err := exec.Command("go", "build", "-o", binary, "sallyport").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	public, address := freePort(), freePort()
	config := filepath.Join(dir, "all.toml")
	text := fmt.Sprintf("health_address = %q\n[core]\ngrpc_address = %q\n[proxy]\ngrpc_address = %q\npublic_address = %q\n", address, freePort(), freePort(), public)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"SALLYPORT_DATA_DIR=" + filepath.Join(dir, "data"), "PATH=" + os.Getenv("PATH")}
	process := exec.Command(binary, "--role", "all", "--config", config)
	var log bytes.Buffer
	process.Env, process.Stdout, process.Stderr = environ, &log, &log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	defer process.Process.Kill()
	ready := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			status, body, _ := probe("http://" + address + "/readyz")
			if strings.Contains(body, want) && (want != "proxy ready" || status == 200) {
				return
			}
			if time.Now().After(deadline) {
				process.Process.Kill()
				<-ended
				t.Fatalf("/readyz never said %q but %q\n%s", want, body, log.String())
			}
		}
	}
	ready("proxy ready")

	// One response comes at once, the next one in ten seconds.
	ctx, hangUp := context.WithCancel(t.Context())
	out, first := &firstWrite{written: make(chan struct{})}, make(chan int, 1)
	go func() {
		first <- Main(ctx, []string{"call", "sallyport.demo.v1.Echo/Count", `{"to":3,"intervalMillis":10000}`, "--address", public},
			strings.NewReader(""), out, new(bytes.Buffer), environ)
	}()
	select {
	case <-out.written:
	case status := <-first:
		t.Fatalf("the call ended with %d", status)
	}

	process.Process.Signal(syscall.SIGTERM)
	ready("draining")
	select {
	case err := <-ended:
		t.Fatalf("it did not wait for the call under way: %v\n%s", err, log.String())
	case status := <-first:
		t.Fatalf("the call under way was ended: %d", status)
	case <-time.After(300 * time.Millisecond):
	}
	process.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(3 * time.Second):
		t.Error("the second signal was waited with")
	}
	hangUp()
	<-first
}

// firstWrite tells when the first response was printed.
type firstWrite struct {
	bytes.Buffer
	written chan struct{}
}

func (f *firstWrite) Write(p []byte) (int, error) {
	if f.Len() == 0 {
		close(f.written)
	}
	return f.Buffer.Write(p)
}
