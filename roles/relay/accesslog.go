package relay

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
)

// CallRecord is what is told about one finished call: by the access log in
// words, by CallMetrics in numbers.
type CallRecord struct {
	Method    string
	Protocol  string // "grpc-web" where a browser could have made the call, else empty
	Caller    string // identity, empty for nobody
	Unproven  bool   // whoever comes is called so here: another hop finds out who it is
	Source    string // address the call came from, where it is known
	Code      codes.Code
	Message   string // said to the caller, for calls that failed here
	Denied    string // reason of the refusal, empty when it was not refused
	Gateway   string // where it went, on core
	Upstream  string // where it went, on a gateway
	RequestID string
	Duration  time.Duration
}

// AccessLog writes one line per call. Refused calls, and calls of nobody that
// failed, are what strangers can make for nothing, so their lines are limited to
// a few in a second; what was left out is counted and said in one line.
type AccessLog struct {
	log      *slog.Logger
	all, off bool
	denied   *rate.Limiter
	left     atomic.Uint64 // calls that got no line
}

// NewAccessLog returns the log for mode off, failures or all.
func NewAccessLog(log *slog.Logger, mode string) *AccessLog {
	return &AccessLog{log: log, all: mode == "all", off: mode == "off", denied: rate.NewLimiter(20, 100)}
}

// Write writes the line of r, if the mode asks for one.
func (a *AccessLog) Write(r CallRecord) {
	if a.off || !a.all && r.Code == codes.OK {
		return
	}
	if r.Denied != "" || (r.Caller == "" || r.Unproven) && r.Code != codes.OK {
		if !a.denied.Allow() {
			a.left.Add(1)
			return
		}
		if n := a.left.Swap(0); n > 0 {
			a.log.Info("refused and failed calls that got no line of their own", "count", n)
		}
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("method", cut(r.Method)))
	if r.Caller == "" {
		attrs = append(attrs, slog.String("caller", "anonymous"))
	} else {
		attrs = append(attrs, slog.String("caller", r.Caller))
	}
	attrs = append(attrs, slog.String("status", r.Code.String()), slog.Duration("duration", r.Duration))
	for _, optional := range [...]struct{ key, value string }{
		{"gateway", r.Gateway}, {"upstream", r.Upstream}, {"source", r.Source}, {"protocol", r.Protocol},
		{"reason", r.Denied}, {"message", r.Message}, {"request_id", r.RequestID},
	} {
		if optional.value != "" {
			attrs = append(attrs, slog.String(optional.key, cut(optional.value)))
		}
	}
	a.log.LogAttrs(context.Background(), slog.LevelInfo, "call", attrs...)
}

// maxLogged bounds a text of a line: callers choose methods, and they may be as
// long as a header.
const maxLogged = 512

func cut(s string) string {
	if len(s) <= maxLogged {
		return s
	}
	return s[:maxLogged] + "…"
}
