//go:build unix

package gateway

import (
	"errors"
	"os"
	"syscall"
)

// lockFile takes the lock of a file, which it makes; the kernel gives it free
// when the process ends, however it does. The file stays: removing it would let
// two processes hold two locks.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New("another gateway listens there: stop it first, or listen elsewhere (--listen)")
		}
		return nil, err
	}
	return f, nil
}
