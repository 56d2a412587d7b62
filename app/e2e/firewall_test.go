package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/firewall/netns"
)

// guarded is a host on which the firewall verbs run as a root would run them.
type guarded struct {
	*netns.Host
	t   *testing.T
	dir string
}

func newGuarded(t *testing.T) *guarded {
	if testing.Short() {
		t.Skip("the verbs of one process at a time, mostly waiting")
	}
	netns.Available(t, "nft", "setpriv")
	g := &guarded{netns.New(t, "host"), t, t.TempDir()}
	other := g.Command("nft", "-f", "-")
	other.Stdin = strings.NewReader("table inet operator {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\ttcp dport 22 accept\n\t}\n}\n")
	if out, err := other.CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	return g
}

// command is sallyport firewall …; verbs that change something share a run
// directory of this test.
func (g *guarded) command(args ...string) *exec.Cmd {
	words := append([]string{binary, "firewall"}, args...)
	if args[0] != "render" && args[0] != "check" {
		words = append(words, "--run-dir", filepath.Join(g.dir, "run"))
	}
	return g.Command(words...)
}

// does runs a verb and wants an exit status, and a text in what it says.
func (g *guarded) does(status int, says string, args ...string) string {
	g.t.Helper()
	out, err := g.command(args...).CombinedOutput()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		g.t.Fatal(err)
	}
	if got != status || !strings.Contains(string(out), says) {
		g.t.Fatalf("firewall %q: exit status %d, want %d and %q\n%s", args, got, status, says, out)
	}
	return string(out)
}

var countersOfNft = regexp.MustCompile(`packets \d+ bytes \d+`)

func (g *guarded) ruleset() string {
	g.t.Helper()
	return countersOfNft.ReplaceAllString(g.Run("nft", "-a", "list", "ruleset"), "")
}

// stateless is the ruleset without what the kernel numbers anew.
func (g *guarded) stateless() string {
	g.t.Helper()
	return g.Run("nft", "-s", "list", "ruleset")
}

func (g *guarded) write(path string, core ...string) {
	g.t.Helper()
	var p firewall.Peers
	if len(core) > 0 {
		var err error
		if p, err = firewall.ParsePeers(core); err != nil {
			g.t.Fatal(err)
		}
	}
	if err := firewall.WriteData(path, firewall.Data{Core: &firewall.Entry{Generation: 1, Peers: p}}); err != nil {
		g.t.Fatal(err)
	}
}

// TestFirewallConfirm: without a confirmation the former rules come back, also
// where there were none, and also when the command is killed before or after it
// has loaded.
func TestFirewallConfirm(t *testing.T) {
	t.Parallel()
	for _, former := range []string{"absent", "10.0.0.1"} {
		for _, killed := range []string{"never", "before", "after"} {
			t.Run(former+"/killed "+killed, func(t *testing.T) {
				t.Parallel()
				g := newGuarded(t)
				if former != "absent" {
					g.does(0, "loaded", "apply", "--role", "core", "--peer", former)
				}
				was := g.stateless()
				g.confirmed(killed)
				waitFor(t, "the former rules", func() bool {
					_, err := os.Stat(filepath.Join(g.dir, "run", "restored"))
					return err == nil
				})
				if now := g.stateless(); now != was {
					t.Errorf("before:\n%s\nrestored:\n%s", was, now)
				}
				g.does(1, "former rules were restored", "confirm")
				g.does(0, "loaded", "apply", "--role", "core", "--peer", "10.0.0.3") // nothing is in the way any more
			})
		}
	}
}

// confirmed loads rules that nobody will confirm, and kills the command, and what
// it has started but the guard, where nft is about to load or has just loaded.
func (g *guarded) confirmed(killed string) {
	g.t.Helper()
	apply := []string{"apply", "--role", "core", "--peer", "10.0.0.2", "--confirm", "6s"}
	if killed == "never" {
		g.does(0, "come back in 6s", apply...)
		g.does(0, "as meant", "check", "--role", "core", "--peer", "10.0.0.2")
		g.does(1, "wait for a confirmation", "apply", "--role", "core", "--peer", "10.0.0.4")
		return
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		g.t.Fatal(err)
	}
	bin, at := filepath.Join(g.dir, "bin"), filepath.Join(g.dir, "at")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = '-f -' ] || exec %s \"$@\"\n", nft)
	if killed == "after" {
		script += nft + " -f - || exit 1\n"
	}
	script += "touch " + at + "\nexec sleep 600\n"
	if err := errors.Join(os.Mkdir(bin, 0o755), os.WriteFile(filepath.Join(bin, "nft"), []byte(script), 0o755)); err != nil {
		g.t.Fatal(err)
	}
	cmd := g.command(apply...)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	defer cmd.Wait()
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	waitFor(g.t, "nft to load", func() bool {
		_, err := os.Stat(at)
		return err == nil
	})
	if loaded := strings.Contains(g.stateless(), "10.0.0.2"); loaded != (killed == "after") {
		g.t.Fatalf("loaded: %v", loaded)
	}
}

// TestFirewallConfirmed: what was confirmed stays; several at once come one after
// the other.
func TestFirewallConfirmed(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.does(1, "no rules wait", "confirm")
	g.does(0, "come back in 1h0m0s", "apply", "--role", "core", "--peer", "10.0.0.2", "--confirm", "1h")
	g.does(0, "Confirmed: the rules of core stay", "confirm")
	g.does(0, "as meant", "check", "--role", "core", "--peer", "10.0.0.2")
	g.does(1, "no rules wait", "confirm")

	var wg sync.WaitGroup
	for i := range 6 {
		cmd := g.command("apply", "--role", "core", "--peer", fmt.Sprintf("10.1.0.%d", i), "--peer", fmt.Sprintf("10.2.0.%d", i))
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	whole := 0
	for i := range 6 {
		if g.command("check", "--role", "core", "--peer", fmt.Sprintf("10.1.0.%d", i), "--peer", fmt.Sprintf("10.2.0.%d", i)).Run() == nil {
			whole++
		}
	}
	if whole != 1 {
		t.Errorf("%d of the sets are in the kernel as a whole", whole)
	}
	// A mistake changes nothing; the ports are bounded by what nft takes.
	was := g.ruleset()
	g.does(2, "write any", "apply", "--role", "core", "--peer", "0.0.0.0/0")
	g.does(2, "no port", "apply", "--role", "core", "--peer", "10.0.0.1", "--port", "0")
	g.does(2, "is no port", "apply", "--role", "core", "--peer", "10.0.0.1", "--published-port", "443; flush ruleset")
	g.does(2, "--watch does not say whose", "apply", "--watch", "--from", filepath.Join(g.dir, "x"))
	if g.ruleset() != was {
		t.Error("a mistake changed the rules")
	}
	// What waits for a confirmation is not taken for confirmed when rules of
	// another role go away.
	g.does(0, "come back in 1h0m0s", "apply", "--role", "proxy", "--peer", "10.0.0.9", "--confirm", "1h")
	g.does(1, "wait for a confirmation", "remove", "--role", "core")
	g.does(0, "Removed the rules of proxy.", "remove", "--role", "proxy")
	g.does(1, "no rules wait", "confirm")

	g.does(0, "Removed the rules of core.", "remove")
	g.does(0, "has no rules", "remove")
	if now := g.ruleset(); strings.Contains(now, "sallyport") || !strings.Contains(now, "operator") {
		t.Errorf("after remove:\n%s", now)
	}
}

// hostile are data files that a service which was taken over might write.
func hostile(t *testing.T, dir string) map[string]func(path string) error {
	text := func(s string) func(string) error {
		return func(path string) error {
			tmp := path + ".new"
			return errors.Join(os.WriteFile(tmp, []byte(s), 0o644), os.Rename(tmp, path))
		}
	}
	entry := func(peers string) func(string) error {
		return text(`{"version":1,"core":{"generation":9,"any":false,"peers":[` + peers + `]}}`)
	}
	var million strings.Builder
	a := netip.MustParseAddr("10.0.0.0")
	for range 1_000_000 {
		fmt.Fprintf(&million, ",%q", netip.PrefixFrom(a, 32))
		a = a.Next().Next()
	}
	good := filepath.Join(dir, "elsewhere")
	if err := firewall.WriteData(good, firewall.Data{Core: &firewall.Entry{}}); err != nil {
		t.Fatal(err)
	}
	return map[string]func(string) error{
		"empty":             text(""),
		"half written":      text(`{"version":1,"core":{"generation":9,"any":true,"pee`),
		"oversized":         text(`{"version":1` + strings.Repeat(" ", firewall.MaxDataSize) + "}"),
		"a million entries": entry(million.String()[1:]),
		"foreign":           text("flush ruleset\n"),
		"include":           text("include \"/etc/shadow\"\n"),
		"a statement":       entry(`"10.0.0.0/8 } ; flush ruleset ; #"`),
		"a name":            text(`{"version":1,"core } ; flush ruleset":{"generation":9,"any":true,"peers":[]}}`),
		"another port":      text(`{"version":1,"core":{"generation":9,"any":true,"peers":[],"port":22}}`),
		"ports beside":      text(`{"version":1,"ports":[22],"core":{"generation":9,"any":true,"peers":[]}}`),
		"everybody":         entry(`"0.0.0.0/0"`),
		"twice":             text(`{"version":1,"core":{"generation":9,"any":false,"peers":[]},"core":{"generation":9,"any":true,"peers":[]}}`),
		"of the other role": text(`{"version":1,"proxy":{"generation":9,"any":true,"peers":[]}}`),
		"a newer version":   text(`{"version":2,"core":{"generation":9,"any":true,"peers":[]}}`),
		"missing":           os.Remove,
		"a directory":       func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
		"a link":            func(path string) error { return errors.Join(os.Remove(path), os.Symlink(good, path)) },
		"a pipe":            func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o644)) },
	}
}

// TestFirewallBadFile: nothing in the file but an honest set changes the kernel,
// neither at once nor for the one who follows it.
func TestFirewallBadFile(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	path := filepath.Join(g.dir, "firewall.json")
	bad := hostile(t, g.dir)
	watcher, said := g.watch(path)
	defer watcher.stop()
	for i, name := range sortedKeys(bad) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		peer := fmt.Sprintf("10.0.1.%d", i)
		g.write(path, peer)
		waitFor(t, "the good file", func() bool { return strings.Contains(g.ruleset(), peer+" }") })
		was, lines := g.ruleset(), strings.Count(said.String(), "stay as they are")
		if err := bad[name](path); err != nil {
			t.Fatal(name, err)
		}
		waitFor(t, "a word about the bad file", func() bool { return strings.Count(said.String(), "stay as they are") > lines })
		once := g.Command(binary, "firewall", "apply", "--role", "core", "--from", path, "--run-dir", filepath.Join(g.dir, "once"))
		if out, err := once.CombinedOutput(); err == nil {
			t.Errorf("%s: loaded\n%s", name, out)
		}
		if now := g.ruleset(); now != was {
			t.Errorf("%s: the rules changed\n%s", name, now)
		}
		if n := strings.Count(said.String(), "stay as they are"); n > lines+1 {
			t.Errorf("%s: said %d times\n%s", name, n-lines, said.String())
		}
	}
	if strings.Contains(said.String(), "root:") {
		t.Errorf("it quotes a file that it was led to:\n%s", said)
	}
}

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

type following struct {
	t   *testing.T
	cmd *exec.Cmd
}

// watch follows a file with CAP_NET_ADMIN and nothing else, as the sample unit
// does.
func (g *guarded) watch(path string) (following, *buffer) {
	g.t.Helper()
	said := &buffer{}
	cmd := g.Command("setpriv", "--bounding-set=-all,+net_admin", "--no-new-privs", binary, "firewall", "apply",
		"--role", "core", "--from", path, "--watch", "--run-dir", filepath.Join(g.dir, "run"))
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	return following{g.t, cmd}, said
}

func (f following) stop() {
	f.cmd.Process.Signal(syscall.SIGTERM)
	if err := f.cmd.Wait(); err != nil {
		f.t.Errorf("the one who follows ended with %v", err)
	}
}

// TestFirewallWatch: the kernel follows the file through a burst of changes, and
// is mended when somebody else clears it. Nobody else changes these rules
// meanwhile.
func TestFirewallWatch(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	path := filepath.Join(g.dir, "firewall.json")
	watcher, said := g.watch(path)
	waitFor(t, "a word about the missing file", func() bool { return strings.Contains(said.String(), "no such file") })
	for i := range 300 {
		g.write(path, fmt.Sprintf("10.%d.0.%d", i/250, i%250))
	}
	waitFor(t, "the last of many", func() bool { return strings.Contains(g.ruleset(), "10.1.0.49 }") })
	g.does(1, "follows a data file", "apply", "--role", "core", "--peer", "10.0.0.9")
	g.does(1, "follows a data file", "remove")
	g.Run("nft", "flush", "ruleset")
	waitFor(t, "the rules to be back", func() bool { return strings.Contains(g.ruleset(), "10.1.0.49 }") })
	g.Run("nft", "add", "element", "inet", "sallyport_core", "peers4", "{ 203.0.113.9 }")
	waitFor(t, "the extra peer to go", func() bool { return !strings.Contains(g.ruleset(), "203.0.113.9") })
	g.write(path)
	waitFor(t, "nobody to be allowed", func() bool { return strings.Contains(said.String(), "allowed: NOBODY") })
	watcher.stop()
	for _, want := range []string{"table inet sallyport_core is missing", "203.0.113.9 is allowed and should not be", "nobody may reach TCP port 50055"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it did not say %q:\n%s", want, said)
		}
	}
	if !strings.Contains(g.ruleset(), "table inet sallyport_core") {
		t.Error("the rules went with the one who followed")
	}
	g.does(0, "Removed", "remove", "--role", "core")
}

// TestFirewallCheck: every way in which the kernel may differ from what is meant
// is one line, and exit status 1.
func TestFirewallCheck(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	flags := []string{"--role", "core", "--peer", "10.0.0.0/24", "--peer", "10.0.1.7", "--peer", "2001:db8::/64", "--published-port", "8055"}
	const table = " inet sallyport_core "
	for _, tc := range []struct{ script, want string }{
		{"", ""},
		{"delete table" + table, "core: table inet sallyport_core is missing: the kernel limits nothing"},
		{"add element" + table + "peers4 { 203.0.113.9 }", "core: 203.0.113.9 is allowed and should not be"},
		{"add element" + table + "peers4 { 10.0.1.0/24 }", "core: 10.0.1.0-10.0.1.6 is allowed and should not be\ncore: 10.0.1.8-10.0.1.255 is allowed and should not be"},
		{"add element" + table + "peers6 { ::/1 }", "core: ::-2001:db7:ffff:ffff:ffff:ffff:ffff:ffff is allowed and should not be\ncore: 2001:db8:0:1::-7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff is allowed and should not be"},
		{"delete element" + table + "peers4 { 10.0.1.7 }", "core: 10.0.1.7 should be allowed and is missing"},
		{"flush set" + table + "peers6", "core: 2001:db8::/64 should be allowed and is missing"},
		{"delete element" + table + "ports { 8055 }", "core: port 8055 is not limited"},
		{"add element" + table + "ports { 22 }", "core: port 22 is limited and should not be"},
		{"insert rule" + table + "port accept", `core: chain port has another rule 1 instead of ct direction reply accept: [{"accept":null}]`},
		{"add rule" + table + "prerouting accept", `core: chain prerouting has 1 rules too many: [{"accept":null}]`},
		{"flush chain" + table + "prerouting", "core: chain prerouting ends before its rule 1, tcp dport @ports goto port"},
		{"delete chain" + table + "prerouting", "core: chain prerouting is missing"},
		{"delete chain" + table + "prerouting; add chain" + table + "prerouting { type filter hook prerouting priority 0; policy accept; }; add rule" + table + "prerouting tcp dport @ports goto port",
			"core: chain prerouting has priority 0 instead of -150 (mangle)"},
		{"delete chain" + table + "prerouting; add chain" + table + "prerouting { type filter hook postrouting priority mangle; policy accept; }; add rule" + table + "prerouting tcp dport @ports goto port",
			"core: chain prerouting has hook postrouting instead of prerouting"},
		{"delete chain" + table + "prerouting; add chain" + table + "prerouting; add rule" + table + "prerouting tcp dport @ports goto port",
			"core: chain prerouting has hook none instead of prerouting"},
		{"add chain" + table + "prerouting { policy drop; }", "core: chain prerouting has policy drop instead of accept"},
		{"add chain" + table + "mine", "core: chain mine does not belong there"},
		{"add set" + table + "mine { type ipv4_addr; }", "core: set mine does not belong there"},
		{"add map" + table + "mine { type ipv4_addr : verdict; }", "core: map mine does not belong there"},
		{"add counter" + table + "mine", "core: counter mine does not belong there"},
		{"add table" + table + "{ flags dormant; }", "core: the table has flags: a dormant one does nothing"},
	} {
		g.does(0, "loaded", append([]string{"apply"}, flags...)...)
		if tc.script == "" {
			g.does(0, "core: as meant, allowed: 2 IPv4 and 1 IPv6 addresses or networks\ncore: refused 0 packets", append([]string{"check"}, flags...)...)
			continue
		}
		change := g.Command("nft", "-f", "-")
		change.Stdin = strings.NewReader(tc.script + "\n")
		if out, err := change.CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", tc.script, out)
		}
		out := g.does(1, tc.want, append([]string{"check"}, flags...)...)
		if n := strings.Count(out, "core: ") - strings.Count(out, "core: refused"); n != strings.Count(tc.want, "\n")+1 {
			t.Errorf("%s: more lines than %q:\n%s", tc.script, tc.want, out)
		}
	}
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}
