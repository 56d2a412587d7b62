package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sallyport/roles/relay"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestSourcesShare(t *testing.T) {
	a := &admission{maxConnections: 100, maxPerSource: 100, maxHandshakes: 1000, maxCalls: 100, maxCallsPerSource: 100, budget: relay.NewBudget(1 << 30), sources: make(map[netip.Prefix]*source)}
	come := func(address string) *source {
		s, _ := a.come(netip.MustParseAddr(address), false)
		return s
	}
	fill := func(address string) (held []*source) {
		for {
			s := come(address)
			if s == nil {
				return held
			}
			a.shaken(s)
			held = append(held, s)
		}
	}
	first := fill("192.0.2.1")
	if n := len(first); n != 50 {
		t.Errorf("one source alone has %d of 100 places", n)
	}
	if n := len(fill("192.0.2.2")); n != 25 {
		t.Errorf("the second source found %d places", n)
	}
	// One IPv6 network is one source, however many addresses it has.
	if n := len(fill("2001:db8::1")); n != 13 || come("2001:db8::2") != nil {
		t.Errorf("addresses of one network count by themselves: %d", n)
	}
	for i := range 3 {
		if n := len(fill(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}).String())); n == 0 {
			t.Errorf("source %d found no place", i)
		}
	}
	for _, s := range first {
		a.leave(s)
	}
	if _, there := a.sources[netip.MustParsePrefix("192.0.2.1/32")]; there {
		t.Error("a source is remembered that has nothing here any more")
	}

	s := come("192.0.2.1")
	calls := 0
	for a.begin(s) {
		calls++
	}
	a.end(s)
	if calls != 50 {
		t.Errorf("one source alone has %d of 100 calls", calls)
	}
	other := come("192.0.2.9")
	if !a.begin(other) {
		t.Error("another source may not call")
	}
}

// TestCrowd has one address take all it can get: connections that say nothing,
// connections, and calls. There was no limit to any of them.
func TestCrowd(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	a := r.crowd
	a.mu.Lock()
	a.maxConnections, a.maxHandshakes = 40, 12
	a.mu.Unlock()
	dial := func() bool {
		t.Helper()
		c := r.tls(nil)
		c.NextProtos = []string{"h2"}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		nc, err := (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", r.info.PublicAddress)
		if err == nil {
			t.Cleanup(func() { nc.Close() })
		}
		return err == nil
	}
	var silent []net.Conn
	for range 30 {
		nc, err := net.Dial("tcp", r.info.PublicAddress)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		silent = append(silent, nc)
	}
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.handshakes == 6 })
	if dial() {
		t.Error("a source with half of all handshakes open got another one")
	}
	for _, nc := range silent {
		nc.Close()
	}
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.handshakes == 0 && a.connections == 0 })
	got := 0
	for range 30 {
		if dial() {
			got++
		}
	}
	if got != 20 {
		t.Errorf("%d connections of 40 from one source", got)
	}
}

// TestCrowdOfCalls opens health watches, which never end by themselves.
func TestCrowdOfCalls(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	a := r.crowd
	a.calls.Add(a.maxCalls - 30) // others have them
	defer a.calls.Add(30 - a.maxCalls)
	c := r.tls(nil)
	c.NextProtos = []string{"h2"}
	nc, err := tls.Dial("tcp", r.info.PublicAddress, c)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = nc.Write([]byte(http2.ClientPreface))
	framer := http2.NewFramer(nc, nc)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = framer.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	const calls = 20
	for i := range calls {
		block.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", "/grpc.health.v1.Health/Watch"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
			_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: block.Bytes(), EndHeaders: true})
		_ = framer.WriteData(uint32(2*i+1), true, []byte{0, 0, 0, 0, 0})
	}
	refused, served := 0, 0
	for refused+served < calls {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		h, ok := f.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		status := ""
		for _, f := range h.Fields {
			if f.Name == "grpc-status" {
				status = f.Value
			}
		}
		switch status {
		case "":
			served++
		case "8":
			refused++
		default:
			t.Errorf("status %s", status)
			refused++
		}
	}
	if served != 15 {
		t.Errorf("%d calls served, %d refused", served, refused)
	}
	nc.Close()
	eventually(t, func() bool { return a.calls.Load() == a.maxCalls-30 })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("it did not happen in 5 s")
		}
	}
}
