package relay

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
)

// between is a relay of which the test plays both sides: r is the caller, ups
// are the services, in the order in which calls go to them.
func between(t testing.TB, n int, h Handler, linkLim Limits, settings ...http2.Setting) (r *raw, ups []*raw, ins *Conn, outs []*Conn) {
	var pool []*Conn
	if h == nil {
		h = HandlerFunc(func(c *Call) {
			var try func(error)
			next := 0
			try = func(reason error) {
				for ; next < len(pool); next++ {
					if err := c.Forward(pool[next], c.Header(), ForwardOptions{Retry: try}); !errors.Is(err, ErrNotAccepting) {
						next++
						return
					}
				}
				c.Reject(codes.Unavailable, fmt.Sprintf("nowhere left: %v", reason))
			}
			try(nil)
		})
	} else if f, ok := h.(toPool); ok {
		h = HandlerFunc(func(c *Call) { f(c, pool[0]) })
	}
	for range n {
		up, out, _ := rawFrom(t, &Options{Hop: "edge", Remote: "upstream raw", Limits: linkLim, Metrics: new(Metrics)}, settings...)
		ups, pool = append(ups, up), append(pool, out)
	}
	r, ins, _ = rawTo(t, &Options{Hop: "edge", Edge: true, Limits: Limits{DeadlineGrace: time.Millisecond}}, h)
	return r, ups, ins, pool
}

type toPool func(*Call, *Conn)

func (toPool) ServeCall(*Call) {}

// TestClientRules is one row per rule that a service can break, and for what has
// to pass.
func TestClientRules(t *testing.T) {
	malformed := "HEADERS 1 END :status=200 content-type=application/grpc grpc-status=13 grpc-message=edge: upstream raw sent a malformed response"
	for _, rule := range []struct {
		name         string
		do           func(*raw)
		caller, peer string
	}{
		{"a whole response", func(u *raw) {
			u.headers(1, false, ":status", "200", "content-type", "application/grpc")
			u.must(u.fr.WriteData(1, false, []byte("abc")))
			u.headers(1, true, "grpc-status", "0")
		}, "HEADERS 1 :status=200 content-type=application/grpc|DATA 1 3|HEADERS 1 END grpc-status=0|RST 1 NO_ERROR", "RST 1 NO_ERROR"},
		{"trailers only", func(u *raw) { u.headers(1, true, ":status", "200", "grpc-status", "5") }, "HEADERS 1 END :status=200 grpc-status=5", "RST 1 NO_ERROR"},
		{"1xx", func(u *raw) {
			u.headers(1, false, ":status", "103", "link", "x")
			u.headers(1, true, ":status", "200", "grpc-status", "0")
		}, "HEADERS 1 :status=103 link=x|HEADERS 1 END :status=200 grpc-status=0", ""},
		{"END_STREAM on empty DATA", func(u *raw) {
			u.headers(1, false, ":status", "200")
			u.must(u.fr.WriteData(1, true, nil))
		}, "HEADERS 1 :status=200|DATA 1 0 END", ""},
		{"an answer of something that is not gRPC", func(u *raw) {
			u.headers(1, true, ":status", "502", "content-type", "text/html")
		}, "HEADERS 1 END :status=502 content-type=text/html", ""},
		{"our names and hop-by-hop fields", func(u *raw) {
			u.headers(1, false, ":status", "200", "sallyport-caller", "x", "a", "b")
			u.headers(1, true, "grpc-status", "0", "sallyport_caller", "x", "c", "d")
		}, "HEADERS 1 :status=200 a=b|HEADERS 1 END grpc-status=0 c=d", ""},
		{"never indexed stays never indexed", func(u *raw) {
			u.frame(frameHeaders, flagEndHeaders|flagEndStream, 1, append(u.block(":status", "200"), "\x10\x01k\x01v"...))
		}, "HEADERS 1 END :status=200 k=v(never indexed)", ""},
		{"no :status", func(u *raw) { u.headers(1, true, "grpc-status", "0") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{":status twice", func(u *raw) { u.headers(1, true, ":status", "200", ":status", "200") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{":status not first", func(u *raw) { u.headers(1, true, "a", "b", ":status", "200") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{"request's pseudo-header", func(u *raw) { u.headers(1, true, ":status", "200", ":path", "/") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{"101", func(u *raw) { u.headers(1, false, ":status", "101") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{"1xx with END_STREAM", func(u *raw) { u.headers(1, true, ":status", "103") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{"upper case", func(u *raw) { u.headers(1, true, ":status", "200", "X", "y") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{"connection", func(u *raw) { u.headers(1, true, ":status", "200", "connection", "close") }, malformed, "RST 1 PROTOCOL_ERROR"},
		{"DATA before HEADERS", func(u *raw) { u.must(u.fr.WriteData(1, false, []byte("x"))) }, malformed, "RST 1 PROTOCOL_ERROR"},
		{"trailers without END_STREAM", func(u *raw) {
			u.headers(1, false, ":status", "200")
			u.headers(1, false, "a", "b")
		}, "HEADERS 1 :status=200|HEADERS 1 END grpc-status=13", "RST 1 PROTOCOL_ERROR"},
		{"pseudo-header in trailers", func(u *raw) {
			u.headers(1, false, ":status", "200")
			u.headers(1, true, ":status", "200")
		}, "HEADERS 1 :status=200|HEADERS 1 END grpc-status=13", "RST 1 PROTOCOL_ERROR"},
		{"content-length that is not kept", func(u *raw) {
			u.headers(1, false, ":status", "200", "content-length", "2")
			u.must(u.fr.WriteData(1, false, []byte("abc")))
		}, "HEADERS 1 :status=200|HEADERS 1 END grpc-status=13", "RST 1 PROTOCOL_ERROR"},
		{"RST_STREAM CANCEL passes on", func(u *raw) { u.must(u.fr.WriteRSTStream(1, http2.ErrCodeCancel)) }, "RST 1 CANCEL", ""},
		{"RST_STREAM INTERNAL_ERROR", func(u *raw) { u.must(u.fr.WriteRSTStream(1, http2.ErrCodeInternal)) },
			"HEADERS 1 END :status=200 content-type=application/grpc grpc-status=13 grpc-message=edge: upstream raw reset the call: INTERNAL_ERROR", ""},
		{"RST_STREAM ENHANCE_YOUR_CALM", func(u *raw) { u.must(u.fr.WriteRSTStream(1, http2.ErrCodeEnhanceYourCalm)) },
			"HEADERS 1 END :status=200 content-type=application/grpc grpc-status=8", ""},
		{"RST_STREAM REFUSED_STREAM with nobody left", func(u *raw) { u.must(u.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream)) },
			"HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14", ""},
		{"PUSH_PROMISE", func(u *raw) { u.frame(framePush, flagEndHeaders, 1, u32(2)) },
			"HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14 grpc-message=edge: upstream raw was lost: PROTOCOL_ERROR", "GOAWAY 0 PROTOCOL_ERROR"},
		{"an even stream", func(u *raw) { u.headers(2, true, ":status", "200") },
			"HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14", "GOAWAY 0 PROTOCOL_ERROR"},
		{"a stream that was not opened", func(u *raw) { u.headers(3, true, ":status", "200") },
			"HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14", "GOAWAY 0 PROTOCOL_ERROR"},
	} {
		t.Run(rule.name, func(t *testing.T) {
			t.Parallel()
			r, ups, _, _ := between(t, 1, nil, Limits{})
			r.request(1, "/t.S/M", false)
			ups[0].expect("HEADERS 1 :method=POST :scheme=http :path=/t.S/M :authority=localhost te=trailers content-type=application/grpc")
			rule.do(ups[0])
			for _, want := range strings.Split(rule.caller, "|") {
				r.expect(want)
			}
			if rule.peer != "" {
				ups[0].expect(rule.peer)
			}
		})
	}
}

// TestRequestPasses looks at what arrives at the service.
func TestRequestPasses(t *testing.T) {
	r, ups, _, _ := between(t, 1, nil, Limits{})
	u := ups[0]
	r.request(1, "/t.S/M", false, "authorization", "Bearer x", "grpc-timeout", "10S", "a", "1", "a", "2", "sallyport-caller", "x", "x-forwarded-for", "y")
	u.expect("HEADERS 1 :method=POST :scheme=http :path=/t.S/M :authority=localhost te=trailers content-type=application/grpc authorization=Bearer x(never indexed) grpc-timeout=10S a=1 a=2")
	r.must(r.fr.WriteDataPadded(1, false, []byte("abc"), make([]byte, 20)))
	u.expect("DATA 1 3")
	// Trailers of a request end at the edge.
	r.headers(1, true, "x", "y")
	u.expect("DATA 1 0 END")
	u.headers(1, true, ":status", "200", "grpc-status", "0")
	r.expect("HEADERS 1 END :status=200 grpc-status=0")

	// A request without a body ends with its header here as there.
	r.request(3, "/t.S/M", true)
	u.expect("HEADERS 3 END")
	u.headers(3, true, ":status", "200", "grpc-status", "0")
	r.expect("HEADERS 3 END")

	// A large header takes CONTINUATION frames.
	big := strings.Repeat("x", 40_000)
	r.must(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: r.block(append(append([]string(nil), goodRequest...), "big", "1")...)}))
	r.must(r.fr.WriteContinuation(5, true, nil))
	u.expect("HEADERS 5 :method=POST")
	block := r.block(append(append([]string(nil), goodRequest...), "big", big)...)
	r.must(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 7, BlockFragment: block[:16384]}))
	r.must(r.fr.WriteContinuation(7, len(block) <= 32768, block[16384:min(len(block), 32768)]))
	if len(block) > 32768 {
		r.must(r.fr.WriteContinuation(7, true, block[32768:]))
	}
	u.expect("HEADERS 7 :method=POST :scheme=http :path=/t.S/Hold :authority=localhost te=trailers content-type=application/grpc big=" + big)
}

// TestRetry has the first service refuse the call, while all of it is held.
func TestRetry(t *testing.T) {
	for name, refuse := range map[string]func(*raw){
		"REFUSED_STREAM": func(u *raw) { u.must(u.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream)) },
		"GOAWAY":         func(u *raw) { u.must(u.fr.WriteGoAway(0, http2.ErrCodeNo, nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			r, ups, _, outs := between(t, 2, nil, Limits{})
			r.request(1, "/t.S/M", false, "k", "v")
			r.must(r.fr.WriteData(1, false, []byte("hello ")))
			ups[0].expect("HEADERS 1 ")
			ups[0].expect("DATA 1 6")
			refuse(ups[0])
			ups[1].expect("HEADERS 1 :method=POST :scheme=http :path=/t.S/M :authority=localhost te=trailers content-type=application/grpc k=v")
			ups[1].expect("DATA 1 6")
			r.must(r.fr.WriteData(1, true, []byte("world")))
			ups[1].expect("DATA 1 5 END")
			ups[1].headers(1, true, ":status", "200", "grpc-status", "0")
			r.expect("HEADERS 1 END :status=200 grpc-status=0")
			if name == "GOAWAY" {
				if outs[0].Accepting() {
					t.Error("still accepting after GOAWAY")
				}
				<-outs[0].Done()
			}
		})
	}
}

// TestNoRetry checks that a call of which not everything is held any more is not
// sent again.
func TestNoRetry(t *testing.T) {
	r, ups, _, _ := between(t, 2, nil, Limits{})
	r.request(1, "/t.S/M", false)
	ups[0].expect("HEADERS 1 ")
	for range 5 {
		ups[0].must(ups[0].fr.WriteWindowUpdate(1, 20000))
		ups[0].must(ups[0].fr.WriteWindowUpdate(0, 20000))
		r.must(r.fr.WriteData(1, false, make([]byte, 16000)))
		ups[0].expect("DATA 1 ")
	}
	ups[0].must(ups[0].fr.WriteRSTStream(1, http2.ErrCodeRefusedStream))
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14 grpc-message=edge: upstream raw: the call was refused")
}

// TestRetryCredit checks that a call that is sent twice gives its caller credit
// for its bytes once.
func TestRetryCredit(t *testing.T) {
	r, ups, _, _ := between(t, 2, nil, Limits{})
	r.request(1, "/t.S/M", false)
	ups[0].expect("HEADERS 1 ")
	for range 4 {
		r.must(r.fr.WriteData(1, false, make([]byte, 15000)))
	}
	for n := 0; n < 60000; n += 15000 {
		ups[0].expect("DATA 1 15000")
	}
	ups[0].must(ups[0].fr.WriteRSTStream(1, http2.ErrCodeRefusedStream))
	ups[1].expect("HEADERS 1 ")
	for n := 0; n < 60000; {
		f, ok := ups[1].next().(*http2.DataFrame)
		if ok {
			n += len(f.Data())
		}
	}
	ups[1].must(ups[1].fr.WriteWindowUpdate(1, 6000))
	ups[1].must(ups[1].fr.WriteWindowUpdate(0, 6000))
	r.must(r.fr.WriteData(1, false, make([]byte, 5000)))
	r.must(r.fr.WriteData(1, false, make([]byte, 2000))) // 67000: enough for one WINDOW_UPDATE of 256 KiB/4
	for {
		if f, ok := r.next().(*http2.WindowUpdateFrame); ok && f.StreamID == 1 {
			if f.Increment > 67000 {
				t.Fatalf("credit for %d bytes", f.Increment)
			}
			break
		}
	}
}

// TestWindowChanges shrinks and grows the service's windows with bytes waiting.
func TestWindowChanges(t *testing.T) {
	r, ups, _, outs := between(t, 1, nil, Limits{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	u := ups[0]
	r.request(1, "/t.S/M", false)
	r.must(r.fr.WriteData(1, true, make([]byte, 100)))
	u.expect("HEADERS 1 ")
	u.expect("DATA 1 10")
	u.must(u.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	u.must(u.fr.WriteWindowUpdate(1, 5)) // the window is -5 now
	u.must(u.fr.WritePing(false, [8]byte{1}))
	u.expect("PING ack")
	u.must(u.fr.WriteWindowUpdate(1, 5)) // 0 after 10 lost and 10 granted
	u.must(u.fr.WritePing(false, [8]byte{2}))
	u.expect("PING ack")
	u.must(u.fr.WriteWindowUpdate(1, 7))
	u.expect("DATA 1 7")
	u.must(u.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
	u.expect("DATA 1 83 END")
	eventually(t, "nothing is held", func() bool { return outs[0].m.Buffered.Load() == 0 })
}

// TestTableSize lets the service forbid header compression in the middle.
func TestTableSize(t *testing.T) {
	r, ups, _, _ := between(t, 1, nil, Limits{})
	u := ups[0]
	for id := uint32(1); id < 20; id += 2 {
		r.request(id, "/t.S/M", true, "k", "v")
		u.expect(fmt.Sprintf("HEADERS %d END :method=POST :scheme=http :path=/t.S/M :authority=localhost te=trailers content-type=application/grpc k=v", id))
		u.headers(id, true, ":status", "200", "grpc-status", "0")
		r.expect("HEADERS")
		size := []uint32{0, 100, 4096}[id%3]
		u.must(u.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: size}))
		u.dec.SetAllowedMaxDynamicTableSize(size)
		u.must(u.fr.WritePing(false, [8]byte{1}))
		u.expect("PING ack")
	}
}

// TestDeadline has nobody answer, and a caller that does not look at the clock.
func TestDeadline(t *testing.T) {
	r, ups, in, _ := between(t, 1, nil, Limits{})
	r.request(1, "/t.S/M", true, "grpc-timeout", "50m")
	r.request(3, "/t.S/M", true, "grpc-timeout", "10S")
	ups[0].expect("HEADERS 1 ")
	ups[0].expect("HEADERS 3 ")
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=4")
	ups[0].expect("RST 1 CANCEL")
	ups[0].headers(3, true, ":status", "200", "grpc-status", "0")
	r.expect("HEADERS 3 END :status=200 grpc-status=0")
	in.mu.Lock()
	if in.timers.count != 0 {
		t.Errorf("%d deadlines are left", in.timers.count)
	}
	in.mu.Unlock()
}

// TestDrain takes both steps of GOAWAY with a call open.
func TestDrain(t *testing.T) {
	r, ups, in, outs := between(t, 1, nil, Limits{})
	r.request(1, "/t.S/M", true)
	ups[0].expect("HEADERS 1 ")
	in.Drain()
	f := r.next()
	for ; ; f = r.next() {
		if g, ok := f.(*http2.GoAwayFrame); ok {
			if g.LastStreamID != maxStreamID || g.ErrCode != http2.ErrCodeNo {
				t.Fatal(g)
			}
			break
		}
	}
	r.request(3, "/t.S/M", true) // was under way
	ups[0].expect("HEADERS 3 ")
	r.expect("GOAWAY 3 NO_ERROR") // say answered the PING
	r.request(5, "/t.S/M", true)  // comes too late
	ups[0].headers(1, true, ":status", "200", "grpc-status", "0")
	r.expect("HEADERS 1 END :status=200 grpc-status=0")
	ups[0].headers(3, true, ":status", "200", "grpc-status", "0")
	r.expect("HEADERS 3 END :status=200 grpc-status=0")
	r.expect("GOAWAY 3 NO_ERROR")
	r.expect("EOF")
	<-in.Done()

	outs[0].Drain()
	ups[0].expect("GOAWAY 0 NO_ERROR")
	<-outs[0].Done()
}

// TestDrainDeaf drains towards a peer that answers no PING.
func TestDrainDeaf(t *testing.T) {
	r, c, ended := rawTo(t, &Options{Edge: true}, answering)
	r.request(1, "/t.S/Hold", true)
	eventually(t, "the call is there", func() bool { return c.InFlight() == 1 })
	c.Drain()
	for {
		if g, ok := r.next().(*http2.GoAwayFrame); ok && g.LastStreamID == 1 {
			break
		}
	}
	r.must(r.fr.WriteRSTStream(1, http2.ErrCodeCancel))
	if err := <-ended; !errors.Is(err, ErrDrained) {
		t.Error(err)
	}
}

// TestClose gives open calls the reason.
func TestClose(t *testing.T) {
	r, c, ended := rawTo(t, &Options{Edge: true, Hop: "edge"}, answering)
	r.request(1, "/t.S/Hold", false)
	eventually(t, "the call is there", func() bool { return c.InFlight() == 1 })
	reason := errors.New("the proxy is shutting down")
	c.Close(reason)
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14 grpc-message=edge: the proxy is shutting down")
	r.expect("RST 1 NO_ERROR")
	r.expect("GOAWAY 1 NO_ERROR")
	r.expect("EOF")
	if err := <-ended; err != reason {
		t.Error(err)
	}
}

// TestGoAwayWithError ends calls that the service had already seen when its
// connection ends.
func TestGoAwayWithError(t *testing.T) {
	r, ups, _, _ := between(t, 1, nil, Limits{})
	r.request(1, "/t.S/M", true)
	ups[0].expect("HEADERS 1 ")
	ups[0].must(ups[0].fr.WriteGoAway(1, http2.ErrCodeInternal, []byte("a bug")))
	_ = ups[0].nc.Close()
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14 grpc-message=edge: upstream raw was lost")
}

// TestSilentPeer has a service that answers no PING.
func TestSilentPeer(t *testing.T) {
	lim := LinkLimits()
	lim.PingInterval, lim.PingTimeout = 50*time.Millisecond, 50*time.Millisecond
	r, ups, _, outs := between(t, 1, nil, lim)
	r.request(1, "/t.S/M", true)
	ups[0].expect("HEADERS 1 ")
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=14 grpc-message=edge: upstream raw was lost: upstream raw gave no sign of life")
	<-outs[0].Done()
}

// TestLivePeer answers, and is left in peace.
func TestLivePeer(t *testing.T) {
	lim := LinkLimits()
	lim.PingInterval, lim.PingTimeout = 20*time.Millisecond, 2*time.Second
	_, ups, _, outs := between(t, 1, nil, lim)
	for range 5 {
		f, ok := ups[0].next().(*http2.PingFrame)
		if !ok {
			continue
		}
		ups[0].must(ups[0].fr.WritePing(true, f.Data))
	}
	if !outs[0].Accepting() {
		t.Error("given up")
	}
	if _, err := pingBoth(t, ups[0], outs[0]); err != nil {
		t.Error(err)
	}
}

func pingBoth(t testing.TB, u *raw, c *Conn) (time.Duration, error) {
	go func() {
		for {
			select {
			case <-c.Done():
				return
			default:
			}
			f, err := u.fr.ReadFrame()
			if err != nil {
				return
			}
			if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
				_ = u.fr.WritePing(true, p.Data)
			}
		}
	}()
	return c.Ping(within(t, 5*time.Second))
}

// TestExhaustedIDs takes no new calls at the end of the id space.
func TestExhaustedIDs(t *testing.T) {
	r, ups, _, outs := between(t, 1, nil, Limits{})
	outs[0].mu.Lock()
	outs[0].nextID = lastUsableID - 2
	outs[0].mu.Unlock()
	r.request(1, "/t.S/M", true)
	ups[0].expect(fmt.Sprintf("HEADERS %d", lastUsableID-2))
	if outs[0].Accepting() {
		t.Error("accepting with no ids left")
	}
	r.request(3, "/t.S/M", true)
	r.expect("HEADERS 3 END :status=200 content-type=application/grpc grpc-status=14")
}

// TestRewrite lets the role rewrite responses, and the request's names.
func TestRewrite(t *testing.T) {
	add := func(name string) func([]Field) []Field {
		return func(f []Field) []Field { return append(f, Field{Name: "sallyport-request-id", Value: name}) }
	}
	h := toPool(func(c *Call, to *Conn) {
		err := c.Forward(to, append([]Field{{Name: ":path", Value: "/no"}, {Name: "te", Value: "no"}, {Name: "connection", Value: "no"}}, c.Header()...),
			ForwardOptions{Path: "/other.S/M", Authority: "upstream:1", ResponseHeader: add("head"), ResponseTrailer: add("tail")})
		if err != nil {
			t.Error(err)
		}
	})
	r, ups, _, _ := between(t, 1, h, Limits{})
	r.request(1, "/t.S/M", true)
	ups[0].expect("HEADERS 1 END :method=POST :scheme=http :path=/other.S/M :authority=upstream:1 te=trailers content-type=application/grpc")
	ups[0].headers(1, false, ":status", "200", "sallyport-request-id", "forged")
	ups[0].headers(1, true, "grpc-status", "0")
	r.expect("HEADERS 1 :status=200 sallyport-request-id=head")
	r.expect("HEADERS 1 END grpc-status=0 sallyport-request-id=tail")
	r.request(3, "/t.S/M", true)
	ups[0].expect("HEADERS 3 END")
	ups[0].headers(3, true, ":status", "200", "grpc-status", "0")
	r.expect("HEADERS 3 END :status=200 grpc-status=0 sallyport-request-id=head")
}
