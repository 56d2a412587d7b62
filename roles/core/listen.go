package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// privateDir makes the data directory, for its owner only.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory %s: %w; choose another one with --data-dir", dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("data directory %s can be written by everybody: give core a directory of its own with --data-dir", dir)
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("data directory %s can be read by others, and that cannot be changed: %w; it holds the CA's keys: run chmod 700 on it", dir, err)
		}
	}
	return nil
}

// listen opens the gRPC port.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %s is taken by another process: choose another one with --grpc-address", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for gateways: %w; the address is --grpc-address", err)
	}
	return l, nil
}

// listenAdmin opens the operator's socket, 0600 in a directory of 0700. A
// socket that a dead core left is removed; that of a living one is an error.
func listenAdmin(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is in the way: it is no socket; move it", path)
		}
		short, done, err := shortPath(path)
		if err != nil {
			return nil, err
		}
		nc, err := net.DialTimeout("unix", short, time.Second)
		done()
		if err == nil {
			nc.Close()
			return nil, fmt.Errorf("another core is running on %s: stop it first, or use another --data-dir", filepath.Dir(path))
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket that a former core left: %w", err)
		}
	}
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.Listen("unix", short)
	if err != nil {
		return nil, fmt.Errorf("listen for the operator on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	return &adminListener{Listener: l, path: path}, nil
}

// adminListener removes its socket when it is closed, by its own path.
type adminListener struct {
	net.Listener
	path string
}

// Addr is the path of the socket.
func (l *adminListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close closes the listener and removes the socket.
func (l *adminListener) Close() error {
	err := l.Listener.Close()
	if err == nil {
		os.Remove(l.path)
	}
	return err
}

// maxSocketPath is what the kernel takes as the address of a unix socket.
const maxSocketPath = 104

// shortPath is a path to the same file that fits into a socket's address: for
// long ones by way of the directory's descriptor. done releases it.
func shortPath(path string) (short string, done func(), err error) {
	if len(path) < maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}

// advertised is the address that gateways dial: what the operator said, or,
// when core listens on loopback only, that.
func advertised(setting, bound string) string {
	if setting != "" {
		return setting
	}
	if a, err := netip.ParseAddrPort(bound); err == nil && a.Addr().Unmap().IsLoopback() {
		return bound
	}
	return ""
}
