//go:build !linux && !darwin

package core

import (
	"errors"
	"net"
)

// peerUID fails: where the kernel cannot be asked, nobody administers core by
// its socket.
func peerUID(net.Conn) (int, error) {
	return 0, errors.New("this system cannot say who is at the other end of a socket; core runs on Linux and macOS")
}
