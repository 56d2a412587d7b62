package core

import (
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
)

// livePassages are the calls in flight, so that those of a caller who was
// revoked can be ended. Every call passes here: the lock is one of many.
type livePassages struct {
	next   atomic.Uint32
	shards [32]struct {
		mu   sync.Mutex
		live map[*passage]struct{}
	}
}

// pick is the shard of a call that comes.
func (l *livePassages) pick() uint32 { return l.next.Add(1) % uint32(len(l.shards)) }

func (l *livePassages) add(p *passage) {
	s := &l.shards[p.shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone {
		return
	}
	if s.live == nil {
		s.live = map[*passage]struct{}{}
	}
	s.live[p] = struct{}{}
}

func (l *livePassages) remove(p *passage) {
	s := &l.shards[p.shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	p.gone = true
	delete(s.live, p)
}

// cut ends the calls that match; match is asked with the passage locked.
func (r *router) cut(match func(*passage) bool, code codes.Code, message string) int {
	var hit []*passage
	for i := range r.live.shards {
		s := &r.live.shards[i]
		s.mu.Lock()
		for p := range s.live {
			p.mu.Lock()
			if match(p) {
				hit = append(hit, p)
			}
			p.mu.Unlock()
		}
		s.mu.Unlock()
	}
	for _, p := range hit {
		p.call.Reject(code, message, p.mark())
	}
	return len(hit)
}
