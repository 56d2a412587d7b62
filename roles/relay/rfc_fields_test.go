package relay

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestHPACKErrors is one row per decoding error of RFC 7541. Each is a connection
// error of type COMPRESSION_ERROR by RFC 9113 section 4.3.
func TestHPACKErrors(t *testing.T) {
	for _, rule := range []struct{ section, name, block string }{
		{"2.3.3", "an index beyond both tables", "\xbf"},
		{"2.3.3", "a name's index beyond both tables", "\x7f\x00\x01v"},
		{"2.3.3", "a far index", "\xff\xff\xff\x7f"},
		{"4.2", "a size update after a field", "\x82\x20"},
		{"5.1", "an integer that does not end", "\xff\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80"},
		{"5.1", "an integer beyond 32 bits", "\xff\xff\xff\xff\xff\x7f"},
		{"5.1", "an integer that is cut off", "\xff\x80"},
		{"5.2", "a string that is cut off", "\x40\x05name"},
		{"5.2", "a string longer than anything", "\x40\x7f\xff\xff\xff\xff\x07"},
		{"5.2", "Huffman padding of a byte", "\x40\x82\x1f\xff\x01v"},
		{"5.2", "Huffman padding that is not of the end's bits", "\x40\x81\x18\x01v"},
		{"5.2", "the end of string within Huffman text", "\x40\x84\xff\xff\xff\xff\x01v"},
		{"6.1", "index 0", "\x80"},
		{"6.2.1", "a field that is cut off", "\x40"},
		{"6.3", "a size update above what we allow", "\x3f\xe2\x1f"},
		{"6.3", "a far size update", "\x3f\xff\xff\xff\x0f"},
	} {
		t.Run(rule.section+" "+rule.name, func(t *testing.T) {
			t.Parallel()
			r, _, _ := rawTo(t, &Options{Edge: true}, answering)
			r.frame(frameHeaders, flagEndHeaders|flagEndStream, 1, []byte(rule.block))
			r.expect("GOAWAY 0 COMPRESSION_ERROR")
			r.expect("EOF")
		})
	}
	// What is allowed: size updates before the first field, down and up again.
	r, _, _ := rawTo(t, &Options{Edge: true}, answering)
	block := append([]byte("\x20\x3f\xe1\x1f"), r.block(append(goodRequest[:4:4], append([]string{":path", "/t.S/Ok"}, goodRequest[6:]...)...)...)...)
	r.frame(frameHeaders, flagEndHeaders|flagEndStream, 1, block)
	r.expect("HEADERS 1 END")
}

// TestFieldRules has the rules of RFC 9113 about what a field may hold, with
// every byte that it may not.
func TestFieldRules(t *testing.T) {
	broken := map[string][]string{}
	for c := range 256 {
		b := string([]byte{byte(c)})
		switch {
		case c <= 0x20, c >= 'A' && c <= 'Z', c >= 0x7f:
			broken[fmt.Sprintf("8.2.1 byte %#02x in a name", c)] = []string{"x" + b + "y", "v"}
		}
		if c == 0 || c == '\n' || c == '\r' {
			broken[fmt.Sprintf("8.2.1 byte %#02x in a value", c)] = []string{"x", "a" + b + "b"}
		}
	}
	for name, fields := range map[string][]string{
		"8.2.1 colon in a name":         {"x:y", "v"},
		"8.2.1 tab before a value":      {"x", "\tv"},
		"8.2.1 blank after a value":     {"x", "v "},
		"8.2.1 tab after a value":       {"x", "v\t"},
		"8.2.2 keep-alive":              {"keep-alive", "timeout=5"},
		"8.2.2 proxy-connection":        {"proxy-connection", "close"},
		"8.2.2 te of more":              {"te", "trailers, gzip"},
		"8.1.1 content-length of words": {"content-length", "many"},
		"8.1.1 negative content-length": {"content-length", "-1"},
		"8.1.1 signed content-length":   {"content-length", "+0"},
		"8.1.1 content-length list":     {"content-length", "0, 0"},
	} {
		broken[name] = fields
	}
	r, _, _ := rawTo(t, &Options{Edge: true, Limits: Limits{MalformedCalls: 1000}}, answering)
	id := uint32(1)
	for name, fields := range broken {
		r.request(id, "/t.S/Hold", true, fields...)
		want := fmt.Sprintf("RST %d %v", id, http2.ErrCodeProtocol)
		if got := r.say(); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		id += 2
	}
}

// TestMoreServerRules goes on where TestServerRules ends.
func TestMoreServerRules(t *testing.T) {
	t.Run("6.5.3 every SETTINGS frame is acknowledged", func(t *testing.T) {
		r, _, _ := rawTo(t, &Options{Edge: true}, answering)
		for range 3 {
			r.must(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100}))
		}
		r.frame(framePing, 0, 0, []byte("the last"))
		acks := 0
		for {
			f := r.next()
			if s, ok := f.(*http2.SettingsFrame); ok && s.IsAck() {
				acks++
			}
			if _, ok := f.(*http2.PingFrame); ok || f == nil {
				break
			}
		}
		if acks < 3 {
			t.Errorf("%d acknowledgements came", acks)
		}
	})
	t.Run("6.9 more DATA than the connection's window", func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		defer ours.Close()
		c := NewServer(ours, &Options{Edge: true, Limits: Limits{ConnWindow: 65535}}, answering)
		var b batch
		if err := c.received(65536, &b); err == nil || !strings.Contains(err.Error(), "FLOW_CONTROL_ERROR") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("8.5 CONNECT", func(t *testing.T) {
		r, _, _ := rawTo(t, &Options{Edge: true}, answering)
		r.headers(1, true, ":method", "CONNECT", ":authority", "example.org:443")
		r.expect("RST 1 PROTOCOL_ERROR")
	})
}
