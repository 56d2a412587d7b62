package relay

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
)

// answering is a handler that answers /t.S/Ok at once and keeps everything else.
var answering = HandlerFunc(func(c *Call) {
	if c.Path() == "/t.S/Ok" {
		c.Reject(codes.OK, "")
	}
})

// TestServerRules is one row per rule of RFC 9113 that a client can break.
func TestServerRules(t *testing.T) {
	goaway := func(last int, code http2.ErrCode) string { return fmt.Sprintf("GOAWAY %d %v", last, code) }
	rst := func(id int, code http2.ErrCode) string { return fmt.Sprintf("RST %d %v", id, code) }
	data := make([]byte, 20000)
	for _, rule := range []struct {
		section, name string
		do            func(r *raw)
		want          string
	}{
		{"3.4", "first frame is not SETTINGS", nil, ""}, // see TestFirstFrame
		{"4.2", "frame larger than MAX_FRAME_SIZE", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(frameData, 0, 1, data[:16385])
		}, goaway(1, http2.ErrCodeFrameSize)},
		{"4.3", "undecodable header block", func(r *raw) {
			r.frame(frameHeaders, flagEndHeaders|flagEndStream, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		}, goaway(0, http2.ErrCodeCompression)},
		{"4.3", "frame inside a header block", func(r *raw) {
			r.must(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(goodRequest...)}))
			r.must(r.fr.WriteData(1, true, nil))
		}, goaway(0, http2.ErrCodeProtocol)},
		{"4.3", "unknown frame inside a header block", func(r *raw) {
			r.must(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(goodRequest...)}))
			r.frame(0x77, 0, 1, nil)
		}, goaway(0, http2.ErrCodeProtocol)},
		{"4.3", "CONTINUATION of another stream", func(r *raw) {
			r.must(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(goodRequest...)}))
			r.must(r.fr.WriteContinuation(3, true, nil))
		}, goaway(0, http2.ErrCodeProtocol)},
		{"4.1", "unknown frame type is ignored", func(r *raw) {
			r.frame(0x77, 0xff, 5, []byte("anything"))
			r.request(1, "/t.S/Ok", true)
		}, "HEADERS 1 END"},
		{"5.1", "DATA on an idle stream", func(r *raw) { r.must(r.fr.WriteData(1, false, []byte("x"))) }, goaway(0, http2.ErrCodeProtocol)},
		{"5.1", "RST_STREAM on an idle stream", func(r *raw) { r.must(r.fr.WriteRSTStream(1, http2.ErrCodeCancel)) }, goaway(0, http2.ErrCodeProtocol)},
		{"5.1", "WINDOW_UPDATE on an idle stream", func(r *raw) { r.must(r.fr.WriteWindowUpdate(1, 100)) }, goaway(0, http2.ErrCodeProtocol)},
		{"5.1", "CONTINUATION without HEADERS", func(r *raw) { r.must(r.fr.WriteContinuation(1, true, nil)) }, goaway(0, http2.ErrCodeProtocol)},
		{"5.1", "DATA after END_STREAM", func(r *raw) {
			r.request(1, "/t.S/Hold", true)
			r.must(r.fr.WriteData(1, true, []byte("x")))
		}, rst(1, http2.ErrCodeStreamClosed)},
		{"5.1", "HEADERS after END_STREAM", func(r *raw) {
			r.request(1, "/t.S/Hold", true)
			r.request(1, "/t.S/Hold", true)
		}, goaway(1, http2.ErrCodeStreamClosed)},
		{"5.1", "DATA on a closed stream", func(r *raw) {
			r.request(1, "/t.S/Ok", true)
			r.expect("HEADERS 1 END")
			r.must(r.fr.WriteData(1, true, []byte("x")))
		}, goaway(1, http2.ErrCodeStreamClosed)},
		{"5.1", "HEADERS on a closed stream", func(r *raw) {
			r.request(1, "/t.S/Ok", true)
			r.expect("HEADERS 1 END")
			r.request(1, "/t.S/Ok", true)
		}, goaway(1, http2.ErrCodeStreamClosed)},
		{"5.1", "DATA after RST_STREAM", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.must(r.fr.WriteRSTStream(1, http2.ErrCodeCancel))
			r.must(r.fr.WriteData(1, true, []byte("x")))
		}, rst(1, http2.ErrCodeStreamClosed)},
		{"5.1", "HEADERS after RST_STREAM", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.must(r.fr.WriteRSTStream(1, http2.ErrCodeCancel))
			r.request(1, "/t.S/Hold", false)
		}, goaway(1, http2.ErrCodeStreamClosed)},
		{"5.1", "WINDOW_UPDATE and RST_STREAM on a closed stream are ignored", func(r *raw) {
			r.request(1, "/t.S/Ok", true)
			r.expect("HEADERS 1 END")
			r.must(r.fr.WriteWindowUpdate(1, 100))
			r.must(r.fr.WriteRSTStream(1, http2.ErrCodeCancel))
			r.request(3, "/t.S/Ok", true)
		}, "HEADERS 3 END"},
		{"5.1", "what was under way when the stream was answered is ignored", func(r *raw) {
			r.request(1, "/t.S/Ok", false)
			r.expect("HEADERS 1 END")
			r.expect("RST 1 NO_ERROR")
			r.must(r.fr.WriteData(1, true, []byte("x")))
			r.request(3, "/t.S/Ok", true)
		}, "HEADERS 3 END"},
		{"5.1.1", "even stream id", func(r *raw) { r.request(2, "/t.S/Hold", true) }, goaway(0, http2.ErrCodeProtocol)},
		{"5.1.1", "stream id below the last one", func(r *raw) {
			r.request(5, "/t.S/Hold", true)
			r.request(3, "/t.S/Hold", true)
		}, goaway(5, http2.ErrCodeProtocol)},
		{"5.1.1", "HEADERS on stream 0", func(r *raw) { r.request(0, "/t.S/Hold", true) }, goaway(0, http2.ErrCodeProtocol)},
		{"5.1.2", "more streams than MAX_CONCURRENT_STREAMS", func(r *raw) {
			for id := uint32(1); id <= 9; id += 2 {
				r.request(id, "/t.S/Hold", false)
			}
		}, rst(9, http2.ErrCodeRefusedStream)},
		{"5.3.1", "PRIORITY on itself", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(framePriority, 0, 1, append(u32(1), 1))
		}, rst(1, http2.ErrCodeProtocol)},
		{"5.3", "PRIORITY on an idle stream is allowed", func(r *raw) {
			r.frame(framePriority, 0, 7, append(u32(3), 1))
			r.request(1, "/t.S/Ok", true)
		}, "HEADERS 1 END"},
		{"6.1", "DATA on stream 0", func(r *raw) { r.frame(frameData, 0, 0, []byte("x")) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.1", "padding longer than the frame", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(frameData, flagPadded, 1, []byte{5, 'x', 0, 0, 0})
		}, goaway(1, http2.ErrCodeProtocol)},
		{"6.1", "padded DATA", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(frameData, flagPadded|flagEndStream, 1, []byte{3, 'x', 0, 0, 0})
			r.request(3, "/t.S/Ok", true)
		}, "HEADERS 3 END"},
		{"6.2", "HEADERS with padding and priority", func(r *raw) {
			block := r.block(append(goodRequest[:4:4], append([]string{":path", "/t.S/Ok"}, goodRequest[6:]...)...)...)
			p := append(append([]byte{4}, append(u32(0), 200)...), block...)
			r.frame(frameHeaders, flagPadded|flagPriority|flagEndHeaders|flagEndStream, 1, append(p, 0, 0, 0, 0))
		}, "HEADERS 1 END"},
		{"6.2", "padding longer than the HEADERS", func(r *raw) {
			r.frame(frameHeaders, flagPadded|flagEndHeaders, 1, append([]byte{255}, r.block(goodRequest...)[:20]...))
		}, goaway(0, http2.ErrCodeProtocol)},
		{"6.2", "HEADERS too short for priority", func(r *raw) {
			r.frame(frameHeaders, flagPriority|flagEndHeaders, 1, []byte{1})
		}, goaway(0, http2.ErrCodeFrameSize)},
		{"6.3", "PRIORITY on stream 0", func(r *raw) { r.frame(framePriority, 0, 0, append(u32(1), 1)) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.3", "PRIORITY of another length", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(framePriority, 0, 1, []byte{0, 0, 0, 0})
		}, rst(1, http2.ErrCodeFrameSize)},
		{"6.4", "RST_STREAM on stream 0", func(r *raw) { r.frame(frameRST, 0, 0, u32(8)) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.4", "RST_STREAM of another length", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(frameRST, 0, 1, []byte{0, 0, 0})
		}, goaway(1, http2.ErrCodeFrameSize)},
		{"6.5", "SETTINGS on a stream", func(r *raw) { r.frame(frameSettings, 0, 1, nil) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.5", "SETTINGS of another length", func(r *raw) { r.frame(frameSettings, 0, 0, []byte{0, 3, 0}) }, goaway(0, http2.ErrCodeFrameSize)},
		{"6.5", "SETTINGS acknowledgement with a payload", func(r *raw) { r.frame(frameSettings, flagAck, 0, make([]byte, 6)) }, goaway(0, http2.ErrCodeFrameSize)},
		{"6.5.2", "ENABLE_PUSH of 2", func(r *raw) { r.must(r.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2})) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.5.2", "INITIAL_WINDOW_SIZE above 2^31-1", func(r *raw) {
			r.must(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, goaway(0, http2.ErrCodeFlowControl)},
		{"6.5.2", "MAX_FRAME_SIZE below 16384", func(r *raw) { r.must(r.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 16383})) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.5.2", "MAX_FRAME_SIZE above 2^24-1", func(r *raw) { r.must(r.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 24})) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.5.2", "unknown setting is ignored", func(r *raw) {
			r.must(r.fr.WriteSettings(http2.Setting{ID: 0xff, Val: 1}))
			r.request(1, "/t.S/Ok", true)
		}, "HEADERS 1 END"},
		{"6.6", "PUSH_PROMISE", func(r *raw) { r.frame(framePush, flagEndHeaders, 1, u32(2)) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.7", "PING is answered with its data", func(r *raw) {
			r.frame(framePing, 0, 0, []byte("12345678"))
		}, "PING ack 3132333435363738"},
		{"6.7", "PING answer is not answered", func(r *raw) {
			r.frame(framePing, flagAck, 0, []byte("12345678"))
			r.frame(framePing, 0, 0, []byte("abcdefgh"))
		}, "PING ack 6162636465666768"},
		{"6.7", "PING on a stream", func(r *raw) { r.frame(framePing, 0, 1, make([]byte, 8)) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.7", "PING of another length", func(r *raw) { r.frame(framePing, 0, 0, make([]byte, 7)) }, goaway(0, http2.ErrCodeFrameSize)},
		{"6.8", "GOAWAY on a stream", func(r *raw) { r.frame(frameGoAway, 0, 1, make([]byte, 8)) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.8", "calls go on after the client's GOAWAY", func(r *raw) {
			r.must(r.fr.WriteGoAway(0, http2.ErrCodeNo, nil))
			r.request(1, "/t.S/Ok", true)
		}, "HEADERS 1 END"},
		{"6.9", "WINDOW_UPDATE of 0 on the connection", func(r *raw) { r.frame(frameWindowUpdate, 0, 0, u32(0)) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.9", "WINDOW_UPDATE of 0 on a stream", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(frameWindowUpdate, 0, 1, u32(0))
		}, rst(1, http2.ErrCodeProtocol)},
		{"6.9", "WINDOW_UPDATE of another length", func(r *raw) { r.frame(frameWindowUpdate, 0, 0, []byte{0, 0, 1}) }, goaway(0, http2.ErrCodeFrameSize)},
		{"6.9.1", "connection window above 2^31-1", func(r *raw) {
			r.frame(frameWindowUpdate, 0, 0, u32(maxWindow))
		}, goaway(0, http2.ErrCodeFlowControl)},
		{"6.9.1", "stream window above 2^31-1", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(frameWindowUpdate, 0, 1, u32(maxWindow))
		}, rst(1, http2.ErrCodeFlowControl)},
		{"6.9.1", "more DATA than the stream's window", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			for range 5 {
				r.must(r.fr.WriteData(1, false, data[:16384]))
			}
		}, rst(1, http2.ErrCodeFlowControl)},
		{"6.9.2", "INITIAL_WINDOW_SIZE that makes a stream's window too large", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.frame(frameWindowUpdate, 0, 1, u32(maxWindow-defaultWindow))
			r.must(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow + 1}))
		}, goaway(1, http2.ErrCodeFlowControl)},
		{"6.10", "CONTINUATION on stream 0", func(r *raw) { r.frame(frameContinuation, 0, 0, nil) }, goaway(0, http2.ErrCodeProtocol)},
		{"6.10", "several CONTINUATION frames", func(r *raw) {
			block := r.block(append(goodRequest[:4:4], append([]string{":path", "/t.S/Ok"}, goodRequest[6:]...)...)...)
			r.frame(frameHeaders, flagEndStream, 1, block[:3])
			r.frame(frameContinuation, 0, 1, block[3:9])
			r.frame(frameContinuation, 0, 1, nil)
			r.frame(frameContinuation, flagEndHeaders, 1, block[9:])
		}, "HEADERS 1 END"},
		{"8.1", "request trailers without END_STREAM", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.headers(1, false, "x", "y")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.1", "pseudo-header in trailers", func(r *raw) {
			r.request(1, "/t.S/Hold", false)
			r.headers(1, true, ":path", "/x.Y/Z")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.1.1", "content-length above what comes", func(r *raw) {
			r.request(1, "/t.S/Hold", false, "content-length", "5")
			r.must(r.fr.WriteData(1, true, []byte("x")))
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.1.1", "content-length below what comes", func(r *raw) {
			r.request(1, "/t.S/Hold", false, "content-length", "1")
			r.must(r.fr.WriteData(1, false, []byte("xy")))
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.1.1", "two different content-lengths", func(r *raw) {
			r.request(1, "/t.S/Hold", false, "content-length", "1", "content-length", "2")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.1.1", "content-length and END_STREAM on HEADERS", func(r *raw) {
			r.request(1, "/t.S/Hold", true, "content-length", "1")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.2", "upper-case field name", func(r *raw) { r.request(1, "/t.S/Hold", true, "X-Upper", "1") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.1", "line feed in a value", func(r *raw) { r.request(1, "/t.S/Hold", true, "x", "a\nb") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.1", "blank before a value", func(r *raw) { r.request(1, "/t.S/Hold", true, "x", " a") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.1", "blank in a name", func(r *raw) { r.request(1, "/t.S/Hold", true, "x y", "a") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.1", "empty name", func(r *raw) { r.request(1, "/t.S/Hold", true, "", "a") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.2", "connection", func(r *raw) { r.request(1, "/t.S/Hold", true, "connection", "close") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.2", "transfer-encoding", func(r *raw) { r.request(1, "/t.S/Hold", true, "transfer-encoding", "chunked") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.2", "upgrade", func(r *raw) { r.request(1, "/t.S/Hold", true, "upgrade", "h2c") }, rst(1, http2.ErrCodeProtocol)},
		{"8.2.2", "te of something else", func(r *raw) { r.request(1, "/t.S/Hold", true, "te", "gzip") }, rst(1, http2.ErrCodeProtocol)},
		{"8.3", "pseudo-header after a field", func(r *raw) {
			r.headers(1, true, ":method", "POST", ":scheme", "http", "x", "y", ":path", "/t.S/Hold")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.3", "unknown pseudo-header", func(r *raw) {
			r.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/t.S/Hold", ":protocol", "x")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.3", "response's pseudo-header", func(r *raw) {
			r.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/t.S/Hold", ":status", "200")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.3.1", "no :method", func(r *raw) { r.headers(1, true, ":scheme", "http", ":path", "/t.S/Hold") }, rst(1, http2.ErrCodeProtocol)},
		{"8.3.1", "no :scheme", func(r *raw) { r.headers(1, true, ":method", "POST", ":path", "/t.S/Hold") }, rst(1, http2.ErrCodeProtocol)},
		{"8.3.1", "no :path", func(r *raw) { r.headers(1, true, ":method", "POST", ":scheme", "http") }, rst(1, http2.ErrCodeProtocol)},
		{"8.3.1", "empty :path", func(r *raw) { r.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "") }, rst(1, http2.ErrCodeProtocol)},
		{"8.3.1", ":path twice", func(r *raw) {
			r.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/t.S/Hold", ":path", "/t.S/Other")
		}, rst(1, http2.ErrCodeProtocol)},
		{"8.3.1", "host is not :authority", func(r *raw) { r.request(1, "/t.S/Hold", true, "host", "elsewhere") }, rst(1, http2.ErrCodeProtocol)},
	} {
		if rule.do == nil {
			continue
		}
		t.Run(rule.section+" "+rule.name, func(t *testing.T) {
			t.Parallel()
			r, _, _ := rawTo(t, &Options{Edge: true, Limits: Limits{Streams: 4, StreamWindow: 65535}}, answering)
			rule.do(r)
			r.expect(rule.want)
			if strings.HasPrefix(rule.want, "GOAWAY") {
				r.expect("EOF")
				return
			}
			// The connection goes on.
			r.frame(framePing, 0, 0, []byte("still up"))
			r.expect("PING ack", "HEADERS", "RST")
		})
	}
}

func TestFirstFrame(t *testing.T) {
	for name, do := range map[string]func(*raw){
		"a request":                      func(r *raw) { r.request(1, "/t.S/Ok", true) },
		"an acknowledgement of SETTINGS": func(r *raw) { r.must(r.fr.WriteSettingsAck()) },
		"PING":                           func(r *raw) { r.frame(framePing, 0, 0, make([]byte, 8)) },
	} {
		t.Run(name, func(t *testing.T) {
			r, _, _ := rawSilent(t, &Options{Edge: true}, answering)
			r.write([]byte(preface))
			do(r)
			r.expect("GOAWAY 0 PROTOCOL_ERROR")
			r.expect("EOF")
		})
	}
}

// TestPreface checks that the usual mistakes are named.
func TestPreface(t *testing.T) {
	for _, c := range []struct{ send, want, answer string }{
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 request", "HTTP/1.1 505"},
		{"\x16\x03\x01\x02\x00\x01\x00", "began a TLS handshake", ""},
		{"hello", `began with "hello"`, ""},
		{"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "does not speak HTTP/2", ""},
	} {
		r, _, ended := rawSilent(t, &Options{Edge: true}, answering)
		r.write([]byte(c.send))
		if err := <-ended; err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.send, err)
		}
		if c.answer == "" {
			continue
		}
		all := make([]byte, 1000)
		n := 0
		for n < len(all) {
			k, err := r.nc.Read(all[n:])
			if n += k; err != nil {
				break
			}
		}
		if !strings.Contains(string(all[:n]), c.answer) {
			t.Errorf("%q was answered with %q", c.send, all[:n])
		}
	}
}

// TestPrefaceInPieces sends the preface byte by byte.
func TestPrefaceInPieces(t *testing.T) {
	r, _, _ := rawSilent(t, &Options{Edge: true}, answering)
	for _, b := range []byte(preface) {
		r.write([]byte{b})
	}
	r.must(r.fr.WriteSettings())
	r.expectSettings()
	r.request(1, "/t.S/Ok", true)
	r.expect("HEADERS 1 END")
}

func TestPeerClosing(t *testing.T) {
	r, _, ended := rawTo(t, &Options{Edge: true, Remote: "caller x"}, answering)
	_ = r.nc.Close()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "caller x was closed by the peer") || errors.Is(err, ErrDrained) {
		t.Error(err)
	}
}
