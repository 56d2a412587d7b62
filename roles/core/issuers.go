package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"sallyport/roles/policy"
	"sallyport/roles/policy/token"
)

const (
	keysEvery  = 5 * time.Minute  // how often an issuer's keys are fetched
	fileEvery  = 2 * time.Second  // how often a jwks_file is read
	keysAgain  = 10 * time.Second // the least time between two fetches that callers cause
	keysRetry  = time.Second      // after the first failure; doubled with each, up to keysSlow
	keysSlow   = time.Minute
	keysMaxAge = 24 * time.Hour  // keys that could not be confirmed for so long are given up
	keysWait   = 3 * time.Second // how long a call waits for them
)

// issuers keeps the keys of the policy's issuers: it fetches them now and then,
// and when a token names one that is not known, never on behalf of one call and
// not more than once in ten seconds. While an issuer cannot be reached, the keys
// that it published before go on for a day; a token by any other key is refused.
// One that answers with no key to be believed has withdrawn those before.
type issuers struct {
	log     *slog.Logger
	fetch   func(ctx context.Context, url string) (*token.Keys, error)
	publish func(context.Context) error // keys have changed
	now     func() time.Time

	mu    sync.Mutex // guards what follows
	known map[string]*issuer
	wake  chan struct{}

	fetching sync.WaitGroup

	path    string             // where keys are kept; empty: nowhere
	kept    map[string]*issuer // what was kept of those that the policy has not named since; guarded by mu
	writing sync.Mutex         // one write at a time
}

// issuer is what is known of one issuer.
type issuer struct {
	url, file string
	keys      *token.Keys
	good      time.Time     // when keys were last fetched
	due       time.Time     // when they are fetched next
	began     time.Time     // when a fetch last began
	failures  int           // in a row
	problem   string        // of the last fetch; empty: it succeeded
	running   bool          // a fetch is under way
	done      chan struct{} // closed when the fetch that is due or under way has ended
}

func newIssuers(log *slog.Logger, fetch func(context.Context, string) (*token.Keys, error), publish func(context.Context) error) *issuers {
	return &issuers{log: log, fetch: fetch, publish: publish, now: time.Now, known: map[string]*issuer{}, kept: map[string]*issuer{}, wake: make(chan struct{}, 1)}
}

// follow makes these the issuers, and returns them with their keys as far as
// they are known. Those of a new one are fetched as soon as run sees to it.
func (s *issuers) follow(list []policy.Issuer) []token.Issuer {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	next := make(map[string]*issuer, len(list))
	out := make([]token.Issuer, 0, len(list))
	for _, p := range list {
		i := s.known[p.URL]
		if old := s.kept[p.URL]; i == nil && old != nil && p.JWKSFile == "" {
			i = old
			s.poke()
		}
		delete(s.kept, p.URL)
		if i == nil || i.file != p.JWKSFile {
			i = &issuer{url: p.URL, file: p.JWKSFile, due: now, done: make(chan struct{})}
			s.poke()
		}
		next[p.URL] = i
		out = append(out, token.Issuer{Issuer: p, Keys: i.keys})
	}
	s.known = next
	return out
}

func (s *issuers) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// newer asks for an issuer's keys to be fetched again, because a token names
// one that is not known. The channel is closed when that is done; it is nil if
// it was done a moment ago.
func (s *issuers) newer(url string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.known[url]
	if i == nil {
		return nil
	}
	again := keysAgain
	if i.file != "" {
		again = fileEvery
	}
	now := s.now()
	if !i.running && !i.began.IsZero() && now.Sub(i.began) < again {
		return nil
	}
	if !i.running && i.due.After(now) {
		i.due = now
		s.poke()
	}
	return i.done
}

// run fetches what is due until ctx ends.
func (s *issuers) run(ctx context.Context) error {
	defer s.fetching.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.begin(ctx))
	}
}

// begin starts what is due and returns how long to wait for what is next.
func (s *issuers) begin(ctx context.Context) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, next := s.now(), keysEvery
	for _, i := range s.known {
		if i.running {
			continue
		}
		if wait := i.due.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		i.running, i.began = true, now
		s.fetching.Go(func() { s.refresh(ctx, i) })
	}
	return next
}

// refresh fetches the keys of one issuer.
func (s *issuers) refresh(ctx context.Context, i *issuer) {
	keys, err := s.keys(ctx, i.url, i.file)
	s.mu.Lock()
	now, former, withdrawn := s.now(), i.keys, false
	every := keysEvery
	if i.file != "" {
		every = fileEvery
	}
	if err == nil {
		if i.problem != "" {
			s.log.Info("the keys of an issuer of tokens can be had again", "issuer", i.url)
		}
		i.keys, i.good, i.problem, i.failures = keys, now, "", 0
		i.due = now.Add(every)
	} else if ctx.Err() == nil {
		if problem := err.Error(); problem != i.problem {
			i.problem = problem
			s.log.Warn("the keys of an issuer of tokens cannot be had", "issuer", i.url, "known_keys", i.keys.Len(), "cause", clean(problem))
		}
		i.due = now.Add(min(keysRetry<<min(i.failures, 10), keysSlow, every))
		i.failures++
		withdrawn = errors.Is(err, token.ErrWithdrawn)
		if withdrawn {
			i.keys = nil
		} else if i.keys != nil && now.Sub(i.good) > keysMaxAge {
			s.log.Error("the keys of an issuer of tokens are too old to be believed, its tokens are refused", "issuer", i.url, "fetched", i.good)
			i.keys = nil
		}
	}
	changed := s.known[i.url] == i && !i.keys.Equal(former)
	if changed && i.keys != nil {
		s.log.Info("the keys of an issuer of tokens are in force", "issuer", i.url, "keys", i.keys.Len())
	}
	s.mu.Unlock()
	if (err == nil || withdrawn) && i.file == "" {
		s.keep()
	}
	if changed && ctx.Err() == nil {
		if err := s.publish(ctx); err != nil {
			s.log.Error("an issuer's keys are not in force", "issuer", i.url, "cause", err)
		}
	}
	s.mu.Lock()
	i.running = false
	close(i.done)
	i.done = make(chan struct{})
	s.mu.Unlock()
	s.poke()
}

func (s *issuers) keys(ctx context.Context, url, file string) (*token.Keys, error) {
	if file != "" {
		return token.ReadFile(file)
	}
	return s.fetch(ctx, url)
}

// unreachable tries the issuers of a policy that is not in force, and says
// which have no keys to be had.
func (s *issuers) unreachable(ctx context.Context, list []policy.Issuer) []string {
	problems := make([]string, len(list))
	var all sync.WaitGroup
	for n, p := range list {
		all.Go(func() {
			if _, err := s.keys(ctx, p.URL, p.JWKSFile); err != nil {
				problems[n] = clean(fmt.Sprintf("tokens of %s cannot be verified: %v", p.URL, err))
			}
		})
	}
	all.Wait()
	var out []string
	for _, p := range problems {
		if p != "" {
			out = append(out, p)
		}
	}
	return out
}

// warnings are what an operator should look at.
func (s *issuers) warnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, i := range s.known {
		switch {
		case i.problem == "":
		case i.keys == nil:
			out = append(out, "tokens of "+i.url+" are refused, their keys cannot be had: "+clean(strings.TrimSpace(i.problem)))
		default:
			out = append(out, fmt.Sprintf("the keys of %s are of %s and cannot be had again: %s", i.url, i.good.UTC().Format(time.RFC3339), clean(i.problem)))
		}
	}
	return out
}
