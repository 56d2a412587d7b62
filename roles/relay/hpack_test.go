package relay

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// TestHeaderTables sends many blocks, with fields that repeat, that never do,
// and table sizes that change, to another decoder and to ours.
func TestHeaderTables(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var e headerEncoder
	other := hpack.NewDecoder(4096, nil)
	ours := newHeaderDecoder(4096, 64<<10)
	for block := range 5000 {
		if block == 2500 {
			e.t.added += 1<<31 - e.t.added - 100 // near the end of the numbers, as if
			e.t.count, e.t.size = 0, 0
			clear(e.t.buckets[:])
			e.setLimit(0)
		}
		if block == 2501 || rng.IntN(200) == 0 {
			n := uint32(rng.IntN(6000))
			e.setLimit(uint32(rng.IntN(6000)))
			e.setLimit(n)
		}
		e.begin()
		var want []Field
		for range rng.IntN(12) {
			f := Field{Name: fmt.Sprintf("name-%d", rng.IntN(40)), Value: strings.Repeat("v", rng.IntN(60)) + fmt.Sprint(rng.IntN(6))}
			switch rng.IntN(8) {
			case 0:
				f.Value += fmt.Sprint(rng.Uint64())
			case 1:
				f.Sensitive = true
			case 2:
				f = Field{Name: ":status", Value: "200"}
			case 3:
				f.Name = "grpc-timeout"
			case 4:
				f = Field{Name: "content-type", Value: "application/grpc"}
			}
			want = append(want, f)
			e.field(f.Name, f.Value, f.Sensitive)
		}
		list, err := other.DecodeFull(e.block())
		if err != nil || len(list) != len(want) {
			t.Fatal(block, err, len(list), len(want))
		}
		fields, err := ours.decode(e.block(), nil)
		if err != nil || len(fields) != len(want) {
			t.Fatal(block, err, len(fields), len(want))
		}
		for i, f := range want {
			if list[i].Name != f.Name || list[i].Value != f.Value || list[i].Sensitive != f.Sensitive || fields[i] != f {
				t.Fatalf("%d: %+v became %+v and %+v", block, f, list[i], fields[i])
			}
		}
	}
	if e.t.added > 1<<31 {
		t.Error("numbers did not begin again")
	}
}

// TestIndexing checks which fields enter the table, by the size of a third block.
func TestIndexing(t *testing.T) {
	for name, want := range map[string]bool{"user-agent": true, "x-anything": true, ":path": true, "grpc-timeout": false, "traceparent": false, "sallyport-request-id": false} {
		var e headerEncoder
		for range 3 {
			e.begin()
			e.field(name, "value-of-some-length", false)
		}
		if got := len(e.block()) == 1; got != want {
			t.Errorf("%s: a block of %d bytes", name, len(e.block()))
		}
	}
	var e headerEncoder
	for range 3 {
		e.begin()
		e.field("authorization", "Bearer x", true)
	}
	if b := e.block(); b[0]&0xf0 != 0x10 {
		t.Errorf("authorization may be indexed: %x", b)
	}
	// What is new every time leaves the table as it is.
	e.begin()
	e.field("k", "stays", false)
	e.begin()
	e.field("k", "stays", false)
	for i := range 1000 {
		e.begin()
		e.field("x-unheard-of-id", fmt.Sprint("value-", i), false)
	}
	e.begin()
	e.field("k", "stays", false)
	if len(e.block()) != 1 {
		t.Error("pushed out of the table")
	}
}

var benchFields = []Field{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/acme.orders.v1.Orders/Get"}, {Name: ":authority", Value: "api.example.org"},
	{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "grpc-go/1.85.0"}, {Name: "te", Value: "trailers"}, {Name: "grpc-timeout", Value: "999923u"}}

func BenchmarkEncode(b *testing.B) {
	var e headerEncoder
	for b.Loop() {
		e.begin()
		for i := range benchFields {
			e.field(benchFields[i].Name, benchFields[i].Value, false)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	var e headerEncoder
	d := newHeaderDecoder(4096, 64<<10)
	var block []byte
	for range 3 {
		e.begin()
		for _, f := range benchFields {
			e.field(f.Name, f.Value, false)
		}
		block = append(block[:0], e.block()...)
		if _, err := d.decode(block, nil); err != nil {
			b.Fatal(err)
		}
	}
	into := make([]Field, 0, 16)
	for b.Loop() {
		if _, err := d.decode(block, into); err != nil {
			b.Fatal(err)
		}
	}
}
