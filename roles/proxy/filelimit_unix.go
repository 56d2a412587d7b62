//go:build unix

package proxy

import "syscall"

// fileLimit is how many files this process may have open.
func fileLimit() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || uint64(r.Cur) > 1<<30 {
		return 1 << 30
	}
	return int(r.Cur)
}
