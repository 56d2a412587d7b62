package pki

import (
	"testing"
	"time"
)

// rotate goes through a whole rotation.
func rotate(t testing.TB, a *Authority, now time.Time) *Authority {
	t.Helper()
	for _, step := range []func(*Authority, time.Time) (*Authority, error){(*Authority).Publish, (*Authority).Activate, (*Authority).Retire} {
		var err error
		if a, err = step(a, now); err != nil {
			t.Fatal(err)
		}
	}
	return a
}
