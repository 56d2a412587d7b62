package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

const (
	maxCallTries  = 4   // links to core that a call is offered to
	maxMethodText = 200 // of what is logged of a method name that is none
)

// app is who is at the other end of a connection to an entrance.
type app struct {
	entrance *entrance
	remote   netip.AddrPort      // zero on unix sockets
	source   *appSource          // of entrance.room
	chain    []*x509.Certificate // the client certificate it proved to hold, or nil
	judged   atomic.Pointer[appJudgement]
}

// origin is how logs call it.
func (a *app) origin() string {
	if a.entrance.Address.Scheme == configs.SchemeTLS && a.remote.IsValid() {
		return a.remote.Addr().String()
	}
	return a.entrance.String()
}

// appJudgement is what this gateway makes of an app's certificate, until it
// expires or what is known of the CA changes.
type appJudgement struct {
	by      uint64 // entrances.judging
	until   time.Time
	who     string // for logs
	claim   string // for core
	refusal *pki.Refusal
}

// now is the time by core's clock, which certificates are judged by.
func (e *entrances) now() time.Time { return time.Now().Add(e.gateway.end.ClockOffset()) }

// certificate judges the app's certificate, which it has, by what is known at
// now, of core's clock.
func (e *entrances) certificate(a *app, now time.Time) *appJudgement {
	by := e.judging.Load()
	if j := a.judged.Load(); j != nil && j.by == by && now.Before(j.until) {
		return j
	}
	g := e.gateway
	j := &appJudgement{by: by, until: now.Add(time.Hour)}
	for _, cert := range a.chain {
		for _, t := range [2]time.Time{cert.NotBefore, cert.NotAfter} {
			if now.Before(t) && t.Before(j.until) {
				j.until = t
			}
		}
	}
	verifier := g.self.Bundle().CallerVerifier(func() time.Time { return now }, g.self.Revoked)
	id, err := verifier.Caller(a.chain)
	if err == nil {
		j.who, j.claim = id.String(), policy.EncodeClaim(policy.Claim{ID: id.String()})
		if j.claim == "" {
			err = errors.New("its identity is none that a caller can have")
		}
	}
	if err != nil {
		why, ok := pki.AsRefusal(err)
		if !ok {
			explained := pki.Explain(err)
			why = &explained
		}
		j.refusal = why
	}
	a.judged.Store(j)
	return j
}

// serve takes one call of an app and passes it to core, which decides. It runs
// on the connection's reader goroutine and does not block.
func (e *entrances) serve(c *relay.Call) {
	g, a := e.gateway, c.Peer().(*app)
	id := relay.Field{Name: relay.HeaderRequestID, Value: relay.NewRequestID()}
	record := &relay.CallRecord{Method: c.Path(), Source: a.origin(), RequestID: id.Value, Unproven: len(a.chain) == 0}
	e.metrics.Begin()
	room := a.entrance.room.begin(a.source)
	c.OnDone(func(o relay.Outcome) {
		if room {
			a.entrance.room.end(a.source)
		}
		record.Code, record.Duration = o.Code, o.Duration
		if o.OriginHop {
			record.Message = o.Message
		}
		e.metrics.End(*record)
		g.access.Write(*record)
	})
	refuse := func(code codes.Code, reason, message string) {
		if code == codes.Unauthenticated || code == codes.FailedPrecondition {
			record.Denied = reason
			g.denials.Add(g.hop+" "+a.origin(), record.Method, reason, code, time.Now())
		}
		c.Reject(code, message, id)
	}
	if !room {
		refuse(codes.ResourceExhausted, "too_many_calls", g.hop+": too many calls of apps are open")
		return
	}
	header, no := e.towardsCore(c, a, id, record)
	if no != nil {
		refuse(no.code, no.reason, no.message)
		return
	}
	e.toCore(c, header, func(header []relay.Field) []relay.Field { return append(header, id) }, refuse, 0)
}

// towardsCore is the header core gets: the app's own, less what only components
// may say (the engine dropped that), and what this gateway says of the app. An
// app with credentials calls as itself. One without calls as this gateway where
// it cannot have come from another host; over TLS it is a stranger.
func (e *entrances) towardsCore(c *relay.Call, a *app, id relay.Field, record *relay.CallRecord) ([]relay.Field, *denial) {
	in := c.Header()
	round, ok := relay.Round(in)
	if !ok {
		return nil, &denial{codes.FailedPrecondition, "loop", "the call goes in circles: an upstream of the gateways that serve " + c.Path() + " leads back to an entrance (--listen); check their --upstream"}
	}
	out := make([]relay.Field, 0, len(in)+4)
	tokens := 0
	for _, f := range in {
		if f.Name == "authorization" {
			if f.Sensitive = true; f.Value == "" {
				return nil, &denial{codes.Unauthenticated, "empty_authorization", "the authorization header is empty: send 'Bearer ' and an API key or a token, or leave it out"}
			}
			tokens++
		}
		out = append(out, f)
	}
	if tokens > 1 {
		return nil, &denial{codes.Unauthenticated, "many_authorizations", "the call carries more than one authorization header: send one"}
	}
	if tokens == 1 {
		record.Caller = "(token)" // whose, core finds out
	}
	out = append(out, id, round)
	if a.entrance.Address.Scheme == configs.SchemeTLS && a.remote.IsValid() {
		out = append(out, relay.Field{Name: relay.HeaderSource, Value: a.remote.Addr().String()})
	}
	switch {
	case len(a.chain) > 0:
		j := e.certificate(a, e.now())
		if j.refusal != nil {
			return nil, &denial{codes.Unauthenticated, "certificate_" + j.refusal.Code, "client certificate: " + j.refusal.Error()}
		}
		if tokens == 0 {
			record.Caller = policy.PercentEncode(j.who)
		}
		out = append(out, relay.Field{Name: relay.HeaderClientCert, Value: j.claim})
	case tokens == 0 && a.entrance.Address.Scheme != configs.SchemeTLS:
		record.Caller = policy.CallerGateway(e.gateway.identity(), a.entrance.Label).Name()
		out = append(out, relay.Field{Name: relay.HeaderListener, Value: a.entrance.Label})
	}
	return out, nil
}

// identity is the gateway's own, as core knows it.
func (g *gateway) identity() string { return g.self.Credentials().ID.String() }

// toCore relays the call on the least busy link.
func (e *entrances) toCore(c *relay.Call, header []relay.Field, back func([]relay.Field) []relay.Field, refuse func(codes.Code, string, string), tries int) {
	g, why := e.gateway, "the links to core take no calls"
	for ; tries < maxCallTries; tries++ {
		conn := g.calling.Pick()
		if conn == nil {
			why = "core is not connected"
			break
		}
		next := tries + 1
		err := c.Forward(conn, header, relay.ForwardOptions{
			ResponseHeader: back,
			Retry:          func(error) { e.toCore(c, header, back, refuse, next) },
		})
		if err == nil {
			return
		}
	}
	refuse(codes.Unavailable, "no_link", g.hop+": "+why+", try again later")
}

// violated takes note of a request that broke the header rules, which the engine
// answers itself.
func (e *entrances) violated(c *relay.Call, v *relay.Violation) []relay.Field {
	g, a := e.gateway, c.Peer().(*app)
	method := c.Path()
	if len(method) > maxMethodText {
		method = method[:maxMethodText] + "…"
	}
	record := relay.CallRecord{Method: method, Source: a.origin(), RequestID: relay.NewRequestID(), Denied: "header_" + v.Reason, Message: v.Message}
	e.metrics.Begin()
	c.OnDone(func(o relay.Outcome) {
		record.Code, record.Duration = o.Code, o.Duration
		e.metrics.End(record)
		g.access.Write(record)
	})
	g.denials.Add(g.hop+" "+a.origin(), method, record.Denied, v.Code, time.Now())
	return []relay.Field{{Name: relay.HeaderRequestID, Value: record.RequestID}}
}

// changed: the CA or its revocations may be others.
func (e *entrances) changed() {
	e.judging.Add(1)
	if e.pair != nil {
		e.pair.Kick()
	}
	select {
	case e.news <- struct{}{}:
	default:
	}
}

// keepJudging ends the open calls of apps whose certificates do not hold any
// more. What core verifies itself, it ends itself.
func (e *entrances) keepJudging(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.news:
		case <-tick.C:
		}
		for n, conn := range e.connections(false) {
			if a, ok := conn.Peer().(*app); ok && len(a.chain) > 0 {
				e.recheck(conn, a)
			}
			if n%recheckBatch == recheckBatch-1 {
				time.Sleep(recheckPause)
			}
		}
	}
}

func (e *entrances) recheck(conn *relay.Conn, a *app) {
	j := e.certificate(a, e.now())
	if j.refusal == nil {
		return
	}
	for _, c := range conn.Calls() {
		e.gateway.denials.Add(e.gateway.hop+" "+a.origin(), c.Path(), "certificate_"+j.refusal.Code, codes.Unauthenticated, time.Now())
		c.Reject(codes.Unauthenticated, e.gateway.hop+": the call was ended, because its credentials do not hold any more: client certificate: "+j.refusal.Error())
	}
}

// drain ends every connection without losing a call; calls still open after the
// time given end with UNAVAILABLE.
func (e *entrances) drain(within time.Duration) {
	drainConns(e.connections(true), within, e.gateway.log)
}
