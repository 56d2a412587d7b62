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
// needs by itself, and the budget on top. Counting cannot be exact, what is
// given up is not found at once, and the collector overshoots: calls and
// connections may hold half of the budget, and an eighth is left over.

const (
	defaultMemory = 512 << 20
	leastMemory   = 32 << 20
	ownMemory     = 16 << 20 // what a process without calls needs, at least
	watchMemory   = 2 * time.Second
)

// memory bounds what the process holds.
type memory struct {
	total int64 // how much it may grow
	calls *relay.Budget
	set   bool // somebody set GOMEMLIMIT: that stands

	own    int64  // what is alive while calls hold next to nothing
	quiet  bool   // they do
	cycles uint64 // of the collector, when that began
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
	m := &memory{total: budget, calls: relay.NewBudget(budget / 2), set: os.Getenv("GOMEMLIMIT") != ""}
	m.limit()
	for _, g := range []struct {
		name, help string
		read       func() float64
	}{
		{"sallyport_memory_budget_bytes", "Memory that calls and connections may hold (half of --memory-budget).", func() float64 { return float64(m.calls.Limit()) }},
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

// limit tells the garbage collector where to end. What it finds alive while
// calls hold next to nothing is the process's own: policies, registries, indexes.
func (m *memory) limit() {
	if m.set {
		return
	}
	now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(now)
	live, cycles := int64(now[0].Value.Uint64()), now[1].Value.Uint64()
	switch {
	case m.calls.Used() > m.calls.Limit()/16:
		m.quiet = false
	case !m.quiet:
		m.quiet, m.cycles = true, cycles
	case cycles > m.cycles+2: // nothing from before is left, in pools neither
		m.own = live
	}
	debug.SetMemoryLimit(m.total/8*7 + max(ownMemory, m.own+m.own/2))
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
