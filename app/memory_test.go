package app

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestContainerMemory(t *testing.T) {
	for name, c := range map[string]struct {
		file, text string
		want       int64
	}{
		"version 2":  {"memory.max", "268435456\n", 256 << 20},
		"version 1":  {"memory/memory.limit_in_bytes", "134217728\n", 128 << 20},
		"no limit":   {"memory.max", "max\n", 0},
		"no limit 1": {"memory/memory.limit_in_bytes", "9223372036854771712\n", 0},
		"nothing":    {"other", "1", 0},
	} {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, "memory"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, c.file), []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := containerMemory(root); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestMemoryLimit: what calls hold does not move the limit, what the process
// itself needs does.
func TestMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	m := newMemory(64<<20, prometheus.NewRegistry())
	first := debug.SetMemoryLimit(-1)
	if first != 56<<20+ownMemory || m.calls.Limit() != 32<<20 {
		t.Errorf("limit %d, calls may hold %d", first, m.calls.Limit())
	}
	own := make([]byte, 80<<20)
	look := func() int64 {
		for range 4 {
			m.limit()
			runtime.GC()
		}
		m.limit()
		return debug.SetMemoryLimit(-1)
	}
	m.calls.Hold(16 << 20)
	if got := look(); got != first {
		t.Errorf("beside calls the limit moved to %d", got)
	}
	m.calls.Release(16 << 20)
	if got := look(); got < 56<<20+120<<20 {
		t.Errorf("the process needs %d bytes for itself, and the limit is %d", len(own), got)
	}
	runtime.KeepAlive(own)
}
