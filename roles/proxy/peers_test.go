package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// opened reports whether the gRPC port takes a connection from an address of
// this host, and keeps it.
func (r *running) opened(from string) error {
	r.t.Helper()
	nc, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(r.t.Context(), "tcp", r.info.GRPCAddress)
	if err != nil {
		r.t.Fatal(err)
	}
	defer nc.Close()
	nc.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	var b [16]byte
	n, err := nc.Read(b[:])
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() && n == 0 {
		return nil
	}
	return fmt.Errorf("closed after %d bytes", n)
}

// TestWhereCoreComesFrom: the token says it, then the snapshot, over a restart
// too; --core-ip wins over both. A change closes what is open.
func TestWhereCoreComesFrom(t *testing.T) {
	core := newFakeCore(t)
	dir := t.TempDir()
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), DataDir: dir})
	if r.opened("127.0.0.1") != nil || r.opened("127.0.0.2") == nil {
		t.Error("before joining, the port is not open to the token's addresses alone")
	}
	core.join(r.info.GRPCAddress)
	// Between joining and the first snapshot, without the token.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = runProxy(t, core, configs.Proxy{DataDir: dir})
	if r.opened("127.0.0.1") != nil || r.opened("127.0.0.2") == nil {
		t.Error("without a snapshot, the port is not open to the addresses of the spent token alone")
	}
	core.connect(r.info.GRPCAddress)
	r.until(true)
	held, err := net.Dial("tcp", r.info.GRPCAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	core.mu.Lock()
	core.from = []string{"127.0.0.2"}
	core.mu.Unlock()
	core.change(func(*control.ProxyPart) {})
	held.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := held.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection from the former address: %v", err)
	}
	r.until(false) // the session and the link, too
	if r.opened("127.0.0.1") == nil || r.opened("127.0.0.2") != nil {
		t.Error("the port is not open to the snapshot's addresses alone")
	}
	core.disconnect()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = runProxy(t, core, configs.Proxy{DataDir: dir})
	if r.opened("127.0.0.1") == nil || r.opened("127.0.0.2") != nil {
		t.Error("after a restart, the port is not open to the snapshot's addresses alone")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = runProxy(t, core, configs.Proxy{DataDir: dir, CoreIP: []string{"127.0.0.1"}})
	core.connect(r.info.GRPCAddress)
	r.until(true)
	core.change(func(*control.ProxyPart) {})
	if r.opened("127.0.0.1") != nil || r.opened("127.0.0.2") == nil {
		t.Error("what core says wins over --core-ip")
	}
}

// TestUnusableCoreAddresses of a snapshot leave the former one in force.
func TestUnusableCoreAddresses(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	core.mu.Lock()
	core.from = []string{"127.0.0.1", "10.0.0.300"}
	core.mu.Unlock()
	for _, s := range core.end.Sessions() {
		s.Send(core.snapshot())
	}
	for limit := time.After(10 * time.Second); ; {
		select {
		case a := <-core.acks:
			if a.GetError() == "" {
				continue
			}
			if !strings.Contains(a.GetError(), "10.0.0.300") {
				t.Error(a.GetError())
			}
		case <-limit:
			t.Fatal("the snapshot was not refused")
		}
		break
	}
	if err := r.opened("127.0.0.1"); err != nil {
		t.Error(err)
	}
}

// TestNobodyIsKnown: a proxy that has lost what it knew about core takes nobody,
// and one with --peer-check off takes everybody.
func TestNobodyIsKnown(t *testing.T) {
	core := newFakeCore(t)
	dir := t.TempDir()
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), DataDir: dir})
	core.join(r.info.GRPCAddress)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, invitedFile)); err != nil {
		t.Fatal(err)
	}
	r = runProxy(t, core, configs.Proxy{DataDir: dir})
	if r.opened("127.0.0.1") == nil {
		t.Error("somebody is let in")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = runProxy(t, core, configs.Proxy{DataDir: dir, NoPeerCheck: true})
	if r.opened("127.0.0.2") != nil {
		t.Error("--peer-check off, and an address is refused")
	}
}

// TestRefusalNamesTheAddress that was refused, and what to do, with the name of
// this proxy.
func TestRefusalNamesTheAddress(t *testing.T) {
	core := newFakeCore(t)
	s := configs.Proxy{DataDir: t.TempDir(), Join: core.token.String(), TLS: "internal"}
	p, err := open(s, Deps{Log: logTo(t), Version: "test", Ready: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.db.Close()
	if err := p.peers.start(p.token.Load(), nil); err != nil {
		t.Fatal(err)
	}
	refusal := p.peers.admit(netip.MustParseAddrPort("192.0.2.9:40000"))
	if refusal == nil || refusal.Code != link.CodeAddress {
		t.Fatal(refusal)
	}
	for _, part := range []string{"192.0.2.9", "(127.0.0.1)", "--core-ip 192.0.2.9", "proxy set"} {
		if !strings.Contains(refusal.Error()+refusal.Remedy, part) {
			t.Errorf("%v does not say %s", refusal, part)
		}
	}
	if p.peers.admit(netip.MustParseAddrPort("127.0.0.1:1")) != nil {
		t.Error("core is refused")
	}
}
