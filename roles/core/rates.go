package core

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// rates bounds how often something is done for each of many, such as components.
type rates struct {
	every time.Duration
	burst int

	mu sync.Mutex
	of map[string]*rate.Limiter
}

// maxRates is how many are remembered; beyond, those that are at rest are
// forgotten, which makes no difference to them.
const maxRates = 4096

func newRates(every time.Duration, burst int) *rates {
	return &rates{every: every, burst: burst, of: map[string]*rate.Limiter{}}
}

// allow counts one more for who.
func (r *rates) allow(who string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.of[who]
	if l == nil {
		if len(r.of) >= maxRates {
			for name, l := range r.of {
				if l.Tokens() >= float64(r.burst) {
					delete(r.of, name)
				}
			}
		}
		l = rate.NewLimiter(rate.Every(r.every), r.burst)
		r.of[who] = l
	}
	return l.Allow()
}
