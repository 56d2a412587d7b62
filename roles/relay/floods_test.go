package relay

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestFloods checks each limit: what is over it ends the connection with
// ENHANCE_YOUR_CALM and is counted, what is just within it does not.
func TestFloods(t *testing.T) {
	within := Limits{Streams: 1000, Resets: 20, Pings: 20, Settings: 5, Priorities: 20, EmptyData: 20, WindowUpdates: 20, Continuations: 4, MalformedCalls: 20}
	for _, flood := range []struct {
		kind   CalmKind
		enough int
		begin  func(*raw)
		do     func(*raw, int)
	}{
		{CalmPings, 20, nil, func(r *raw, i int) { r.frame(framePing, 0, 0, make([]byte, 8)) }},
		{CalmSettings, 3, nil, func(r *raw, i int) { r.frame(frameSettings, 0, 0, nil) }},
		{CalmPriorities, 20, nil, func(r *raw, i int) { r.frame(framePriority, 0, uint32(2*i+1), make([]byte, 5)) }},
		{CalmPriorities, 20, nil, func(r *raw, i int) { r.frame(0x55, 0, 0, nil) }},
		{CalmWindowUpdates, 20, nil, func(r *raw, i int) { r.frame(frameWindowUpdate, 0, 0, u32(1)) }},
		{CalmEmptyData, 20, func(r *raw) { r.request(1, "/t.S/Hold", false) }, func(r *raw, i int) { r.frame(frameData, 0, 1, nil) }},
		{CalmEmptyData, 20, func(r *raw) { r.request(1, "/t.S/Hold", false) }, func(r *raw, i int) { r.frame(frameData, flagPadded, 1, []byte{2, 0, 0}) }},
		{CalmResets, 20, nil, func(r *raw, i int) {
			r.request(uint32(2*i+1), "/t.S/Hold", false)
			r.frame(frameRST, 0, uint32(2*i+1), u32(8))
		}},
		{CalmMalformed, 20, nil, func(r *raw, i int) { r.headers(uint32(2*i+1), true, "x", "y") }},
		{CalmContinuations, 4, func(r *raw) { r.frame(frameHeaders, 0, 1, nil) }, func(r *raw, i int) { r.frame(frameContinuation, 0, 1, nil) }},
	} {
		t.Run(flood.kind.String(), func(t *testing.T) {
			t.Parallel()
			m := new(Metrics)
			// The limits count by the second: begin at the start of one, and do
			// not read what comes back before the end.
			for {
				r, _, _ := rawTo(t, &Options{Edge: true, Limits: within, Metrics: m}, answering)
				started := time.Now().Unix()
				if flood.begin != nil {
					flood.begin(r)
				}
				for i := range flood.enough {
					flood.do(r, i)
				}
				if flood.kind != CalmContinuations {
					r.frame(framePing, flagAck, 0, make([]byte, 8))
					r.request(9999, "/t.S/Ok", true)
					r.expect("HEADERS 9999", "PING", "RST")
				}
				for i := range flood.enough + 2 {
					flood.do(r, flood.enough+i+5000)
				}
				if time.Now().Unix() != started {
					continue
				}
				r.expect("GOAWAY", "PING", "RST")
				break
			}
			if n := m.Calmed[flood.kind].Load(); n != 1 {
				t.Errorf("counted %d", n)
			}
		})
	}
}

func TestHeaderListLimits(t *testing.T) {
	m := new(Metrics)
	o := &Options{Edge: true, Limits: Limits{HeaderList: 20_000, Continuations: 100}, Metrics: m}
	r, _, _ := rawTo(t, o, answering)
	// Larger than the list may be, and small enough to be decoded.
	block := r.block(append(append([]string(nil), goodRequest...), "big", strings.Repeat("~", 19_900))...)
	send := func(id uint32, block []byte) {
		first := min(len(block), 16384)
		r.frame(frameHeaders, flagEndStream, id, block[:first])
		for block = block[first:]; len(block) > 16384; block = block[16384:] {
			r.frame(frameContinuation, 0, id, block[:16384])
		}
		r.frame(frameContinuation, flagEndHeaders, id, block)
	}
	send(1, block)
	r.expect("HEADERS 1 END :status=200 content-type=application/grpc grpc-status=8")
	// The table is still in step.
	r.request(3, "/t.S/Ok", true)
	r.expect("HEADERS 3 END")
	// A small block that unpacks to a large list.
	r.request(5, "/t.S/Hold", true, "bomb", strings.Repeat("x", 3000))
	var bomb []byte
	for range 10_000 {
		bomb = append(bomb, r.block("bomb", strings.Repeat("x", 3000))...)
	}
	send(7, bomb)
	r.expect("HEADERS 7 END :status=200 content-type=application/grpc grpc-status=8")
	// A block that is not even decoded.
	for range 4 {
		bomb = append(bomb, bomb...)
	}
	go send(9, bomb)
	r.expect("GOAWAY 7 ENHANCE_YOUR_CALM")
	if n := m.Calmed[CalmHeaderBlock].Load(); n != 1 {
		t.Errorf("counted %d", n)
	}
}

// TestFirstFrameLimit has clients that say nothing, or not enough.
func TestFirstFrameLimit(t *testing.T) {
	for _, said := range []string{"", "PRI * HTTP", preface} {
		m := new(Metrics)
		r, _, ended := rawSilent(t, &Options{Edge: true, Limits: Limits{FirstFrame: 50 * time.Millisecond}, Metrics: m}, answering)
		r.write([]byte(said))
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "said nothing for") {
			t.Error(err)
		}
		if n := m.Calmed[CalmFirstFrame].Load(); n != 1 {
			t.Errorf("counted %d", n)
		}
	}
}

// TestDeafPeer asks for much and reads nothing: what waits for the socket is
// bounded.
func TestDeafPeer(t *testing.T) {
	m := new(Metrics)
	lim := EdgeLimits()
	lim.Pings, lim.Backlog = 1<<30, 64<<10
	r, _, ended := rawTo(t, &Options{Edge: true, Limits: lim, Metrics: m}, answering)
	pings := bytes.Repeat(appendPing(nil, false, [8]byte{}), 1000)
	go func() {
		for range 3000 {
			if _, err := r.nc.Write(pings); err != nil {
				return
			}
		}
	}()
	err := <-ended
	if ce := (*connError)(nil); !errors.As(err, &ce) || ce.code != codeCalm {
		t.Error(err)
	}
	if n := m.Calmed[CalmBacklog].Load(); n != 1 {
		t.Errorf("counted %d", n)
	}
}

// TestZeroWindow has a caller that grants no window, for the connection and for
// a stream.
func TestZeroWindow(t *testing.T) {
	for name, c := range map[string]struct {
		lim  Limits
		want string
	}{
		"connection": {Limits{Stall: 200 * time.Millisecond}, "GOAWAY 1 ENHANCE_YOUR_CALM"},
		"stream":     {Limits{StreamStall: 200 * time.Millisecond}, "HEADERS 1 END grpc-status=8"},
	} {
		t.Run(name, func(t *testing.T) {
			var pool []*Conn
			m := new(Metrics)
			h := HandlerFunc(func(c *Call) { _ = c.Forward(pool[0], c.Header(), ForwardOptions{}) })
			up, out, _ := rawFrom(t, &Options{})
			pool = append(pool, out)
			r, _, _ := rawTo(t, &Options{Edge: true, Limits: c.lim, Metrics: m}, h)
			r.request(1, "/t.S/M", true)
			up.expect("HEADERS 1")
			up.headers(1, false, ":status", "200")
			if name == "connection" {
				r.must(r.fr.WriteWindowUpdate(1, 100_000))
			} else {
				r.must(r.fr.WriteWindowUpdate(0, 100_000))
			}
			for range 5 {
				up.must(up.fr.WriteData(1, false, make([]byte, 16000)))
			}
			r.expect(c.want, "HEADERS 1 :status=200", "DATA 1 ")
			if n := m.Calmed[CalmStall].Load(); n != 1 {
				t.Errorf("counted %d", n)
			}
			if name == "stream" {
				up.expect("RST 1 CANCEL")
			}
			eventually(t, "nothing is held", func() bool { return m.Buffered.Load() == 0 })
		})
	}
}

// TestIdle closes a connection that nobody uses.
func TestIdle(t *testing.T) {
	r, _, ended := rawTo(t, &Options{Edge: true, Limits: Limits{Idle: 100 * time.Millisecond}}, answering)
	r.expect(fmt.Sprintf("GOAWAY %d NO_ERROR", maxStreamID))
	r.expect("GOAWAY 0 NO_ERROR")
	if err := <-ended; !errors.Is(err, ErrDrained) {
		t.Error(err)
	}
}

// TestBandwidthPings checks that PINGs beside traffic are no flood: peers measure
// with them.
func TestBandwidthPings(t *testing.T) {
	r, _, _ := rawTo(t, &Options{Edge: true, Limits: Limits{Pings: 5}}, answering, http2.Setting{})
	for i := range 50 {
		id := uint32(2*i + 1)
		r.request(id, "/t.S/Ok", true)
		r.frame(framePing, 0, 0, make([]byte, 8))
		r.expect("PING ack", "HEADERS")
	}
}
