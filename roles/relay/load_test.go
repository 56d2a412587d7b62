package relay

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
)

// A caller and a service that do as little as HTTP/2 allows, so that what is
// measured is what stands between them.

func encode(fields ...string) []byte {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return buf.Bytes()
}

// bareConn reads frames and writes in batches.
type bareConn struct {
	nc     net.Conn
	r      *bufio.Reader
	out    []byte
	owed   int
	frameP [frameHeaderLen]byte
	pay    []byte
}

func newBare(nc net.Conn) *bareConn {
	return &bareConn{nc: nc, r: bufio.NewReaderSize(nc, 64<<10), pay: make([]byte, 1<<16)}
}

func (c *bareConn) read() (frame, []byte, error) {
	if c.r.Buffered() < frameHeaderLen {
		c.flush()
	}
	if _, err := io.ReadFull(c.r, c.frameP[:]); err != nil {
		return frame{}, nil, err
	}
	f := parseFrame(c.frameP[:])
	if c.r.Buffered() < f.length {
		c.flush()
	}
	if _, err := io.ReadFull(c.r, c.pay[:f.length]); err != nil {
		return f, nil, err
	}
	switch {
	case f.kind == frameSettings && !f.has(flagAck):
		c.out = appendFrameHeader(c.out, 0, frameSettings, flagAck, 0)
	case f.kind == framePing && !f.has(flagAck):
		c.out = appendPing(c.out, true, [8]byte(c.pay[:8]))
	case f.kind == frameData:
		if c.owed += f.length; c.owed > 1<<20 {
			c.out = appendWindowUpdate(c.out, 0, uint32(c.owed))
			c.owed = 0
		}
	}
	return f, c.pay[:f.length], nil
}

func (c *bareConn) flush() {
	if len(c.out) > 0 {
		_, _ = c.nc.Write(c.out)
		c.out = c.out[:0]
	}
}

var wideOpen = []setting{{settingInitialWindow, maxWindow}, {settingMaxStreams, 1 << 20}}

// bareService answers every request with as many bytes as /bench.S/x says in
// its first message byte's place: size each, messages of them.
func bareService(t testing.TB, size, messages int, secure bool) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	head := encode(":status", "200", "content-type", "application/grpc")
	tail := encode("grpc-status", "0")
	message := append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(size))...)
	message = append(message, make([]byte, size)...)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			if secure {
				nc = tls.Server(nc, testTLS())
			}
			go func() {
				defer nc.Close()
				if _, err := io.ReadFull(nc, make([]byte, len(preface))); err != nil {
					return
				}
				c := newBare(nc)
				c.out = appendWindowUpdate(appendSettings(c.out, wideOpen...), 0, maxWindow-defaultWindow)
				// The client's windows are wide open in these tests but for
				// the engine's own: it is waited for.
				stream, conn := map[uint32]int{}, defaultWindow
				initial := defaultWindow
				var queue []*answer
				pump := func() {
					for len(queue) > 0 {
						a := queue[0]
						if !a.started {
							a.started = true
							c.out = appendHeaderBlock(c.out, a.id, head, false, minFrameSize)
						}
						for a.left > 0 {
							n := min(len(message)-a.off, minFrameSize, conn, stream[a.id])
							if n <= 0 {
								return
							}
							c.out = appendFrameHeader(c.out, n, frameData, 0, a.id)
							c.out = append(c.out, message[a.off:a.off+n]...)
							conn -= n
							stream[a.id] -= n
							if a.off += n; a.off == len(message) {
								a.off, a.left = 0, a.left-1
							}
							if len(c.out) > 64<<10 {
								c.flush()
							}
						}
						c.out = appendHeaderBlock(c.out, a.id, tail, true, minFrameSize)
						delete(stream, a.id)
						queue = queue[1:]
					}
				}
				for {
					f, p, err := c.read()
					if err != nil {
						return
					}
					switch f.kind {
					case frameHeaders:
						stream[f.id] = initial
					case frameSettings:
						for ; len(p) >= settingLen; p = p[settingLen:] {
							if binary.BigEndian.Uint16(p) == settingInitialWindow {
								initial = int(binary.BigEndian.Uint32(p[2:]))
							}
						}
					case frameWindowUpdate:
						n := int(binary.BigEndian.Uint32(p))
						if f.id == 0 {
							conn += n
						} else if _, ok := stream[f.id]; ok {
							stream[f.id] += n
						}
						pump()
					}
					if f.has(flagEndStream) && (f.kind == frameData || f.kind == frameHeaders) {
						queue = append(queue, &answer{id: f.id, left: messages})
						pump()
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

type answer struct {
	id        uint32
	left, off int
	started   bool
}

// bareCaller keeps calls of a content-type in flight on one connection until
// stop, and returns how many were answered, and how long each took.
func bareCaller(nc net.Conn, kind string, inFlight, size int, until time.Time) (calls int, took []time.Duration, err error) {
	c := newBare(nc)
	c.out = append(c.out, preface...)
	c.out = appendWindowUpdate(appendSettings(c.out, setting{settingInitialWindow, maxWindow}), 0, maxWindow-defaultWindow)
	message := append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(size))...)
	message = append(message, make([]byte, size)...)
	if strings.HasPrefix(kind, contentTypeWeb+"-text") {
		message = appendBase64(nil, message)
	}
	var ebuf bytes.Buffer
	enc := hpack.NewEncoder(&ebuf)
	next := uint32(1)
	started := map[uint32]time.Time{}
	conn, initial := defaultWindow, defaultWindow
	type half struct {
		id       uint32
		off, win int
	}
	var halves []*half
	push := func() {
		keep := halves[:0]
		for _, h := range halves {
			for h.off < len(message) {
				n := min(len(message)-h.off, minFrameSize, conn, h.win)
				if n <= 0 {
					break
				}
				var flags uint8
				if h.off+n == len(message) {
					flags = flagEndStream
				}
				c.out = appendFrameHeader(c.out, n, frameData, flags, h.id)
				c.out = append(c.out, message[h.off:h.off+n]...)
				h.off += n
				h.win -= n
				conn -= n
			}
			if h.off < len(message) {
				keep = append(keep, h)
			}
		}
		halves = keep
	}
	call := func(i int) {
		ebuf.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", "/bench.v1.Bench/Call"}, {":authority", "localhost"},
			{"content-type", kind}, {"user-agent", "grpc-go/1.85.0"}, {"te", "trailers"}} {
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		ebuf.WriteByte(0)
		b := appendString(nil, "grpc-timeout")
		b = appendString(b, itoa(9_000_000+i%1000)+"u")
		ebuf.Write(b)
		c.out = appendHeaderBlock(c.out, next, ebuf.Bytes(), false, minFrameSize)
		started[next] = time.Now()
		halves = append(halves, &half{id: next, win: initial})
		next += 2
		push()
	}
	for i := range inFlight {
		call(i)
	}
	for open := inFlight; open > 0; {
		f, p, err := c.read()
		if err != nil {
			return calls, took, err
		}
		switch f.kind {
		case frameSettings:
			for ; len(p) >= settingLen; p = p[settingLen:] {
				if binary.BigEndian.Uint16(p) == settingInitialWindow {
					d := int(binary.BigEndian.Uint32(p[2:])) - initial
					initial += d
					for _, h := range halves {
						h.win += d
					}
				}
			}
			push()
		case frameWindowUpdate:
			n := int(binary.BigEndian.Uint32(p))
			if f.id == 0 {
				conn += n
			}
			for _, h := range halves {
				if h.id == f.id {
					h.win += n
				}
			}
			push()
		case frameGoAway, frameRST:
			if f.kind == frameRST && binary.BigEndian.Uint32(p) == 0 {
				continue
			}
			return calls, took, io.ErrUnexpectedEOF
		}
		if f.has(flagEndStream) && (f.kind == frameData || f.kind == frameHeaders) {
			calls++
			took = append(took, time.Since(started[f.id]))
			delete(started, f.id)
			if time.Now().Before(until) {
				call(calls)
			} else {
				open--
			}
		}
	}
	return calls, took, nil
}
