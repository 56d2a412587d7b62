package link

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"sallyport/acme/pki"
)

// refusalLog logs refusals so that a stranger cannot fill a log: the same
// cause from the same address (IPv6: the same /64) once in 10 s with the
// number of repetitions, and not more than 10 lines a second on the long run.
type refusalLog struct {
	log   *slog.Logger
	lines *rate.Limiter

	mu      sync.Mutex
	seen    map[refusalKey]*refusalSeen
	dropped int // refusals without a line of their own, since the last line
}

type refusalKey struct {
	source netip.Prefix
	alpn   string
	what   string // the code; for plaintext, whose causes are ours, the cause
}

type refusalSeen struct {
	quiet    time.Time // no line before
	repeated int
}

const (
	refusalQuiet = 10 * time.Second
	refusalKeys  = 1024
)

func newRefusalLog(log *slog.Logger) *refusalLog {
	return &refusalLog{log: log, lines: rate.NewLimiter(10, 100), seen: map[refusalKey]*refusalSeen{}}
}

// note logs that remote was refused for r, or counts it.
func (l *refusalLog) note(remote netip.AddrPort, alpn string, r *pki.Refusal) {
	what := r.Code
	if what == pki.CodePlaintext || what == pki.CodeNotTLS {
		what = r.Cause
	}
	repeated, dropped, say := l.count(remote, alpn, what)
	if !say {
		return
	}
	attrs := []any{"from", sourceText(remote), "code", r.Code, "cause", r.Cause, "remedy", r.Remedy}
	if alpn != "" {
		attrs = append(attrs, "protocol", alpn)
	}
	if repeated > 0 {
		attrs = append(attrs, "repeated", repeated)
	}
	if dropped > 0 {
		attrs = append(attrs, "others_not_shown", dropped)
	}
	l.log.Warn("refused a connection", attrs...)
}

func (l *refusalLog) count(remote netip.AddrPort, alpn, what string) (repeated, dropped int, say bool) {
	now := time.Now()
	key := refusalKey{source: sourcePrefix(remote.Addr()), alpn: alpn, what: what}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.seen[key]
	if e != nil && now.Before(e.quiet) {
		e.repeated++
		return 0, 0, false
	}
	if e == nil {
		if len(l.seen) >= refusalKeys {
			l.forget(now)
		}
		if len(l.seen) >= refusalKeys {
			l.dropped++
			return 0, 0, false
		}
		e = &refusalSeen{}
		l.seen[key] = e
	}
	if !l.lines.AllowN(now, 1) {
		l.dropped++
		return 0, 0, false
	}
	repeated, dropped = e.repeated, l.dropped
	e.repeated, l.dropped, e.quiet = 0, 0, now.Add(refusalQuiet)
	return repeated, dropped, true
}

func (l *refusalLog) forget(now time.Time) {
	for k, e := range l.seen {
		if now.After(e.quiet) {
			l.dropped += e.repeated
			delete(l.seen, k)
		}
	}
}

// sourcePrefix is what counts as one source: an IPv4 address, an IPv6 /64.
func sourcePrefix(a netip.Addr) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p
}
