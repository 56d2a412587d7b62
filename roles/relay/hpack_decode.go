package relay

import (
	"errors"

	"golang.org/x/net/http2/hpack"
)

var (
	errHeaderList = errors.New("header list too large")
	errTruncated  = errors.New("the block ends inside a field")
	errInteger    = errors.New("an integer is too large")
	errIndex      = errors.New("an index beyond the tables")
	errTableSize  = errors.New("a table size update that is not allowed")
	errHuffman    = errors.New("malformed Huffman coding")
)

// headerDecoder decodes the header blocks of one connection, on its reader.
type headerDecoder struct {
	limit   int // bytes of a list
	allowed int // bytes of table that our SETTINGS allow
	max     int // bytes of table that the peer uses
	size    int
	ring    []tableEntry // of a power of two
	added   int
	count   int

	// clean has a bit for each of the first 64 fields of the last block that
	// needs no look at its characters and means nothing to the engine.
	clean uint64
}

type tableEntry struct {
	name, value string
	clean       bool
}

func newHeaderDecoder(table, limit uint32) *headerDecoder {
	return &headerDecoder{limit: int(limit), allowed: int(table), max: int(table)}
}

// decode appends the fields of a whole block to into. With errHeaderList the
// block was too large to keep but the table is in step; any other error has lost
// it.
func (d *headerDecoder) decode(b []byte, into []Field) ([]Field, error) {
	d.clean = 0
	size, over, start := 0, false, len(into)
	first := true
	for len(b) > 0 {
		var f Field
		var clean bool
		var err error
		c := b[0]
		switch {
		case c&0x80 != 0: // both from a table
			var i uint64
			if i, b, err = readInt(b, 7); err != nil {
				return into, err
			}
			if f.Name, f.Value, clean, err = d.at(i); err != nil {
				return into, err
			}
		case c&0xe0 == 0x20: // table size
			var n uint64
			if n, b, err = readInt(b, 5); err != nil {
				return into, err
			}
			if !first || n > uint64(d.allowed) {
				return into, errTableSize
			}
			d.max = int(n)
			d.evict()
			continue
		default:
			prefix := uint(4)
			if c&0x40 != 0 {
				prefix = 6
			}
			var i uint64
			if i, b, err = readInt(b, prefix); err != nil {
				return into, err
			}
			known := i != 0
			if known {
				f.Name, _, _, err = d.at(i)
			} else {
				f.Name, b, err = d.text(b, true)
			}
			if err != nil {
				return into, err
			}
			if f.Value, b, err = d.text(b, false); err != nil {
				return into, err
			}
			f.Sensitive = c&0xf0 == 0x10
			if prefix == 6 {
				clean = d.add(f.Name, f.Value)
			}
		}
		first = false
		if size += len(f.Name) + len(f.Value) + headerFieldOverhead; size > d.limit {
			over = true
		}
		if over {
			continue
		}
		if n := len(into) - start; clean && n < 64 {
			d.clean |= 1 << n
		}
		f.Sensitive = f.Sensitive || secret(f.Name)
		into = append(into, f)
	}
	if over {
		return into, errHeaderList
	}
	return into, nil
}

// at is the entry with an index.
func (d *headerDecoder) at(i uint64) (name, value string, clean bool, err error) {
	switch {
	case i == 0 || i > uint64(staticLen+d.count):
		return "", "", false, errIndex
	case i <= uint64(staticLen):
		f := &staticTable[i]
		return f.Name, f.Value, false, nil
	}
	e := &d.ring[(d.added-(int(i)-staticLen))&(len(d.ring)-1)]
	return e.name, e.value, e.clean, nil
}

// add puts a field into the table and says whether it is clean.
func (d *headerDecoder) add(name, value string) bool {
	clean := unremarkable(name, value)
	size := len(name) + len(value) + entryOverhead
	if size > d.max {
		d.count, d.size = 0, 0
		clear(d.ring)
		return clean
	}
	d.size += size
	d.evict()
	if d.count == len(d.ring) {
		grown := make([]tableEntry, max(8, 2*len(d.ring)))
		for i := d.added - d.count; i < d.added; i++ {
			grown[i&(len(grown)-1)] = d.ring[i&(len(d.ring)-1)]
		}
		d.ring = grown
	}
	d.ring[d.added&(len(d.ring)-1)] = tableEntry{name, value, clean}
	d.added++
	d.count++
	return clean
}

func (d *headerDecoder) evict() {
	for d.size > d.max && d.count > 0 {
		e := &d.ring[(d.added-d.count)&(len(d.ring)-1)]
		d.size -= len(e.name) + len(e.value) + entryOverhead
		*e = tableEntry{}
		d.count--
	}
}

// text reads a string literal.
func (d *headerDecoder) text(b []byte, name bool) (string, []byte, error) {
	if len(b) == 0 {
		return "", nil, errTruncated
	}
	coded := b[0]&0x80 != 0
	n, b, err := readInt(b, 7)
	if err != nil {
		return "", nil, err
	}
	if n > uint64(len(b)) {
		return "", nil, errTruncated
	}
	p := b[:n]
	b = b[n:]
	if coded {
		s, err := hpack.HuffmanDecodeToString(p)
		if err != nil {
			return "", nil, errHuffman
		}
		return s, b, nil
	}
	if s := usual(p, name); s != "" {
		return s, b, nil
	}
	return string(p), b, nil
}

// usual saves making strings that every call has.
func usual(p []byte, name bool) string {
	if name {
		switch string(p) {
		case "grpc-timeout":
			return "grpc-timeout"
		case "grpc-status":
			return "grpc-status"
		case "grpc-message":
			return "grpc-message"
		case "te":
			return "te"
		case "traceparent":
			return "traceparent"
		case HeaderRequestID:
			return HeaderRequestID
		case HeaderSource:
			return HeaderSource
		case HeaderCaller:
			return HeaderCaller
		case HeaderPermissions:
			return HeaderPermissions
		case HeaderClientCert:
			return HeaderClientCert
		}
		return ""
	}
	switch string(p) {
	case "0":
		return "0"
	case "200":
		return "200"
	case contentTypeGRPC:
		return contentTypeGRPC
	case "trailers":
		return "trailers"
	}
	return ""
}

// unremarkable says whether a field is well formed and of a name that no rule
// speaks of, so that whoever meets it again need not look.
func unremarkable(name, value string) bool {
	if name == "" || name[0] == ':' || !validName(name) || !validValue(value) || hopByHop(name) || Reserved(name) {
		return false
	}
	switch name {
	case "te", "host", "content-length", "content-type", "authorization", "grpc-timeout", "cookie", "grpc-status", "grpc-message":
		return false
	}
	return true
}
