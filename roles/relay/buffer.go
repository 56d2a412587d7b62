package relay

import (
	"math/bits"
	"sync"
)

// buffer is a pooled byte slice. Nothing that is idle holds one.
type buffer struct {
	b   []byte
	off int // bytes at the front that are used up
}

// The pool's buffers grow to what their users need; larger ones are left to the
// garbage collector.
const pooledMax = 256 << 10

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 2<<10)} }}

// getBuffer is for what is written or used up at once. What waits is in a buffer
// of its own size (sized): a large one for a few bytes would be held with them.
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

// Buffers of 512 bytes, twice that, and so on up to 1 MiB are pooled by size.
const (
	sizedLeast   = 9
	sizedClasses = 12
)

var sizedBuffers [sizedClasses]sync.Pool

// sizeClass is the class of buffers that hold n bytes.
func sizeClass(n int) int { return max(bits.Len(uint(max(n, 1)-1)), sizedLeast) - sizedLeast }

// sized appends p to b, which may be nil, in a buffer that is at most twice as
// large as what it holds needs. It returns the buffer and how many bytes more it
// has than b had.
func sized(b *buffer, p []byte) (*buffer, int64) {
	if b != nil && b.len()+len(p) <= cap(b.b) {
		b.push(p)
		return b, 0
	}
	n := len(p)
	if b != nil {
		n += b.len()
	}
	class := sizeClass(n)
	var to *buffer
	if class < sizedClasses {
		to, _ = sizedBuffers[class].Get().(*buffer)
	}
	if to == nil {
		to = &buffer{b: make([]byte, 0, 1<<(class+sizedLeast))}
	}
	grown := int64(cap(to.b))
	if b != nil {
		grown -= int64(cap(b.b))
		to.b = append(to.b, b.rest()...)
		putSized(b)
	}
	to.b = append(to.b, p...)
	return to, grown
}

// putSized gives a buffer of sized back.
func putSized(b *buffer) {
	if b == nil {
		return
	}
	class := sizeClass(cap(b.b))
	if class >= sizedClasses {
		return
	}
	b.b, b.off = b.b[:0], 0
	sizedBuffers[class].Put(b)
}

// readBuffers hold what a connection has read and not yet parsed.
const readSize = 64 << 10

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}
