package app

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestReload: SIGHUP reads the settings again. What can change does, what
// cannot is said, and a mistake leaves everything as it was.
func TestReload(t *testing.T) {
	dir, address := t.TempDir(), freePort()
	config := filepath.Join(dir, "core.toml")
	write := func(more string) {
		t.Helper()
		text := fmt.Sprintf("role = \"core\"\ndata_dir = %q\nhealth_address = %q\ngrpc_address = %q\n%s\n", filepath.Join(dir, "data"), freePort(), address, more)
		if old, err := os.ReadFile(config); err == nil { // the port of the health listener stays
			lines := strings.SplitAfterN(string(old), "\n", 5)
			text = strings.Join(lines[:4], "") + more + "\n"
		}
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`log_level = "info"`)

	var all bytes.Buffer
	var ctx context.Context
	var lines *bufio.Scanner
	stop := func() {}
	defer func() { stop() }()
	ended := make(chan int, 1)
	begin := func() {
		ctx, stop = context.WithCancel(t.Context())
		logs, out := io.Pipe()
		go func() {
			ended <- Main(ctx, []string{"--config", config, "--log-format", "json"}, strings.NewReader(""), out, new(bytes.Buffer), nil)
			out.Close()
		}()
		lines = bufio.NewScanner(io.TeeReader(logs, &all))
	}
	begin()
	until := func(words ...string) {
		t.Helper()
	next:
		for lines.Scan() {
			for _, w := range words {
				if !strings.Contains(lines.Text(), w) {
					continue next
				}
			}
			return
		}
		t.Fatalf("the log has no line with %q", words)
	}
	hup := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	until(`"msg":"ready"`)

	write(`log_level = "debug"`)
	hup()
	until("settings were read again", `"log_level":"DEBUG"`)

	write(`cert_lifetime = "12h"`)
	hup()
	until("next start only", `["core"]`)
	until("settings were read again", `"log_level":"INFO"`)

	// What a file says is not to be seen in the settings. The CA is sealed with
	// the passphrase while it is open, so that it opens at the next start.
	passphrase, hook := filepath.Join(dir, "passphrase"), filepath.Join(dir, "hook")
	secret := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret(passphrase, "the first passphrase")
	secret(hook, "http://127.0.0.1:1/first")
	stop()
	until(`"msg":"stopped"`)
	<-ended
	write(fmt.Sprintf("ca_passphrase_file = %q\nalert_webhook_file = %q", passphrase, hook))
	begin()
	until(`"msg":"ready"`)
	hup()
	until("settings were read again") // and nothing has changed
	secret(passphrase, "another passphrase")
	secret(hook, "http://127.0.0.1:1/second")
	hup()
	until("changed secrets are in force", "alert-webhook", "ca-passphrase-file")
	stop()
	until(`"msg":"stopped"`)
	<-ended
	begin()
	until(`"msg":"ready"`)
	if strings.Contains(all.String(), "first passphrase") || strings.Contains(all.String(), "another passphrase") || strings.Contains(all.String(), "127.0.0.1:1") {
		t.Error("a secret is in the log")
	}

	write(`cert_lifetime = "soon"`)
	hup()
	until("kept as they were", "soon", "core.toml:5")

	stop()
	until(`"msg":"stopped"`)
	if status := <-ended; status != 0 {
		t.Errorf("exit status %d", status)
	}
}
