//go:build faults

package fault

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Point kills this process, as kill -9 does, if the directory that
// SALLYPORT_FAULTS names has a file OF-STEP, and removes that file first: a
// point that was armed once strikes once.
func Point(of, step string) {
	dir := os.Getenv("SALLYPORT_FAULTS")
	if dir == "" || os.Remove(filepath.Join(dir, strings.ReplaceAll(of+"-"+step, " ", "-"))) != nil {
		return
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
