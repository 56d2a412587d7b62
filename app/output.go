package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// jsonFlag is on every verb that prints data.
type jsonFlag struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// printJSON writes one value, indented.
func (c *cli) printJSON(v any) error {
	if m, ok := v.(proto.Message); ok {
		v = plain(m.ProtoReflect())
	}
	e := json.NewEncoder(c.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// object is a JSON object that keeps its order.
type object []member

type member struct {
	key   string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := e.Encode(m.key); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		if err := e.Encode(m.value); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// plain is an answer of core as JSON for people and scripts: every field is
// there, numbers are numbers, and a field X_unix is X in RFC 3339 or null.
// (protojson would write 64-bit numbers as strings.)
func plain(m protoreflect.Message) object {
	fields := m.Descriptor().Fields()
	o := make(object, 0, fields.Len())
	for i := range fields.Len() {
		fd := fields.Get(i)
		name, v := string(fd.Name()), m.Get(fd)
		switch {
		case fd.IsList():
			list := make([]any, 0, v.List().Len())
			for j := range v.List().Len() {
				list = append(list, plainValue(fd, v.List().Get(j)))
			}
			o = append(o, member{name, list})
		case strings.HasSuffix(name, "_unix"):
			o = append(o, member{strings.TrimSuffix(name, "_unix"), rfc3339(v.Int())})
		case name == "unix_nano":
			o = append(o, member{"time", time.Unix(0, v.Int()).UTC().Format(time.RFC3339Nano)})
		case fd.Message() != nil && !m.Has(fd):
			o = append(o, member{name, nil})
		default:
			o = append(o, member{name, plainValue(fd, v)})
		}
	}
	return o
}

func plainValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch {
	case fd.Message() != nil:
		return plain(v.Message())
	case fd.Kind() == protoreflect.BytesKind && fd.Name() == "policy":
		return string(v.Bytes())
	}
	return v.Interface()
}

// layOut writes JSON anew, on one line or indented, and ends it with a newline.
func layOut(raw []byte, oneLine bool) ([]byte, error) {
	var b bytes.Buffer
	lay := func() error { return json.Indent(&b, raw, "", "  ") }
	if oneLine {
		lay = func() error { return json.Compact(&b, raw) }
	}
	if err := lay(); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func rfc3339(unix int64) any {
	if unix == 0 {
		return nil
	}
	return time.Unix(unix, 0).UTC().Format(time.RFC3339)
}

// table writes aligned columns.
type table struct {
	c      *cli
	w      *tabwriter.Writer
	buffer bytes.Buffer
	rows   int
}

// table starts one with its headings.
func (c *cli) table(headings ...string) *table {
	t := &table{c: c}
	t.w = tabwriter.NewWriter(&t.buffer, 0, 0, 2, ' ', 0)
	for i, h := range headings {
		headings[i] = c.paint(plainColour, h)
	}
	fmt.Fprintln(t.w, strings.Join(headings, "\t"))
	return t
}

// row adds a line. Every cell is painted, if only in no colour, so that all
// of a column carry escapes of the same width and stay aligned.
func (t *table) row(cells ...string) {
	t.rows++
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		cells[i] = t.c.paint(stateColour(cell), oneLine(cell))
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// flush writes the table; an empty one is a message about what is missing.
func (t *table) flush(ifEmpty string) error {
	if t.rows == 0 {
		t.c.say("%s", ifEmpty)
		return nil
	}
	if err := t.w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(t.buffer.String()) {
		if _, err := fmt.Fprintln(t.c.out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// oneLine keeps text of others from breaking a table or driving a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// Colours, each an escape of the same width.
const (
	plainColour = "\x1b[00m"
	bold        = "\x1b[01m"
	green       = "\x1b[32m"
	yellow      = "\x1b[33m"
	red         = "\x1b[31m"
	noColour    = "\x1b[0m"
)

func stateColour(cell string) string {
	switch cell {
	case "connected", "routed", "up", "ready", "allowed", "passed", "good":
		return green
	case "invited", "joined", "waiting", "away", "starting":
		return yellow
	case "lost", "down", "refused", "removed", "revoked", "expired", "denied", "failed":
		return red
	}
	return plainColour
}

// paint colours s where a person looks at a terminal and has not set NO_COLOR.
func (c *cli) paint(colour, s string) string {
	if !c.colour(c.out) {
		return s
	}
	return colour + s + noColour
}

func (c *cli) colour(w io.Writer) bool {
	return c.env("NO_COLOR") == "" && c.env("TERM") != "dumb" && isTerminal(w)
}

// isTerminal reports whether a person reads w.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ago says how long ago a time was.
func ago(unix int64, now time.Time) string {
	if unix == 0 {
		return "never"
	}
	d := now.Sub(time.Unix(unix, 0))
	if d < 2*time.Second {
		return "now"
	}
	return span(d) + " ago"
}

// left says how long until a time.
func left(unix int64, now time.Time) string {
	if unix == 0 {
		return ""
	}
	d := time.Unix(unix, 0).Sub(now)
	if d <= 0 {
		return "expired"
	}
	return span(d) + " left"
}

// span is a duration as people say it: its largest unit or two.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}
