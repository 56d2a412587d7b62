package link

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"sallyport/acme/pki"
)

const (
	keepFirst  = 100 * time.Millisecond
	keepMost   = 3 * time.Second
	keepSettle = 10 * time.Second
)

// Keep runs f again and again until ctx ends: at once after a run that lasted
// 10 s, otherwise after a pause that doubles from 100 ms to 3 s, each
// shortened at random by up to half, so that many components that lost the
// same peer do not come back in step. Why f ended is logged once, until it
// changes or f has run for 10 s in between. name says what is being kept, as
// "link to core".
func Keep(ctx context.Context, log *slog.Logger, name string, f func(context.Context) error) {
	pause, said := keepFirst, ""
	for {
		began := time.Now()
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= keepSettle {
			pause, said = keepFirst, ""
		}
		if err == nil {
			err = errors.New("it ended")
		}
		if text := sameCause(err); text != said {
			said = text
			logEnd(ctx, log, name, err)
		}
		wait := time.NewTimer(pause - rand.N(pause/2+1))
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		pause = min(2*pause, keepMost)
	}
}

// sameCause is what is equal for two errors with the same cause: some texts
// say what time it is.
func sameCause(err error) string {
	if r, ok := pki.AsRefusal(err); ok && (r.Code == pki.CodeExpired || r.Code == pki.CodeNotYetValid || r.Code == pki.CodeExpiredTooLong) {
		return r.Code
	}
	return err.Error()
}

func logEnd(ctx context.Context, log *slog.Logger, name string, err error) {
	if r, ok := pki.AsRefusal(err); ok {
		log.WarnContext(ctx, name+": refused, trying again", "code", r.Code, "cause", r.Cause, "remedy", r.Remedy)
		return
	}
	log.WarnContext(ctx, name+": lost, trying again", "cause", err.Error())
}
