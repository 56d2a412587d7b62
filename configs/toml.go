package configs

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// MaxFile is the size of the largest file ParseTOML reads.
const MaxFile = 2 << 20

// maxDepth bounds the nesting of values, so that a file cannot cost stack.
const maxDepth = 16

// Position is a place in a file. Lines and columns count from 1, columns in
// bytes.
type Position struct{ Line, Column int }

// Table is a TOML table that remembers where everything stood. Reading a file
// into a struct would lose that, and then no later message could name a line.
type Table struct {
	Pos    Position
	Keys   []string // in the order of the file
	Values map[string]*Value
}

// Value is a TOML value. Exactly one of its forms is set: Table, List
// (IsList), or Text with the kind of the scalar.
type Value struct {
	KeyPos Position // of the key, or of the element in a list
	Pos    Position // of the value
	Kind   string   // string, integer, boolean, other, list, table
	Text   string   // of a string its content, else as written
	List   []*Value
	Table  *Table
}

// Get returns the value of a key, or nil.
func (t *Table) Get(key string) *Value {
	if t == nil {
		return nil
	}
	return t.Values[key]
}

// SyntaxError is a file that is not TOML.
type SyntaxError struct {
	File    string
	Pos     Position
	Problem string
}

// Error is FILE:LINE:COLUMN and the problem.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Pos.Line, e.Pos.Column, e.Problem)
}

// ParseTOML reads a file. name is what errors call it. Whether the keys mean
// anything is for the caller to check.
func ParseTOML(name string, text []byte) (*Table, error) {
	if len(text) > MaxFile {
		return nil, &SyntaxError{name, Position{1, 1}, fmt.Sprintf("the file has %d bytes, more than the %d that are read; is it the right file?", len(text), MaxFile)}
	}
	if i := invalidUTF8(text); i >= 0 {
		return nil, &SyntaxError{name, newLines(text).at(i), "the file is not UTF-8 text; is it the right file?"}
	}
	// The library's decoder knows the rules about keys and tables that are
	// defined twice; its lower layer, used after it, knows positions.
	var discard map[string]any
	if err := toml.Unmarshal(text, &discard); err != nil {
		var d *toml.DecodeError
		if errors.As(err, &d) {
			line, column := d.Position()
			return nil, &SyntaxError{name, Position{line, column}, strings.TrimPrefix(d.Error(), "toml: ")}
		}
		return nil, &SyntaxError{name, Position{1, 1}, strings.TrimPrefix(err.Error(), "toml: ")}
	}
	b := builder{file: name, lines: newLines(text)}
	b.p.Reset(text)
	return b.document()
}

type builder struct {
	file  string
	lines lines
	p     unstable.Parser
}

func (b *builder) document() (*Table, error) {
	root := &Table{Pos: Position{1, 1}}
	at := root
	for b.p.NextExpression() {
		e := b.p.Expression()
		var err error
		switch e.Kind {
		case unstable.Table:
			at, err = b.header(root, e, false)
		case unstable.ArrayTable:
			at, err = b.header(root, e, true)
		case unstable.KeyValue:
			err = b.assign(at, e, 0)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := b.p.Error(); err != nil {
		return nil, &SyntaxError{b.file, Position{1, 1}, err.Error()}
	}
	return root, nil
}

// header finds or makes the table that [a.b] or [[a.b]] opens.
func (b *builder) header(root *Table, e *unstable.Node, list bool) (*Table, error) {
	at := root
	for it := e.Key(); it.Next(); {
		k := it.Node()
		pos, key := b.pos(k), string(k.Data)
		if list && it.IsLast() {
			v := at.Get(key)
			if v == nil {
				v = &Value{KeyPos: pos, Pos: pos, Kind: "list"}
				at.set(key, v)
			} else if v.Kind != "list" {
				return nil, &SyntaxError{b.file, pos, fmt.Sprintf("%s is a %s and no list of tables", key, v.Kind)}
			}
			t := &Table{Pos: pos}
			v.List = append(v.List, &Value{KeyPos: pos, Pos: pos, Kind: "table", Table: t})
			return t, nil
		}
		next, err := b.descend(at, key, pos)
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

func (b *builder) descend(at *Table, key string, pos Position) (*Table, error) {
	v := at.Get(key)
	switch {
	case v == nil:
		t := &Table{Pos: pos}
		at.set(key, &Value{KeyPos: pos, Pos: pos, Kind: "table", Table: t})
		return t, nil
	case v.Kind == "table":
		return v.Table, nil
	case v.Kind == "list" && len(v.List) > 0 && v.List[len(v.List)-1].Kind == "table":
		return v.List[len(v.List)-1].Table, nil
	}
	return nil, &SyntaxError{b.file, pos, fmt.Sprintf("%s is a %s and no table", key, v.Kind)}
}

func (b *builder) assign(at *Table, e *unstable.Node, depth int) error {
	for it := e.Key(); it.Next(); {
		k := it.Node()
		pos, key := b.pos(k), string(k.Data)
		if !it.IsLast() {
			next, err := b.descend(at, key, pos)
			if err != nil {
				return err
			}
			at = next
			continue
		}
		v, err := b.value(e.Value(), pos, depth)
		if err != nil {
			return err
		}
		v.KeyPos = pos
		at.set(key, v)
	}
	return nil
}

func (b *builder) value(n *unstable.Node, near Position, depth int) (*Value, error) {
	pos := near
	if n.Raw.Length > 0 {
		pos = b.lines.at(int(n.Raw.Offset))
	}
	if depth > maxDepth {
		return nil, &SyntaxError{b.file, pos, "values are nested too deeply"}
	}
	v := &Value{KeyPos: pos, Pos: pos, Kind: "other", Text: string(n.Data)}
	switch n.Kind {
	case unstable.String:
		v.Kind = "string"
	case unstable.Integer:
		v.Kind = "integer"
	case unstable.Bool:
		v.Kind = "boolean"
	case unstable.Array:
		v.Kind, v.Text = "list", ""
		for it := n.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			item, err := b.value(it.Node(), pos, depth+1)
			if err != nil {
				return nil, err
			}
			v.List = append(v.List, item)
		}
	case unstable.InlineTable:
		v.Kind, v.Text, v.Table = "table", "", &Table{Pos: pos}
		for it := n.Children(); it.Next(); {
			if it.Node().Kind != unstable.KeyValue {
				continue
			}
			if err := b.assign(v.Table, it.Node(), depth+1); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func (b *builder) pos(n *unstable.Node) Position { return b.lines.at(int(n.Raw.Offset)) }

func (t *Table) set(key string, v *Value) {
	if t.Values == nil {
		t.Values = map[string]*Value{}
	}
	if _, ok := t.Values[key]; !ok {
		t.Keys = append(t.Keys, key)
	}
	t.Values[key] = v
}

// lines holds the offset of the start of every line.
type lines []int

func newLines(text []byte) lines {
	l := lines{0}
	for i, c := range text {
		if c == '\n' {
			l = append(l, i+1)
		}
	}
	return l
}

func (l lines) at(offset int) Position {
	i := sort.SearchInts(l, offset+1) - 1
	return Position{Line: i + 1, Column: offset - l[i] + 1}
}

func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		if text[i] < utf8.RuneSelf {
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// quote writes a string as TOML reads it.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			b.WriteString(`\u00`)
			b.WriteString(strconv.FormatInt(int64(r>>4), 16))
			b.WriteString(strconv.FormatInt(int64(r&15), 16))
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
