package gateway

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestUnixSocket(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "call.sock")
	mode := func(want fs.FileMode) {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Type() != fs.ModeSocket || info.Mode().Perm() != want {
			t.Errorf("%v, %v; want a socket of mode %v", info, err, want)
		}
	}
	answers := func(want bool) {
		t.Helper()
		nc, err := net.Dial("unix", path)
		if err == nil {
			nc.Close()
		}
		if (err == nil) != want {
			t.Errorf("dialling it: %v", err)
		}
	}
	first, err := listenUnix(path, "")
	if err != nil {
		t.Fatal(err)
	}
	mode(0o600)
	answers(true)
	if _, err := listenUnix(path, ""); err == nil || !strings.Contains(err.Error(), "another gateway listens there") {
		t.Errorf("a second one: %v", err)
	}
	answers(true)
	first.Close()
	first.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its end: %v", err)
	}

	// A killed process leaves its socket; somebody else's living one, that has
	// no lock, is not taken either.
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path, ""); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("in the place of a living socket: %v", err)
	}
	answers(true)
	other.(*net.UnixListener).SetUnlinkOnClose(false)
	other.Close()
	answers(false)
	again, err := listenUnix(path, "")
	if err != nil {
		t.Fatalf("in the place of a dead socket: %v", err)
	}
	answers(true)
	again.Close()

	if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path, ""); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("in the place of a file: %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "mine" {
		t.Error("the file is gone")
	}
	os.Remove(path)
	if _, err := listenUnix(path, "no-such-group-here"); err == nil || !strings.Contains(err.Error(), "--listen-group") {
		t.Errorf("a group that is not there: %v", err)
	}
	if _, err := listenUnix(filepath.Join(dir, "none", "call.sock"), ""); err == nil {
		t.Error("in a directory that is not there")
	}
	for _, name := range []string{"4711"} {
		if os.Geteuid() != 0 {
			t.Log("not root: the group of the socket is not tried")
			continue
		}
		l, err := listenUnix(path, name)
		if err != nil {
			t.Fatal(err)
		}
		mode(0o660)
		l.Close()
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "call.sock.lock" {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
