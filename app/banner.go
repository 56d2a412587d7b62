package app

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"sallyport/configs"
)

const (
	demoMethod = "sallyport.demo.v1.Echo/Say"
	demoBody   = `{"text":"hello"}`
)

// banner says, once everything is ready, what runs where and how to try it. It
// is a message to people, so it goes to stderr.
func (p *process) banner(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, bannerPatience)
	defer cancel()
	err := p.ready.wait(waiting)
	if ctx.Err() != nil {
		return
	}
	s, c := p.settings, p.c
	title := "Sallyport " + version() + " is ready."
	if err != nil {
		title = "Sallyport " + version() + " is up, but " + err.Error() + "."
	}
	if c.colour(c.err) {
		title = bold + title + noColour
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\n", title)
	line := func(name, text string) { fmt.Fprintf(&b, "  %-9s %s\n", name, text) }
	line("proxy", s.Proxy.PublicAddress+"  callers, gRPC over TLS;  "+s.Proxy.GRPCAddress+"  core")
	line("core", s.Core.GRPCAddress+"  gateways")
	line("gateway", "serves "+servedBy(s.Gateway))
	line("health", "http://"+s.Process.HealthAddress+"/readyz, /metrics")
	line("data", p.dataDir())
	if p.demo() {
		call, grpcurl := p.tryLines()
		fmt.Fprintf(&b, "\nTry it from another terminal:\n\n  %s\n\nor, with grpcurl:\n\n  %s\n", call, grpcurl)
	} else {
		fmt.Fprintf(&b, "\nSee what is connected and served:\n\n  %s\n", shellJoin(append(p.self("status"), p.dataFlag("--data-dir", p.dataDir())...)))
	}
	fmt.Fprintf(&b, "\nCtrl-C stops it.\n\n")
	c.err.Write([]byte(b.String()))
}

// servedBy names what a gateway stands before.
func servedBy(g *configs.Gateway) string {
	if g.Demo {
		return "the built-in sallyport.demo.v1.Echo"
	}
	var names []string
	for _, u := range g.Upstreams {
		names = append(names, u.Name+" at "+u.Address.String())
	}
	return strings.Join(names, ", ")
}

// tryLines are the same call by our own client and by grpcurl, as they have to
// be typed here and now.
func (p *process) tryLines() (call, grpcurl string) {
	address, _ := reach(p.settings.Proxy.PublicAddress)
	if host, port, err := net.SplitHostPort(address); err == nil && (host == "127.0.0.1" || host == "::1") {
		address = net.JoinHostPort("localhost", port)
	}
	ca := filepath.Join(p.dataDir(), caFile)
	words := append(p.self("call"), demoMethod, demoBody)
	if address != "localhost:8443" {
		words = append(words, "--address", address)
	}
	words = append(words, p.dataFlag("--ca", ca)...)
	return shellJoin(words), shellJoin([]string{"grpcurl", "-cacert", ca, "-d", demoBody, address, demoMethod})
}

// dataFlag is a flag that says where the data directory is, or nothing where a
// fresh shell would look there anyway.
func (p *process) dataFlag(flag, value string) []string {
	fresh := slices.DeleteFunc(slices.Clone(p.c.environ), func(kv string) bool {
		return strings.HasPrefix(kv, "SALLYPORT_DATA_DIR=") || strings.HasPrefix(kv, "STATE_DIRECTORY=")
	})
	if configs.DataDir(fresh, os.Getuid()) == p.dataDir() {
		return nil
	}
	return []string{flag, value}
}

// self is how a verb of this program is started by the person who started this
// process.
func (p *process) self(words ...string) []string {
	exe, err := os.Executable()
	if err != nil {
		return append([]string{"sallyport"}, words...)
	}
	return append(programAs(exe, exec.LookPath), words...)
}

// programAs is the words that start the program at exe again: "go run ." when
// the go command built it for one run, its bare name when the shell would find
// this very file under it, else its path.
func programAs(exe string, look func(string) (string, error)) []string {
	if strings.Contains(filepath.ToSlash(exe), "/go-build") && strings.Contains(filepath.ToSlash(exe), "/exe/") {
		return []string{"go", "run", "."}
	}
	name := filepath.Base(exe)
	if found, err := look(name); err == nil && sameFile(found, exe) {
		return []string{name}
	}
	return []string{exe}
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// shellJoin writes words so that a POSIX shell reads them back.
func shellJoin(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-") != "" {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
