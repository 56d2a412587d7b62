package relay

import (
	"crypto/tls"
	"net"
)

// Socket wraps a TCP or unix connection so that the engine can read and write it
// in batches without blocking. Put it beneath TLS: tls.Server(relay.Socket(nc), …).
// Everything works without it, at about a quarter more CPU per call.
func Socket(nc net.Conn) net.Conn {
	if s := newSocket(nc); s != nil {
		return s
	}
	return nc
}

// Listen wraps a listener so that what it accepts went through Socket.
func Listen(l net.Listener) net.Listener { return socketListener{l} }

type socketListener struct{ net.Listener }

func (l socketListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Socket(nc), nil
}

// Restart forgets what the first bytes of a connection that went through Socket
// said of it: the header of another protocol came before. Nobody may be reading.
func Restart(nc net.Conn) {
	if s := socketUnder(nc); s != nil {
		s.mode, s.left = 0, 0
	}
}

// socketUnder finds the Socket that nc is, or that its TLS runs on.
func socketUnder(nc net.Conn) *socket {
	for range 4 {
		switch v := nc.(type) {
		case *socket:
			return v
		case *tls.Conn:
			nc = v.NetConn()
		case interface{ NetConn() net.Conn }:
			nc = v.NetConn()
		default:
			return nil
		}
	}
	return nil
}

// secured says whether nc speaks TLS.
func secured(nc net.Conn) bool {
	for range 4 {
		switch v := nc.(type) {
		case *socket:
			return false
		case *tls.Conn, interface{ ConnectionState() tls.ConnectionState }:
			return true
		case interface{ NetConn() net.Conn }:
			nc = v.NetConn()
		default:
			return false
		}
	}
	return false
}

// transport is the connection at the bottom, which can be closed without
// waiting for anything.
func transport(nc net.Conn) net.Conn {
	for range 4 {
		v, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = v.NetConn()
	}
	return nc
}
