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

	how     how
	section int // of a dotted table: the header it stands under
}

// how a table or a list came to be, which decides what may be added to it.
type how uint8

const (
	closed   how = iota // a value: nothing may be added
	implicit            // [a.b] made a: a header may still define it
	header              // [a], or an element of [[a]]
	dotted              // a.b = 1 made a: may grow within its section
	listed              // [[a]] made the list a: grows by more of them
)

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
//
// It stands on the lower layer of the TOML library, which knows positions;
// the rules about what may be defined where are kept here, in time that grows
// with the size of the file and no faster.
func ParseTOML(name string, text []byte) (*Table, error) {
	if len(text) > MaxFile {
		return nil, &SyntaxError{name, Position{1, 1}, fmt.Sprintf("the file has %d bytes, more than the %d that are read; is it the right file?", len(text), MaxFile)}
	}
	if i := invalidUTF8(text); i >= 0 {
		return nil, &SyntaxError{name, newLines(text).at(i), "the file is not UTF-8 text; is it the right file?"}
	}
	b := builder{file: name, lines: newLines(text)}
	b.p.Reset(text)
	return b.document()
}

type builder struct {
	file    string
	lines   lines
	p       unstable.Parser
	section int // number of headers so far
}

func (b *builder) document() (*Table, error) {
	root := &Table{Pos: Position{1, 1}}
	at := root
	for b.p.NextExpression() {
		e := b.p.Expression()
		var err error
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			b.section++
			at, err = b.header(root, e, e.Kind == unstable.ArrayTable)
		case unstable.KeyValue:
			err = b.assign(at, e, 0)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := b.p.Error(); err != nil {
		return nil, b.syntax(err)
	}
	return root, nil
}

// syntax gives the library's error its place.
func (b *builder) syntax(err error) error {
	pos := Position{1, 1}
	var p *unstable.ParserError
	if errors.As(err, &p) && p.Highlight != nil {
		pos = b.lines.at(int(b.p.Range(p.Highlight).Offset))
		return &SyntaxError{b.file, pos, p.Message}
	}
	return &SyntaxError{b.file, pos, strings.TrimPrefix(err.Error(), "toml: ")}
}

func (b *builder) twice(key string, v *Value, pos Position) error {
	return &SyntaxError{b.file, pos, fmt.Sprintf("%s is defined in line %d already", key, v.KeyPos.Line)}
}

// header finds or makes the table that [a.b] or [[a.b]] opens.
func (b *builder) header(root *Table, e *unstable.Node, list bool) (*Table, error) {
	at := root
	for it := e.Key(); it.Next(); {
		k := it.Node()
		pos, key := b.pos(k), string(k.Data)
		v := at.Get(key)
		switch {
		case !it.IsLast() && v == nil:
			at = at.table(key, &Value{KeyPos: pos, Pos: pos, how: implicit})
		case !it.IsLast() && v.how == listed:
			at = v.List[len(v.List)-1].Table
		case !it.IsLast() && v.how != closed:
			at = v.Table
		case !it.IsLast():
			return nil, b.twice(key, v, pos)
		case list && v == nil:
			v = &Value{KeyPos: pos, Pos: pos, Kind: "list", how: listed}
			at.set(key, v)
			fallthrough
		case list && v.how == listed:
			t := &Table{Pos: pos}
			v.List = append(v.List, &Value{KeyPos: pos, Pos: pos, Kind: "table", Table: t, how: header})
			return t, nil
		case !list && v == nil:
			at = at.table(key, &Value{KeyPos: pos, Pos: pos, how: header})
		case !list && v.how == implicit:
			v.how, v.KeyPos, v.Pos = header, pos, pos
			at = v.Table
		default:
			return nil, b.twice(key, v, pos)
		}
	}
	return at, nil
}

// assign reads a.b = value into a table.
func (b *builder) assign(at *Table, e *unstable.Node, depth int) error {
	for it := e.Key(); it.Next(); {
		k := it.Node()
		pos, key := b.pos(k), string(k.Data)
		v := at.Get(key)
		switch {
		case it.IsLast() && v == nil:
			v, err := b.value(e.Value(), pos, depth)
			if err != nil {
				return err
			}
			v.KeyPos = pos
			at.set(key, v)
		case v == nil:
			at = at.table(key, &Value{KeyPos: pos, Pos: pos, how: dotted, section: b.section})
		case !it.IsLast() && v.how == dotted && v.section == b.section:
			at = v.Table
		default:
			return b.twice(key, v, pos)
		}
	}
	return nil
}

// table puts a fresh table and returns it.
func (t *Table) table(key string, v *Value) *Table {
	v.Kind, v.Table = "table", &Table{Pos: v.Pos}
	t.set(key, v)
	return v.Table
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
	default: // numbers and dates: their form is for the decoder to judge
		var discard map[string]any
		if err := toml.Unmarshal([]byte("v = "+v.Text), &discard); err != nil {
			return nil, &SyntaxError{b.file, pos, strings.TrimPrefix(err.Error(), "toml: ")}
		}
		if n.Kind == unstable.Integer {
			v.Kind = "integer"
		}
	case unstable.String:
		v.Kind = "string"
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
		v.Table.close()
	}
	return v, nil
}

func (b *builder) pos(n *unstable.Node) Position { return b.lines.at(int(n.Raw.Offset)) }

// close ends an inline table, also for dotted keys within it.
func (t *Table) close() {
	for _, v := range t.Values {
		if v.how == dotted {
			v.how = closed
			v.Table.close()
		}
	}
}

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
