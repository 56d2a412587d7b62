package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	var m Limiter
	now := time.Unix(1e9, 0)
	row := &Limit{Match: "/a.B/*", Rate: 10, Burst: 3}
	for i := range 5 {
		wait, ok := m.Allow(row, "anna", now)
		if ok != (i < 3) || !ok && (wait < 99*time.Millisecond || wait > 101*time.Millisecond) {
			t.Errorf("%d: %v, %v", i, wait, ok)
		}
	}
	if _, ok := m.Allow(row, "bert", now); !ok {
		t.Error("one caller uses up what another may")
	}
	if _, ok := m.Allow(&Limit{Match: "/a.B/*", Messages: true, Rate: 10, Burst: 3}, "anna", now); !ok {
		t.Error("calls use up messages")
	}
	if _, ok := m.Allow(row, "anna", now.Add(100*time.Millisecond)); !ok {
		t.Error("nothing came back in time")
	}
	// Another policy with the same row: the bucket is the same one.
	same := *row
	if _, ok := m.Allow(&same, "anna", now.Add(100*time.Millisecond)); ok {
		t.Error("a new policy fills every bucket")
	}
	same.Rate, same.Burst = 1, 1
	if wait, ok := m.Allow(&same, "anna", now.Add(100*time.Millisecond)); ok || wait < 900*time.Millisecond {
		t.Errorf("the changed rate does not hold: %v, %v", wait, ok)
	}
	if _, ok := m.Allow(nil, "anna", now); !ok {
		t.Error("no limit limits")
	}
}

// TestLimiterIsBounded: many parties take bounded space, and who is limited
// stays so while others come and go.
func TestLimiterIsBounded(t *testing.T) {
	var m Limiter
	now := time.Unix(1e9, 0)
	row := &Limit{Match: "/a.B/*", Rate: 0.001, Burst: 2}
	slow := &Limit{Match: "/a.B/*", Rate: 0.000001, Burst: 2}
	m.Allow(slow, "heavy", now)
	m.Allow(slow, "heavy", now)
	for i := range 2 * limiterShards * limiterShare {
		if _, ok := m.Allow(row, fmt.Sprint(i), now); !ok {
			t.Fatal("a newcomer is locked out")
		}
	}
	n := 0
	for i := range m.shards {
		n += len(m.shards[i].buckets)
	}
	if n > limiterShards*limiterShare {
		t.Errorf("%d buckets", n)
	}
	if _, ok := m.Allow(slow, "heavy", now); ok {
		t.Error("the heaviest user was forgotten before lighter ones")
	}
}

func TestSourceOf(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.7": "192.0.2.7", "192.0.2.7:443": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "[2001:db8:1:2::9%eth0]:1": "2001:db8:1:2::/64", "": "unknown", "x": "unknown"} {
		if got := SourceOf(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestLimiterHoldsNoLongNames: identities may have thousands of bytes, and a
// proxy that lies can make them up.
func TestLimiterHoldsNoLongNames(t *testing.T) {
	var m Limiter
	now := time.Unix(1e9, 0)
	row := &Limit{Match: "/a.B/*", Rate: 1, Burst: 1}
	long := strings.Repeat("x", 2000)
	for _, who := range []string{long + "a", long + "b"} {
		if _, ok := m.Allow(row, who, now); !ok {
			t.Error("two long names are one party")
		}
		if _, ok := m.Allow(row, who, now); ok {
			t.Error("a long name is not limited")
		}
	}
	for i := range m.shards {
		for key := range m.shards[i].buckets {
			if len(key.who) > maxParty {
				t.Errorf("a bucket holds a name of %d bytes", len(key.who))
			}
		}
	}
}
