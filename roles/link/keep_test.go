package link

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/acme/pki"
)

func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logged
		ctx, cancel := context.WithCancel(t.Context())
		var ends, begins []time.Time
		runs := 0
		Keep(ctx, log.logger(), "link to core", func(context.Context) error {
			begins = append(begins, time.Now())
			defer func() { ends = append(ends, time.Now()) }()
			switch runs++; {
			case runs <= 8:
				return errors.New("no route")
			case runs == 9:
				return fmt.Errorf("core: %w", &pki.Refusal{Code: "revoked", Cause: "it is revoked", Remedy: "add it again"})
			case runs == 10:
				time.Sleep(keepSettle)
				return errors.New("no route")
			case runs == 12:
				cancel()
			}
			return errors.New("no route")
		})
		limit := keepFirst
		for i := 1; i < 10; i++ {
			if pause := begins[i].Sub(ends[i-1]); pause < limit/2-1 || pause > limit {
				t.Errorf("pause %d is %v, want %v at most and half of it at least", i, pause, limit)
			}
			limit = min(2*limit, keepMost)
		}
		if pause := begins[10].Sub(ends[9]); pause > keepFirst {
			t.Errorf("after a good run it waited %v", pause)
		}
		// Once for the first cause, once for the change, and once more after the good run.
		lines := strings.Split(strings.TrimSpace(log.text()), "\n")
		if len(lines) != 3 || !strings.Contains(lines[1], `remedy="add it again"`) || !strings.Contains(lines[0], "link to core") {
			t.Errorf("logged:\n%s", log.text())
		}
	})
}
