package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// TestBothWays fills the same links from both ends at once: readers that wait
// for each other would stand still.
func TestBothWays(t *testing.T) {
	s := &service{stream: func(st testgrpc.TestService_FullDuplexCallServer) error {
		done := make(chan error, 1)
		go func() {
			for {
				if _, err := st.Recv(); err == io.EOF {
					done <- nil
					return
				} else if err != nil {
					done <- err
					return
				}
			}
		}()
		for range 40 {
			if err := st.Send(&testgrpc.StreamingOutputCallResponse{Payload: payload(150_000)}); err != nil {
				return err
			}
		}
		return <-done
	}}
	for _, plain := range []bool{false, true} {
		client, all, _ := serviceChain(t, 3, s, hopConfig{tls: true, plain: plain})
		ctx := within(t, 60*time.Second)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				st, err := client.FullDuplexCall(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				wg.Go(func() {
					for range 40 {
						if err := st.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(150_000)}); err != nil {
							t.Error(err)
							return
						}
					}
					_ = st.CloseSend()
				})
				n := 0
				for {
					r, err := st.Recv()
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Error(err)
						return
					}
					if !bytes.Equal(r.Payload.Body, payload(150_000).Body) {
						t.Error("other bytes")
					}
					n++
				}
				if n != 40 {
					t.Errorf("%d messages", n)
				}
			})
		}
		wg.Wait()
		settled(t, all)
	}
}

// TestFullSocket has a caller whose windows are wide open and whose socket is
// full: what waits does not hold up others, and all of it arrives once it reads.
func TestFullSocket(t *testing.T) {
	const total = 24 << 20
	secure := testTLS()
	for _, name := range []string{"plaintext", "TLS"} {
		t.Run(name, func(t *testing.T) {
			m := new(Metrics)
			up, out, _ := rawFrom(t, &Options{Metrics: m})
			h := HandlerFunc(func(c *Call) { _ = c.Forward(out, c.Header(), ForwardOptions{}) })
			ours, theirs := tcpPair(t)
			var a, b net.Conn = Socket(ours), theirs
			if name == "TLS" {
				a, b = tls.Server(a, secure), tls.Client(b, secure)
			}
			c := NewServer(a, &Options{Edge: true, Metrics: m}, h)
			run(t, c)
			r := newRaw(t, b)
			r.write([]byte(preface))
			r.must(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxWindow}))
			r.must(r.fr.WriteWindowUpdate(0, maxWindow-defaultWindow))
			r.expectSettings()
			r.request(1, "/t.S/M", true)
			up.expect("HEADERS 1")
			up.headers(1, false, ":status", "200")
			sent := make(chan int, 1)
			go func() {
				// As much as the engine gives window for; nobody reads at the end.
				n, window, conn := 0, 256<<10, 16<<20
				chunk := make([]byte, 16384)
				for n < total {
					for window < len(chunk) || conn < len(chunk) {
						f, err := up.fr.ReadFrame()
						if err != nil {
							break
						}
						if w, ok := f.(*http2.WindowUpdateFrame); ok && w.StreamID == 0 {
							conn += int(w.Increment)
						} else if ok {
							window += int(w.Increment)
						}
					}
					for i := range chunk {
						chunk[i] = byte((n + i) / 1000)
					}
					if up.fr.WriteData(1, false, chunk) != nil {
						break
					}
					n, window, conn = n+len(chunk), window-len(chunk), conn-len(chunk)
				}
				_ = up.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: up.block("grpc-status", "0"), EndHeaders: true, EndStream: true})
				sent <- n
			}()
			eventually(t, "the socket is full and the stream waits", func() bool { return m.Buffered.Load() > 0 })
			if n := m.Buffered.Load(); n > 1<<20 {
				t.Errorf("%d bytes are held", n)
			}
			n := 0
			for end := false; !end; {
				switch f := r.next().(type) {
				case *http2.DataFrame:
					for i, x := range f.Data() {
						if x != byte((n+i)/1000) {
							t.Fatalf("another byte at %d", n+i)
						}
					}
					n += len(f.Data())
				case *http2.HeadersFrame:
					end = f.StreamEnded()
				case nil:
					t.Fatal("the connection ended")
				}
			}
			if want := <-sent; n != want || n != total {
				t.Errorf("%d of %d bytes", n, want)
			}
		})
	}
}

// TestLinksComeAndGo breaks and replaces links under load: every call ends, with
// OK or UNAVAILABLE.
func TestLinksComeAndGo(t *testing.T) {
	client, all, _ := serviceChain(t, 3, &service{}, hopConfig{tls: true, conns: 2})
	ctx, cancel := context.WithCancel(within(t, 60*time.Second))
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[codes.Code]int{}
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				callCtx, done := context.WithTimeout(context.Background(), 20*time.Second)
				_, err := client.UnaryCall(callCtx, &testgrpc.SimpleRequest{Payload: payload(100)})
				done()
				mu.Lock()
				seen[status.Code(err)]++
				mu.Unlock()
				if c := status.Code(err); c != codes.OK && c != codes.Unavailable {
					t.Error(err)
				}
			}
		})
	}
	for i := range 30 {
		at := i % 2
		conns := all[at].out.all()
		victim := conns[i%len(conns)]
		switch i % 3 {
		case 0: // the replacement first, then the old one drains: nothing is lost
			all[at].reverse(t, all[at+1])
			victim.Drain()
			<-victim.Done()
		case 1:
			_ = victim.bottom.Close()
			<-victim.Done()
			all[at].reverse(t, all[at+1])
		case 2: // the serving end drains
			all[at+1].mu.Lock()
			in := all[at+1].ins[len(all[at+1].ins)-1]
			all[at+1].mu.Unlock()
			all[at].reverse(t, all[at+1])
			in.Drain()
			<-in.Done()
		}
	}
	cancel()
	wg.Wait()
	settled(t, all)
	if seen[codes.OK] < 100 {
		t.Errorf("outcomes: %v", seen)
	}
}

// TestDrainLosesNothing replaces links gracefully under load.
func TestDrainLosesNothing(t *testing.T) {
	client, all, _ := serviceChain(t, 3, &service{}, hopConfig{tls: true})
	ctx, cancel := context.WithCancel(within(t, 60*time.Second))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				callCtx, done := context.WithTimeout(context.Background(), 20*time.Second)
				if _, err := client.UnaryCall(callCtx, &testgrpc.SimpleRequest{Payload: payload(100)}); err != nil {
					t.Error(err)
				}
				done()
			}
		})
	}
	for i := range 20 {
		at := i % 2
		before := all[at].out.Pick()
		if before == nil {
			for _, c := range all[at].out.all() {
				t.Error(i, c.goneAway, c.draining, c.why)
			}
			t.Fatal("no link is left")
		}
		all[at+1].mu.Lock()
		in := all[at+1].ins[len(all[at+1].ins)-1]
		all[at+1].mu.Unlock()
		all[at].reverse(t, all[at+1])
		if i%4 < 2 {
			before.Drain()
		} else {
			in.Drain()
		}
		<-before.Done()
	}
	cancel()
	wg.Wait()
	settled(t, all)
}

// TestIdleCost measures what connections and streams cost that do nothing.
func TestIdleCost(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures memory")
	}
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapInuse + m.StackInuse)
	}
	const conns, streams = 200, 4000
	h := newHop(t, "edge", true, hopConfig{tls: true, limits: Limits{Streams: streams}})
	address := h.listen(t)
	cfg := testTLS()
	// The other ends live in the same process: their share is measured first, by
	// connections that only shake hands.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := func(address string, n int) []*tls.Conn {
		var all []*tls.Conn
		for range n {
			nc, err := tls.Dial("tcp", address, cfg)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, nc)
			t.Cleanup(func() { _ = nc.Close() })
		}
		return all
	}
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = nc.Close() })
			_ = tls.Server(nc, cfg).Handshake()
		}
	}()
	before := heap()
	open(l.Addr().String(), conns)
	bare := (heap() - before) / conns

	before = heap()
	mine := open(address, conns)
	for _, nc := range mine {
		if _, err := nc.Write(appendSettings([]byte(preface))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are ready", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, c := range h.ins {
			select {
			case <-c.Ready():
			default:
				return false
			}
		}
		return len(h.ins) == conns
	})
	perConn := (heap() - before) / conns
	t.Logf("an idle connection: %.1f KiB, of which both TLS ends alone %.1f KiB", perConn/1024, bare/1024)
	if perConn > 60<<10 {
		t.Errorf("an idle connection costs %.0f bytes", perConn)
	}

	h.cfg.handler = func(*Call, *hop) {}
	before = heap()
	var buf []byte
	for i := range streams {
		buf = appendHeaderBlock(buf, uint32(2*i+1), encode(append(goodRequest, "grpc-timeout", fmt.Sprint(i, "S"), "user-agent", "grpc-go/1.85.0")...), false, minFrameSize)
	}
	if _, err := mine[0].Write(buf); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all streams are open", func() bool { return h.m.CallsOpen.Load() == streams })
	buf = nil
	perStream := (heap() - before) / streams
	t.Logf("an idle stream: %.0f bytes", perStream)
	if perStream > 4<<10 {
		t.Errorf("an idle stream costs %.0f bytes", perStream)
	}
}
