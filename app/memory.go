package app

import (
	"context"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/roles/relay"
)

// What strangers can make the process hold is counted (relay.Budget), and the
// garbage collector is told where the whole has to end: at what the process
// needs by itself, and the budget on top. Counting cannot be exact, and what is
// given up is not found at once, so that calls and connections may hold five
// eighths of the budget; the rest is room for that.

const (
	defaultMemory = 512 << 20
	leastMemory   = 32 << 20
	ownMemory     = 32 << 20 // what a process without calls needs, at least
	watchMemory   = 2 * time.Second
)

// memory bounds what the process holds.
type memory struct {
	total int64 // how much it may grow
	calls *relay.Budget
	set   bool // somebody set GOMEMLIMIT: that stands
}

// newMemory has the budget of the settings, or the default: 512 MiB, or half of
// what the container may have.
func newMemory(budget int64, reg prometheus.Registerer) *memory {
	if budget == 0 {
		budget = defaultMemory
		if most := containerMemory("/sys/fs/cgroup"); most > 0 {
			budget = max(min(budget, most/2), leastMemory)
		}
	}
	m := &memory{total: budget, calls: relay.NewBudget(budget / 8 * 5), set: os.Getenv("GOMEMLIMIT") != ""}
	m.limit()
	for _, g := range []struct {
		name, help string
		read       func() float64
	}{
		{"sallyport_memory_budget_bytes", "Memory that calls and connections may hold (five eighths of --memory-budget).", func() float64 { return float64(m.calls.Limit()) }},
		{"sallyport_memory_held_bytes", "Memory counted as held by calls and connections.", func() float64 { return float64(m.calls.Used()) }},
	} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help}, g.read))
	}
	return m
}

// run keeps the collector's limit in step with what the process needs by itself
// until ctx ends.
func (m *memory) run(ctx context.Context) error {
	tick := time.NewTicker(watchMemory)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.limit()
		}
	}
}

// limit tells the garbage collector where to end. What was alive when it last
// looked and is not counted is the process's own: policies, registries, indexes.
func (m *memory) limit() {
	if m.set {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	own := int64(0)
	if live[0].Value.Kind() == metrics.KindUint64 {
		own = int64(live[0].Value.Uint64()) - m.calls.Used()
	}
	debug.SetMemoryLimit(m.total + max(ownMemory, own+own/2))
}

// containerMemory is what the control group at root lets this process have; 0
// where nothing is said.
func containerMemory(root string) int64 {
	for _, name := range []string{"/memory.max", "/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(root + name)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 && n < math.MaxInt64>>16 {
			return n
		}
	}
	return 0
}
