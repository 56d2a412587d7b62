package relay

import "sync/atomic"

// Budget bounds the bytes that all connections sharing it may hold for peers
// that do not take them.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// DefaultBudget is what connections without a budget of their own share: 512 MiB.
var DefaultBudget = NewBudget(512 << 20)

// Used is the number of bytes held now.
func (b *Budget) Used() int64 { return b.used.Load() }
