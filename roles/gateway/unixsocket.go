package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// unixListener is a unix socket for apps. A lock file beside it says that it has
// an owner, for as long as it takes connections; both modes are set before the
// socket has its name, so that it is at no moment open to others.
type unixListener struct {
	net.Listener
	path string
	lock *os.File
	shut sync.Once
}

// listenUnix opens the socket at path for the process's own user, or for the
// members of group too. What a dead process left is replaced; a living one's is
// not, whoever it belongs to.
func listenUnix(path, group string) (net.Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(filepath.Dir(path)); err == nil && info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return nil, fmt.Errorf("unix socket %s: everybody may write in its directory, and could put another socket in its place to which apps would send their tokens: run chmod o-w on it, or listen elsewhere", path)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("unix socket %s: %w", path, err)
	}
	l, err := placeSocket(path, gid)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &unixListener{Listener: l, path: path, lock: lock}, nil
}

// placeSocket makes the socket out of everybody's reach and then puts it where it
// belongs, in one rename.
func placeSocket(path string, gid int) (net.Listener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("unix socket %s: %w", path, err)
	case info.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("%s is in the way: it is no socket; move it, or listen elsewhere", path)
	default:
		nc, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			nc.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("another process listens on %s: stop it first, or listen elsewhere", path)
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("unix socket %s: %w; its directory has to be there, and this process has to be allowed to write there", path, err)
	}
	defer os.RemoveAll(dir)
	hidden := filepath.Join(dir, "s")
	l, err := listenBelow(dir, hidden)
	if err != nil {
		return nil, fmt.Errorf("unix socket %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	mode := fs.FileMode(0o600)
	if gid >= 0 {
		mode = 0o660
		err = os.Lchown(hidden, -1, gid)
	}
	if err != nil {
		err = fmt.Errorf("%w; this process's user has to be a member of the group of --listen-group", err)
	} else if err = os.Chmod(hidden, mode); err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("unix socket %s: %w", path, err)
	}
	return l, nil
}

// maxSocketPath is what every kernel takes as the address of a unix socket.
const maxSocketPath = 103

// listenBelow opens a socket in dir, whose path may be longer than the one that
// it gets in the end: where it is too long, by way of the directory's descriptor.
func listenBelow(dir, path string) (net.Listener, error) {
	if len(path) <= maxSocketPath {
		return net.Listen("unix", path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(path)))
}

// groupID is the number of a group, -1 for none.
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("--listen-group: this host has no group %q: make it, or give its number", group)
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Errorf("--listen-group: the group %q has no number here (%s)", group, g.Gid)
	}
	return n, nil
}

// Addr is the path of the socket.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close closes the listener, removes the socket and gives its place free.
func (l *unixListener) Close() error {
	var err error
	l.shut.Do(func() {
		os.Remove(l.path)
		err = l.Listener.Close()
		l.lock.Close()
	})
	return err
}
