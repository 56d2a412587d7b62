package relay

import (
	"encoding/base64"
	"encoding/binary"
	"slices"
)

// What gRPC-Web is made of: base64 that comes in pieces, messages whose ends
// have to be known, and trailers as a frame.

// decoder decodes base64 (RFC 4648 section 4) that comes in pieces. Senders may
// encode piece by piece, so padding may stand in the middle; after it a new
// group of four begins. Nothing but the alphabet and padding is taken.
type decoder struct {
	group [4]byte
	n     int // of group
}

// append decodes p onto dst. What it returns beside false is of no use.
func (d *decoder) append(dst, p []byte) ([]byte, bool) {
	dst = slices.Grow(dst, len(p)/4*3+3)
	for i := 0; i < len(p); i++ {
		if d.n == 0 { // whole groups without padding, which is nearly all
			out := dst[len(dst):cap(dst)]
			n := 0
			for ; len(p)-i >= 4 && n+3 <= len(out); i, n = i+4, n+3 {
				q := p[i : i+4 : i+4]
				a, b, c, e := base64Values[q[0]], base64Values[q[1]], base64Values[q[2]], base64Values[q[3]]
				if a|b|c|e >= 64 {
					break
				}
				o := out[n : n+3 : n+3]
				o[0], o[1], o[2] = a<<2|b>>4, b<<4|c>>2, c<<6|e
			}
			if dst = dst[:len(dst)+n]; i == len(p) {
				break
			}
		}
		d.group[d.n] = p[i]
		if d.n++; d.n < 4 {
			continue
		}
		d.n = 0
		a, b, c, e := base64Values[d.group[0]], base64Values[d.group[1]], base64Values[d.group[2]], base64Values[d.group[3]]
		switch {
		case a|b|c|e < 64:
			dst = append(dst, a<<2|b>>4, b<<4|c>>2, c<<6|e)
		case a|b|c < 64 && d.group[3] == '=' && c&3 == 0:
			dst = append(dst, a<<2|b>>4, b<<4|c>>2)
		case a|b < 64 && d.group[2] == '=' && d.group[3] == '=' && b&15 == 0:
			dst = append(dst, a<<2|b>>4)
		default:
			return dst, false
		}
	}
	return dst, true
}

// whole says whether what has come can end here.
func (d *decoder) whole() bool { return d.n == 0 }

// base64Values has 64 for what is none.
var base64Values = func() (v [256]byte) {
	for i := range v {
		v[i] = 64
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		v[c] = byte(i)
	}
	return v
}()

func appendBase64(dst, p []byte) []byte { return base64.StdEncoding.AppendEncode(dst, p) }

// messages follows the lengths in front of messages, and nothing else of them,
// to know where one ends.
type messages struct {
	length uint32
	rest   uint32 // bytes of the message that have not come
	n      uint8  // bytes of the next prefix that have
}

const messagePrefix = 5 // one byte of flags, four of length

// add takes what comes next; false: it is no message of gRPC.
func (m *messages) add(p []byte) bool {
	for len(p) > 0 {
		if m.rest > 0 {
			k := min(uint64(m.rest), uint64(len(p)))
			m.rest -= uint32(k)
			p = p[k:]
			continue
		}
		if m.n == 0 && p[0] > 1 {
			return false // above "compressed" there is only what gRPC-Web calls trailers
		}
		if m.n > 0 {
			m.length = m.length<<8 | uint32(p[0])
		}
		p = p[1:]
		if m.n++; m.n == messagePrefix {
			m.rest, m.length, m.n = m.length, 0, 0
		}
	}
	return true
}

// between says whether a message has ended and none has begun.
func (m *messages) between() bool { return m.rest == 0 && m.n == 0 }

// trailerFlag marks the frame that holds the trailers.
const trailerFlag = 0x80

// appendTrailers appends fields as the last frame of a response: a block as of
// HTTP/1.1, names in lower case.
func appendTrailers(dst []byte, fields []Field) []byte {
	at := len(dst)
	dst = append(dst, trailerFlag, 0, 0, 0, 0)
	for i := range fields {
		f := &fields[i]
		if f.Name == "" || f.Name[0] == ':' || f.Name == "content-type" || f.Name == "content-length" {
			continue
		}
		dst = append(dst, f.Name...)
		dst = append(dst, ": "...)
		dst = append(dst, f.Value...)
		dst = append(dst, "\r\n"...)
	}
	binary.BigEndian.PutUint32(dst[at+1:], uint32(len(dst)-at-messagePrefix))
	return dst
}
