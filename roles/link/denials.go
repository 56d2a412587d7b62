package link

import (
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"

	"sallyport/roles/control"
)

// Denials counts refused calls until they are reported: one row per caller,
// method, reason, status and minute. Strangers choose the methods and can
// come from anywhere, so there are at most maxDenialRows rows between two
// reports, and texts are cut; refused calls beyond that are counted in one
// number. The zero value is ready.
type Denials struct {
	mu       sync.Mutex // guards what follows
	rows     map[denialKey]uint64
	overflow uint64
}

const (
	maxDenialRows = 500
	maxDenialText = 256
)

type denialKey struct {
	caller, method, reason string
	code                   codes.Code
	minute                 int64
}

// Add counts one refused call. caller is an identity, or the source prefix of
// a stranger.
func (d *Denials) Add(caller, method, reason string, code codes.Code, now time.Time) {
	key := denialKey{cut(caller), cut(method), cut(reason), code, now.Unix() - now.Unix()%60}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.rows[key]; !ok {
		if len(d.rows) >= maxDenialRows {
			d.overflow++
			return
		}
		if d.rows == nil {
			d.rows = make(map[denialKey]uint64)
		}
	}
	d.rows[key]++
}

// Take returns what was counted since the last Take; nil if nothing was.
func (d *Denials) Take() *control.DenialReport {
	d.mu.Lock()
	rows, overflow := d.rows, d.overflow
	d.rows, d.overflow = nil, 0
	d.mu.Unlock()
	if len(rows) == 0 && overflow == 0 {
		return nil
	}
	report := &control.DenialReport{Overflow: overflow}
	for key, count := range rows {
		report.Denials = append(report.Denials, &control.Denial{Caller: key.caller, Method: key.method, Reason: key.reason,
			Code: code.Code(key.code).String(), Count: count, MinuteUnix: key.minute})
	}
	return report
}

func cut(s string) string { return clip(s, maxDenialText) }
