//go:build unix

package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

const (
	recordHeaderLen = 5
	recordAlert     = 21
	recordHandshake = 22
)

// socket reads ahead into a pooled buffer that it holds only while there is
// something in it, and hands TLS one record at a time, so that it knows whether
// a whole record is left. Once an engine owns it, writes never block: what the
// kernel does not take is kept for drain.
type socket struct {
	net.Conn
	raw syscall.RawConn

	// reading: one goroutine at a time
	rbuf   *[]byte
	r, w   int
	mode   byte // 0 before the first byte, 't' TLS records, 'p' anything else
	left   int  // bytes left of the record being handed out
	rerr   error
	readFn func(uintptr) bool
	rest   func() // called before Read waits, once an engine owns the socket

	mu       sync.Mutex // guards what follows
	owned    bool       // an engine does the writing
	most     int        // bytes kept for a peer that takes none
	draining bool
	busy     int64   // capacity of what is being written by drain
	out      *buffer // accepted and not yet written
	now      []byte  // being written
	nowErr   error   // what became of now
	werr     error
	writeFn  func(uintptr) bool
	onceFn   func(uintptr) bool
}

func newSocket(nc net.Conn) *socket {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil
	}
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{Conn: nc, raw: raw}
	s.readFn, s.writeFn, s.onceFn = s.readReady, s.writeReady, s.writeOnce
	return s
}

// NetConn is the wrapped connection.
func (s *socket) NetConn() net.Conn { return s.Conn }

// readReady is one attempt to read; false asks to be called when there is more.
func (s *socket) readReady(fd uintptr) bool {
	if s.rbuf == nil {
		s.rbuf = readBuffers.Get().(*[]byte)
	}
	buf := *s.rbuf
	if s.r > 0 {
		s.w = copy(buf, buf[s.r:s.w])
		s.r = 0
	}
	var n int
	var err error
	for {
		if n, err = syscall.Read(int(fd), buf[s.w:]); err != syscall.EINTR {
			break
		}
	}
	switch {
	case err == syscall.EAGAIN:
		s.rerr = nil
		s.release()
		return false
	case err != nil:
		s.rerr = os.NewSyscallError("read", err)
	case n == 0:
		s.rerr = io.EOF
	default:
		s.w += n
		s.rerr = nil
	}
	s.release()
	return true
}

func (s *socket) release() {
	if s.r == s.w && s.rbuf != nil {
		readBuffers.Put(s.rbuf)
		s.rbuf, s.r, s.w = nil, 0, 0
	}
}

// fill reads what there is, and waits if that is nothing.
func (s *socket) fill() error {
	if err := s.raw.Read(s.readFn); err != nil {
		return err
	}
	return s.rerr
}

// wait fills from within a Read. Who reads TLS cannot know that it will come to
// that: a whole record may hold nothing for us, and then the next one is wanted.
func (s *socket) wait() error {
	if s.rest != nil {
		s.rest()
	}
	return s.fill()
}

// complete says whether a Read can be served without waiting: a whole TLS
// record, or any byte without TLS.
func (s *socket) complete() bool {
	n := s.w - s.r
	if s.mode != 't' {
		return n > 0
	}
	if s.left > 0 {
		return n >= s.left
	}
	return n >= recordHeaderLen && n >= recordLen((*s.rbuf)[s.r:])
}

func (s *socket) buffered() int { return s.w - s.r }

func recordLen(b []byte) int { return recordHeaderLen + int(b[3])<<8 + int(b[4]) }

// Read hands out at most what is left of the current record.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if s.r == s.w {
		if err := s.wait(); err != nil {
			return 0, err
		}
	}
	if s.mode == 0 {
		s.mode = 'p'
		if first := (*s.rbuf)[s.r]; first == recordHandshake || first == recordAlert {
			s.mode = 't'
		}
	}
	limit := s.w
	if s.mode == 't' {
		if s.left == 0 {
			for s.w-s.r < recordHeaderLen {
				if err := s.wait(); err != nil {
					if err == io.EOF {
						err = io.ErrUnexpectedEOF
					}
					return 0, err
				}
			}
			s.left = recordLen((*s.rbuf)[s.r:])
		}
		limit = min(limit, s.r+s.left)
	}
	n := copy(p, (*s.rbuf)[s.r:limit])
	s.r += n
	if s.mode == 't' {
		s.left -= n
	}
	s.release()
	return n, nil
}

// own makes writes non-blocking from now on, and has rest called on the reading
// goroutine before it waits. The engine sees to it that it leaves no more than
// most here; TLS, which answers its peer by itself, does not.
func (s *socket) own(most int, rest func()) {
	s.rest = rest
	s.mu.Lock()
	s.owned, s.most = true, most
	s.mu.Unlock()
}

// Write gives p to the kernel, and keeps what it does not take.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.owned {
		return s.Conn.Write(p)
	}
	if s.werr != nil {
		return 0, s.werr
	}
	if s.draining || s.out != nil {
		if s.out != nil && s.out.len()+len(p) > s.most {
			s.werr = errDeaf
			return 0, s.werr
		}
		s.keep(p)
		return len(p), nil
	}
	rest, err := s.try(p)
	if err != nil {
		return 0, err
	}
	if len(rest) > 0 {
		s.keep(rest)
	}
	return len(p), nil
}

var errDeaf = errors.New("the peer asks for answers and does not read them")

func (s *socket) keep(p []byte) {
	if s.out == nil {
		s.out = getBuffer()
	}
	s.out.push(p)
}

// try writes p once without waiting and returns what is left of it.
func (s *socket) try(p []byte) ([]byte, error) {
	s.now, s.nowErr = p, nil
	if s.werr = s.raw.Write(s.onceFn); s.werr == nil {
		s.werr = s.nowErr
	}
	rest := s.now
	s.now = nil
	return rest, s.werr
}

func (s *socket) writeOnce(fd uintptr) bool {
	s.writeReady(fd)
	return true
}

// writeReady writes s.now; false asks to be called when there is room again.
func (s *socket) writeReady(fd uintptr) bool {
	for len(s.now) > 0 {
		n, err := syscall.Write(int(fd), s.now)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			s.nowErr = os.NewSyscallError("write", err)
			return true
		default:
			s.now = s.now[n:]
		}
	}
	return true
}

// held is how much memory holds what the kernel has not taken.
func (s *socket) held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.busy
	if s.out != nil {
		n += int64(cap(s.out.b))
	}
	return n
}

// partial is how much memory TLS, or this socket, holds for a record of which a
// part has come: TLS makes room for the whole.
func (s *socket) partial() int64 {
	switch {
	case s.rbuf != nil:
		return readSize
	case s.left > 0:
		return recordRoom
	}
	return 0
}

// recordRoom is what TLS makes ready for a record.
const recordRoom = 18 << 10

// pending says whether the kernel has not taken everything.
func (s *socket) pending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out != nil || s.draining
}

// drain waits until the kernel has taken everything. It has one caller at a
// time, the connection's writer.
func (s *socket) drain() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.out != nil && s.werr == nil {
		out := s.out
		s.out, s.draining, s.busy = nil, true, int64(cap(out.b))
		s.now, s.nowErr = out.rest(), nil
		s.mu.Unlock()
		err := s.raw.Write(s.writeFn)
		s.mu.Lock()
		if err == nil {
			err = s.nowErr
		}
		s.now, s.draining, s.busy = nil, false, 0
		putBuffer(out)
		if s.werr == nil {
			s.werr = err
		}
	}
	return s.werr
}

// CloseWrite ends the sending direction.
func (s *socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
