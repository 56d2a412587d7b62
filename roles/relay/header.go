package relay

import (
	"errors"

	"golang.org/x/net/http2/hpack"
)

// Header compression. Everything the engine knows about it is in this file:
// headerEncoder and headerDecoder, one of each per connection.

// headerEncoder encodes header blocks in the order in which they are written to
// one connection. Its connection's mutex guards it.
type headerEncoder struct {
	out   []byte
	hp    *hpack.Encoder
	limit uint32 // what the peer's SETTINGS allow, applied before the next block
	dirty bool
	first bool // the library has something to say before the first field
}

// Write collects what the library encodes.
func (e *headerEncoder) Write(p []byte) (int, error) {
	e.out = append(e.out, p...)
	return len(p), nil
}

// setLimit is told the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *headerEncoder) setLimit(n uint32) {
	e.limit, e.dirty = n, true
}

// begin starts a block.
func (e *headerEncoder) begin() {
	e.out = e.out[:0]
	if e.hp == nil {
		e.hp = hpack.NewEncoder(e)
	}
	if e.dirty {
		e.hp.SetMaxDynamicTableSizeLimit(e.limit)
		e.hp.SetMaxDynamicTableSize(min(e.limit, 4096))
		e.dirty, e.first = false, true
	}
}

// field adds a field. Fields that are new in every call would only push others
// out of the table, so they are written as literals beside it.
func (e *headerEncoder) field(name, value string, sensitive bool) {
	if !sensitive && !e.first && passing(name) {
		e.out = append(e.out, 0)
		e.out = appendHpackString(e.out, name)
		e.out = appendHpackString(e.out, value)
		return
	}
	e.first = false
	// The library returns only what its writer returned, which is nil.
	_ = e.hp.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: sensitive})
}

// block is the encoded block, valid until the next begin.
func (e *headerEncoder) block() []byte { return e.out }

// passing names fields that differ from call to call.
func passing(name string) bool {
	switch name {
	case "grpc-timeout", "traceparent", "tracestate", "grpc-message", "content-length", "date",
		"sallyport-request-id", "x-request-id", "request-id", "x-correlation-id", "grpc-trace-bin", "grpc-tags-bin",
		"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "b3", "grpc-status-details-bin", "sallyport-source":
		return true
	}
	return false
}

// secret names fields that never enter a table, whatever their sender did.
func secret(name string) bool {
	return name == "authorization" || name == "proxy-authorization"
}

// appendHpackString writes a string literal without Huffman coding.
func appendHpackString(b []byte, s string) []byte {
	n := len(s)
	if n < 127 {
		b = append(b, byte(n))
	} else {
		b = append(b, 127)
		for n -= 127; n >= 128; n >>= 7 {
			b = append(b, byte(n)|0x80)
		}
		b = append(b, byte(n))
	}
	return append(b, s...)
}

// headerDecoder decodes the header blocks of one connection, on its reader.
type headerDecoder struct {
	hp     *hpack.Decoder
	limit  uint32
	table  uint32
	fields []Field
	size   uint32
	over   bool
}

var errHeaderList = errors.New("header list too large")

func newHeaderDecoder(table, limit uint32) *headerDecoder {
	return &headerDecoder{limit: limit, table: table}
}

// decode appends the fields of a whole block to into. With errHeaderList the
// block was too large to keep but the table is in step; any other error has lost
// it.
func (d *headerDecoder) decode(block []byte, into []Field) ([]Field, error) {
	if d.hp == nil {
		d.hp = hpack.NewDecoder(d.table, d.emit)
		d.hp.SetMaxStringLength(int(d.limit))
	}
	d.fields, d.size, d.over = into, 0, false
	_, err := d.hp.Write(block)
	if err == nil {
		err = d.hp.Close()
	}
	d.hp.SetEmitEnabled(true)
	fields := d.fields
	d.fields = nil
	if err == nil && d.over {
		err = errHeaderList
	}
	return fields, err
}

func (d *headerDecoder) emit(f hpack.HeaderField) {
	d.size += f.Size()
	if d.size > d.limit {
		d.over = true
		d.hp.SetEmitEnabled(false)
		return
	}
	d.fields = append(d.fields, Field{Name: f.Name, Value: f.Value, Sensitive: f.Sensitive || secret(f.Name)})
}
