package link

import (
	"log/slog"
	"time"
)

// ClockTolerance is how far two components' clocks may be apart before it is
// said: certificates are made and judged by them.
const ClockTolerance = 10 * time.Minute

// clockWatch says once that another clock is off, and once that it is right
// again.
type clockWatch struct{ off bool }

// look: ahead is the other clock minus this one.
func (c *clockWatch) look(log *slog.Logger, who string, ahead time.Duration) {
	off := ahead.Abs() > ClockTolerance
	switch {
	case off && !c.off:
		way := "ahead of"
		if ahead < 0 {
			way = "behind"
		}
		log.Warn("the clock of "+who+" and this one are too far apart", "offset", ahead.Round(time.Second).Abs().String(), "its_clock_is", way+" this one",
			"remedy", "set the wrong one right (NTP): certificates that are good look expired, or not yet valid, by a clock that is wrong")
	case !off && c.off:
		log.Info("the clock of "+who+" and this one agree again", "offset", ahead.Round(time.Millisecond).String())
	}
	c.off = off
}
