package core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/firewall"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// from dials from another address of this host than the usual one.
func from(address string) func(context.Context, string, string) (net.Conn, error) {
	return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext
}

func (r *running) setPeers(role, name string, list ...string) (*control.Component, error) {
	return r.admin.SetComponent(context.Background(), &control.SetComponentRequest{Role: role, Name: name, Peers: list})
}

// audited counts the rows of an action.
func (r *running) audited(action string) (n int, details string) {
	r.t.Helper()
	out, err := r.admin.ListAudit(context.Background(), &control.ListAuditRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, row := range out.GetRows() {
		if row.GetAction() == action {
			n++
			details += row.GetDetail() + "\n"
		}
	}
	return n, details
}

func (r *running) status() *control.StatusResponse {
	r.t.Helper()
	s, err := r.admin.Status(context.Background(), &control.StatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// TestStolenKeyIsRefusedElsewhere: the key of one gateway, used from the address
// of another one, opens nothing on any protocol, renews nothing, and raises one
// alarm that names both.
func TestStolenKeyIsRefusedElsewhere(t *testing.T) {
	r := start(t, settings(t))
	orders := r.addGateway("orders")
	disconnect := orders.connect()
	defer disconnect()
	token := r.invite("billing")
	if _, err := r.setPeers("gateway", "billing", "127.0.0.2"); err != nil {
		t.Fatal(err)
	}
	thief := link.Dialler{Self: orders.self, Connect: from("127.0.0.2")}
	want := pki.Expect{Role: pki.RoleCore}
	for _, alpn := range []string{link.ALPNControl, link.ALPNRelay} {
		_, err := thief.Dial(t.Context(), r.info.GRPCAddress, alpn, want)
		refusal, ok := pki.AsRefusal(err)
		if !ok || refusal.Code != link.CodeAddress {
			t.Fatalf("%s: %v", alpn, err)
		}
		for _, part := range []string{"127.0.0.2", "gateway billing", "gateway orders", "(127.0.0.1)"} { // Why says the same
			if !strings.Contains(refusal.Cause, part) {
				t.Errorf("%s: %q does not say %s", alpn, refusal.Cause, part)
			}
		}
	}
	recovery := &link.Renewer{Self: orders.self, Version: "fake", Dial: func(ctx context.Context) (*link.Conn, error) {
		return thief.Dial(ctx, r.info.GRPCAddress, link.ALPNRenew, want)
	}}
	before := orders.self.Credentials()
	recovery.Trouble(&pki.Refusal{Code: pki.CodeExpired})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- recovery.Run(ctx) }()
	eventually(t, "the recovery is refused", func() error {
		if err := recovery.Err(); err == nil || !strings.Contains(err.Error(), "gateway billing") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	stop()
	<-done
	if orders.self.Credentials() != before {
		t.Error("the thief has a new certificate")
	}
	// A join token from elsewhere, too; where it belongs it is still good.
	parsed, err := pki.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&link.Dialler{Self: link.NewSelf(), Token: &parsed}).Dial(t.Context(), r.info.GRPCAddress, link.ALPNJoin, want)
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&link.Newcomer{Token: parsed, Role: pki.RoleGateway, Dir: filepath.Join(t.TempDir(), "id")}).Join(t.Context(), conn)
	conn.Close()
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Code != link.CodeAddress {
		t.Errorf("a token from elsewhere: %v", err)
	}
	conn, err = (&link.Dialler{Self: link.NewSelf(), Token: &parsed, Connect: from("127.0.0.2")}).Dial(t.Context(), r.info.GRPCAddress, link.ALPNJoin, want)
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&link.Newcomer{Token: parsed, Role: pki.RoleGateway, Dir: filepath.Join(t.TempDir(), "id")}).Join(t.Context(), conn)
	conn.Close()
	if err != nil {
		t.Errorf("the token from its own address: %v", err)
	}
	n, details := r.audited("alarm.wrong_address")
	if n != 2 || !strings.Contains(details, "the identity of gateway orders was used from 127.0.0.2, which is an address of gateway billing") ||
		!strings.Contains(details, "the join token of gateway billing was used from 127.0.0.1, which is an address of gateway orders") {
		t.Errorf("%d alarms in the audit log:\n%s", n, details)
	}
	if n := strings.Count(r.log.String(), "ALARM: the identity of gateway orders"); n != 1 {
		t.Errorf("the alarm was logged %d times", n)
	}
	if all := strings.Join(r.status().GetWarnings(), "\n"); !strings.Contains(all, "the identity of gateway orders was used from 127.0.0.2, an address of gateway billing") {
		t.Errorf("status says:\n%s", all)
	}
	if m := r.component("gateway", "orders"); m.GetState() != "connected" {
		t.Errorf("the owner of the key is %s", m.GetState())
	}
}

// TestPeersFollowChanges: an address opens the port, and closes it, within the
// time that its gateway is added, changed or removed in; what is open from an
// address that leaves is closed, and told why where it can be; the data file
// says the same, and its generation moves with it alone.
func TestPeersFollowChanges(t *testing.T) {
	s := settings(t)
	file := firewall.NewFile(filepath.Join(t.TempDir(), firewall.FileName), configs.RoleCore)
	r := startWith(t, s, file)
	entry := func(want ...string) uint64 {
		t.Helper()
		var e *firewall.Entry
		eventually(t, "the data file says "+strings.Join(want, " "), func() error {
			d, err := firewall.ReadData(file.Path())
			if err != nil {
				return err
			}
			if e = d.Core; e == nil || strings.Join(e.Peers.Strings(), " ") != strings.Join(want, " ") {
				return fmt.Errorf("it says %v", e)
			}
			return nil
		})
		return e.Generation
	}
	open := func(address string) error {
		nc, err := from(address)(t.Context(), "tcp", r.info.GRPCAddress)
		if err != nil {
			t.Fatal(err)
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
	first := entry()
	if open("127.0.0.1") == nil {
		t.Error("a core without gateways takes connections")
	}
	orders := r.addGateway("orders")
	disconnect := orders.connect()
	defer disconnect()
	eventually(t, "orders is connected", func() error {
		if m := r.component("gateway", "orders"); m.GetState() != "connected" {
			return errors.New(m.GetState())
		}
		return nil
	})
	added := entry("127.0.0.1")
	if added != first+1 {
		t.Errorf("generation %d after %d", added, first)
	}
	if open("127.0.0.2") == nil || open("127.0.0.1") != nil {
		t.Error("the port is not open to the gateway, or to another address")
	}
	silent, err := net.Dial("tcp", r.info.GRPCAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	answer, err := r.setPeers("gateway", "orders", "127.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(answer.GetNotes(), "\n"); !strings.Contains(notes, "if that was not meant: sallyport gateway set orders --ip 127.0.0.1") {
		t.Errorf("a change that closes what is open does not say so: %q", notes)
	}
	silent.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := silent.Read(make([]byte, 64)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection from an address that left: %v", err)
	}
	eventually(t, "orders is told why", func() error {
		if !strings.Contains(r.log.String(), "127.0.0.1 is no address of gateway orders any more") {
			return errors.New("not yet")
		}
		return nil
	})
	if open("127.0.0.1") == nil || open("127.0.0.2") != nil {
		t.Error("the port is open to the former address, or not to the new one")
	}
	changed := entry("127.0.0.2")
	// What is refused is suggested, with the gateway that is missing.
	eventually(t, "status suggests", func() error {
		all := strings.Join(r.status().GetWarnings(), "\n")
		if !strings.Contains(all, "127.0.0.1 was refused") || !strings.Contains(all, "suggest: sallyport gateway set orders --ip 127.0.0.1") {
			return errors.New(all)
		}
		return nil
	})
	// A name that leads nowhere is in status, also of one that never came.
	if _, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "far", Peers: []string{"localhost.invalid"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "status names what has no address", func() error {
		if all := strings.Join(r.component("gateway", "far").GetNotes(), "\n"); !strings.Contains(all, "cannot come from localhost.invalid") {
			return errors.New(all)
		}
		return nil
	})
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "far"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.setPeers("gateway", "orders", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "orders is back", func() error {
		if m := r.component("gateway", "orders"); m.GetState() != "connected" {
			return errors.New(m.GetState())
		}
		return nil
	})
	if back := entry("127.0.0.1"); back != changed+1 {
		t.Errorf("generation %d after %d", back, changed)
	}
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "orders"}); err != nil {
		t.Fatal(err)
	}
	last := entry()
	if open("127.0.0.1") == nil {
		t.Error("a removed gateway's address is still let in")
	}
	r.end()
	again := firewall.NewFile(file.Path(), configs.RoleCore)
	r = startWith(t, s, again)
	r.invite("other")
	if n := entry("127.0.0.1"); n != last+1 {
		t.Errorf("after a restart generation %d follows %d", n, last)
	}
}

// TestPeerCheckOff lets everybody as far as the handshake, and says so.
func TestPeerCheckOff(t *testing.T) {
	s := settings(t)
	s.NoPeerCheck = true
	r := start(t, s)
	orders := r.addGateway("orders")
	if _, err := r.setPeers("gateway", "orders", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	disconnect := orders.connect()
	defer disconnect()
	eventually(t, "orders is connected", func() error {
		if m := r.component("gateway", "orders"); m.GetState() != "connected" {
			return errors.New(m.GetState())
		}
		return nil
	})
	all := strings.Join(r.status().GetWarnings(), "\n")
	if !strings.Contains(r.log.String(), "--peer-check is off") || !strings.Contains(all, "--peer-check is off") {
		t.Errorf("it is not said: %s", all)
	}
	if !strings.Contains(all, "suggest: sallyport gateway set orders --ip 127.0.0.1") {
		t.Errorf("the observed address is not suggested: %s", all)
	}
}

// TestProxySetKeepsCore: addresses for a proxy that leave core out are refused,
// unless they are meant.
func TestProxySetKeepsCore(t *testing.T) {
	r := start(t, settings(t))
	r.addProxy("dmz1")
	eventually(t, "dmz1 reports its port", func() error {
		m := r.info.admin.(*admin).core.registry.find(key{pki.RoleProxy, "dmz1"})
		if m == nil || m.current() == nil || m.current().Hello.GetPort().GetObservedAddress() != "127.0.0.1" {
			return errors.New("not yet")
		}
		return nil
	})
	if _, err := r.setPeers("proxy", "dmz1", "192.0.2.7"); err == nil || !strings.Contains(err.Error(), "sees core come from 127.0.0.1") || !strings.Contains(err.Error(), "--force") {
		t.Errorf("core let itself be locked out: %v", err)
	}
	if _, err := r.setPeers("proxy", "dmz1", "localhost"); err != nil {
		t.Errorf("a name that resolves to core's address: %v", err)
	}
	for _, list := range [][]string{{"192.0.2.7", "127.0.0.1"}, {"any"}} {
		if _, err := r.setPeers("proxy", "dmz1", list...); err != nil {
			t.Errorf("%v: %v", list, err)
		}
	}
	if _, err := r.admin.SetComponent(context.Background(), &control.SetComponentRequest{Role: "proxy", Name: "dmz1", Peers: []string{"192.0.2.7"}, Force: true}); err != nil {
		t.Error(err)
	}
}

// TestRefusedAddressesAreBounded: strangers fill neither memory nor status.
func TestRefusedAddressesAreBounded(t *testing.T) {
	r := start(t, settings(t))
	p := r.info.admin.(*admin).core.peers
	for i := range 1000 {
		if p.admit(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)) == nil {
			t.Fatal("admitted")
		}
	}
	if len(p.refused) > maxRefusedShown {
		t.Errorf("%d addresses are kept", len(p.refused))
	}
	if all := strings.Join(r.status().GetWarnings(), "\n"); !strings.Contains(all, "10.0.3.231 was refused") || !strings.Contains(all, "more addresses were refused") || len(all) > 4096 {
		t.Errorf("status says %d bytes: %s", len(all), all)
	}
}
