package app

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// period is a duration as people write lifetimes: Go's notation, or whole
// days (90d) or weeks (2w).
type period time.Duration

// UnmarshalText lets flags be periods.
func (p *period) UnmarshalText(text []byte) error {
	s := string(text)
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		number, ok := strings.CutSuffix(s, unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			break
		}
		*p = period(time.Duration(n) * length)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is not a duration: write for example 90d, 36h or 30m", s)
	}
	*p = period(d)
	return nil
}

func (p period) seconds() int64 { return int64(time.Duration(p).Seconds()) }
