package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"sallyport/configs"
)

// Limit is a [[limit]]: how often a caller, or a source, may do something with
// the methods that match. All methods of a row share what it allows. Of several
// rows that cover a method and count the same thing for the same party, the most
// specific one counts, alone.
type Limit struct {
	Match    string
	Source   bool    // per source address (IPv6: /64), before authentication; else per caller
	Messages bool    // messages of the caller, else calls
	Rate     float64 // per second
	Burst    int     // at once
	line     int
}

// Limits are what holds for one method.
type Limits struct {
	CallsPerSource, MessagesPerSource *Limit // nil: none
	CallsPerCaller, MessagesPerCaller *Limit
}

// slot is the place of a row among the limits of a method.
func (l *Limits) slot(row *Limit) **Limit {
	switch {
	case row.Source && row.Messages:
		return &l.MessagesPerSource
	case row.Source:
		return &l.CallsPerSource
	case row.Messages:
		return &l.MessagesPerCaller
	}
	return &l.CallsPerCaller
}

// Limits is what the policy allows how often, for one method. It is nil where
// nothing is said, and for what is no method.
func (p *Policy) Limits(path string) *Limits {
	if len(p.limits) == 0 {
		return nil
	}
	if _, ok := ParseMethod(path); !ok {
		return nil
	}
	if e, ok := p.index.find(path); ok {
		return e.limits
	}
	return nil
}

// String is the limit as people write it.
func (l *Limit) String() string {
	what, who := "call", "caller"
	if l.Messages {
		what = "message"
	}
	if l.Source {
		who = "source address"
	}
	rate, unit := l.Rate, "a second"
	for _, wider := range []string{"a minute", "an hour"} {
		if math.Abs(rate-math.Round(rate)) > 1e-9 {
			rate, unit = rate*60, wider
		}
	}
	if rate = math.Round(rate); rate != 1 {
		what += "s"
	}
	return fmt.Sprintf("%.0f %s %s per %s", rate, what, unit, who)
}

// limit reads one [[limit]].
func (f *file) limit(at configs.Position, t *configs.Table) {
	l := &Limit{line: at.Line}
	f.keys("[[limit]]", t, "match", "per", "count", "rate", "burst")
	match := f.text(t, "match")
	if match == nil {
		f.bad(at, "this [[limit]] names no method", `write match = "/pkg.Service/Method"`)
		return
	}
	l.Match = match.Text
	if err := configs.MethodPattern(l.Match); err != nil {
		f.refuse(match.Pos, err)
		return
	}
	switch v := f.text(t, "per"); {
	case v == nil:
		f.bad(at, "this [[limit]] does not say whom it counts", `write per = "caller" or per = "source"`)
	case v.Text == "source":
		l.Source = true
	case v.Text != "caller":
		f.bad(v.Pos, fmt.Sprintf("%q is nobody to count", v.Text), `write per = "caller", or per = "source" for the address that calls come from`)
	}
	if v := f.text(t, "count"); v != nil {
		switch v.Text {
		case "calls":
		case "messages":
			l.Messages = true
		default:
			f.bad(v.Pos, fmt.Sprintf("%q is nothing to count", v.Text), `write count = "calls" or count = "messages"`)
		}
	}
	if v := f.text(t, "rate"); v == nil {
		f.bad(at, "this [[limit]] limits nothing", `write rate = "10/s"`)
		return
	} else if rate, err := parseRate(v.Text); err != nil {
		f.refuse(v.Pos, err)
		return
	} else {
		l.Rate = rate
	}
	l.Burst = max(1, int(math.Ceil(l.Rate)))
	if v := t.Get("burst"); v != nil {
		n, err := strconv.Atoi(v.Text)
		if v.Kind != "integer" || err != nil || n < 1 || n > maxBurst {
			f.bad(v.Pos, "burst is a number from 1 to 1000000", "write how many may come at once")
		}
		l.Burst = n
	}
	for _, other := range f.p.limits {
		if other.Match == l.Match && other.Source == l.Source && other.Messages == l.Messages {
			f.bad(at, fmt.Sprintf("%s has such a [[limit]] in line %d already", l.Match, other.line), "keep one of them")
		}
	}
	f.p.limits = append(f.p.limits, l)
}

const maxBurst = 1_000_000

// parseRate reads NUMBER/s, /m or /h.
func parseRate(s string) (float64, error) {
	number, unit, _ := strings.Cut(s, "/")
	per := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || per == 0 || n == 0 || n > maxBurst {
		return 0, fmt.Errorf(`%q is no rate; write such as "10/s", "100/m" or "1000/h"`, s)
	}
	return float64(n) / per, nil
}

// cap reads max_message and max_deadline of a [[method]].
func (f *file) caps(t *configs.Table, m *Treatment) {
	if v := f.text(t, "max_message"); v != nil {
		n, err := parseSize(v.Text)
		if err != nil {
			f.refuse(v.Pos, err)
		}
		m.MaxMessage = n
	}
	if v := f.text(t, "max_deadline"); v != nil {
		d, err := time.ParseDuration(v.Text)
		if err != nil || d < time.Millisecond || d > 10000*time.Hour {
			f.bad(v.Pos, fmt.Sprintf("%q is no deadline", v.Text), "write a number with a unit, such as 500ms, 30s or 5m")
		}
		m.MaxDeadline = d
	}
}

// parseSize reads a number of bytes: 512, 64KiB, 16MiB or 1GiB.
func parseSize(s string) (uint64, error) {
	number, shift := s, 0
	for unit, n := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			number, shift = rest, n
		}
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n == 0 || n<<shift > math.MaxUint32 {
		return 0, fmt.Errorf(`%q is no size of a message; write such as "64KiB" or "16MiB", less than 4GiB`, s)
	}
	return n << shift, nil
}
