package core

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/roles/policy"
)

// Authorization holds for the whole call. Open calls are judged again when the
// grounds of judgement change, and ended when a key or token ends that they came
// with. Revoked callers are cut at once, see cut. How a method's calls are
// treated, limits and caps, is settled when a call begins.
const (
	recheckEvery = time.Second
	recheckBatch = 512 // calls that are judged in one go
	recheckPause = time.Millisecond
)

// ruled is called when a new ruling is in force.
func (r *router) ruled() {
	select {
	case r.recheck <- struct{}{}:
	default:
	}
}

// keepChecking judges open calls again until ctx ends.
func (r *router) keepChecking(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.recheck:
		case <-tick.C:
		}
		r.checkOpen(ctx)
	}
}

// checkOpen ends the open calls that would not be let in now. It looks at all,
// which is cheap, and judges, in batches, those that were let in by other
// grounds than those of now.
func (r *router) checkOpen(ctx context.Context) {
	now, judged := r.now(), 0
	for i := range r.live.shards {
		for _, p := range r.live.suspects(i, now, r.ruling.Load().grounds) {
			if judged++; judged%recheckBatch == 0 {
				select {
				case <-ctx.Done():
					return
				case <-time.After(recheckPause): // calls that come have to be judged too
				}
			}
			r.check(p, now)
		}
	}
}

// suspects are the calls of a shard that have to be looked at more closely.
func (l *livePassages) suspects(shard int, now time.Time, g *grounds) []*passage {
	s := &l.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*passage
	for p := range s.live {
		judged, until := p.judged.Load(), p.until.Load()
		if judged != nil && (judged != g || until != 0 && now.UnixNano() >= until) {
			list = append(list, p)
		}
	}
	return list
}

// check judges one open call again.
func (r *router) check(p *passage, now time.Time) {
	current := r.ruling.Load()
	v := current.judge(p.call.Path(), p.call.Header(), p.from, now)
	if v.Allowed {
		p.judged.Store(current.grounds)
		return
	}
	if who := p.caller(); who != "" {
		v.denied = who
	}
	v.Message = ended(v.Decision)
	p.deny(&v, now)
}

// caller is who calls, as far as it was found out.
func (p *passage) caller() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.record.Caller
}

// ended is what the caller of an open call reads who may not go on.
func ended(d policy.Decision) string {
	if d.Code == codes.PermissionDenied {
		return "core: the call was ended, because the policy has changed: " + d.Message
	}
	return "core: the call was ended, because its credentials do not hold any more: " + d.Message
}
