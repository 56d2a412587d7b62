package proxy

import (
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/roles/builtin"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// maxTries bounds how many links to core a call is offered to.
const maxTries = 4

// maxMethodText bounds what is logged of a method name that is none.
const maxMethodText = 200

// serve takes one call from the internet, in the order that is promised: limit
// per source address, log, authenticate, authorize, limit per caller (core does
// that), relay. It runs on the connection's reader goroutine
// and does not block.
func (p *proxy) serve(c *relay.Call) {
	from := c.Peer().(*client)
	now := time.Now()
	id := relay.NewRequestID()
	idField := relay.Field{Name: relay.HeaderRequestID, Value: id}
	own := builtin.Own(c.Path())

	crowd := p.public.admission
	origin := p.public.originOf(c, from)
	record := &relay.CallRecord{Method: c.Path(), Protocol: c.Protocol(), Source: origin.name, RequestID: id}
	p.metrics.Begin()
	room := crowd.begin(origin.share)
	if origin.visitor {
		room = c.Charge(origin.share.budget) && room
	}
	from.calls.begin(c) // before it is judged, so that no change in between is missed
	c.OnDone(func(o relay.Outcome) {
		from.calls.end(c)
		crowd.end(origin.share)
		p.public.gone(origin)
		record.Code, record.Duration = o.Code, o.Duration
		if o.OriginHop {
			record.Message = o.Message
		}
		if own {
			p.own.Forget(id)
		}
		p.metrics.End(*record)
		p.access.Write(*record)
	})
	refuse := func(r *refused) {
		if r.code == codes.Unauthenticated || r.code == codes.PermissionDenied {
			record.Denied = r.reason
			who := record.Caller
			if who == "" {
				who = origin.stranger()
			}
			p.denials.Add(who, record.Method, r.reason, r.code, now)
		}
		c.Reject(r.code, r.message, idField)
	}

	if !room {
		record.Denied = "too_many_calls"
		refuse(&refused{codes.ResourceExhausted, "too_many_calls", p.hop() + ": too many calls from this address are open"})
		return
	}
	v := p.view.Load()
	var who credentials
	if v != nil {
		limits := v.policy.Limits(c.Path())
		if !p.sourced(c, limits, origin, record, idField, now) {
			return
		}
		var no *refused
		who, no = p.authenticate(c, from, v, now)
		record.Caller = who.caller.Name()
		switch {
		case no != nil:
		case who.undecided == nil:
			no = authorize(v, c.Path(), who.caller)
		case own || !p.mayAsk(origin, now):
			no = who.undecided // core, which could decide, is not asked
		}
		if no != nil {
			refuse(no)
			return
		}
		from.calls.admit(c, v, who.until)
		if !p.metered(c, limits, who.caller, origin, own, record, idField, now) {
			return
		}
	} else if !builtin.HealthMethod(c.Path()) {
		refuse(&refused{codes.Unavailable, "no_snapshot", p.hop() + " is not ready: it has not heard from core yet what it may let through"})
		return
	}

	back := func(header []relay.Field) []relay.Field { return append(header, idField) }
	if own {
		if !p.own.Serve(c, who.caller, id, back) {
			refuse(&refused{codes.Unavailable, "starting", p.hop() + " is starting"})
		}
		return
	}
	p.toCore(c, towardsCore(c.Header(), origin.name, who.claim, idField), back, refuse, 0)
}

// violated takes note of a request that broke the header rules, which the
// engine answers itself: it is logged, counted and named like any other call.
func (p *proxy) violated(c *relay.Call, v *relay.Violation) []relay.Field {
	from := c.Peer().(*client)
	origin := p.public.named(c, from)
	method := c.Path()
	if len(method) > maxMethodText {
		method = method[:maxMethodText] + "…"
	}
	record := relay.CallRecord{Method: method, Protocol: c.Protocol(), Source: origin.name, RequestID: relay.NewRequestID(), Denied: "header_" + v.Reason, Message: v.Message}
	p.metrics.Begin()
	c.OnDone(func(o relay.Outcome) {
		record.Code, record.Duration = o.Code, o.Duration
		p.metrics.End(record)
		p.access.Write(record)
	})
	p.denials.Add(origin.stranger(), method, record.Denied, v.Code, time.Now())
	return []relay.Field{{Name: relay.HeaderRequestID, Value: record.RequestID}}
}

// authorize decides by the policy in force. The claim about a certificate is
// this proxy's own, so its word counts where a grant names it.
func authorize(v *view, path string, caller policy.Caller) *refused {
	d := v.policy.Decide(path, caller)
	if d.Allowed {
		return nil
	}
	return &refused{d.Code, d.Reason, d.Message}
}

// toCore relays the call on the least busy link to core.
func (p *proxy) toCore(c *relay.Call, header []relay.Field, back func([]relay.Field) []relay.Field, refuse func(*refused), tries int) {
	why := "the links to core take no calls"
	for ; tries < maxTries; tries++ {
		conn := p.links.Pick()
		if conn == nil {
			why = "core is not connected"
			break
		}
		next := tries + 1
		err := c.Forward(conn, header, relay.ForwardOptions{
			ResponseHeader: back,
			Retry:          func(error) { p.toCore(c, header, back, refuse, next) },
		})
		if err == nil {
			return
		}
	}
	refuse(&refused{codes.Unavailable, "no_link", p.hop() + ": " + why + ", try again later"})
}

// towardsCore is the header core gets: the caller's own, less what only
// components may say (the engine dropped that), and what this proxy says of
// the caller.
func towardsCore(in []relay.Field, source, claim string, id relay.Field) []relay.Field {
	out := make([]relay.Field, 0, len(in)+3)
	for _, f := range in {
		if f.Name == "authorization" {
			f.Sensitive = true
		}
		out = append(out, f)
	}
	out = append(out, id)
	if source != "" {
		out = append(out, relay.Field{Name: relay.HeaderSource, Value: source})
	}
	if claim != "" {
		out = append(out, relay.Field{Name: relay.HeaderClientCert, Value: claim})
	}
	return out
}
