package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"sallyport/roles/policy"
	"sallyport/store"
)

const (
	policyPoll = time.Second
	maxPolicy  = 4 << 20
)

// policyFile is the file named by --policy: applied when core starts and when
// it changes. A file that cannot be applied leaves the policy in force as it
// is, and is reported once.
type policyFile struct {
	path    string // empty: none
	log     *slog.Logger
	db      *store.Core
	publish func(context.Context) error

	judged []byte // what start read, applied or not; watch goes on from there

	mu      sync.Mutex // guards problem
	problem string     // why the file as it is now is not in force
}

// start applies the file before core takes its first call. Core does not start
// on a file that cannot be applied, unless an earlier policy is in force.
func (f *policyFile) start(ctx context.Context) error {
	if f.path == "" {
		return nil
	}
	text, err := f.read()
	if err == nil {
		f.judged = text
		err = f.apply(ctx, text)
	}
	if err == nil {
		return nil
	}
	former, stored := f.db.Policy(ctx, 0)
	if stored != nil {
		return err
	}
	f.report(err)
	f.log.Error("core starts with the policy that was applied before", "version", former.Version, "applied", former.Applied)
	return nil
}

// watch applies the file whenever it has changed, until ctx ends. A change is
// taken when the file has been the same twice in a row, so that one which is
// just being written is not taken half.
func (f *policyFile) watch(ctx context.Context) error {
	if f.path == "" {
		return nil
	}
	tick := time.NewTicker(policyPoll)
	defer tick.Stop()
	judged := f.judged
	var seen []byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		text, err := f.read()
		switch {
		case err != nil:
			f.report(err)
			seen, judged = nil, nil
		case judged != nil && bytes.Equal(text, judged):
			seen = nil
		case seen == nil || !bytes.Equal(text, seen):
			seen = text
		default:
			seen, judged = nil, text
			if err := f.apply(ctx, text); err != nil {
				f.report(err)
			}
		}
	}
}

// apply puts text into force.
func (f *policyFile) apply(ctx context.Context, text []byte) error {
	if _, err := policy.Parse(f.path, text); err != nil {
		return err
	}
	before, err := f.db.Policy(ctx, 0)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	version, err := f.db.ApplyPolicy(ctx, "core, from "+store.Actor(f.path), text)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.problem = ""
	f.mu.Unlock()
	if version == before.Version {
		return nil
	}
	f.log.Info("policy file is in force", "file", f.path, "version", version)
	return f.publish(ctx)
}

// report says once why the file is not in force.
func (f *policyFile) report(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if text := err.Error(); text != f.problem {
		f.problem = text
		f.log.Error("the policy file is not applied, the former policy stays in force", "file", f.path, "cause", text)
	}
}

// warning is why the file as it is now is not in force; empty if it is.
func (f *policyFile) warning() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.problem == "" {
		return ""
	}
	return fmt.Sprintf("the policy file %s is not applied, the former policy stays in force: %s", f.path, f.problem)
}

func (f *policyFile) read() ([]byte, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("policy file: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxPolicy+1))
	if err != nil {
		return nil, fmt.Errorf("policy file: %w", err)
	}
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("policy file %s is larger than %d MiB", f.path, maxPolicy>>20)
	}
	if text == nil {
		text = []byte{}
	}
	return text, nil
}
