package core

import (
	"context"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
	"sallyport/store"
)

// denialsEvery is how often counted refusals are written.
const denialsEvery = 5 * time.Second

// denials counts refused calls, core's own and those that components report,
// and writes them to the store, aggregated. Strangers cause them, so they are
// bounded in memory here and on disk there.
type denials struct {
	db      *store.Core
	log     *slog.Logger
	counted link.Denials
}

func newDenials(db *store.Core, log *slog.Logger) *denials { return &denials{db: db, log: log} }

// add counts a call that core refused.
func (d *denials) add(caller, method, reason string, code codes.Code, now time.Time) {
	d.counted.Add(caller, method, reason, code, now)
}

// run writes what was counted until ctx ends, and what is left then.
func (d *denials) run(ctx context.Context) error {
	tick := time.NewTicker(denialsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			d.write(context.WithoutCancel(ctx), d.counted.Take())
			return nil
		case <-tick.C:
			d.write(ctx, d.counted.Take())
		}
	}
}

// write keeps a report, one row per caller, method, reason and minute.
func (d *denials) write(ctx context.Context, r *control.DenialReport) {
	if r == nil {
		return
	}
	rows := make([]store.DenialRow, 0, len(r.GetDenials())+1)
	for _, n := range r.GetDenials() {
		rows = append(rows, store.DenialRow{Minute: time.Unix(n.GetMinuteUnix(), 0), Caller: clean(n.GetCaller()), Method: method(n.GetMethod()),
			Reason: word(n.GetReason()), Code: statusName(n.GetCode()), Count: n.GetCount()})
	}
	if n := r.GetOverflow(); n > 0 {
		rows = append(rows, store.DenialRow{Minute: time.Now(), Reason: store.DenialOverflow, Count: n})
	}
	if err := d.db.AddDenials(ctx, rows); err != nil {
		d.log.Error("refused calls were not recorded", "rows", len(rows), "cause", err)
	}
}

// maxReported bounds the rows that are taken from one report.
const maxReported = 1000

// denied takes a component's report. Its strings are a stranger's choice, or
// the component's: they are cut, and nothing is believed but that somebody was
// refused there.
func (c *core) denied(s *link.Session, r *control.DenialReport) {
	c.denials.write(s.Context(), trim(r))
}

// trim counts what is beyond the rows that are taken as overflow.
func trim(r *control.DenialReport) *control.DenialReport {
	out := &control.DenialReport{Denials: r.GetDenials(), Overflow: r.GetOverflow()}
	if len(out.Denials) > maxReported {
		for _, n := range out.Denials[maxReported:] {
			if sum := out.Overflow + n.GetCount(); sum >= out.Overflow {
				out.Overflow = sum
			}
		}
		out.Denials = out.Denials[:maxReported]
	}
	return out
}

// method is a method's path, or one word for everything that is none.
func method(s string) string {
	if _, ok := policy.ParseMethod(s); !ok || len(s) > maxAnnouncedString {
		return "(malformed)"
	}
	return s
}

// word is a stable snake_case reason, or "other".
func word(s string) string {
	if s == "" || len(s) > 64 {
		return "other"
	}
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return "other"
		}
	}
	return s
}

// statusName is the name of a gRPC status, or UNKNOWN.
func statusName(s string) string {
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		if s == relay.StatusName(c) {
			return s
		}
	}
	return relay.StatusName(codes.Unknown)
}

// maxText bounds a text that somebody else wrote, wherever it is kept or shown.
const maxText = 256

// clean cuts a text that somebody else wrote and takes out what a terminal or
// a log reader could obey.
func clean(s string) string {
	if len(s) > maxText {
		n := maxText
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}
