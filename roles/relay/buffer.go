package relay

import "sync"

// buffer is a pooled byte slice. Nothing that is idle holds one.
type buffer struct {
	b   []byte
	off int // bytes at the front that are used up
}

// The pool's buffers grow to what their users need; larger ones are left to the
// garbage collector.
const pooledMax = 256 << 10

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 2<<10)} }}

func getBuffer() *buffer { return buffers.Get().(*buffer) }

func putBuffer(b *buffer) {
	if b == nil || cap(b.b) > pooledMax {
		return
	}
	b.b, b.off = b.b[:0], 0
	buffers.Put(b)
}

// len is the number of bytes that are not used up.
func (b *buffer) len() int { return len(b.b) - b.off }

func (b *buffer) rest() []byte { return b.b[b.off:] }

func (b *buffer) skip(n int) {
	b.off += n
	if b.off == len(b.b) {
		b.b, b.off = b.b[:0], 0
	}
}

// push appends p, first moving what is left to the front if that makes room.
func (b *buffer) push(p []byte) {
	if b.off > 0 && len(b.b)+len(p) > cap(b.b) {
		b.b, b.off = append(b.b[:0], b.b[b.off:]...), 0
	}
	b.b = append(b.b, p...)
}

// readBuffers hold what a connection has read and not yet parsed.
const readSize = 64 << 10

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// Budget bounds the bytes that all connections sharing it may hold for peers
// that do not take them.
type Budget struct {
	limit int64
	used  counter
}

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// DefaultBudget is what connections without a budget of their own share: 512 MiB.
var DefaultBudget = NewBudget(512 << 20)

// Used is the number of bytes held now.
func (b *Budget) Used() int64 { return b.used.Load() }
