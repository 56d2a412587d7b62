package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzFrame reads a frame from anything, and checks what it says against
// another reader.
func FuzzFrame(f *testing.F) {
	f.Add(appendSettings(nil, setting{settingMaxFrame, 1 << 20}))
	f.Add(appendPing(nil, true, [8]byte{1}))
	f.Add(appendGoAway(nil, 7, codeCalm, "x"))
	f.Add(appendRST(nil, 3, codeCancel))
	f.Add(appendWindowUpdate(nil, 0, 7))
	f.Add(append(appendFrameHeader(nil, 4, frameData, flagPadded, 1), 2, 'x', 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameHeaderLen {
			return
		}
		got := parseFrame(b)
		h, err := http2.ReadFrameHeader(bytes.NewReader(b))
		if err != nil || int(h.Length) != got.length || uint8(h.Type) != uint8(got.kind) || uint8(h.Flags) != got.flags || h.StreamID != got.id {
			t.Fatalf("%+v %+v", got, h)
		}
		if again := parseFrame(appendFrameHeader(nil, got.length, got.kind, got.flags, got.id)); again != got {
			t.Fatalf("%+v %+v", got, again)
		}
		if err := checkFrame(got); err != nil || len(b) < frameHeaderLen+got.length {
			return
		}
		p := b[frameHeaderLen : frameHeaderLen+got.length]
		if got.kind != frameData || got.length == 0 {
			return
		}
		data, err := unpad(got, p)
		other, err2 := http2.NewFramer(io.Discard, bytes.NewReader(b)).ReadFrame()
		if (err == nil) != (err2 == nil) {
			t.Fatalf("%v, another reader %v", err, err2)
		}
		if err == nil && !bytes.Equal(data, other.(*http2.DataFrame).Data()) {
			t.Fatal("other data")
		}
	})
}

// FuzzHeaders decodes blocks as another decoder does, and encodes what came out
// so that the other reads the same.
func FuzzHeaders(f *testing.F) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	for _, s := range []string{":method", "POST", ":path", "/a.B/C", "grpc-timeout", "1S", "authorization", "Bearer x", "x", string(bytes.Repeat([]byte{'y'}, 300))} {
		_ = enc.WriteField(hpack.HeaderField{Name: s, Value: s})
	}
	f.Add(buf.Bytes(), buf.Bytes(), uint32(4096))
	f.Add([]byte{0x3f, 0xe1, 0x1f}, []byte{0x10, 1, 'k', 1, 'v'}, uint32(0))
	f.Fuzz(func(t *testing.T, one, two []byte, table uint32) {
		d := newHeaderDecoder(4096, 16<<10)
		var e headerEncoder
		other, twin := hpack.NewDecoder(4096, nil), hpack.NewDecoder(4096, nil)
		for i, block := range [][]byte{one, two, one} {
			fields, err := d.decode(block, nil)
			same, twinErr := twin.DecodeFull(block)
			if errors.Is(err, errTableSize) || twinErr != nil && strings.Contains(twinErr.Error(), "size update MUST") {
				return // the other is more lenient in one case and less in another
			}
			if over := errors.Is(err, errHeaderList); over != (twinErr == nil && listSize(same) > 16<<10) || !over && (err == nil) != (twinErr == nil) {
				t.Fatalf("%v, another decoder %v", err, twinErr)
			}
			if err != nil && !errors.Is(err, errHeaderList) {
				return
			}
			for i, f := range fields {
				if f.Name != same[i].Name || f.Value != same[i].Value || f.Sensitive != (same[i].Sensitive || secret(f.Name)) {
					t.Fatalf("%+v, another decoder %+v", f, same[i])
				}
				if i < 64 && d.clean>>i&1 != 0 && !unremarkable(f.Name, f.Value) {
					t.Fatalf("%+v is not clean", f)
				}
			}
			size := 0
			for _, f := range fields {
				size += len(f.Name) + len(f.Value) + headerFieldOverhead
			}
			if size > 16<<10 {
				t.Fatalf("%d bytes", size)
			}
			if i == 1 {
				e.setLimit(table)
			}
			e.begin()
			for _, f := range fields {
				e.field(f.Name, f.Value, f.Sensitive)
			}
			back, err := other.DecodeFull(e.block())
			if err != nil || len(back) != len(fields) {
				t.Fatal(err, len(back), len(fields))
			}
			for i, f := range fields {
				if back[i].Name != f.Name || back[i].Value != f.Value || back[i].Sensitive != f.Sensitive {
					t.Fatalf("%+v became %+v", f, back[i])
				}
			}
		}
	})
}

func listSize(list []hpack.HeaderField) (n int) {
	for _, f := range list {
		n += int(f.Size())
	}
	return n
}

// FuzzServer lets a client say anything after its preface to a server end whose
// calls go through to a service that says anything too. Nothing may hang or
// leak, and what is left must be settled.
func FuzzServer(f *testing.F) {
	var buf bytes.Buffer
	fr := http2.NewFramer(&buf, nil)
	var hb bytes.Buffer
	enc := hpack.NewEncoder(&hb)
	for i := 0; i < len(goodRequest); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: goodRequest[i], Value: goodRequest[i+1]})
	}
	_ = fr.WriteSettings()
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: hb.Bytes(), EndHeaders: true})
	_ = fr.WriteData(1, false, []byte("hello"))
	_ = fr.WriteWindowUpdate(1, 10)
	_ = fr.WritePing(false, [8]byte{})
	_ = fr.WriteData(1, true, nil)
	_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
	var back bytes.Buffer
	fb := http2.NewFramer(&back, nil)
	_ = fb.WriteSettings()
	_ = fb.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
	_ = fb.WriteData(1, false, []byte("hello"))
	_ = fb.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x00, 1, 'a', 1, 'b'}, EndHeaders: true, EndStream: true})
	_ = fb.WriteGoAway(1, http2.ErrCodeNo, nil)
	f.Add(buf.Bytes(), back.Bytes())
	// The same by gRPC-Web, in base64.
	var web, answer bytes.Buffer
	fw := http2.NewFramer(&web, nil)
	hb.Reset()
	for i := 0; i < len(goodRequest); i += 2 {
		value := goodRequest[i+1]
		if goodRequest[i] == "content-type" {
			value = "application/grpc-web-text"
		}
		_ = enc.WriteField(hpack.HeaderField{Name: goodRequest[i], Value: value})
	}
	_ = fw.WriteSettings()
	_ = fw.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: hb.Bytes(), EndHeaders: true})
	_ = fw.WriteData(1, true, []byte("AAAAAAVoZWxsbw=="))
	fa := http2.NewFramer(&answer, nil)
	_ = fa.WriteSettings()
	_ = fa.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: append([]byte{0x88, 0x00, 12}, "content-type\x10application/grpc"...), EndHeaders: true})
	_ = fa.WriteData(1, false, []byte("\x00\x00\x00\x00\x05hello"))
	_ = fa.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: append([]byte{0x00, 11}, "grpc-status\x010"...), EndHeaders: true, EndStream: true})
	f.Add(web.Bytes(), answer.Bytes())
	f.Fuzz(func(t *testing.T, request, response []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		m := new(Metrics)
		budget := NewBudget(1 << 20)
		upOurs, upTheirs := net.Pipe()
		out := NewClient(upOurs, &Options{Metrics: m, Budget: budget})
		inOurs, inTheirs := net.Pipe()
		in := NewServer(inOurs, &Options{Edge: true, Metrics: m, Budget: budget, Web: webOptions().Web}, HandlerFunc(func(c *Call) {
			if err := c.Forward(out, c.Header(), ForwardOptions{Retry: func(error) { c.Reject(14, "") }}); err != nil {
				c.Reject(14, "")
			}
		}))
		in.lingerFor, out.lingerFor = time.Millisecond, time.Millisecond
		go func() { _ = out.Run(ctx) }()
		go func() { _ = in.Run(ctx) }()
		go func() { _, _ = io.Copy(io.Discard, upTheirs) }()
		go func() { _, _ = io.Copy(io.Discard, inTheirs) }()
		_ = inTheirs.SetWriteDeadline(time.Now().Add(time.Second))
		_ = upTheirs.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = inTheirs.Write([]byte(preface))
		_, _ = inTheirs.Write(request[:len(request)/2])
		_, _ = upTheirs.Write(response[:len(response)/2])
		_, _ = inTheirs.Write(request[len(request)/2:])
		_, _ = upTheirs.Write(response[len(response)/2:])
		_ = inTheirs.Close()
		_ = upTheirs.Close()
		<-in.Done()
		<-out.Done()
		if ctx.Err() != nil {
			t.Fatal("a connection did not end")
		}
		if n := m.CallsOpen.Load(); n != 0 {
			t.Fatalf("%d calls are open", n)
		}
		if n := m.Buffered.Load() + budget.Used(); n != 0 {
			t.Fatalf("%d bytes are held", n)
		}
	})
}
