package proxy

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/roles/builtin"
	"sallyport/roles/relay"
)

// Authorization holds for the whole call. Open calls are judged again whenever
// what the proxy knows has changed, and when certificates, keys and tokens end
// that they came with; one that would not be let in now is ended.
const (
	recheckEvery = time.Second
	recheckBatch = 256 // calls that are judged in one go
	recheckPause = time.Millisecond
)

// openCalls are the calls that are open on one connection.
type openCalls struct {
	mu   sync.Mutex
	list map[*relay.Call]judged // guarded by mu
}

// judged is by what a call was let in last.
type judged struct {
	view  *view
	until time.Time // when it has to be judged again; zero: not by itself
}

func (o *openCalls) begin(c *relay.Call) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.list == nil {
		o.list = make(map[*relay.Call]judged)
	}
	o.list[c] = judged{}
}

// admit notes that an open call was let in.
func (o *openCalls) admit(c *relay.Call, v *view, until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, open := o.list[c]; open {
		o.list[c] = judged{v, until}
	}
}

func (o *openCalls) end(c *relay.Call) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.list, c)
}

// suspects are the calls that v may not let in now.
func (o *openCalls) suspects(v *view, now time.Time) (list []*relay.Call) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c, j := range o.list {
		if j.view != v || !j.until.IsZero() && !now.Before(j.until) {
			list = append(list, c)
		}
	}
	return list
}

// keepChecking judges open calls again until ctx ends.
func (p *proxy) keepChecking(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.recheck:
		case <-tick.C:
		}
		p.checkOpen(ctx)
	}
}

// checkOpen judges the open calls by what is known now, as far as that may
// differ from when they were judged last: in batches, because calls that come
// have to be judged too.
func (p *proxy) checkOpen(ctx context.Context) {
	n := 0
	for _, conn := range p.public.connections() {
		from, ok := conn.Peer().(*client)
		v, now := p.view.Load(), time.Now()
		if !ok || v == nil {
			continue
		}
		for _, c := range from.calls.suspects(v, now) {
			if n++; n%recheckBatch == 0 {
				select {
				case <-ctx.Done():
					return
				case <-time.After(recheckPause):
				}
			}
			p.check(c, from, v, now)
		}
	}
}

// check judges one open call again.
func (p *proxy) check(c *relay.Call, from *client, v *view, now time.Time) {
	who, no := p.authenticate(c, from, v, now)
	switch {
	case no != nil:
	case who.undecided == nil:
		no = authorize(v, c.Path(), who.caller)
	case builtin.Own(c.Path()):
		no = who.undecided // core does not see the call, and will not end it
	}
	if no == nil {
		from.calls.admit(c, v, who.until)
		return
	}
	name := who.caller.Name()
	if name == "" {
		name = p.public.named(c, from).stranger()
	}
	p.denials.Add(name, c.Path(), no.reason, no.code, now)
	why := ": the call was ended, because its credentials do not hold any more: "
	if no.code == codes.PermissionDenied {
		why = ": the call was ended, because the policy has changed: "
	}
	c.Reject(no.code, p.hop()+why+no.message)
}

// changedView asks for open calls to be judged again.
func (p *proxy) changedView() {
	select {
	case p.recheck <- struct{}{}:
	default:
	}
}
