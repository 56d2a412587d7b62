package core

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// peerUID asks the kernel whose process is at the other end of a unix socket.
func peerUID(nc net.Conn) (int, error) {
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("a %T is no unix socket", nc)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Xucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("ask who is at the other end: %w", credErr)
	}
	return int(cred.Uid), nil
}
