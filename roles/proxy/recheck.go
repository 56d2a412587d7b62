package proxy

import (
	"context"
	"sync"
	"time"

	"sallyport/roles/relay"
)

// Authorization holds for the whole call. Open calls are judged again whenever
// what the proxy knows has changed, and now and then for what ends by itself,
// certificates and keys; one that would not be let in now is ended.
const recheckEvery = 2 * time.Second

// openCalls are the calls that are open on one connection.
type openCalls struct {
	mu   sync.Mutex
	list map[*relay.Call]bool // guarded by mu
}

func (o *openCalls) begin(c *relay.Call) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.list == nil {
		o.list = make(map[*relay.Call]bool)
	}
	o.list[c] = true
}

func (o *openCalls) end(c *relay.Call) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.list, c)
}

func (o *openCalls) all() []*relay.Call {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]*relay.Call, 0, len(o.list))
	for c := range o.list {
		list = append(list, c)
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
			p.checkOpen(true)
		case <-tick.C:
			p.checkOpen(false)
		}
	}
}

// checkOpen judges the open calls by what is known now: all of them, or those
// whose credentials may have ended.
func (p *proxy) checkOpen(all bool) {
	v, now := p.view.Load(), time.Now()
	if v == nil {
		return
	}
	for _, conn := range p.public.connections() {
		from, ok := conn.Peer().(*client)
		if !ok {
			continue
		}
		for _, c := range from.calls.all() {
			if !all && len(from.chain) == 0 && c.Get("authorization") == "" {
				continue
			}
			who, no := p.authenticate(c, from, v, now)
			if no == nil {
				no = authorize(v, c.Path(), who.caller)
			}
			if no == nil {
				continue
			}
			name := who.caller.Name()
			if name == "" {
				name = p.public.named(c, from).stranger()
			}
			p.denials.Add(name, c.Path(), no.reason, no.code, now)
			c.Reject(no.code, no.message)
		}
	}
}

// changedView asks for open calls to be judged again.
func (p *proxy) changedView() {
	select {
	case p.recheck <- struct{}{}:
	default:
	}
}
