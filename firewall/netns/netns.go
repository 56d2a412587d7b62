// Package netns is hosts on a network of their own, for tests: network
// namespaces that are linked as machines would be, so that rules are tried with
// real packets and this machine's own rules and routes are never touched. Only
// tests import it. It needs root and the ip command.
package netns

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one namespace. It ends with its test.
type Host struct {
	t    testing.TB
	Name string
}

// Available skips a test where there can be no namespaces, and fails it where
// nothing may be skipped (SALLYPORT_TEST_REQUIRE=all). tools are commands that
// the test needs besides ip.
func Available(t testing.TB, tools ...string) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "root, for network namespaces"
	}
	for _, tool := range append([]string{"ip"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			why = tool
		}
	}
	switch {
	case why == "":
	case os.Getenv("SALLYPORT_TEST_REQUIRE") == "all":
		t.Fatalf("needs %s, and SALLYPORT_TEST_REQUIRE=all", why)
	default:
		t.Skipf("needs %s", why)
	}
}

var count atomic.Uint32

// New makes a host without any network but loopback. The label shows in its
// name; call Available before.
func New(t testing.TB, label string) *Host {
	t.Helper()
	h := &Host{t, fmt.Sprintf("sp%d-%d-%s", os.Getpid(), count.Add(1), label)}
	must(t, exec.Command("ip", "netns", "add", h.Name))
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", h.Name).CombinedOutput(); err != nil {
			t.Errorf("namespace %s stays: %s", h.Name, out)
		}
	})
	h.Run("ip", "link", "set", "lo", "up")
	return h
}

// Link connects two hosts by a cable. The device is called device at both ends;
// the addresses, with prefix lengths, are a's and b's.
func Link(t testing.TB, a, b *Host, device string, ofA, ofB []string) {
	t.Helper()
	must(t, exec.Command("ip", "link", "add", device, "netns", a.Name, "type", "veth", "peer", "name", device, "netns", b.Name))
	for h, addresses := range map[*Host][]string{a: ofA, b: ofB} {
		for _, address := range addresses {
			h.AddAddress(device, address)
		}
		h.Run("ip", "link", "set", device, "up")
	}
}

// Switch connects hosts as a switch does: each gets a device eth0. The addresses
// of each are added with AddAddress.
func Switch(t testing.TB, hosts ...*Host) {
	t.Helper()
	hub := New(t, "switch")
	hub.Run("ip", "link", "add", "br0", "type", "bridge")
	hub.Run("ip", "link", "set", "br0", "up")
	for i, h := range hosts {
		port := fmt.Sprintf("p%d", i)
		must(t, exec.Command("ip", "link", "add", port, "netns", hub.Name, "type", "veth", "peer", "name", "eth0", "netns", h.Name))
		hub.Run("ip", "link", "set", port, "master", "br0", "up")
		h.Run("ip", "link", "set", "eth0", "up")
	}
}

// AddAddress gives a device an address with its prefix length. IPv6 addresses
// are good at once.
func (h *Host) AddAddress(device, address string) {
	h.t.Helper()
	words := []string{"ip", "addr", "add", address, "dev", device}
	if strings.Contains(address, ":") {
		words = append(words, "nodad")
	}
	h.Run(words...)
}

// DelAddress takes an address away.
func (h *Host) DelAddress(device, address string) {
	h.t.Helper()
	h.Run("ip", "addr", "del", address, "dev", device)
}

// Command is a command on the host, not yet started.
func (h *Host) Command(words ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", h.Name}, words...)...)
}

// Run runs a command on the host to its end and returns its standard output.
func (h *Host) Run(words ...string) string {
	h.t.Helper()
	return must(h.t, h.Command(words...))
}

func must(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.Output()
	if err != nil {
		said := []byte{}
		if exit, ok := err.(*exec.ExitError); ok {
			said = exit.Stderr
		}
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out, said)
	}
	return string(out)
}

// Do runs f on a thread that is on the host: sockets that f makes itself, not by
// goroutines that it starts, are the host's, and stay so. The thread goes home
// afterwards: were it to end, the kernel would kill the processes that it has
// started for other tests (Pdeathsig).
func (h *Host) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			} // else the thread ends with the goroutine
		}()
		ns, err := os.Open("/run/netns/" + h.Name)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", h.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Listen listens on the host, until the test ends.
func (h *Host) Listen(network, address string) net.Listener {
	h.t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		h.t.Fatalf("%s: %v", h.Name, err)
	}
	h.t.Cleanup(func() { l.Close() })
	return l
}

// Dial connects from the host to an address that is a number; from, if it is not
// empty, is the IP:PORT to come from.
func (h *Host) Dial(network, from, address string, within time.Duration) (net.Conn, error) {
	var conn net.Conn
	err := h.Do(func() (err error) {
		d := net.Dialer{Timeout: within}
		if from != "" {
			local, err := net.ResolveTCPAddr(network, from)
			if err != nil {
				return err
			}
			d.LocalAddr = local
		}
		conn, err = d.Dial(network, address)
		return err
	})
	return conn, err
}
