package core

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// treat does to an allowed call what the policy says of its method: the
// caller's limits, which hold here because all proxies' calls meet here, and
// the caps. It makes the header that goes on. It says whether the call goes on.
func (p *passage) treat(v *verdict, now time.Time) bool {
	if !p.counted {
		p.counted = true
		if l := v.Limits; l != nil {
			who := v.party()
			if wait, ok := p.router.used.Allow(l.CallsPerCaller, who, now); !ok {
				p.call.RejectBy(p.tooOften(l.CallsPerCaller, who, wait, now))
				return false
			}
		}
		p.meter(v)
	}
	header := p.call.Header()
	if d := v.Treatment.MaxDeadline; d > 0 {
		header = relay.CapTimeout(header, d)
		p.call.Cap(d, fmt.Sprintf("core: the call took longer than this method may, %v", d))
	}
	p.header = append(onward(header, v, p.record.RequestID), relay.Field{Name: relay.HeaderSource, Value: p.holder})
	return true
}

// meter has the messages looked at, if the policy says something of them. That
// may end the call.
func (p *passage) meter(v *verdict) {
	m := &relay.Meter{MaxMessage: v.Treatment.MaxMessage}
	if m.MaxMessage > 0 {
		m.Large = func(size uint64, response bool) relay.Rejection {
			return relay.TooLarge("core", size, m.MaxMessage, response, p.mark())
		}
	}
	var counted []limited
	if v.Limits != nil && v.Limits.MessagesPerCaller != nil {
		counted = append(counted, limited{v.Limits.MessagesPerCaller, v.party()})
	}
	if v.Limits != nil && v.Limits.MessagesPerSource != nil && p.from.role == pki.RoleGateway {
		counted = append(counted, limited{v.Limits.MessagesPerSource, p.from.stranger("")})
	}
	if len(counted) > 0 {
		m.Message = func() *relay.Rejection {
			now := p.router.now()
			for _, l := range counted {
				if wait, ok := p.router.used.Allow(l.row, l.who, now); !ok {
					no := p.tooOften(l.row, l.who, wait, now)
					return &no
				}
			}
			return nil
		}
	}
	if m.Large != nil || m.Message != nil {
		p.call.Meter(m)
	}
}

// limited is messages of one party under one row.
type limited struct {
	row *policy.Limit
	who string
}

// tooOften counts a call of a caller who asks too often, and makes the answer.
func (p *passage) tooOften(l *policy.Limit, who string, wait time.Duration, now time.Time) relay.Rejection {
	no := relay.Exhausted(fmt.Sprintf("core: more than %v, try again in %v", l, wait.Round(time.Millisecond)), "limit", wait)
	no.Extra = append(no.Extra, p.mark())
	p.mu.Lock()
	p.record.Denied = "limit"
	p.mu.Unlock()
	p.router.denials.add(who, p.call.Path(), "limit", codes.ResourceExhausted, now)
	return no
}

// maxKeyWaiters bounds the calls that wait for an issuer's keys. Anybody can
// write a token with a key that nobody knows: what is beyond is refused at once.
const maxKeyWaiters = 1024

// awaitKeys lets the call wait, in a goroutine of its own, for an issuer's keys.
func (p *passage) awaitKeys() {
	r := p.router
	if r.keyWaiters.Add(1) > maxKeyWaiters {
		r.keyWaiters.Add(-1)
		if p.decideNow(true) == yes {
			p.route()
		}
		return
	}
	r.goroutines.Go(func() {
		defer r.keyWaiters.Add(-1)
		timer := time.NewTimer(keysWait)
		defer timer.Stop()
		select {
		case <-p.fetched:
		case <-timer.C:
		case <-r.stopped:
			p.call.Reject(codes.Unavailable, errShutdown.Error(), p.mark())
			return
		}
		if p.decideNow(true) == yes {
			p.route()
		}
	})
}
