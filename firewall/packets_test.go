package firewall

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"sallyport/configs"
	"sallyport/firewall/netns"
)

// These tests send packets through the rules, between hosts that are network
// namespaces.

func nftOn(h *netns.Host) NFT { return NFT{[]string{"ip", "netns", "exec", h.Name, "nft"}} }

func load(t *testing.T, h *netns.Host, list ...Rules) {
	t.Helper()
	n := nftOn(h)
	if err := (Host{NFT: n, Dir: t.TempDir()}).Apply(t.Context(), list...); err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		k, err := n.Kernel(t.Context(), r.role)
		if err != nil {
			t.Fatal(err)
		}
		if drift := r.Drift(k); len(drift) > 0 {
			t.Fatalf("loaded and not the same: %q", drift)
		}
	}
}

// echo answers every line with who sent it.
func echo(h *netns.Host, address string) {
	l := h.Listen("tcp", address)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for r := bufio.NewReader(conn); ; {
					if _, err := r.ReadString('\n'); err != nil {
						return
					}
					fmt.Fprintln(conn, conn.RemoteAddr())
				}
			}()
		}
	}()
}

// talk sends a line and returns the answer.
func talk(conn net.Conn, within time.Duration) (string, error) {
	conn.SetDeadline(time.Now().Add(within))
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

const (
	patience = 20 * time.Second       // for what has to come
	silence  = 400 * time.Millisecond // for what must not
)

// reaches connects and talks.
func reaches(t *testing.T, h *netns.Host, from, to string) net.Conn {
	t.Helper()
	conn, err := h.Dial("tcp", from, to, patience)
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		_, err = talk(conn, patience)
	}
	if err != nil {
		t.Fatalf("%s does not reach %s: %v", h.Name, to, err)
	}
	return conn
}

// blocked is that nothing gets through, and that it was these rules: their
// counter moves.
func blocked(t *testing.T, h *netns.Host, from, to string, by *netns.Host, role configs.Role) {
	t.Helper()
	before := refused(t, by, role)
	if conn, err := h.Dial("tcp", from, to, silence); err == nil {
		conn.Close()
		t.Errorf("%s reaches %s", h.Name, to)
	}
	if after := refused(t, by, role); after.Packets <= before.Packets || after.Bytes <= before.Bytes {
		t.Errorf("%s to %s: the counter stayed at %d", h.Name, to, after.Packets)
	}
}

func refused(t *testing.T, h *netns.Host, role configs.Role) Counter {
	t.Helper()
	k, err := nftOn(h).Kernel(t.Context(), role)
	if err != nil || k == nil {
		t.Fatalf("no table of %s: %v", role, err)
	}
	refused, _ := k.CounterOf()
	return refused
}

// network is the hosts of the picture, each with an address of both families.
type network struct{ core, proxy, gateway, neighbour *netns.Host }

func newNetwork(t *testing.T) network {
	netns.Available(t, "nft")
	n := network{netns.New(t, "core"), netns.New(t, "proxy"), netns.New(t, "gw"), netns.New(t, "nb")}
	netns.Switch(t, n.core, n.proxy, n.gateway, n.neighbour)
	for i, h := range []*netns.Host{n.core, n.proxy, n.gateway, n.neighbour} {
		h.AddAddress("eth0", fmt.Sprintf("10.77.0.%d/24", i+1))
		h.AddAddress("eth0", fmt.Sprintf("fd77::%d/64", i+1))
	}
	return n
}

// operators is what an operator has of his own: a drop of one address of the
// gateway, and a port open to all.
const operators = `table inet operator {
	set bad {
		type ipv4_addr
		elements = { 10.77.0.33 }
	}

	chain input {
		type filter hook input priority filter; policy accept;
		ip saddr @bad drop
		tcp dport 22 accept comment "ssh; not to be touched"
	}
}
table ip sallyport_core {
	chain input {
		type filter hook input priority filter; policy accept;
	}
}
`

func TestPacketsPeersAndStrangers(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.gateway.AddAddress("eth0", "10.77.0.33/24")
	for h, ports := range map[*netns.Host][]string{n.core: {":50055", ":22"}, n.proxy: {":50051", ":443"}} {
		for _, p := range ports {
			echo(h, p)
		}
		pipe := h.Command("nft", "-f", "-")
		pipe.Stdin = strings.NewReader(operators)
		if out, err := pipe.CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
	}
	before := n.core.Run("nft", "-a", "list", "ruleset")

	core := rules(t, configs.RoleCore, Entry{1, peers(t, "10.77.0.3", "10.77.0.33", "fd77::3")}, 50055)
	load(t, n.core, core)
	load(t, n.proxy, rules(t, configs.RoleProxy, Entry{1, peers(t, "::ffff:10.77.0.1", "fd77::1")}, 50051))

	reaches(t, n.gateway, "", "10.77.0.1:50055")
	reaches(t, n.gateway, "", "[fd77::1]:50055")
	blocked(t, n.neighbour, "", "10.77.0.1:50055", n.core, configs.RoleCore)
	blocked(t, n.neighbour, "", "[fd77::1]:50055", n.core, configs.RoleCore)
	blocked(t, n.neighbour, "10.77.0.4:50055", "10.77.0.1:50055", n.core, configs.RoleCore) // our number at both ends
	if k, err := nftOn(n.core).Kernel(t.Context(), configs.RoleCore); err != nil || Listed(k.Refused()) != "10.77.0.4, fd77::4" {
		t.Errorf("who was refused: %v, %v", k.Refused(), err)
	} else if drift := core.Drift(k); len(drift) > 0 {
		t.Errorf("who was refused counts as a difference: %q", drift)
	}
	reaches(t, n.core, "", "10.77.0.1:50055") // itself, though no peer
	reaches(t, n.core, "", "127.0.0.1:50055")

	reaches(t, n.core, "", "10.77.0.2:50051")
	reaches(t, n.core, "", "[fd77::2]:50051")
	blocked(t, n.gateway, "", "10.77.0.2:50051", n.proxy, configs.RoleProxy)
	blocked(t, n.gateway, "", "[fd77::2]:50051", n.proxy, configs.RoleProxy)

	for _, anybody := range []*netns.Host{n.core, n.gateway, n.neighbour} {
		reaches(t, anybody, "", "10.77.0.2:443")
		reaches(t, anybody, "", "[fd77::2]:443")
	}
	reaches(t, n.neighbour, "", "10.77.0.1:22")

	// The operator's drop holds for a peer of ours as well.
	if conn, err := n.gateway.Dial("tcp", "10.77.0.33:0", "10.77.0.1:50055", silence); err == nil {
		conn.Close()
		t.Error("the operator's own drop no longer drops")
	}

	// Whatever else there is stays what it was, byte for byte.
	load(t, n.core, rules(t, configs.RoleCore, Entry{2, peers(t, "10.77.0.3")}, 50055))
	blocked(t, n.gateway, "", "[fd77::1]:50055", n.core, configs.RoleCore)
	theirs := func() string {
		all := n.core.Run("nft", "-a", "list", "ruleset")
		begin := strings.Index(all, "table inet sallyport_core ")
		if begin < 0 {
			return all
		}
		end := begin + strings.Index(all[begin:], "\n}\n") + len("\n}\n")
		return all[:begin] + all[end:]
	}
	if after := theirs(); after != before {
		t.Errorf("before:\n%s\nwith ours:\n%s", before, after)
	}
	if had, err := (Host{NFT: nftOn(n.core), Dir: t.TempDir()}).Remove(t.Context(), Roles()...); err != nil || len(had) != 1 {
		t.Errorf("removed %v, %v", had, err)
	}
	if after := n.core.Run("nft", "-a", "list", "ruleset"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	reaches(t, n.neighbour, "", "10.77.0.1:50055")

	// any is a state of its own, nobody another.
	load(t, n.core, rules(t, configs.RoleCore, Entry{3, peers(t, "any")}, 50055))
	reaches(t, n.neighbour, "", "10.77.0.1:50055")
	load(t, n.core, rules(t, configs.RoleCore, Entry{4, Peers{}}, 50055))
	blocked(t, n.gateway, "", "10.77.0.1:50055", n.core, configs.RoleCore)
}

// TestPacketsThroughThisHost: what a container host does with the same numbers.
func TestPacketsThroughThisHost(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	container := netns.New(t, "cont")
	netns.Link(t, n.core, container, "docker0", []string{"172.30.0.1/24", "fd30::1/64"}, []string{"172.30.0.2/24", "fd30::2/64"})
	container.Run("ip", "route", "add", "default", "via", "172.30.0.1")
	container.Run("ip", "route", "add", "default", "via", "fd30::1")
	n.core.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	n.neighbour.Run("ip", "route", "add", "fd30::/64", "via", "fd77::1")
	n.neighbour.Run("ip", "route", "add", "172.30.0.0/24", "via", "10.77.0.1")
	nat := n.core.Command("nft", "-f", "-")
	nat.Stdin = strings.NewReader(`table ip nat {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local tcp dport { 50055, 8055 } dnat to 172.30.0.2:50055
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.30.0.0/24 oifname "eth0" masquerade
	}
}
`)
	if out, err := nat.CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	echo(container, ":50055")
	echo(n.proxy, ":9000")
	load(t, n.core, rules(t, configs.RoleCore, Entry{1, peers(t, "10.77.0.3")}, 50055, 8055))

	// A published port, with the same number and with another one.
	reaches(t, n.gateway, "", "10.77.0.1:50055")
	reaches(t, n.gateway, "", "10.77.0.1:8055")
	blocked(t, n.neighbour, "", "10.77.0.1:50055", n.core, configs.RoleCore)
	blocked(t, n.neighbour, "", "10.77.0.1:8055", n.core, configs.RoleCore)

	// The same port of another machine, which this one only forwards to.
	reaches(t, n.neighbour, "", "172.30.0.2:50055")
	reaches(t, n.neighbour, "", "[fd30::2]:50055")

	// Flows that begin here and happen to have our number: one that is
	// masqueraded, and one of the host itself.
	masqueraded := reaches(t, container, "172.30.0.2:8055", "10.77.0.2:9000")
	if who, err := talk(masqueraded, patience); err != nil || who != "10.77.0.1:8055" {
		t.Errorf("the flow of the container was to come from our number: %q, %v", who, err)
	}
	reaches(t, n.core, "10.77.0.1:8055", "10.77.0.2:9000")
}

// TestPacketsRemovedPeer: who leaves the set loses what is open, others do not.
func TestPacketsRemovedPeer(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	echo(n.core, ":50055")
	load(t, n.core, rules(t, configs.RoleCore, Entry{1, peers(t, "10.77.0.3", "10.77.0.4", "fd77::3")}, 50055))
	removed, removed6 := reaches(t, n.gateway, "", "10.77.0.1:50055"), reaches(t, n.gateway, "", "[fd77::1]:50055")
	stays := reaches(t, n.neighbour, "", "10.77.0.1:50055")
	load(t, n.core, rules(t, configs.RoleCore, Entry{2, peers(t, "10.77.0.4")}, 50055))
	for _, conn := range []net.Conn{removed, removed6} {
		if who, err := talk(conn, silence); err == nil {
			t.Errorf("%s is still heard", who)
		}
	}
	for range 3 {
		if _, err := talk(stays, patience); err != nil {
			t.Fatalf("the one who stays: %v", err)
		}
	}
}

// TestPacketsOlderThanConntrack: the first load on a host that followed no
// connections. Were one learned from an answer of ours, the stranger's packets
// would count as the reply; with the plain `ct direction reply accept` they got
// through. And a peer's connection goes on.
func TestPacketsOlderThanConntrack(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	l := n.core.Listen("tcp", ":50055")
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- conn
		}
	}()
	pair := func(h *netns.Host) (client, server net.Conn) {
		client, err := h.Dial("tcp", "", "10.77.0.1:50055", patience)
		if err != nil {
			t.Fatal(err)
		}
		server = <-accepted
		t.Cleanup(func() { client.Close(); server.Close() })
		return client, server
	}
	peer, ofPeer := pair(n.gateway)
	stranger, ofStranger := pair(n.neighbour)
	load(t, n.core, rules(t, configs.RoleCore, Entry{1, peers(t, "10.77.0.3")}, 50055))
	for _, server := range []net.Conn{ofStranger, ofPeer} {
		if _, err := server.Write([]byte("1")); err != nil { // the first packet after loading is ours
			t.Fatal(err)
		}
	}
	read := func(conn net.Conn, within time.Duration) error {
		conn.SetReadDeadline(time.Now().Add(within))
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}
	if err := read(stranger, silence); err == nil {
		t.Error("the stranger was answered")
	}
	stranger.Write([]byte("2"))
	if err := read(ofStranger, silence); err == nil {
		t.Error("the stranger was heard")
	}
	peer.Write([]byte("2"))
	if err := read(ofPeer, patience); err != nil {
		t.Errorf("the peer was not heard: %v", err)
	}
	if err := read(peer, patience); err != nil {
		t.Errorf("the peer was not answered: %v", err)
	}
	if refused(t, n.core, configs.RoleCore).Packets == 0 {
		t.Error("nothing was refused")
	}
}
