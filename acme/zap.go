package acme

import (
	"context"
	"log/slog"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// quiet is certmagic's log, which is zap's, brought into ours. All of it is
// debug there, whatever certmagic thinks of it: what matters is said by Manager,
// once, and a part of the rest is caused by strangers who ask for challenges.
//
// Only texts, numbers and the like are passed on. Whole objects are not: there
// are keys in some.
type quiet struct {
	zapcore.LevelEnabler
	log  *slog.Logger
	with []zapcore.Field
}

func newQuiet(log *slog.Logger) *zap.Logger {
	enabled := zap.LevelEnablerFunc(func(zapcore.Level) bool { return log.Enabled(context.Background(), slog.LevelDebug) })
	return zap.New(&quiet{LevelEnabler: enabled, log: log})
}

func (q *quiet) With(fields []zapcore.Field) zapcore.Core {
	with := append(q.with[:len(q.with):len(q.with)], fields...)
	return &quiet{LevelEnabler: q.LevelEnabler, log: q.log, with: with}
}

func (q *quiet) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if q.Enabled(e.Level) {
		return c.AddCore(e, q)
	}
	return c
}

func (q *quiet) Write(e zapcore.Entry, fields []zapcore.Field) error {
	attrs := []slog.Attr{slog.String("by", "certmagic"), slog.String("part", e.LoggerName)}
	for _, list := range [][]zapcore.Field{q.with, fields} {
		for _, f := range list {
			if a, ok := plain(f); ok {
				attrs = append(attrs, a)
			}
		}
	}
	q.log.LogAttrs(context.Background(), slog.LevelDebug, e.Message, attrs...)
	return nil
}

func (q *quiet) Sync() error { return nil }

// plain is a field whose value can be shown.
func plain(f zapcore.Field) (slog.Attr, bool) {
	switch f.Type {
	case zapcore.StringType:
		return slog.String(f.Key, f.String), true
	case zapcore.BoolType:
		return slog.Bool(f.Key, f.Integer == 1), true
	case zapcore.DurationType:
		return slog.Duration(f.Key, time.Duration(f.Integer)), true
	case zapcore.Int64Type, zapcore.Int32Type, zapcore.Int16Type, zapcore.Int8Type,
		zapcore.Uint64Type, zapcore.Uint32Type, zapcore.Uint16Type, zapcore.Uint8Type:
		return slog.Int64(f.Key, f.Integer), true
	case zapcore.TimeType:
		return slog.Time(f.Key, time.Unix(0, f.Integer)), true
	case zapcore.ErrorType:
		if err, ok := f.Interface.(error); ok {
			return slog.String(f.Key, err.Error()), true
		}
	}
	return slog.Attr{}, false
}
