package configs

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Limits bounds what strangers may cost at the public port. Load fills every
// field; what each is for, its default and how it is counted stand in limitRows.
type Limits struct {
	Connections    int // and never more than half of the files that may be open
	PerSource      int
	Handshakes     int
	HandshakeTime  time.Duration
	Calls          int
	CallsPerSource int

	FirstFrame    time.Duration
	HeaderTime    time.Duration
	HeaderList    int // bytes
	HeaderTable   int // bytes
	Continuations int
	Streams       int
	Resets        int // this and what follows: in a second
	Pings         int
	Settings      int
	Priorities    int
	EmptyData     int
	WindowUpdates int
	Malformed     int

	ConnBuffer  int64 // bytes
	Backlog     int   // bytes
	Stall       time.Duration
	StreamStall time.Duration
	HalfOpen    time.Duration
	Idle        time.Duration
}

// limitRow is one limit: its name, what holds it, its default and its bounds.
type limitRow struct {
	name     string
	fallback string
	field    func(*Limits) any // *int, *int64 (bytes) or *time.Duration
	bytes    bool
	least    int64 // of a duration in milliseconds
	most     int64
}

// limitRows are all limits, in the order of the documentation.
var limitRows = []limitRow{
	{"connections", "16384", func(l *Limits) any { return &l.Connections }, false, 1, 1 << 20},
	{"connections_per_source", "8192", func(l *Limits) any { return &l.PerSource }, false, 1, 1 << 20},
	{"handshakes", "2048", func(l *Limits) any { return &l.Handshakes }, false, 1, 1 << 20},
	{"handshake_time", "10s", func(l *Limits) any { return &l.HandshakeTime }, false, 100, 300_000},
	{"calls", "9000", func(l *Limits) any { return &l.Calls }, false, 1, 1 << 20},
	{"calls_per_source", "4500", func(l *Limits) any { return &l.CallsPerSource }, false, 1, 1 << 20},
	{"first_frame", "10s", func(l *Limits) any { return &l.FirstFrame }, false, 100, 300_000},
	{"header_time", "10s", func(l *Limits) any { return &l.HeaderTime }, false, 100, 300_000},
	{"header_list", "64KiB", func(l *Limits) any { return &l.HeaderList }, true, 8 << 10, 64 << 10},
	{"header_table", "4KiB", func(l *Limits) any { return &l.HeaderTable }, true, 128, 64 << 10},
	{"continuations", "16", func(l *Limits) any { return &l.Continuations }, false, 1, 10_000},
	{"streams", "250", func(l *Limits) any { return &l.Streams }, false, 1, 10_000},
	{"resets", "200", func(l *Limits) any { return &l.Resets }, false, 1, 1 << 30},
	{"pings", "50", func(l *Limits) any { return &l.Pings }, false, 1, 1 << 30},
	{"settings", "20", func(l *Limits) any { return &l.Settings }, false, 2, 1 << 30},
	{"priorities", "500", func(l *Limits) any { return &l.Priorities }, false, 1, 1 << 30},
	{"empty_data", "200", func(l *Limits) any { return &l.EmptyData }, false, 1, 1 << 30},
	{"window_updates", "2000", func(l *Limits) any { return &l.WindowUpdates }, false, 10, 1 << 30},
	{"malformed", "100", func(l *Limits) any { return &l.Malformed }, false, 1, 1 << 30},
	{"connection_buffer", "16MiB", func(l *Limits) any { return &l.ConnBuffer }, true, 64 << 10, 1 << 40},
	{"backlog", "1MiB", func(l *Limits) any { return &l.Backlog }, true, 256 << 10, 1 << 30},
	{"stall", "1m", func(l *Limits) any { return &l.Stall }, false, 1000, 24 * 3_600_000},
	{"stream_stall", "5m", func(l *Limits) any { return &l.StreamStall }, false, 1000, 24 * 3_600_000},
	{"half_open", "30s", func(l *Limits) any { return &l.HalfOpen }, false, 100, 3_600_000},
	{"idle", "10m", func(l *Limits) any { return &l.Idle }, false, 1000, 7 * 24 * 3_600_000},
}

// LimitDefault is one limit as it is without settings.
type LimitDefault struct{ Name, Value string }

// LimitDefaults lists every limit with its default.
func LimitDefaults() []LimitDefault {
	all := make([]LimitDefault, len(limitRows))
	for i, r := range limitRows {
		all[i] = LimitDefault{r.name, r.fallback}
	}
	return all
}

// DefaultLimits are the limits without settings.
func DefaultLimits() Limits {
	var l Limits
	for _, r := range limitRows {
		if problem, _ := r.set(&l, r.fallback); problem != "" {
			panic("configs: default of limit " + r.name + ": " + problem)
		}
	}
	return l
}

// limits reads the limits of the public port. Each is looked up by itself, so
// that a flag changes one and leaves what the file says of the others.
func (b *loader) limits() Limits {
	s := settingOf("limit")
	l := DefaultLimits()
	origins := map[string]origin{}
	f := b.find(s, RoleProxy)
	b.row(f, "")
	for _, from := range b.everywhere(s, RoleProxy) { // the weakest first
		for i, text := range from.texts {
			name, value, ok := strings.Cut(text, "=")
			name, value = strings.ReplaceAll(strings.TrimSpace(name), "-", "_"), strings.TrimSpace(value)
			if !ok {
				b.bad.add(s.flag, from.at(i), fmt.Sprintf("%q is no limit", text), "write NAME=VALUE, such as connections=4096")
				continue
			}
			row := limitOf(name)
			if row == nil {
				var names []string
				for _, r := range limitRows {
					names = append(names, r.name)
				}
				remedy := "the limits are " + strings.Join(names, ", ")
				if near := Nearest(name, names); near != "" {
					remedy = "did you mean " + near + "?"
				}
				b.bad.add(s.flag, from.at(i), fmt.Sprintf("no limit is called %q", name), remedy)
				continue
			}
			if problem, remedy := row.set(&l, value); problem != "" {
				b.bad.add(s.flag, from.at(i), name+": "+problem, remedy)
				continue
			}
			origins[name] = from.at(i)
		}
	}
	for _, r := range limitRows {
		b.provenance.rows = append(b.provenance.rows, Row{Role: string(RoleProxy), Key: s.key + "." + r.name, Value: r.value(&l), From: origins[r.name].String()})
	}
	return l
}

func limitOf(name string) *limitRow {
	for i := range limitRows {
		if limitRows[i].name == name {
			return &limitRows[i]
		}
	}
	return nil
}

// set reads a value into its field.
func (r *limitRow) set(l *Limits, value string) (problem, remedy string) {
	var n int64
	var err error
	field := r.field(l)
	d, isTime := field.(*time.Duration)
	write := func(n int64) string {
		switch {
		case isTime:
			return short(time.Duration(n) * time.Millisecond)
		case r.bytes:
			return sizeText(n)
		}
		return strconv.FormatInt(n, 10)
	}
	switch {
	case isTime:
		var t time.Duration
		t, err = time.ParseDuration(value)
		n = int64(t / time.Millisecond)
	case r.bytes:
		n, err = ParseSize(value)
	default:
		n, err = strconv.ParseInt(value, 10, 64)
	}
	if err != nil || n < r.least || n > r.most {
		return fmt.Sprintf("%q is nothing it can be", value), fmt.Sprintf("write a value from %s to %s, such as %s", write(r.least), write(r.most), r.fallback)
	}
	switch p := field.(type) {
	case *time.Duration:
		*d = time.Duration(n) * time.Millisecond
	case *int64:
		*p = n
	case *int:
		*p = int(n)
	}
	return "", ""
}

// value is the field as TOML.
func (r *limitRow) value(l *Limits) string {
	switch p := r.field(l).(type) {
	case *time.Duration:
		return quote(short(*p))
	case *int64:
		return quote(sizeText(*p))
	case *int:
		if r.bytes {
			return quote(sizeText(int64(*p)))
		}
		return strconv.Itoa(*p)
	}
	return ""
}

// ParseSize reads a number of bytes: 4096, 64KiB, 16MiB, 2GiB; K, M and G mean
// the same.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGTiB ")
	shift := -1
	switch strings.TrimSpace(s[len(digits):]) {
	case "", "B":
		shift = 0
	case "K", "KiB":
		shift = 10
	case "M", "MiB":
		shift = 20
	case "G", "GiB":
		shift = 30
	case "T", "TiB":
		shift = 40
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if shift < 0 || err != nil || n < 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is no size", s)
	}
	return n << shift, nil
}

// sizeText writes a number of bytes as ParseSize reads it.
func sizeText(n int64) string {
	for _, u := range []struct {
		shift int
		unit  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n >= 1<<u.shift && n&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.unit
		}
	}
	return strconv.FormatInt(n, 10)
}

// memory reads how much the process may grow.
func (b *loader) memory() int64 {
	const least, most = 32 << 20, 1 << 42
	f := b.find(settingOf("memory-budget"), "")
	if !f.given() {
		b.row(f, "")
		return 0
	}
	n, err := ParseSize(f.text())
	if err != nil || n < least || n > most {
		b.bad.add("memory-budget", f.from, fmt.Sprintf("%q is no amount of memory", f.text()), "write one from "+sizeText(least)+" up, such as 512MiB or 2GiB")
		return 0
	}
	b.row(f, quote(sizeText(n)))
	return n
}
