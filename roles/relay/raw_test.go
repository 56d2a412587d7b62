package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// raw is a peer that sends what it is told, frame by frame, written with another
// implementation than ours.
type raw struct {
	t   testing.TB
	nc  net.Conn
	fr  *http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
	dec *hpack.Decoder
}

func newRaw(t testing.TB, nc net.Conn) *raw {
	r := &raw{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
	r.fr.AllowIllegalWrites, r.fr.AllowIllegalReads = true, true
	r.fr.SetMaxReadFrameSize(1 << 20)
	r.enc = hpack.NewEncoder(&r.buf)
	r.dec = hpack.NewDecoder(4096, nil)
	t.Cleanup(func() { _ = nc.Close() })
	return r
}

func tcpPair(t testing.TB) (net.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// rawTo starts a server end and returns a raw client that has said hello.
func rawTo(t testing.TB, o *Options, h Handler, settings ...http2.Setting) (*raw, *Conn, <-chan error) {
	r, c, ended := rawSilent(t, o, h)
	r.write([]byte(preface))
	r.must(r.fr.WriteSettings(settings...))
	r.expectSettings()
	return r, c, ended
}

func rawSilent(t testing.TB, o *Options, h Handler) (*raw, *Conn, <-chan error) {
	ours, theirs := tcpPair(t)
	if o.Metrics == nil {
		o.Metrics = new(Metrics)
	}
	c := NewServer(Socket(ours), o, h)
	return newRaw(t, theirs), c, run(t, c)
}

// rawFrom starts a client end and returns a raw server that has said hello.
func rawFrom(t testing.TB, o *Options, settings ...http2.Setting) (*raw, *Conn, <-chan error) {
	ours, theirs := tcpPair(t)
	c := NewClient(Socket(ours), o)
	ended := run(t, c)
	r := newRaw(t, theirs)
	got := make([]byte, len(preface))
	if _, err := io.ReadFull(theirs, got); err != nil || string(got) != preface {
		t.Fatalf("preface: %q %v", got, err)
	}
	r.must(r.fr.WriteSettings(settings...))
	r.expectSettings()
	<-c.Ready()
	return r, c, ended
}

func run(t testing.TB, c *Conn) <-chan error {
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-c.Done() })
	return ended
}

func (r *raw) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) write(p []byte) {
	_, _ = r.nc.Write(p) // the other side may have had enough already
}

// expectSettings reads up to the other side's SETTINGS and acknowledges them.
func (r *raw) expectSettings() {
	r.t.Helper()
	f := r.next()
	if _, ok := f.(*http2.SettingsFrame); !ok {
		r.t.Fatalf("expected SETTINGS, got %v", f)
	}
	r.must(r.fr.WriteSettingsAck())
}

// next is the next frame, nil at the end.
func (r *raw) next() http2.Frame {
	_ = r.nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	f, err := r.fr.ReadFrame()
	if err != nil {
		if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
			r.t.Fatal("nothing came for 5 s")
		}
		return nil
	}
	return f
}

// say is the next frame that a test may care about, in words; "EOF" at the end.
func (r *raw) say() string {
	for {
		switch f := r.next().(type) {
		case nil:
			return "EOF"
		case *http2.SettingsFrame, *http2.WindowUpdateFrame:
		case *http2.PingFrame:
			if f.IsAck() {
				return fmt.Sprintf("PING ack %x", f.Data)
			}
			r.must(r.fr.WritePing(true, f.Data))
		case *http2.GoAwayFrame:
			return fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode)
		case *http2.RSTStreamFrame:
			return fmt.Sprintf("RST %d %v", f.StreamID, f.ErrCode)
		case *http2.DataFrame:
			return fmt.Sprintf("DATA %d %d%s", f.StreamID, len(f.Data()), endMark(f.StreamEnded()))
		case *http2.HeadersFrame:
			block := append([]byte(nil), f.HeaderBlockFragment()...)
			for end := f.HeadersEnded(); !end; {
				c, ok := r.next().(*http2.ContinuationFrame)
				if !ok {
					r.t.Fatal("HEADERS without their CONTINUATION")
				}
				block, end = append(block, c.HeaderBlockFragment()...), c.HeadersEnded()
			}
			return fmt.Sprintf("HEADERS %d%s %s", f.StreamID, endMark(f.StreamEnded()), r.fields(block))
		default:
			return fmt.Sprint(f)
		}
	}
}

func (r *raw) fields(block []byte) string {
	list, err := r.dec.DecodeFull(block)
	if err != nil {
		r.t.Fatal(err)
	}
	var all []string
	for _, f := range list {
		s := f.Name + "=" + f.Value
		if f.Sensitive {
			s += "(never indexed)"
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

func endMark(end bool) string {
	if end {
		return " END"
	}
	return ""
}

// block encodes fields given as name, value, …
func (r *raw) block(fields ...string) []byte {
	r.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		r.must(r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	return bytes.Clone(r.buf.Bytes())
}

var goodRequest = []string{":method", "POST", ":scheme", "http", ":path", "/t.S/Hold", ":authority", "localhost", "content-type", "application/grpc", "te", "trailers"}

// request opens a stream with the usual fields, then more.
func (r *raw) request(id uint32, path string, end bool, more ...string) {
	fields := append([]string(nil), goodRequest...)
	fields[5] = path
	r.headers(id, end, append(fields, more...)...)
}

func (r *raw) headers(id uint32, end bool, fields ...string) {
	_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(fields...), EndStream: end, EndHeaders: true})
}

// frame writes any frame at all.
func (r *raw) frame(kind frameType, flags uint8, id uint32, p []byte) {
	r.write(append(appendFrameHeader(nil, len(p), kind, flags, id), p...))
}

// expect reads until want comes, which everything before must not contradict:
// skip lists what may come first.
func (r *raw) expect(want string, skip ...string) {
	r.t.Helper()
	for {
		got := r.say()
		if strings.HasPrefix(got, want) {
			return
		}
		ok := false
		for _, s := range skip {
			ok = ok || strings.HasPrefix(got, s)
		}
		if !ok {
			r.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
