package firewall

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// TestDirectoryOfRoot: somebody else than root hears that root has to do it, and
// root takes no directory that another may write.
func TestDirectoryOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("SALLYPORT_TEST_REQUIRE") == "all" {
			t.Fatal("this test needs root")
		}
		t.Skip("this test needs root")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	h := Host{Dir: dir}
	if err := h.directory(); err != nil {
		t.Error(err)
	}
	said := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends, and its uid with it
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
			said <- e
			return
		}
		said <- h.directory()
	}()
	if err := <-said; !errors.Is(err, ErrNotPermitted) {
		t.Errorf("nobody, in a directory of root: %v", err)
	}
	for name, spoil := range map[string]func() error{
		"group": func() error { return os.Chmod(dir, 0o770) },
		"world": func() error { return os.Chmod(dir, 0o702) },
		"owner": func() error { return errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 65534, 0)) },
	} {
		if err := errors.Join(os.Chown(dir, 0, 0), spoil()); err != nil {
			t.Fatal(err)
		}
		if h.directory() == nil {
			t.Errorf("%s: a directory was taken that another may write", name)
		}
	}
}
