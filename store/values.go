package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// nanos is how a time is stored: nanoseconds since 1970, 0 for the zero time.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// moment reads what nanos wrote.
func moment(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// text and list store strings as a JSON array.
func text(list []string) string {
	if len(list) == 0 {
		return "[]"
	}
	b, _ := json.Marshal(list) // strings always marshal
	return string(b)
}

func list(text string) (l []string, err error) {
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return nil, fmt.Errorf("stored list %.40q: %w", text, err)
	}
	if len(l) == 0 {
		return nil, nil
	}
	return l, nil
}

// clean makes text of a peer fit to be stored and shown: valid UTF-8, no
// control characters, at most max bytes. Its work is bounded by max as well.
func clean(s string, max int) string {
	long := len(s) > max
	if long {
		s = cut(s, max)
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return utf8.RuneError
		}
		return r
	}, s)
	if long || len(s) > max {
		s = cut(s, max-len("…")) + "…"
	}
	return s
}

// cut shortens s to max bytes and leaves no half rune.
func cut(s string, max int) string {
	if len(s) <= max {
		return s
	}
	for max > 0 && !utf8.RuneStart(s[max]) {
		max--
	}
	return s[:max]
}

// keyHash refuses what is not a SHA-256.
func keyHash(what string, h []byte) error {
	if len(h) != 32 {
		return fmt.Errorf("%s: the SHA-256 of the public key has 32 bytes, not %d", what, len(h))
	}
	return nil
}
