package store

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// How much the calls of strangers may write.
const (
	// MaxDenialsPerMinute is how many different denials of one minute get a
	// row of their own. Others of that minute are counted in its overflow row.
	MaxDenialsPerMinute = 200

	// MaxDenials is how many rows are kept in all; the oldest minutes give way.
	MaxDenials = 50_000
)

// DenialOverflow is the reason of the row that counts what found no row of its
// own; its caller, method and code are empty.
const DenialOverflow = "overflow"

// DenialRow counts calls that were refused alike within a minute.
type DenialRow struct {
	Minute time.Time
	Caller string // identity, or source prefix of a stranger
	Method string
	Reason string
	Code   string // gRPC status name
	Count  uint64
}

// denialKey is what makes denials alike.
type denialKey struct {
	minute                 int64
	caller, method, reason string
}

// clockTolerance is how far from core's clock the minute of a report may lie.
// A component that says otherwise reports on the current minute: it cannot
// make room for itself in minutes of its own choice.
const clockTolerance = 10 * time.Minute

// AddDenials adds counted denials to what is known of their minutes, within
// the limits above.
func (c *Core) AddDenials(ctx context.Context, rows []DenialRow) error {
	if len(rows) == 0 {
		return nil
	}
	counts, codes := gather(rows, c.Now())
	err := c.observe(ctx, func(t *tx) error {
		for _, minute := range minutes(counts) {
			if err := t.addDenials(minute, counts, codes); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record denials: %w", err)
	}
	return nil
}

// gather adds up a report in memory. More of one minute than could ever be
// stored goes to the overflow at once.
func gather(rows []DenialRow, now time.Time) (map[denialKey]uint64, map[denialKey]string) {
	counts, codes := map[denialKey]uint64{}, map[denialKey]string{}
	perMinute := map[int64]int{}
	for _, r := range rows {
		at := r.Minute
		if d := now.Sub(at); d > clockTolerance || d < -clockTolerance {
			at = now
		}
		k := denialKey{nanos(at.Truncate(time.Minute)), clean(r.Caller, 256), clean(r.Method, 256), clean(r.Reason, 64)}
		if _, known := counts[k]; !known {
			if k.reason == DenialOverflow || perMinute[k.minute] >= MaxDenialsPerMinute {
				k = denialKey{minute: k.minute, reason: DenialOverflow}
			} else {
				perMinute[k.minute]++
				codes[k] = clean(r.Code, 32)
			}
		}
		counts[k] = sum(counts[k], r.Count)
	}
	return counts, codes
}

// sum does not wrap, and stays within what the column holds.
func sum(a, b uint64) uint64 {
	if b > math.MaxInt64-a {
		return math.MaxInt64
	}
	return a + b
}

// minutes lists those that counts is about.
func minutes(counts map[denialKey]uint64) []int64 {
	var list []int64
	for k := range counts {
		list = append(list, k.minute)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// addDenials writes one minute: to the rows that are there, then to new ones
// while there is room, the largest first, then to the overflow.
func (t *tx) addDenials(minute int64, counts map[denialKey]uint64, codes map[denialKey]string) error {
	rows, err := all(t.ctx, t.sql, func(row func(...any) error) (denialKey, error) {
		k := denialKey{minute: minute}
		return k, row(&k.caller, &k.method, &k.reason)
	}, "SELECT caller, method, reason FROM denials WHERE minute = ?", minute)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		if err := t.pruneDenials(); err != nil {
			return err
		}
	}
	held := map[denialKey]bool{}
	for _, k := range rows {
		held[k] = true
	}
	rest := denialKey{minute: minute, reason: DenialOverflow}
	room := MaxDenialsPerMinute - len(rows)
	if held[rest] {
		room++
	}
	var keys []denialKey
	for k := range counts {
		if k.minute == minute && k != rest {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b denialKey) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a.caller, b.caller), cmp.Compare(a.method, b.method), cmp.Compare(a.reason, b.reason))
	})
	overflow := counts[rest]
	for _, k := range keys {
		if !held[k] {
			if room == 0 {
				overflow = sum(overflow, counts[k])
				continue
			}
			room--
		}
		if err := t.count(k, codes[k], counts[k]); err != nil {
			return err
		}
	}
	if overflow == 0 {
		return nil
	}
	return t.count(rest, "", overflow)
}

// pruneDenials makes room for one more minute, by whole minutes.
func (t *tx) pruneDenials() error {
	_, err := t.exec(`DELETE FROM denials WHERE minute <= (
		SELECT minute FROM denials ORDER BY minute DESC LIMIT 1 OFFSET ?)`, MaxDenials-MaxDenialsPerMinute-1)
	return err
}

// count adds to a row, or makes it.
func (t *tx) count(k denialKey, code string, n uint64) error {
	_, err := t.exec(`INSERT INTO denials (minute, caller, method, reason, code, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
		ON CONFLICT (minute, caller, method, reason) DO UPDATE SET count = CASE WHEN count > ?7 - ?6 THEN ?7 ELSE count + ?6 END`,
		k.minute, k.caller, k.method, k.reason, code, n, int64(math.MaxInt64))
	return err
}

// Denials returns up to limit rows of the minutes since a time, the newest
// minute and the largest count first.
func (c *Core) Denials(ctx context.Context, since time.Time, limit int) ([]DenialRow, error) {
	rows, err := all(ctx, c.db.reader, func(row func(...any) error) (r DenialRow, err error) {
		var minute int64
		err = row(&minute, &r.Caller, &r.Method, &r.Reason, &r.Code, &r.Count)
		r.Minute = moment(minute)
		return r, err
	}, `SELECT minute, caller, method, reason, code, count FROM denials WHERE minute >= ?
		ORDER BY minute DESC, count DESC, caller, method, reason LIMIT ?`, nanos(since), max(limit, 0))
	if err != nil {
		return nil, fmt.Errorf("read denials: %w", err)
	}
	return rows, nil
}
