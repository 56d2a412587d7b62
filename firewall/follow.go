package firewall

import (
	"context"
	"log/slog"
	"time"

	"sallyport/configs"
)

// Follower puts each view of a Set into force, in the process and in the data
// file that root reads.
type Follower struct {
	Set  *Set
	Role configs.Role // whose port it is
	File *File        // nil: none is written
	Log  *slog.Logger

	// Enforce ends what the view does not allow any more, as politely as it can
	// at once; Close ends the rest a moment later, when those have been told.
	Enforce func(*View)
	Close   func()
}

const (
	closeAfter    = 250 * time.Millisecond
	closeAtLatest = 600 * time.Millisecond // however often the set changes meanwhile
	rewriteFile   = 30 * time.Second
)

// Run follows the set until ctx ends, beginning with the present view, and
// resolves its names.
func (f *Follower) Run(ctx context.Context) error {
	resolving := make(chan error, 1)
	go func() { resolving <- f.Set.Run(ctx) }()
	defer func() { <-resolving }()
	written, said := false, ""
	var owed time.Time // since when somebody may have to be closed
	for {
		v := f.Set.View()
		f.Enforce(v)
		again := rewriteFile
		// What the file says from the last run stands until every name has been
		// looked up once: it has the last good answers.
		if f.File != nil && (written || !v.Untried()) {
			err := f.File.Update(f.Role, v.Union())
			written = true
			switch {
			case err == nil && said != "":
				f.Log.Info("the data file of the firewall is written again", "file", f.File.Path())
				said = ""
			case err != nil && err.Error() != said:
				said = err.Error()
				f.Log.Error("the data file of the firewall is not up to date, and so are not the rules that are made of it", "file", f.File.Path(), "cause", said,
					"remedy", "see to it that this service may write there, or give another --firewall-file")
			}
		}
		if owed.IsZero() {
			owed = time.Now()
		}
		// Close goes by the newest view: whoever that one ends is told first.
		switch stay(ctx, closeAfter, v.Replaced()) {
		case ended:
			return nil
		case replaced:
			if time.Since(owed) < closeAtLatest {
				continue
			}
			f.Enforce(f.Set.View())
		}
		f.Close()
		owed = time.Time{}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-v.Replaced():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// What a stay ended by.
const (
	passed = iota
	replaced
	ended
)

func stay(ctx context.Context, d time.Duration, other <-chan struct{}) int {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return passed
	case <-other:
		return replaced
	case <-ctx.Done():
		return ended
	}
}

// Update writes the set of a role with a generation that moves only when the
// set does, over restarts too.
func (f *File) Update(role configs.Role, peers Peers) error {
	f.mu.Lock()
	e := Entry{Generation: 1, Peers: peers}
	if former := f.data.Of(role); former != nil {
		e.Generation = former.Generation
		if !former.Peers.Equal(peers) {
			e.Generation++
		}
	}
	f.mu.Unlock()
	return f.Put(role, e)
}
