package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/configs"
	"sallyport/roles/relay"
)

// joinedWith starts a joined proxy with settings.
func joinedWith(t *testing.T, c *fakeCore, s configs.Proxy) *running {
	t.Helper()
	s.Join = c.token.String()
	r := runProxy(t, c, s)
	c.join(r.info.GRPCAddress)
	c.connect(r.info.GRPCAddress)
	r.until(true)
	return r
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// saying dials the public port, says head first, and makes a call.
func (r *running) saying(key string, head []byte) error {
	r.t.Helper()
	cc := r.dial(nil, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil && len(head) > 0 {
			_, err = nc.Write(head)
		}
		return nc, err
	}))
	defer cc.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 15*time.Second)
	defer cancel()
	return say(withKey(ctx, key), cc)
}

func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	limits := configs.DefaultLimits()
	limits.HandshakeTime = 500 * time.Millisecond
	r := joinedWith(t, core, configs.Proxy{ProxyProtocol: prefixes("127.0.0.0/8"), Limits: limits})
	v2 := func(source string) []byte {
		h := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source)), &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 443})
		if err := h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: bytes.Repeat([]byte("a"), 900)}}); err != nil {
			t.Fatal(err)
		}
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	local := append(append([]byte{}, proxyproto.SIGV2...), 0x20, 0, 0, 0)
	for source, head := range map[string][]byte{
		"203.0.113.7":   []byte("PROXY TCP4 203.0.113.7 192.0.2.1 4000 443\r\n"),
		"2001:db8::7":   []byte("PROXY TCP6 2001:db8::7 2001:db8::1 4000 443\r\n"),
		"2001:db8:1::9": v2("[2001:db8:1::9]:4000"),
		"127.0.0.1":     local,
	} {
		if err := r.saying(key, head); err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if got := get(<-core.calls, relay.HeaderSource); got != source {
			t.Errorf("core was told %q, want %q", got, source)
		}
	}
	if err := r.saying(key, []byte("PROXY UNKNOWN\r\n")); err != nil {
		t.Error(err)
	} else if got := get(<-core.calls, relay.HeaderSource); got != "127.0.0.1" {
		t.Errorf("a source that is not known is %q", got)
	}

	// Everything else is closed, in time and without an answer.
	for name, head := range map[string][]byte{
		"none":         []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00\x00"),
		"endless v1":   append([]byte("PROXY TCP4 "), bytes.Repeat([]byte("1"), 200)...),
		"malformed v1": []byte("PROXY TCP4 203.0.113.300 192.0.2.1 4000 443\r\n"),
		"huge v2":      append(append([]byte{}, proxyproto.SIGV2...), 0x21, 0x11, 0xff, 0xff),
		"truncated v2": append(append([]byte{}, proxyproto.SIGV2...), 0x21, 0x11, 0, 4, 1, 2, 3, 4),
		"slow":         []byte("PROXY TC"),
		"silent":       nil,
	} {
		nc, err := net.Dial("tcp", r.info.PublicAddress)
		if err != nil {
			t.Fatal(err)
		}
		if len(head) > 0 {
			if _, err := nc.Write(head); err != nil {
				t.Fatal(err)
			}
		}
		_ = nc.SetReadDeadline(time.Now().Add(15 * time.Second))
		if b, err := io.ReadAll(nc); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: %q %v", name, b, err)
		}
		nc.Close()
	}

	// Its header from anybody else is what a stranger claims.
	other := joinedWith(t, newFakeCore(t), configs.Proxy{ProxyProtocol: prefixes("192.0.2.0/24")})
	if err := other.saying(key, []byte("PROXY TCP4 203.0.113.7 192.0.2.1 4000 443\r\n")); status.Code(err) != codes.Unavailable {
		t.Errorf("a header from elsewhere: %v", err)
	}
}

// TestSourcesBehindABalancer: the ceilings are for those whom the balancer brings.
func TestSourcesBehindABalancer(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	r := joinedWith(t, core, configs.Proxy{ProxyProtocol: prefixes("127.0.0.1/32")})
	r.crowd.mu.Lock()
	r.crowd.maxConnections, r.crowd.maxPerSource = 12, 3
	r.crowd.mu.Unlock()
	held := 0
	from := func(source string) bool {
		t.Helper()
		nc, err := net.Dial("tcp", r.info.PublicAddress)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		fmt.Fprintf(nc, "PROXY TCP4 %s 192.0.2.1 4000 443\r\n", source)
		tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		_ = nc.SetDeadline(time.Now().Add(15 * time.Second))
		if tc.Handshake() != nil {
			return false
		}
		held++
		return true
	}
	for i := range 4 {
		if got, want := from("203.0.113.1"), i < 3; got != want {
			t.Errorf("connection %d of one source: %t", i, got)
		}
	}
	for _, s := range []string{"203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5"} {
		if !from(s) {
			t.Errorf("%s found no place", s)
		}
	}
	r.crowd.mu.Lock()
	defer r.crowd.mu.Unlock()
	if r.crowd.connections != held || len(r.crowd.sources) != 5 {
		t.Errorf("%d connections of %d sources are counted, %d are held", r.crowd.connections, len(r.crowd.sources), held)
	}
}

func TestTLSOff(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := joinedWith(t, core, configs.Proxy{TLS: "off", TrustedFronts: prefixes("127.0.0.1/32", "10.0.0.0/8")})
	if len(core.requests) != 0 {
		t.Errorf("a certificate was asked for: %q", core.requests)
	}
	cc, err := grpc.NewClient("passthrough:///"+r.info.PublicAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for _, c := range []struct {
		headers []string
		code    codes.Code
		source  string
	}{
		{[]string{"x-forwarded-proto", "https", "x-forwarded-for", "203.0.113.7"}, codes.OK, "203.0.113.7"},
		{[]string{"x-forwarded-proto", "https", "x-forwarded-for", "198.51.100.1, 203.0.113.8, 10.1.2.3"}, codes.OK, "203.0.113.8"},
		{[]string{"x-forwarded-proto", "https", "x-forwarded-for", "198.51.100.1", "x-forwarded-for", "[2001:db8::5]:8000"}, codes.OK, "2001:db8::5"},
		{[]string{"x-forwarded-proto", "https", "x-forwarded-for", "198.51.100.1, unknown"}, codes.OK, "127.0.0.1"},
		{[]string{"x-forwarded-proto", "http", "x-forwarded-for", "203.0.113.7"}, codes.Unauthenticated, ""},
		{[]string{"x-forwarded-proto", "https,http"}, codes.Unauthenticated, ""},
	} {
		err := say(metadata.AppendToOutgoingContext(withKey(t.Context(), key), c.headers...), cc)
		if status.Code(err) != c.code {
			t.Errorf("%q: %v", c.headers, err)
			continue
		}
		if c.code != codes.OK {
			if !strings.Contains(err.Error(), "x-forwarded-proto") {
				t.Errorf("%q: the reason is missing: %v", c.headers, err)
			}
			continue
		}
		header := <-core.calls
		if got := get(header, relay.HeaderSource); got != c.source {
			t.Errorf("%q: core was told %q, want %q", c.headers, got, c.source)
		}
		if got := get(header, "x-forwarded-for") + get(header, "x-forwarded-proto"); got != "" {
			t.Errorf("the front's headers went on: %q", got)
		}
	}
	r.crowd.mu.Lock()
	if n := len(r.crowd.sources); n != 1 {
		t.Errorf("%d sources are remembered, one has a connection", n)
	}
	r.crowd.mu.Unlock()

	// Who speaks TLS to it is told in the log, and who speaks HTTP/1.1 in words.
	if _, err := tls.Dial("tcp", r.info.PublicAddress, &tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Error("a TLS handshake succeeded where TLS is off")
	}
	nc, err := net.Dial("tcp", r.info.PublicAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprint(nc, "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	_ = nc.SetReadDeadline(time.Now().Add(15 * time.Second))
	if b, err := io.ReadAll(nc); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 ") {
		t.Errorf("HTTP/1.1 got %q %v", b, err)
	}
}

// TestTokensNeedEncryption is the rule itself, for addresses that a test on
// loopback cannot come from.
func TestTokensNeedEncryption(t *testing.T) {
	at := func(source string, secure, front bool) *client {
		c := newClient(netip.MustParseAddrPort(source), nil)
		c.secure, c.front = secure, front
		return c
	}
	obscure := func(c *client) *client { c.obscure = true; return c }
	for name, c := range map[string]struct {
		from *client
		said relay.Front
		want bool
	}{
		"TLS":                                     {at("192.0.2.1:1", true, false), relay.Front{}, true},
		"plaintext":                               {at("192.0.2.1:1", false, false), relay.Front{}, false},
		"plaintext that claims":                   {at("192.0.2.1:1", false, false), relay.Front{Proto: "https"}, false},
		"this host":                               {at("127.0.0.1:1", false, false), relay.Front{}, true},
		"this host, IPv6":                         {at("[::1]:1", false, false), relay.Front{}, true},
		"front":                                   {at("192.0.2.1:1", false, true), relay.Front{Proto: "HTTPS"}, true},
		"front that does not say":                 {at("192.0.2.1:1", false, true), relay.Front{}, false},
		"front of a plain caller":                 {at("192.0.2.1:1", false, true), relay.Front{Proto: "http"}, false},
		"TLS from a plain caller":                 {at("192.0.2.1:1", true, true), relay.Front{Proto: "http"}, false},
		"TLS from a front":                        {at("192.0.2.1:1", true, true), relay.Front{}, true},
		"local front, plain caller":               {at("127.0.0.1:1", false, true), relay.Front{Proto: "http"}, false},
		"local front that does not say":           {at("127.0.0.1:1", false, true), relay.Front{}, false},
		"a front on this host, plain caller":      {at("127.0.0.1:1", false, false), relay.Front{Proto: "http", For: "203.0.113.7"}, false},
		"a front on this host, one plain":         {at("[::1]:1", false, false), relay.Front{Proto: "https, http"}, false},
		"a front on this host that does not say":  {at("127.0.0.1:1", false, false), relay.Front{For: "203.0.113.7"}, false},
		"a front on this host, TLS":               {at("127.0.0.1:1", false, false), relay.Front{Proto: "https", For: "203.0.113.7"}, true},
		"TLS with headers that mean nothing":      {at("192.0.2.1:1", true, false), relay.Front{Proto: "http"}, true},
		"a balancer here that does not know whom": {obscure(at("127.0.0.1:1", false, false)), relay.Front{}, false},
		"the same, TLS":                           {obscure(at("127.0.0.1:1", true, false)), relay.Front{}, true},
		"front of a front, one plain":             {at("192.0.2.1:1", false, true), relay.Front{Proto: "https, http"}, false},
	} {
		got, why := private(c.said, c.from)
		if got != c.want || !got && why == "" {
			t.Errorf("%s: %t %q", name, got, why)
		}
	}
	// Where everything is trusted, only the nearest entry is.
	p := &proxy{settings: configs.Proxy{TrustedFronts: prefixes("0.0.0.0/0", "::/0")}}
	if a := p.behind(relay.Front{For: "1.1.1.1, 2.2.2.2"}, at("169.254.1.1:1", false, true)); a.String() != "2.2.2.2" {
		t.Errorf("the source is %s", a)
	}
	if a := p.behind(relay.Front{For: "1.1.1.1"}, at("169.254.1.1:1", false, false)); a.IsValid() {
		t.Errorf("a stranger's header names the source %s", a)
	}
}

// TestTokensThroughABalancerWithoutTLS: what a balancer calls this host is its
// own, and what it does not know is nobody's.
func TestTokensThroughABalancerWithoutTLS(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	r := joinedWith(t, core, configs.Proxy{TLS: "off", ProxyProtocol: prefixes("127.0.0.1/32")})
	for head, want := range map[string]codes.Code{
		"PROXY TCP4 127.0.0.1 127.0.0.1 4000 443\r\n":   codes.OK,
		"PROXY TCP4 203.0.113.7 192.0.2.1 4000 443\r\n": codes.Unauthenticated,
		"PROXY UNKNOWN\r\n":                             codes.Unauthenticated,
	} {
		cc, err := grpc.NewClient("passthrough:///"+r.info.PublicAddress, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
				if err == nil {
					_, err = nc.Write([]byte(head))
				}
				return nc, err
			}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		if err := say(withKey(ctx, key), cc); status.Code(err) != want {
			t.Errorf("%q: %v, want %s", head, err, want)
		}
		cancel()
		cc.Close()
	}

	// The same from a balancer elsewhere.
	near, far := net.Pipe()
	defer near.Close()
	go func() { _, _ = near.Write([]byte("PROXY TCP4 127.0.0.1 127.0.0.1 4000 443\r\n")) }()
	l := newPublic(&proxy{settings: configs.Proxy{TLS: "off"}, log: slog.New(slog.DiscardHandler), deps: Deps{admission: newAdmission(configs.DefaultLimits(), nil)}})
	balancer := netip.MustParseAddr("10.0.0.5")
	from, why := l.admission.come(balancer, true)
	if why != "" {
		t.Fatal(why)
	}
	a := &arrival{nc: &introducedConn{far, &net.TCPAddr{IP: balancer.AsSlice(), Port: 1}}, remote: netip.AddrPortFrom(balancer, 1)}
	if !l.introduced(a, &from) || !a.remote.Addr().IsLoopback() {
		t.Fatalf("introduced as %s", a.remote)
	}
	if !a.obscure {
		t.Error("the balancer's own host is taken for this one")
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 203.0.113.7 192.0.2.1 4000 443\r\n" + http2.ClientPreface))
	f.Add(append(append([]byte{}, proxyproto.SIGV2...), 0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := readProxyHeader(r)
		if err == nil && h == nil || len(b)-r.Len() > maxHeaderV2+16 {
			t.Errorf("%d bytes were read: %v", len(b)-r.Len(), err)
		}
	})
}
