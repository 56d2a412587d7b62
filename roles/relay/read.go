package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
)

// headerBlock is a block of which the end has not arrived.
type headerBlock struct {
	id     uint32 // 0: none is open
	end    bool   // END_STREAM
	buf    *buffer
	frames int
}

// readLoop reads and handles frames until the connection ends. It flushes what
// that gave rise to when nothing complete is left to read: doing it per frame
// costs several times as much.
func (c *Conn) readLoop() error {
	b := &c.rbatch
	begun := c.client
	// What came together with the handshake may be waiting above the socket.
	if err := c.read(); err != nil {
		return err
	}
	for {
		if !begun && c.rw > c.rr {
			ok, err := c.readPreface()
			if err != nil {
				return err
			}
			begun = ok
		}
		for begun && c.rw-c.rr >= frameHeaderLen {
			f := parseFrame((*c.rb)[c.rr:])
			if err := checkFrame(f); err != nil {
				return err
			}
			if c.rw-c.rr < frameHeaderLen+f.length {
				break
			}
			p := (*c.rb)[c.rr+frameHeaderLen : c.rr+frameHeaderLen+f.length]
			c.rr += frameHeaderLen + f.length
			if err := c.handle(f, p, b); err != nil {
				return err
			}
			if b.bytes >= writeSize {
				b.run()
			}
		}
		if err := c.fill(b); err != nil {
			return err
		}
		if c.stopping() {
			return nil
		}
	}
}

// maxReads is how often in a row a connection is read before what that gave
// rise to is flushed, however much more there is: others wait for it.
const maxReads = 64

// fill reads more, flushing first unless a whole record waits.
func (c *Conn) fill(b *batch) error {
	if c.reads++; c.reads >= maxReads {
		c.reads = 0
		b.run()
	}
	if c.sock == nil || !c.sock.complete() {
		if len(b.conns) > 0 || len(b.credits) > 0 {
			runtime.Gosched() // others may have something for the same connections
			c.reads = 0
			b.run()
		}
		if c.sock != nil && c.sock.buffered() == 0 {
			if c.rr == c.rw && c.rb != nil {
				readBuffers.Put(c.rb)
				c.rb, c.rr, c.rw = nil, 0, 0
			}
			c.holdReading()
			if err := c.sock.fill(); err != nil {
				return err
			}
		}
	}
	return c.read()
}

// read appends one Read to the buffer.
func (c *Conn) read() error {
	if c.rb == nil {
		c.rb = readBuffers.Get().(*[]byte)
	}
	buf := *c.rb
	if c.rr == c.rw {
		c.rr, c.rw = 0, 0
	} else if len(buf)-c.rw < minFrameSize+frameHeaderLen {
		c.rw = copy(buf, buf[c.rr:c.rw])
		c.rr = 0
	}
	n, err := c.nc.Read(buf[c.rw:])
	c.rw += n
	if n > 0 {
		c.lastRead.Store(time.Now().UnixNano())
		return nil
	}
	return err
}

// readPreface checks the first bytes of a client as they come.
func (c *Conn) readPreface() (bool, error) {
	got := string((*c.rb)[c.rr:min(c.rw, c.rr+len(preface))])
	if strings.HasPrefix(preface, got) {
		if len(got) < len(preface) {
			return false, nil
		}
		c.rr += len(preface)
		return true, nil
	}
	return false, c.noPreface(string((*c.rb)[c.rr:c.rw]))
}

// noPreface says what the peer seems to speak instead, and tells it if it can
// read that.
func (c *Conn) noPreface(got string) error {
	from := c.remote
	if c.nc.RemoteAddr() != nil {
		from = c.nc.RemoteAddr().String()
	}
	line, _, _ := strings.Cut(got, "\r\n")
	words := strings.Fields(line)
	switch {
	case got[0] == 0x16:
		return fmt.Errorf("%s began a TLS handshake on a port that speaks plaintext HTTP/2: connect without TLS, or give this port a certificate", from)
	case len(words) == 3 && strings.HasPrefix(words[2], "HTTP/1"):
		const text = "This port speaks HTTP/2 only (gRPC).\n"
		_, _ = fmt.Fprintf(c.nc, "HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s", len(text), text)
		return fmt.Errorf("%s request from %s on an HTTP/2 port: use a gRPC client, or HTTP/2 with prior knowledge", words[2], from)
	}
	if len(got) > 16 {
		got = got[:16]
	}
	return fmt.Errorf("%s does not speak HTTP/2: it began with %q", from, got)
}

// handle dispatches one frame.
func (c *Conn) handle(f frame, p []byte, b *batch) error {
	if !c.gotFirst && f.kind != frameSettings {
		return connErr(codeProtocol, "the first frame is not SETTINGS but of type %d", f.kind)
	}
	if c.block.id != 0 && (f.kind != frameContinuation || f.id != c.block.id) {
		return connErr(codeProtocol, "frame of type %d on stream %d inside the header block of stream %d", f.kind, f.id, c.block.id)
	}
	var err error
	switch f.kind {
	case frameData:
		err = c.onData(f, p, b)
	case frameHeaders:
		err = c.onHeaders(f, p, b)
	case frameContinuation:
		err = c.onContinuation(f, p, b)
	case frameRST:
		err = c.onReset(f.id, errCode(binary.BigEndian.Uint32(p)), b)
	case frameSettings:
		err = c.onSettings(f, p, b)
	case framePing:
		err = c.onPing(f, p, b)
	case frameGoAway:
		err = c.onGoAway(binary.BigEndian.Uint32(p)&maxStreamID, errCode(binary.BigEndian.Uint32(p[4:])), string(p[8:]), b)
	case frameWindowUpdate:
		n := binary.BigEndian.Uint32(p) & maxWindow
		if err = c.rates.windowUpdate(c); err == nil {
			err = c.windowUpdate(f.id, int64(n), b)
		}
	case framePriority:
		err = c.onPriority(f, p)
	default:
		err = c.rates.count(c, CalmPriorities, c.lim.Priorities)
	}
	if se := (*streamError)(nil); err != nil && errors.As(err, &se) {
		return c.breakStream(f.id, se, b)
	}
	return err
}

func (c *Conn) onPriority(f frame, p []byte) error {
	if err := c.rates.count(c, CalmPriorities, c.lim.Priorities); err != nil {
		return err
	}
	if f.length != priorityLen {
		return streamErr(codeFrameSize, "PRIORITY of %d bytes", f.length)
	}
	if binary.BigEndian.Uint32(p)&maxStreamID == f.id {
		return streamErr(codeProtocol, "the stream depends on itself")
	}
	return nil
}

func (c *Conn) onData(f frame, p []byte, b *batch) error {
	if err := c.received(int64(f.length), b); err != nil {
		return err
	}
	data, err := unpad(f, p)
	if err != nil {
		return err
	}
	end := f.has(flagEndStream)
	if len(data) == 0 && !end {
		if err := c.rates.count(c, CalmEmptyData, c.lim.EmptyData); err != nil {
			return err
		}
	} else {
		c.useful()
	}
	c.mu.Lock()
	s := c.streams[f.id]
	if s == nil {
		defer c.mu.Unlock()
		return c.late(f)
	}
	if s.recvEnd {
		c.mu.Unlock()
		return streamErr(codeStreamClosed, "DATA after END_STREAM")
	}
	s.recvWindow -= int64(f.length)
	if s.recvWindow < 0 {
		c.mu.Unlock()
		return streamErr(codeFlowControl, "more DATA than the stream's window")
	}
	s.owed += int64(f.length - len(data)) // padding has arrived where it goes
	if end {
		s.recvEnd = true
	}
	c.mu.Unlock()
	s.received += int64(len(data))
	if s.length >= 0 && (s.received > s.length || end && s.received != s.length) {
		return streamErr(codeProtocol, "content-length is %d, and %d bytes came", s.length, s.received)
	}
	if c.client {
		if !s.answered {
			return streamErr(codeProtocol, "DATA before the response's header")
		}
		s.call.responseData(s, data, end, b)
	} else {
		s.call.requestData(data, end, b)
	}
	return nil
}

// late judges a frame on a stream that is not open. c.mu is held.
func (c *Conn) late(f frame) error {
	if c.isIdle(f.id) {
		return connErr(codeProtocol, "frame of type %d on idle stream %d", f.kind, f.id)
	}
	switch c.recent.find(f.id) {
	case closedByPeer:
		return connErr(codeStreamClosed, "frame of type %d on stream %d after END_STREAM", f.kind, f.id)
	case closedByReset:
		if f.kind == frameHeaders && !c.client {
			return connErr(codeStreamClosed, "HEADERS on stream %d after RST_STREAM", f.id)
		}
		return streamErr(codeStreamClosed, "frame after RST_STREAM")
	}
	return nil
}

// isIdle says whether a stream has never been opened. c.mu is held.
func (c *Conn) isIdle(id uint32) bool {
	if c.client {
		return id%2 == 0 || id >= c.nextID
	}
	return id%2 == 0 || id > c.lastID
}

func (c *Conn) onHeaders(f frame, p []byte, b *batch) error {
	p, err := unpad(f, p)
	if err != nil {
		return err
	}
	if f.has(flagPriority) {
		if len(p) < priorityLen {
			return connErr(codeFrameSize, "HEADERS too short for its priority")
		}
		self := binary.BigEndian.Uint32(p)&maxStreamID == f.id
		p = p[priorityLen:]
		if self {
			return connErr(codeProtocol, "stream %d depends on itself", f.id)
		}
	}
	c.useful()
	if f.has(flagEndHeaders) {
		return c.onBlock(f.id, p, f.has(flagEndStream), b)
	}
	c.block.id, c.block.end, c.block.frames = f.id, f.has(flagEndStream), 0
	c.mu.Lock()
	c.blockBy = c.lastRead.Load() + int64(c.lim.HeaderTime)
	c.arm(c.lim.HeaderTime)
	c.mu.Unlock()
	return c.growBlock(p)
}

func (c *Conn) onContinuation(f frame, p []byte, b *batch) error {
	if c.block.id == 0 {
		return connErr(codeProtocol, "CONTINUATION on stream %d without HEADERS", f.id)
	}
	c.block.frames++
	if c.block.frames > c.lim.Continuations {
		return c.calmError(CalmContinuations, "more than %d CONTINUATION frames", c.lim.Continuations)
	}
	if err := c.growBlock(p); err != nil {
		return err
	}
	if !f.has(flagEndHeaders) {
		return nil
	}
	block := c.block
	c.block = headerBlock{}
	defer putSized(block.buf)
	c.mu.Lock()
	c.blockBy = 0
	c.mu.Unlock()
	return c.onBlock(block.id, block.buf.b, block.end, b)
}

// growBlock keeps a fragment, unless the block could not be kept anyway.
func (c *Conn) growBlock(p []byte) error {
	had := 0
	if c.block.buf != nil {
		had = c.block.buf.len()
	}
	if had+len(p) > int(c.lim.HeaderList)+minFrameSize {
		return c.calmError(CalmHeaderBlock, "a header block of more than %d bytes", c.lim.HeaderList)
	}
	c.block.buf, _ = sized(c.block.buf, p)
	return nil
}

// onBlock decodes a whole header block and finds out what it is for. Blocks for
// streams that are gone are decoded too: the table must stay in step.
func (c *Conn) onBlock(id uint32, block []byte, end bool, b *batch) error {
	fields, err := c.dec.decode(block, c.scratch[:0])
	c.scratch = fields
	tooLarge := errors.Is(err, errHeaderList)
	if err != nil && !tooLarge {
		return connErr(codeCompression, "header block of stream %d: %v", id, err)
	}
	if !c.client && id > c.lastID { // which only this goroutine changes
		return c.newCall(id, fields, end, tooLarge, b)
	}
	c.mu.Lock()
	s := c.streams[id]
	switch {
	case s == nil && !c.client:
		defer c.mu.Unlock()
		return c.notNew(id)
	case s == nil:
		err = c.late(frame{kind: frameHeaders, id: id})
		c.mu.Unlock()
		return err
	case s.recvEnd:
		c.mu.Unlock()
		return connErr(codeStreamClosed, "HEADERS on stream %d after END_STREAM", id)
	}
	s.recvEnd = s.recvEnd || end
	c.mu.Unlock()
	switch {
	case tooLarge:
		err = streamErr(codeCancel, "header list of more than %d bytes", c.lim.HeaderList)
	case end && s.length >= 0 && s.received != s.length && (s.answered || !c.client):
		err = streamErr(codeProtocol, "content-length is %d, and %d bytes came", s.length, s.received)
	case c.client:
		err = s.call.responseHeader(s, fields, end, b)
	default:
		err = s.call.requestTrailers(fields, end, b)
	}
	return err
}
