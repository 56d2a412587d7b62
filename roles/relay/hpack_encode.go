package relay

import "math/bits"

// headerEncoder encodes header blocks in the order in which they are written to
// one connection. Its connection's mutex guards it.
//
// A field enters the table when it is seen for the second time: what differs
// from call to call is so kept out of it, whatever it is called. Nothing is
// Huffman coded: on our links bytes cost less than the time it takes.
type headerEncoder struct {
	out   []byte
	t     *encoderTable // allocated when used
	limit uint32        // what the peer's SETTINGS allow, applied before the next block
	dirty bool
	small uint32 // the smallest limit since the last block
}

type encoderTable struct {
	ring    [ringSize]encoderEntry
	buckets [ringSize]uint32 // the newest entry of a hash, as its number plus one
	seen    [64]uint32       // hashes of fields that were not put into the table
	added   uint32
	count   uint32
	size    int
	max     int
}

type encoderEntry struct {
	name, value string
	hash        uint32
	older       uint32 // the next entry of the bucket, as its number plus one
}

// setLimit is told the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *headerEncoder) setLimit(n uint32) {
	n = min(n, tableMax)
	if !e.dirty {
		e.small = n
	}
	e.limit, e.small, e.dirty = n, min(e.small, n), true
}

// begin starts a block.
func (e *headerEncoder) begin() {
	e.out = e.out[:0]
	if e.t == nil {
		e.t = &encoderTable{max: tableMax}
	}
	if e.dirty {
		e.dirty = false
		if e.small < e.limit {
			// Any size up to the smallest will do; not every decoder takes
			// another update unless the table is empty.
			e.out = append(e.out, 0x20)
			e.t.resize(0)
		}
		e.out = appendInt(e.out, 0x20, 5, uint64(e.limit))
		e.t.resize(int(e.limit))
	}
}

// block is the encoded block, valid until the next begin.
func (e *headerEncoder) block() []byte { return e.out }

// index adds a field of the static table.
func (e *headerEncoder) index(i byte) { e.out = append(e.out, 0x80|i) }

// field adds a field.
func (e *headerEncoder) field(name, value string, sensitive bool) {
	if sensitive {
		e.literal(0x10, 4, name, value)
		return
	}
	if i := staticField(name, value); i != 0 {
		e.index(byte(i))
		return
	}
	size := len(name) + len(value) + entryOverhead
	if passing(name) || size > e.t.max {
		e.literal(0, 4, name, value)
		return
	}
	h := hashField(name, value)
	if i := e.t.find(h, name, value); i != 0 {
		e.out = appendInt(e.out, 0x80, 7, uint64(i))
		return
	}
	if slot := &e.t.seen[h%uint32(len(e.t.seen))]; *slot != h {
		*slot = h
		e.literal(0, 4, name, value)
		return
	}
	e.literal(0x40, 6, name, value)
	e.t.add(h, name, value, size)
}

func (e *headerEncoder) literal(first byte, prefix uint, name, value string) {
	if i := staticName(name); i != 0 {
		e.out = appendInt(e.out, first, prefix, uint64(i))
	} else {
		e.out = append(e.out, first)
		e.out = appendString(e.out, name)
	}
	e.out = appendString(e.out, value)
}

// find is the index of a field, 0: it is not there.
func (t *encoderTable) find(h uint32, name, value string) int {
	oldest := t.added - t.count
	for n := t.buckets[h%ringSize]; n > oldest; {
		e := &t.ring[(n-1)%ringSize]
		if e.hash == h && e.name == name && e.value == value {
			return staticLen + int(t.added-(n-1))
		}
		n = e.older
	}
	return 0
}

func (t *encoderTable) add(h uint32, name, value string, size int) {
	t.size += size
	t.evict()
	if t.added > 1<<31 {
		// Numbers begin again; an empty table keeps them unambiguous.
		t.renumber()
	}
	t.ring[t.added%ringSize] = encoderEntry{name, value, h, t.buckets[h%ringSize]}
	t.added++
	t.count++
	t.buckets[h%ringSize] = t.added
}

func (t *encoderTable) evict() {
	for t.size > t.max && t.count > 0 {
		e := &t.ring[(t.added-t.count)%ringSize]
		t.size -= len(e.name) + len(e.value) + entryOverhead
		*e = encoderEntry{}
		t.count--
	}
}

// renumber lowers all numbers by a multiple of ringSize.
func (t *encoderTable) renumber() {
	shift := (t.added - t.count) / ringSize * ringSize
	oldest := t.added - t.count
	lower := func(n *uint32) {
		if *n <= oldest {
			*n = 0
		} else {
			*n -= shift
		}
	}
	for i := range t.buckets {
		lower(&t.buckets[i])
		lower(&t.ring[i].older)
	}
	t.added -= shift
}

func (t *encoderTable) resize(n int) {
	t.max = n
	t.evict()
}

// hashField mixes lengths and the bytes at both ends and in the middle. It need
// not resist anybody: a peer that provokes collisions slows down its own link's
// table of at most 128 entries.
func hashField(name, value string) uint32 {
	h := uint64(len(name))<<32 | uint64(len(value))
	h = mix(h, edges(name))
	h = mix(h, edges(value))
	for i := 16; i+8 < len(value); i += 8 {
		h = mix(h, load64(value[i:]))
	}
	return uint32(h>>32) ^ uint32(h)
}

func mix(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^0x9e3779b97f4a7c15, v^0xff51afd7ed558ccd)
	return hi ^ lo
}

// edges folds the first and the last 16 bytes of s, at most.
func edges(s string) uint64 {
	n := len(s)
	switch {
	case n >= 16:
		return mix(mix(load64(s), load64(s[8:])), mix(load64(s[n-16:]), load64(s[n-8:])))
	case n >= 8:
		return mix(load64(s), load64(s[n-8:]))
	}
	var v uint64
	for i := range n {
		v = v<<8 | uint64(s[i])
	}
	return v
}

func load64(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}
