package core

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/builtin"
	"sallyport/roles/link"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

const (
	routeWait  = time.Second // how long a call waits for a gateway that is about to be able to take it
	maxWaiting = 4096        // calls that may wait at a time
)

// router takes the calls that proxies and gateways pass on, decides about each
// and gives it to a gateway.
type router struct {
	log      *slog.Logger
	registry *registry
	denials  *denials
	calls    *relay.CallMetrics
	access   *relay.AccessLog
	shares   *relay.Shares // of the memory that calls hold, by the source that a proxy names, and by gateway
	ruling   atomic.Pointer[ruling]
	now      func() time.Time
	wait     time.Duration

	held    func() string // why core relays nothing now; empty: it does
	newer   func(issuer string) <-chan struct{}
	live    livePassages
	recheck chan struct{} // callers are judged by other grounds than before
	used    policy.Limiter
	own     *builtin.Services // for the apps beside gateways

	keyWaiters atomic.Int32

	turn       atomic.Uint32 // so that idle gateways take turns
	waiting    chan struct{} // a place per waiting call
	goroutines sync.WaitGroup
	stopped    <-chan struct{}
}

// ServeCall implements relay.Handler. The connection's peer is the neighbour that
// it came from.
func (r *router) ServeCall(call *relay.Call) {
	from, ok := call.Peer().(*neighbour)
	if !ok {
		call.Reject(codes.Internal, "core: a call came from nowhere")
		return
	}
	r.calls.Begin()
	p := &passage{router: r, call: call, from: from, shard: r.live.pick()}
	p.record = relay.CallRecord{Method: call.Path(), RequestID: call.Get(relay.HeaderRequestID), Source: clean(call.Get(relay.HeaderSource))}
	if !relay.ValidRequestID(p.record.RequestID) {
		p.record.RequestID = relay.NewRequestID()
	}
	p.holder = holderOf(p.record.Source, from)
	if from.role == pki.RoleGateway {
		p.record.Source = strings.TrimSpace("gateway " + from.link + " " + p.record.Source)
	}
	room := call.Charge(r.shares.Take(p.holder))
	call.OnDone(p.done)
	r.live.add(p)
	if why := r.held(); why != "" {
		call.Reject(codes.Unavailable, "core: "+why, p.mark())
		return
	}
	if !room {
		call.Reject(codes.ResourceExhausted, "core: no memory is left for another call from this source", p.mark())
		return
	}
	if from.role == pki.RoleGateway && !p.sourced() {
		return
	}
	switch p.decideNow(false) {
	case yes:
		p.route()
	case later:
		p.awaitKeys()
	}
}

// decideNow judges the call by the ruling in force.
func (p *passage) decideNow(final bool) answer {
	for now := p.router.ruling.Load(); ; {
		if a := p.decide(now, final); a != yes {
			return a
		}
		// Who was revoked meanwhile may not have been found among the calls.
		newer := p.router.ruling.Load()
		if newer == now {
			return yes
		}
		now = newer
	}
}

// holderOf is whose share of memory a call has: its source's, as a proxy says,
// so that one who hoards does so at nobody else's expense. The apps beside a
// gateway share one.
func holderOf(source string, from *neighbour) string {
	if a, err := netip.ParseAddr(source); err == nil && from.role != pki.RoleGateway {
		return link.SourcePrefix(a).String()
	}
	return string(from.role) + " " + from.name
}

// passage is one call on its way through core. One goroutine at a time has it,
// except for done.
type passage struct {
	router *router
	call   *relay.Call
	from   *neighbour

	holder  string // whose share of memory the call has
	shard   uint32 // of livePassages
	gone    bool   // the call has ended; guarded by the shard
	ruling  *ruling
	judged  atomic.Pointer[grounds] // that let the call in last
	until   atomic.Int64            // when its credentials end, in Unix nanoseconds; 0: not by themselves
	header  []relay.Field
	who     policy.Caller   // as judged last
	counted bool            // among what its caller may do
	failed  []refused       // links on which the call was handed back
	fetched <-chan struct{} // closed when the keys are there that the call waits for

	mu     sync.Mutex // guards what follows, which done reads
	record relay.CallRecord
	ownID  string      // the call at our own services; empty: it is not there
	taken  *target     // who has the call
	conn   *relay.Conn // on which link
	ended  bool
}

// refused is a link on which a call was handed back, and why.
type refused struct {
	target *target
	conn   *relay.Conn
	reason error
}

// answer is what came of judging a call.
type answer int

const (
	no    answer = iota // it was rejected
	yes                 // it may go on
	later               // an issuer's newer keys will decide
)

// decide judges the call by r and rejects it when it is not allowed. When keys
// that are being fetched may change that, it rejects it only if final is set.
func (p *passage) decide(r *ruling, final bool) answer {
	now := p.router.now()
	v := r.judge(p.call.Path(), p.call.Header(), p.from, now)
	if !v.Allowed && v.newer != "" && !final {
		if p.fetched = p.router.newer(v.newer); p.fetched != nil {
			return later
		}
	}
	p.ruling, p.who = r, v.caller
	p.mu.Lock()
	p.record.Caller = v.caller.Name()
	p.mu.Unlock()
	if !v.Allowed {
		p.deny(&v, now)
		return no
	}
	if !v.caller.Expires.IsZero() {
		p.until.Store(v.caller.Expires.UnixNano())
	}
	p.judged.Store(r.grounds)
	if !p.treat(&v, now) {
		return no
	}
	return yes
}

// deny rejects the call and counts that.
func (p *passage) deny(v *verdict, now time.Time) {
	p.mu.Lock()
	p.record.Denied = v.Reason
	p.mu.Unlock()
	p.router.denials.add(v.denied, p.call.Path(), v.Reason, v.Code, now)
	p.call.Reject(v.Code, v.Message, p.mark())
}

// mark is the request id that goes with every answer of core's own.
func (p *passage) mark() relay.Field {
	return relay.Field{Name: relay.HeaderRequestID, Value: p.record.RequestID}
}

// route gives the call to a gateway, lets it wait for one, or ends it.
func (p *passage) route() {
	m, _ := policy.ParseMethod(p.call.Path())
	if p.from.role == pki.RoleGateway && builtin.Own(p.call.Path()) {
		p.serveOwn()
		return
	}
	switch p.try(m.Service) {
	case routed:
	case notYet:
		p.await(m.Service)
	case noneServes:
		p.call.Reject(codes.Unimplemented, "no gateway serves "+m.Service, p.mark())
	case allAway:
		p.call.Reject(codes.Unavailable, p.why(m.Service), p.mark())
	}
}

type result int

const (
	routed     result = iota
	notYet            // a gateway is about to be able to take it, or was lost a moment ago
	noneServes        // nobody announced the service
	allAway           // who announced it cannot take it
)

// try gives the call to the gateway with the fewest calls in flight among
// those that serve, have acknowledged the ruling, and did not hand it back. A
// call that came from a gateway goes back to it only when no other can take it.
func (p *passage) try(name string) result {
	s := p.ruling.find(name)
	if s == nil {
		return noneServes
	}
	first := int(p.router.turn.Add(1) & 0xffff)
	for range 3 {
		var best *target
		var bestConn *relay.Conn
		least := 0
		soon, bestIsBack := false, false
		for i := range s.targets {
			t := &s.targets[(first+i)%len(s.targets)]
			if t.known && !t.serving || !t.gateway.connected.Load() {
				soon = soon || t.gateway.expected(p.router.now())
				continue
			}
			var conn *relay.Conn
			if t.known && t.gateway.acknowledged.Load() >= t.need {
				conn = t.gateway.links.Pick()
			}
			switch {
			case conn == nil:
				soon = true
				continue
			case p.refusedOn(conn):
				continue
			}
			back := p.from.role == pki.RoleGateway && t.gateway.name == p.from.link
			if n := t.gateway.links.InFlight(); best == nil || bestIsBack || n < least && !back {
				best, bestConn, least, bestIsBack = t, conn, n, back
			}
		}
		if best == nil {
			if soon {
				return notYet
			}
			return allAway
		}
		p.take(best, bestConn)
		err := p.call.Forward(bestConn, p.header, relay.ForwardOptions{Retry: p.again})
		if err == nil {
			return routed
		}
		p.take(nil, nil)
		if !errors.Is(err, relay.ErrNotAccepting) {
			p.call.Reject(codes.Unavailable, "core: "+err.Error(), p.mark())
			return routed
		}
	}
	return notYet
}

// take notes which gateway has the call, and on which link.
func (p *passage) take(t *target, l *relay.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if p.taken != nil {
		p.taken.inFlight.Add(-1)
	}
	p.taken, p.conn = t, l
	if t != nil {
		t.inFlight.Add(1)
		p.record.Gateway = t.gateway.name
	}
}

// finish ends the passage and returns what there is to say about it.
func (p *passage) finish() relay.CallRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.taken != nil {
		p.taken.inFlight.Add(-1)
		p.taken = nil
	}
	return p.record
}

// again is called when a gateway handed the call back and has certainly not
// looked at it, and all of the call is still here.
func (p *passage) again(reason error) {
	p.mu.Lock()
	t, conn := p.taken, p.conn
	p.mu.Unlock()
	if t == nil {
		return
	}
	p.failed = append(p.failed, refused{t, conn, reason})
	p.take(nil, nil)
	p.route()
}

// refusedOn reports whether the call was handed back on this link already. The
// gateway's other links may take it: a link that drains refuses too.
func (p *passage) refusedOn(l *relay.Conn) bool {
	for _, f := range p.failed {
		if f.conn == l {
			return true
		}
	}
	return false
}

// await lets the call wait, in a goroutine of its own, until a gateway can
// take it. A ruling that is newer by then decides anew.
func (p *passage) await(name string) {
	r := p.router
	select {
	case r.waiting <- struct{}{}:
	default:
		p.call.Reject(codes.Unavailable, "core: too many calls wait for a gateway of "+name, p.mark())
		return
	}
	r.goroutines.Go(func() {
		defer func() { <-r.waiting }()
		limit := r.wait
		if t, ok := p.call.Timeout(); ok {
			limit = min(limit, t)
		}
		timer := time.NewTimer(limit)
		defer timer.Stop()
		for {
			changed := r.registry.waiter()
			if now := r.ruling.Load(); now != p.ruling && p.decide(now, true) != yes {
				return
			}
			switch p.try(name) {
			case routed:
				return
			case noneServes:
				p.call.Reject(codes.Unimplemented, "no gateway serves "+name, p.mark())
				return
			case allAway:
				p.call.Reject(codes.Unavailable, p.why(name), p.mark())
				return
			}
			select {
			case <-changed:
			case <-timer.C:
				p.call.Reject(codes.Unavailable, p.why(name), p.mark())
				return
			case <-r.stopped:
				p.call.Reject(codes.Unavailable, errShutdown.Error(), p.mark())
				return
			}
		}
	})
}

// why says which hop keeps a call from being served.
func (p *passage) why(name string) string {
	s := p.ruling.find(name)
	if s == nil {
		return "no gateway serves " + name
	}
	var parts []string
	for i := range s.targets {
		if i == 3 {
			parts = append(parts, fmt.Sprintf("and %d more", len(s.targets)-3))
			break
		}
		parts = append(parts, p.whyNot(&s.targets[i]))
	}
	return strings.Join(parts, "; ")
}

func (p *passage) whyNot(t *target) string {
	who := "gateway " + t.gateway.name
	for _, f := range p.failed {
		if f.target.gateway == t.gateway {
			return who + ": " + f.say()
		}
	}
	switch {
	case !t.gateway.connected.Load():
		return who + " is not connected to core"
	case !t.known:
		return who + " has not announced its services yet"
	case !t.serving:
		return who + ": " + t.why
	case t.gateway.acknowledged.Load() < t.need:
		return who + " has not acknowledged the policy in force yet"
	}
	return who + ": no link takes calls"
}

// done notes how the call ended.
func (p *passage) done(o relay.Outcome) {
	p.router.live.remove(p)
	p.mu.Lock()
	own := p.ownID
	p.mu.Unlock()
	if own != "" {
		p.router.own.Forget(own)
	}
	p.router.shares.Leave(p.holder)
	record := p.finish()
	record.Code, record.Duration = o.Code, o.Duration
	if o.OriginHop {
		record.Message = o.Message
	}
	p.router.calls.End(record)
	p.router.access.Write(record)
}

// say is why the gateway handed the call back.
func (f *refused) say() string {
	if f.target.upstream != "" {
		return "upstream " + f.target.upstream + " could not be reached (" + f.reason.Error() + ")"
	}
	return f.reason.Error()
}
