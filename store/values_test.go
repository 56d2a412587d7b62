package store

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "a", "\xff\xff\xff", "é\n\x1b[0m", strings.Repeat("日本", 100), "\u2028", strings.Repeat("\x80", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, max := range []int{3, 16, 64} {
			got := clean(s, max)
			if len(got) > max || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\r\x1b\x00\u2028\u0085") {
				t.Errorf("clean(%q, %d) = %q", s, max, got)
			}
			if again := clean(got, max); again != got {
				t.Errorf("clean(%q) = %q, and then %q", s, got, again)
			}
		}
	})
}

func TestTimesComeBack(t *testing.T) {
	for _, at := range []time.Time{{}, noon, noon.Add(1), time.Unix(0, 1).UTC()} {
		if got := moment(nanos(at)); !got.Equal(at) || got.IsZero() != at.IsZero() {
			t.Errorf("%v came back as %v", at, got)
		}
	}
}
