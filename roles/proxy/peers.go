package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/firewall"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// peers is from where core may come to the gRPC port. What --core-ip says on
// this host wins; else what core last said, in a snapshot; before there was one,
// what the join token says. A proxy that knows of none takes nobody.
type peers struct {
	proxy *proxy
	own   []string // --core-ip; empty: core says it
	off   bool     // --peer-check off
	set   firewall.Set
	known atomic.Pointer[[]string] // what is in force, as written
	mu    sync.Mutex               // serialises changes
}

// coreOwner is the one owner of the set.
const coreOwner = "core"

// invitedFile keeps what the join token says until there is a snapshot: between
// the two the proxy may be restarted without the token.
const invitedFile = "core-ip"

func newPeers(p *proxy) *peers {
	e := &peers{proxy: p, own: p.settings.CoreIP, off: p.settings.NoPeerCheck}
	e.set.Log = p.log
	return e
}

// start puts the first set in force. snapshot is what core last said, or nil.
func (e *peers) start(token *pki.Token, snapshot *control.Snapshot) error {
	file := filepath.Join(e.proxy.settings.DataDir, invitedFile)
	switch {
	case len(e.own) > 0:
		return e.use(e.own)
	case token != nil && e.proxy.settings.DataDir == "": // all is in memory, and gone at once
		return e.use(token.Peers)
	case token != nil:
		if err := os.WriteFile(file, []byte(strings.Join(token.Peers, "\n")+"\n"), 0o600); err != nil {
			return fmt.Errorf("keep the addresses of core: %w", err)
		}
		return e.use(token.Peers)
	case len(snapshot.GetCoreAddresses()) > 0:
		return e.use(snapshot.GetCoreAddresses())
	}
	text, err := os.ReadFile(file)
	if e.proxy.settings.DataDir == "" {
		err = fs.ErrNotExist
	}
	if err == nil {
		return e.use(strings.Fields(string(text)))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the addresses of core: %w", err)
	}
	e.proxy.log.Error("this proxy does not know from which addresses core comes, and takes it from none", "remedy", "start it with --core-ip ADDRESS")
	e.set.Put(nil)
	return nil
}

// parse reads what a snapshot says, for take; nil where this host's own word
// wins, or where it says nothing.
func (e *peers) parse(list []string) (*firewall.Peers, error) {
	if len(e.own) > 0 || len(list) == 0 {
		return nil, nil
	}
	parsed, err := firewall.ParsePeers(list)
	if err != nil {
		return nil, fmt.Errorf("where core comes from: %w", err)
	}
	return &parsed, nil
}

// use puts a set in force.
func (e *peers) use(list []string) error {
	parsed, err := firewall.ParsePeers(list)
	if err != nil {
		return fmt.Errorf("the addresses of core: %w", err)
	}
	e.take(&parsed)
	return nil
}

// take is use for what was read before; nil changes nothing.
func (e *peers) take(parsed *firewall.Peers) {
	if parsed == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	list := parsed.Strings()
	if former := e.known.Load(); former != nil && !slices.Equal(*former, list) {
		e.proxy.log.Info("core comes from other addresses from now on", "addresses", list, "before", *former)
	}
	e.known.Store(&list)
	e.set.Put(map[string]firewall.Peers{coreOwner: *parsed})
}

// admit judges an address before the first byte.
func (e *peers) admit(remote netip.AddrPort) *pki.Refusal {
	v := e.set.View()
	if e.off || v.Contains(remote.Addr()) {
		return nil
	}
	name := e.proxy.name()
	if name == "" {
		name = "NAME"
	}
	from := remote.Addr().String()
	r := &pki.Refusal{Code: link.CodeAddress, Cause: fmt.Sprintf("a connection from %s, which is not among the addresses of core (%s)", from, e.text()),
		Remedy: fmt.Sprintf("if core is there now: start this proxy with --core-ip %s, or, before core moves, run 'sallyport proxy set %s --core-ip %s' beside core", from, name, from)}
	if names := v.Unresolved(coreOwner); len(names) > 0 {
		r.Cause += "; " + strings.Join(names, ", ") + " could not be resolved"
	}
	return r
}

// text is the set in force as it was written.
func (e *peers) text() string {
	known := e.known.Load()
	if known == nil {
		return "none is known"
	}
	return strings.Join(*known, ", ")
}

// report is what core is told of the port.
func (e *peers) report() *control.PortReport {
	return &control.PortReport{CoreIps: e.own, Unchecked: e.off}
}

// countStrangers shows how many connections were refused by their address.
func (p *proxy) countStrangers(reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	err := reg.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "sallyport_port_refused_addresses_total",
		Help:        "Connections to the gRPC port that were closed before a handshake, because their address is no peer's.",
		ConstLabels: prometheus.Labels{"role": "proxy"}}, func() float64 { return float64(p.component.port.RefusedByAddress()) }))
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// run keeps the set, what is open, and the data file in line.
func (e *peers) run(ctx context.Context) {
	log := e.proxy.log
	if e.off {
		log.Warn("--peer-check is off: the gRPC port is open to every address; mutual TLS alone decides")
	} else if known := e.known.Load(); known != nil && slices.Contains(*known, "any") {
		log.Warn("core may come from any address: the gRPC port is open to everybody, and mutual TLS alone decides", "remedy", "name core's addresses: sallyport proxy set NAME --core-ip ADDRESS, or --core-ip here")
	}
	f := firewall.Follower{Set: &e.set, Role: configs.RoleProxy, File: e.proxy.deps.Firewall, Log: log, Enforce: func(*firewall.View) {},
		Close: func() {
			if n := e.proxy.component.port.Recheck(); n > 0 {
				log.Warn("connections from core were closed: they come from an address that is not core's any more", "connections", n, "core_comes_from", e.text(),
					"remedy", "if core is still there, start this proxy with --core-ip ADDRESS")
			}
		}}
	_ = f.Run(ctx) // nil: ctx has ended
}
