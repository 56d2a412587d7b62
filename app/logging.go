package app

import (
	"io"
	"log/slog"
	"regexp"
	"strings"

	"sallyport/configs"
)

// logger makes the process's logger. A person at a terminal gets text on
// stderr; everything else (journald, containers, files) gets one JSON object
// per line on stdout. level can be changed while it runs.
func (c *cli) logger(p configs.Process, level *slog.LevelVar) *slog.Logger {
	level.Set(p.LogLevel)
	format := p.LogFormat
	if format == "auto" {
		format = "json"
		if isTerminal(c.err) {
			format = "text"
		}
	}
	if format == "text" {
		return slog.New(textHandler(c.err, level, isTerminal(c.err)))
	}
	return slog.New(slog.NewJSONHandler(c.out, &slog.HandlerOptions{Level: level, ReplaceAttr: discreet}))
}

// textHandler writes lines for people. Under a terminal the time of day is
// enough; elsewhere whoever collects the lines needs the date.
func textHandler(w io.Writer, level slog.Leveler, short bool) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if short && len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			return slog.String(slog.TimeKey, a.Value.Time().Format("15:04:05.000"))
		}
		return discreet(groups, a)
	}})
}

// secret matches what must not be read by whoever reads logs: join tokens, API
// keys, and bearer tokens of any kind.
var secret = regexp.MustCompile(`sp1\.[A-Za-z0-9_-]{16,}|spk_[A-Za-z0-9_-]{16,}|(?i:bearer) +[A-Za-z0-9._~+/=-]{8,}`)

// discreet is the last line of defence: code does not log secrets, and if a
// peer's text carries one, it stops here.
func discreet(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		if s := a.Value.String(); suspicious(s) {
			a.Value = slog.StringValue(secret.ReplaceAllString(s, "[secret]"))
		}
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			if s := err.Error(); suspicious(s) {
				a.Value = slog.StringValue(secret.ReplaceAllString(s, "[secret]"))
			}
		}
	}
	return a
}

// suspicious is the cheap question before the regular expression.
func suspicious(s string) bool {
	return strings.Contains(s, "sp1.") || strings.Contains(s, "spk_") || strings.Contains(s, "earer ") || strings.Contains(s, "EARER ")
}
