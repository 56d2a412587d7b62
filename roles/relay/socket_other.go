//go:build !unix

package relay

import "net"

// socket does not exist here: every connection is read and written as any other
// net.Conn.
type socket struct {
	net.Conn
	mode byte
	left int
}

func newSocket(net.Conn) *socket { return nil }

func (s *socket) NetConn() net.Conn { return s.Conn }
func (s *socket) fill() error       { return nil }
func (s *socket) complete() bool    { return false }
func (s *socket) buffered() int     { return 0 }
func (s *socket) own(int, func())   {}
func (s *socket) pending() bool     { return false }
func (s *socket) held() int64       { return 0 }
func (s *socket) partial() int64    { return 0 }
func (s *socket) drain() error      { return nil }
