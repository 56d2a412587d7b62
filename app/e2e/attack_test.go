package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	encoding "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const attackPolicy = `
[methods]
"/attack.v1.Target/Give" = ["public"]
"/attack.v1.Target/Take" = ["public"]
"/attack.v1.Target/Secret" = ["admin"]
`

const (
	attackBudget = 160 << 20
	attackLimits = "handshake_time=5s first_frame=5s header_time=3s stall=3s stream_stall=4s"
)

// target is an upstream: Give answers with as many bytes as x-size says, Take
// reads nothing until its caller is gone.
type target struct{}

func (target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("content-type", "application/grpc")
	w.Header().Set("trailer", "grpc-status")
	switch r.URL.Path {
	case "/attack.v1.Target/Give":
		size, _ := strconv.Atoi(r.Header.Get("x-size"))
		message := make([]byte, 5+size)
		encoding.BigEndian.PutUint32(message[1:], uint32(size))
		w.Write(message)
		w.Header().Set("grpc-status", "0")
	case "/attack.v1.Target/Take":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		w.Header().Set("grpc-status", "12")
	}
}

// attack is a deployment that is attacked, and an ordinary caller beside.
type attack struct {
	*deployment
	idle  map[string]int64 // resident bytes of each process before
	roots *x509.CertPool
	calls atomic.Int64 // of the ordinary caller that were answered
}

func newAttack(t *testing.T) *attack {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := &http.Server{Handler: target{}, Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 10000}}
	upstream.Protocols.SetUnencryptedHTTP2(true)
	go upstream.Serve(l)
	t.Cleanup(func() { upstream.Close() })
	budget := fmt.Sprint(attackBudget)
	d := deployLogging(t, "off", attackPolicy, "--memory-budget", budget)
	d.proxy.stop(t, 20*time.Second)
	d.proxy.env = append(d.proxy.env, "SALLYPORT_MEMORY_BUDGET="+budget, "SALLYPORT_LIMIT="+attackLimits)
	d.proxy.start(t)
	d.waitReady("proxy")
	d.addGateway("g1", nil, "SALLYPORT_UPSTREAM=target=h2c://"+l.Addr().String()+"=attack.v1.Target", "SALLYPORT_MEMORY_BUDGET="+budget)
	d.waitRouted("attack.v1.Target", "g1")
	a := &attack{deployment: d, idle: map[string]int64{}, roots: rootsOf(t, d.caFile)}
	if err := a.ask("127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	for name, p := range a.processes() {
		a.idle[name] = a.memory(p, "VmRSS")
	}
	return a
}

func rootsOf(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(file)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no roots", err)
	}
	return pool
}

func (a *attack) processes() map[string]*process {
	return map[string]*process{"core": a.core, "proxy": a.proxy, "gateway": a.gateways["g1"]}
}

// memory reads a line of /proc/PID/status, in bytes.
func (a *attack) memory(p *process, what string) int64 {
	a.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		a.t.Fatalf("%s: %v\n%s", p.name, err, tail(p.log.String()))
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, what+":"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	a.t.Fatal("no " + what)
	return 0
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// dial connects from an address of this host and shakes hands.
func (a *attack) dial(from string) (*tls.Conn, error) {
	d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	nc, err := d.Dial("tcp", a.public)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(nc, &tls.Config{RootCAs: a.roots, ServerName: "localhost", NextProtos: []string{"h2"}})
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	if err := tc.Handshake(); err != nil {
		nc.Close()
		return nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	return tc, nil
}

// peer is one end of a connection of an attacker.
type peer struct {
	*tls.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	dec *hpack.Decoder
	buf strings.Builder
}

// open dials and says hello with some settings.
func (a *attack) open(from string, settings ...http2.Setting) (*peer, error) {
	tc, err := a.dial(from)
	if err != nil {
		return nil, err
	}
	p := &peer{Conn: tc, fr: http2.NewFramer(tc, tc), dec: hpack.NewDecoder(4096, nil)}
	p.fr.AllowIllegalWrites, p.fr.AllowIllegalReads = true, true
	p.enc = hpack.NewEncoder(&p.buf)
	if _, err := io.WriteString(tc, http2.ClientPreface); err != nil {
		return nil, err
	}
	return p, p.fr.WriteSettings(settings...)
}

func (p *peer) block(method string, more ...string) []byte {
	p.buf.Reset()
	fields := append([]string{":method", "POST", ":scheme", "https", ":path", "/attack.v1.Target/" + method, ":authority", "localhost",
		"content-type", "application/grpc", "te", "trailers"}, more...)
	for i := 0; i < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return []byte(p.buf.String())
}

func (p *peer) call(id uint32, end bool, method string, more ...string) error {
	return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(method, more...), EndStream: end, EndHeaders: true})
}

// end reads until the connection ends, or if streams is set a stream is reset,
// and says how: with which code of GOAWAY or RST_STREAM.
func (p *peer) end(streams bool) string {
	_ = p.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		f, err := p.fr.ReadFrame()
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		case *http2.RSTStreamFrame:
			if streams && f.ErrCode != http2.ErrCodeNo && f.ErrCode != http2.ErrCodeRefusedStream {
				return "RST_STREAM " + f.ErrCode.String()
			}
		}
		if err != nil {
			return "closed: " + err.Error()
		}
	}
}

// ask makes one ordinary call on a connection of its own.
func (a *attack) ask(from string) error {
	p, err := a.open(from)
	if err != nil {
		return err
	}
	defer p.Close()
	_ = p.SetDeadline(time.Now().Add(25 * time.Second))
	if err := p.call(1, true, "Give", "x-size", "100"); err != nil {
		return err
	}
	return p.answered(1)
}

// answered reads until the call has its status.
func (p *peer) answered(id uint32) error {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields, err := p.dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				return err
			}
			if f.StreamID != id || !f.StreamEnded() {
				continue
			}
			status, message := "", ""
			for _, h := range fields {
				switch h.Name {
				case "grpc-status":
					status = h.Value
				case "grpc-message":
					message = h.Value
				}
			}
			if status != "0" {
				return fmt.Errorf("grpc-status %s: %s", status, message)
			}
			return nil
		case *http2.GoAwayFrame:
			return fmt.Errorf("GOAWAY %s", f.ErrCode)
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return fmt.Errorf("RST_STREAM %s", f.ErrCode)
			}
		}
	}
}

// goOn makes ordinary calls, one after the other, until ctx ends: most on one
// connection, some on a new one.
func (a *attack) goOn(ctx context.Context) error {
	var p *peer
	var id uint32
	for n := 0; ctx.Err() == nil; n++ {
		if n%20 == 0 {
			if err := a.ask("127.0.0.1"); err != nil {
				return fmt.Errorf("call %d, on a new connection: %w", n, err)
			}
			a.calls.Add(1)
		}
		if p == nil || id > 200 {
			if p != nil {
				p.Close()
			}
			var err error
			if p, err = a.open("127.0.0.1"); err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			id = 1
		}
		_ = p.SetDeadline(time.Now().Add(25 * time.Second))
		err := p.call(id, true, "Give", "x-size", "100")
		if err == nil {
			err = p.answered(id)
		}
		if err != nil {
			return fmt.Errorf("call %d: %w", n, err)
		}
		id += 2
		a.calls.Add(1)
		time.Sleep(5 * time.Millisecond)
	}
	p.Close()
	return nil
}

// metric reads one of the proxy's counters; absent is 0.
func (a *attack) metric(name string) float64 {
	a.t.Helper()
	response, err := http.Get("http://" + a.health["proxy"] + "/metrics")
	if err != nil {
		a.t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

func calmed(limit string) string {
	return `sallyport_relay_calmed_total{limit="` + limit + `",role="proxy"}`
}

func refusedAs(cause string) string {
	return `sallyport_edge_refused_connections_total{cause="` + cause + `"}`
}

// TestAttacks attacks the edge of the real binary in every way that the
// documentation names. Each attack is answered as it says and counted, an
// ordinary caller's calls go on throughout, and no process grows by more than
// its budget.
func TestAttacks(t *testing.T) {
	t.Parallel()
	a := newAttack(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ordinary := make(chan error, 1)
	go func() { ordinary <- a.goOn(ctx) }()

	const calm = "GOAWAY ENHANCE_YOUR_CALM"
	for i, c := range []struct {
		name, counter, want string
		do                  func(p *peer) error
	}{
		{"rapid reset", calmed("resets"), calm, func(p *peer) error {
			for id := uint32(1); id < 4000; id += 2 {
				if err := errors.Join(p.call(id, true, "Give"), p.fr.WriteRSTStream(id, http2.ErrCodeCancel)); err != nil {
					return err
				}
			}
			return nil
		}},
		{"more streams than allowed", calmed("resets"), calm, func(p *peer) error {
			for id := uint32(1); id < 4000; id += 2 {
				if err := p.call(id, false, "Take"); err != nil {
					return err
				}
			}
			return nil
		}},
		{"CONTINUATION flood", calmed("continuations"), calm, func(p *peer) error {
			if err := p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block("Give")}); err != nil {
				return err
			}
			for range 1000 {
				if err := p.fr.WriteContinuation(1, false, nil); err != nil {
					return err
				}
			}
			return nil
		}},
		{"huge header block", calmed("header_block"), calm, func(p *peer) error {
			if err := p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block("Give")}); err != nil {
				return err
			}
			for range 15 {
				if err := p.fr.WriteContinuation(1, false, make([]byte, 16<<10)); err != nil {
					return err
				}
			}
			return nil
		}},
		{"HPACK table beyond its size", "", "GOAWAY COMPRESSION_ERROR", func(p *peer) error {
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x3f, 0xe1, 0xff, 0x03}, EndHeaders: true})
		}},
		{"PING flood", calmed("pings"), calm, func(p *peer) error { return times(1000, func() error { return p.fr.WritePing(false, [8]byte{}) }) }},
		{"SETTINGS flood", calmed("settings"), calm, func(p *peer) error { return times(1000, func() error { return p.fr.WriteSettings() }) }},
		{"empty DATA flood", calmed("empty_data"), calm, func(p *peer) error {
			return errors.Join(p.call(1, false, "Take"), times(2000, func() error { return p.fr.WriteData(1, false, nil) }))
		}},
		{"PRIORITY flood", calmed("priorities"), calm, func(p *peer) error {
			return times(3000, func() error { return p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3}) })
		}},
		{"unknown frames", calmed("priorities"), calm, func(p *peer) error {
			return times(3000, func() error { return p.fr.WriteRawFrame(0xee, 0, 0, nil) })
		}},
		{"WINDOW_UPDATE flood", calmed("window_updates"), calm, func(p *peer) error {
			return errors.Join(p.call(1, false, "Take"), times(10000, func() error { return p.fr.WriteWindowUpdate(1, 1) }))
		}},
		{"WINDOW_UPDATE overflow of the connection", "", "GOAWAY FLOW_CONTROL_ERROR", func(p *peer) error {
			return times(2, func() error { return p.fr.WriteWindowUpdate(0, 1<<31-1) })
		}},
		{"WINDOW_UPDATE overflow of a stream", "", "RST_STREAM FLOW_CONTROL_ERROR", func(p *peer) error {
			return errors.Join(p.call(1, false, "Take"), times(2, func() error { return p.fr.WriteWindowUpdate(1, 1<<31-1) }))
		}},
		{"malformed calls", calmed("malformed"), calm, func(p *peer) error {
			for id := uint32(1); id < 2000; id += 2 {
				if err := p.call(id, true, "Give", "Upper", "case"); err != nil {
					return err
				}
			}
			return nil
		}},
		{"slow header", calmed("header_time"), calm, func(p *peer) error {
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block("Give")})
		}},
	} {
		before := 0.0
		if c.counter != "" {
			before = a.metric(c.counter)
		}
		p, err := a.open(fmt.Sprintf("127.0.2.%d", i+1))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		said := make(chan error, 1)
		go func() { said <- c.do(p) }() // it fails when the other end has had enough
		if got := p.end(strings.HasPrefix(c.want, "RST_STREAM")); got != c.want {
			t.Errorf("%s ended with %s, want %s", c.name, got, c.want)
		}
		p.Close()
		<-said
		if c.counter != "" && a.metric(c.counter) <= before {
			t.Errorf("%s: %s did not count", c.name, c.counter)
		}
	}
	a.weigh("floods")
	a.bomb()
	a.silent()
	a.weigh("silence")
	a.hoard()
	a.weigh("hoarding")
	a.crowd()
	a.weigh("a crowd")

	calls := a.calls.Load()
	eventually(t, 30*time.Second, "the ordinary caller's calls go on", func() error {
		if a.calls.Load() > calls+10 {
			return nil
		}
		select {
		case err := <-ordinary:
			t.Fatalf("an ordinary caller was hurt after %d calls: %v", calls, err)
		default:
		}
		return errors.New("none was answered")
	})
	stop()
	if err := <-ordinary; err != nil {
		t.Errorf("an ordinary caller was hurt: %v", err)
	}
	t.Logf("%d ordinary calls were answered", a.calls.Load())
}

// weigh checks that no process has grown by more than its budget at any time.
func (a *attack) weigh(after string) {
	for name, p := range a.processes() {
		peak, bound := a.memory(p, "VmHWM"), a.idle[name]*3/2+attackBudget
		a.t.Logf("after %s: %s had %d MiB before, at most %d MiB, bound %d MiB", after, name, a.idle[name]>>20, peak>>20, bound>>20)
		if peak > bound && os.Getenv("SALLYPORT_E2E_RACE") == "" {
			a.t.Errorf("after %s: %s had %d MiB at its peak, %d MiB are allowed", after, name, peak>>20, bound>>20)
		}
	}
}

func times(n int, f func() error) error {
	for range n {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// bomb sends requests of a few bytes that unpack to more than a header may have.
func (a *attack) bomb() {
	t := a.t
	p, err := a.open("127.0.3.1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// One field of 3900 bytes goes into the table, and is named again and again.
	block := p.block("Give", "x-bomb", strings.Repeat("b", 3900))
	if err := p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: append(block, strings.Repeat("\xbe", 4000)...), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	_ = p.SetReadDeadline(time.Now().Add(20 * time.Second))
	if err := p.answered(1); err == nil || !strings.Contains(err.Error(), "grpc-status 8") {
		t.Errorf("an HPACK bomb got %v", err)
	}
}

// silent connections say nothing, at every point where something is to be said.
func (a *attack) silent() {
	t := a.t
	var all sync.WaitGroup
	before := a.metric(refusedAs("handshake_time"))
	beforeFirst := a.metric(calmed("first_frame"))
	for i := range 200 {
		from := fmt.Sprintf("127.0.4.%d", i+1)
		all.Go(func() { // TCP alone, or half a TLS record
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			nc, err := d.Dial("tcp", a.public)
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			if i%2 == 0 {
				_, _ = nc.Write([]byte{22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb})
			}
			ended(t, nc)
		})
	}
	for i := range 20 {
		from := fmt.Sprintf("127.0.4.%d", i+1)
		all.Go(func() { // TLS, and then nothing
			tc, err := a.dial(from)
			if err != nil {
				t.Error(err)
				return
			}
			defer tc.Close()
			ended(t, tc)
		})
	}
	all.Wait()
	if got := a.metric(refusedAs("handshake_time")) - before; got < 200 {
		t.Errorf("%v silent connections were counted, 200 came", got)
	}
	if got := a.metric(calmed("first_frame")) - beforeFirst; got < 20 {
		t.Errorf("%v connections without a first frame were counted, 20 came", got)
	}
}

func ended(t *testing.T, nc net.Conn) {
	_ = nc.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 4096)
	for {
		if _, err := nc.Read(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a silent connection was kept")
			}
			return
		}
	}
}

// hoard has many connections make us hold as much as they can: responses behind
// windows of zero and behind sockets that nobody reads, requests that nobody
// takes, frames and headers of which the end does not come.
func (a *attack) hoard() {
	t := a.t
	var all sync.WaitGroup
	stalls := a.metric(calmed("stall"))
	for i := range 80 {
		from := fmt.Sprintf("127.0.5.%d", i%8+1)
		all.Go(func() {
			window := uint32(0)
			if i%4 == 1 {
				window = 1<<31 - 1
			}
			p, err := a.open(from, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
			if err != nil {
				return // its source has taken its share
			}
			defer p.Close()
			_ = p.SetDeadline(time.Now().Add(8 * time.Second))
			switch i % 4 {
			case 0, 1: // answers that are not read
				for id := uint32(1); id < 400; id += 2 {
					if p.call(id, true, "Give", "x-size", "1000000") != nil {
						break
					}
				}
			case 2: // requests that are not taken
				for id := uint32(1); id < 100; id += 2 {
					if p.call(id, false, "Take") != nil || p.fr.WriteData(id, false, make([]byte, 16000)) != nil {
						break
					}
				}
			default: // frames that are not finished
				_ = p.call(1, false, "Take")
				_, _ = p.Write(append([]byte{0, 0x3f, 0xff, 0, 0, 0, 0, 0, 1}, make([]byte, 16000)...))
			}
			time.Sleep(6 * time.Second)
		})
	}
	all.Wait()
	if got := a.metric(calmed("stall")); got <= stalls {
		t.Error("no connection that reads nothing was given up")
	}
}

// crowd opens 10,000 connections from 50 addresses and leaves them idle. Those
// for which there is no memory are closed, and counted.
func (a *attack) crowd() {
	t := a.t
	want := 10_000
	var limit syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if limit.Cur < 12_000 || testing.Short() {
		want = min(want, int(limit.Cur)/3, 2000)
		t.Logf("%d files may be open: %d connections", limit.Cur, want)
	}
	before := a.metric(refusedAs("memory")) + a.metric(refusedAs("too_many"))
	var held, closed atomic.Int64
	var keep sync.Map
	var all sync.WaitGroup
	for worker := range 50 {
		all.Go(func() {
			for range want / 50 {
				p, err := a.open(fmt.Sprintf("127.0.6.%d", worker+1))
				if err != nil {
					closed.Add(1)
					continue
				}
				held.Add(1)
				keep.Store(p, nil)
			}
		})
	}
	all.Wait()
	refused := a.metric(refusedAs("memory")) + a.metric(refusedAs("too_many")) - before
	t.Logf("%d idle connections are held, %d were closed, %v are counted as refused", held.Load(), closed.Load(), refused)
	if held.Load() < int64(want)/5 || float64(closed.Load()) > refused {
		t.Errorf("of %d connections %d are held and %d were closed, %v counted", want, held.Load(), closed.Load(), refused)
	}
	if err := a.ask("127.0.0.1"); err != nil {
		t.Errorf("beside %d idle connections: %v", held.Load(), err)
	}
	keep.Range(func(p, _ any) bool { p.(*peer).Close(); return true })
}
