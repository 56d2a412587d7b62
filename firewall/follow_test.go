package firewall

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFollowerTellsBeforeItCloses: a change in the moment before others are
// closed used to close those it ends without a word.
func TestFollowerTellsBeforeItCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set Set
		set.Put(map[string]Peers{"a": must(t, "10.0.0.1")})
		var mu sync.Mutex // guards what follows
		var told *View
		var at, changed time.Time
		closes := 0
		f := Follower{Set: &set, Log: slog.New(slog.DiscardHandler),
			Enforce: func(v *View) { mu.Lock(); told, at = v, time.Now(); mu.Unlock() },
			Close: func() {
				mu.Lock()
				defer mu.Unlock()
				closes++
				if told != set.View() {
					t.Error("closed by a view that nobody was told of")
				}
				if d := time.Since(at); d < closeAfter && time.Since(changed) < closeAtLatest-closeAfter {
					t.Errorf("closed %s after they were told", d)
				}
			}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = f.Run(ctx) })
		time.Sleep(closeAfter - 10*time.Millisecond)
		set.Put(map[string]Peers{"a": must(t, "10.0.0.2")})
		time.Sleep(closeAtLatest)
		mu.Lock()
		if closes != 1 {
			t.Errorf("closed %d times", closes)
		}
		closes, changed = 0, time.Now()
		mu.Unlock()
		// A set that changes all the time does not keep anybody open.
		for i := range 20 {
			set.Put(map[string]Peers{"a": must(t, []string{"10.0.0.3", "10.0.0.4"}[i%2])})
			time.Sleep(closeAfter / 4)
		}
		mu.Lock()
		if closes == 0 {
			t.Error("nobody is closed while the set changes")
		}
		mu.Unlock()
		cancel()
		running.Wait()
	})
}
