package configs

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// definitions is what the rules of TOML say about defining things twice.
var definitions = map[string]bool{
	"a = 1\na = 2":               false,
	"a.b = 1\na.b = 2":           false,
	"a.b = 1\na.c = 2":           true,
	"a = 1\na.b = 2":             false,
	"a.b = 1\na = 2":             false,
	"[a]\n[a]":                   false,
	"[a.b]\n[a]":                 true,
	"[a.b]\n[a]\n[a]":            false,
	"[a]\n[a.b]\n[a.b]":          false,
	"[a]\nb.c = 1\n[a.b]":        false,
	"[a]\nb.c = 1\n[a.b.d]":      true,
	"[a.b]\nx = 1\n[a]\nb.y = 2": false,
	"[a]\nb.x = 1\n[c]\n[a.d]\n": true,
	"a = {}\n[a]":                false,
	"a = {}\n[a.b]":              false,
	"a = {}\na.b = 1":            false,
	"a = {b.c = 1, b.d = 2}":     true,
	"a = {b.c = 1}\na.b.d = 2":   false,
	"a = {b.c = 1, b = 2}":       false,
	"a = {b = {c = 1}, b.d = 2}": false,
	"[[a]]\n[[a]]":               true,
	"[[a]]\n[a]":                 false,
	"[a]\n[[a]]":                 false,
	"a = []\n[[a]]":              false,
	"a = [{}]\n[a.b]":            false,
	"[[a]]\n[a.b]\n[[a]]\n[a.b]": true,
	"[[a]]\n[a.b]\n[a.b]":        false,
	"[[a.b]]\n[a]":               true,
	"[[a.b]]\n[a]\nb = 1":        false,
	"[[a]]\nb = 1\nb = 2":        false,
	"x = 99999999999999999999":   false,
	"x = 1979-13-01":             false,
	"x = 1979-05-27T07:32:00Z":   true,
	"x = 0x1F\ny = 1e3\nz = inf\nw = [1, 'a', {}]": true,
	"x = tru":     false,
	"x = \"\\q\"": false,
	"x":           false,
	"[x":          false,
	"":            true,
}

func TestDefinitions(t *testing.T) {
	for text, want := range definitions {
		_, err := ParseTOML("x.toml", []byte(text))
		if (err == nil) != want {
			t.Errorf("%q: %v, want accepted %v", text, err, want)
		}
		var s *SyntaxError
		if err != nil && (!errors.As(err, &s) || s.Pos.Line < 1 || s.Pos.Column < 1) {
			t.Errorf("%q: no place in %v", text, err)
		}
	}
}

func TestPositions(t *testing.T) {
	root, err := ParseTOML("x.toml", []byte("a = 1\n\n[b]\n  \"c d\".e = [\n    'x',\n    {f = true},\n  ]\n[[g]]\nh = \"ü\" # x\n"))
	if err != nil {
		t.Fatal(err)
	}
	e := root.Get("b").Table.Get("c d").Table.Get("e")
	h := root.Get("g").List[0].Table.Get("h")
	for what, got := range map[string]string{
		"key a":     strings.TrimSpace(fmt.Sprintln(root.Get("a").KeyPos, root.Get("a").Pos, root.Get("a").Kind, root.Get("a").Text)),
		"table b":   strings.TrimSpace(fmt.Sprintln(root.Get("b").KeyPos)),
		"key e":     strings.TrimSpace(fmt.Sprintln(e.KeyPos, e.Kind, len(e.List))),
		"element 0": strings.TrimSpace(fmt.Sprintln(e.List[0].Pos, e.List[0].Text)),
		"key f":     strings.TrimSpace(fmt.Sprintln(e.List[1].Table.Get("f").KeyPos, e.List[1].Table.Get("f").Text)),
		"key h":     strings.TrimSpace(fmt.Sprintln(h.KeyPos, h.Pos, h.Text)),
	} {
		want := map[string]string{"key a": "{1 1} {1 5} integer 1", "table b": "{3 2}", "key e": "{4 9} list 2", "element 0": "{5 5} x",
			"key f": "{6 6} true", "key h": "{9 1} {9 5} ü"}[what]
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
}

func TestBounds(t *testing.T) {
	for name, text := range map[string]string{
		"size":     strings.Repeat("#", MaxFile+1),
		"nesting":  "x = " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"encoding": "x = \"\xff\"",
	} {
		if _, err := ParseTOML("x.toml", []byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Twenty thousand keys are read in time that a person does not notice.
	var b strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&b, "\"/acme.v1.Service/Method%d\" = [\"x\"]\n", i)
	}
	start := time.Now()
	if _, err := ParseTOML("x.toml", []byte(b.String())); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// FuzzTOML compares what is accepted with what the library's decoder accepts.
func FuzzTOML(f *testing.F) {
	for text := range definitions {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := ParseTOML("x.toml", text)
		var decoded map[string]any
		want := toml.Unmarshal(text, &decoded)
		if err != nil && strings.Contains(err.Error(), "nested too deeply") {
			return
		}
		if (err == nil) != (want == nil) {
			t.Fatalf("ParseTOML says %v, the decoder says %v", err, want)
		}
	})
}
