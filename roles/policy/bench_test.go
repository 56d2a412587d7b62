package policy

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"
)

// large is a policy of 2000 methods, 200 services and 500 callers.
func large(t testing.TB) *Policy {
	var b strings.Builder
	b.WriteString("[methods]\n\"/acme.pkg.*\" = [\"pkg\"]\n")
	for s := range 200 {
		fmt.Fprintf(&b, "\"/acme.v1.Service%d/*\" = [\"admin\"]\n", s)
		for m := range 10 {
			fmt.Fprintf(&b, "\"/acme.v1.Service%d/Method%d\" = [\"s%d:read\", \"admin\"]\n", s, m, s)
		}
	}
	for c := range 500 {
		fmt.Fprintf(&b, "[[grant]]\ncaller = \"spiffe://example.org/client/c%d\"\npermissions = [\"s%d:read\", \"pkg\"]\nvia_proxy = [\"dmz1\", \"dmz2\"]\n", c, c%200)
	}
	return parse(t, b.String())
}

// TestDecideIsCheap guards the number of allocations; the time is for the
// benchmark to say.
func TestDecideIsCheap(t *testing.T) {
	p := large(t)
	c := Caller{Kind: Certificate, ID: "spiffe://example.org/client/c7", ViaProxy: "dmz1"}
	for path, limit := range map[string]float64{"/acme.v1.Service7/Method3": 0, "/acme.pkg.deep.er.S/M": 0, "/acme.v1.Service8/Method3": 1, "/a//b": 0} {
		if n := testing.AllocsPerRun(100, func() { p.Decide(path, c) }); n > limit {
			t.Errorf("%s: %v allocations", path, n)
		}
	}
	secret, _, err := NewAPIKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := HashAPIKey(secret)
	keys, header, now := NewKeys([]Key{{Name: "ci", SHA256: sum}}), "Bearer "+secret, time.Now()
	if n := testing.AllocsPerRun(100, func() { keys.Lookup(header, now) }); n > 0 {
		t.Errorf("Lookup: %v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	p := large(b)
	known := Caller{Kind: Certificate, ID: "spiffe://example.org/client/c7", ViaProxy: "dmz1"}
	for _, c := range []struct {
		name, path string
		caller     Caller
	}{
		{"exact", "/acme.v1.Service7/Method3", known},
		{"service", "/acme.v1.Service7/Other", known},
		{"package", "/acme.pkg.deep.er.Service/Method", known},
		{"denied", "/acme.v1.Service8/Method3", known},
		{"stranger", "/acme.v1.Service8/Method3", Caller{}},
		{"unknown", "/acme.v2.Service8/Method3", Caller{}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(c.path, c.caller)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	secret, _, err := NewAPIKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	sum, _ := HashAPIKey(secret)
	keys, header, now := NewKeys([]Key{{Name: "ci", SHA256: sum}}), "Bearer "+secret, time.Now()
	b.ReportAllocs()
	for b.Loop() {
		keys.Lookup(header, now)
	}
}

func BenchmarkRules(b *testing.B) {
	rules, err := NewRules(large(b).RulesFor([]string{"acme.v1.*"}))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		rules.Match("/acme.v1.Service7/Method3")
	}
}

func BenchmarkParse(b *testing.B) {
	text := large(b).Text()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse("policy.toml", text); err != nil {
			b.Fatal(err)
		}
	}
}
