package proxy

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// What the policy's [[limit]] rows ask of this hop. What they allow a source is
// counted here, before anybody is authenticated; what they allow a caller is
// counted by core, where the calls of all proxies meet, except for the proxy's
// own services, which core does not see.

// limited counts calls and messages of one party under one row.
type limited struct {
	row *policy.Limit
	who string
}

// Anybody can write a token with a key that nobody knows, and core is asked
// about it: so many a source may ask, and all of them together.
var (
	askedBySource = &policy.Limit{Match: "undecided tokens", Source: true, Rate: 5, Burst: 20}
	askedByAll    = &policy.Limit{Match: "undecided tokens of all", Source: true, Rate: 100, Burst: 200}
)

// mayAsk says whether core may be asked about a token of a source.
func (p *proxy) mayAsk(from origin, now time.Time) bool {
	if _, ok := p.used.Allow(askedBySource, policy.SourceOf(from.name), now); !ok {
		return false
	}
	_, ok := p.used.Allow(askedByAll, "", now)
	return ok
}

// sourced ends a call of a source that calls too often. It says whether the
// call goes on.
func (p *proxy) sourced(c *relay.Call, l *policy.Limits, from origin, record *relay.CallRecord, id relay.Field, now time.Time) bool {
	if l == nil {
		return true
	}
	no := p.take(limited{l.CallsPerSource, policy.SourceOf(from.name)}, from.stranger(), record, id, now)
	if no != nil {
		c.RejectBy(*no)
	}
	return no == nil
}

// metered has the messages of a call counted, as far as the policy asks for it.
// own says that the call is for the proxy's own services.
func (p *proxy) metered(c *relay.Call, l *policy.Limits, caller policy.Caller, from origin, own bool, record *relay.CallRecord, id relay.Field, now time.Time) bool {
	if l == nil {
		return true
	}
	counted := make([]limited, 0, 2)
	if l.MessagesPerSource != nil {
		counted = append(counted, limited{l.MessagesPerSource, policy.SourceOf(from.name)})
	}
	if own {
		party := caller.Name()
		if party == "" {
			party = policy.SourceOf(from.name)
		}
		if no := p.take(limited{l.CallsPerCaller, party}, from.stranger(), record, id, now); no != nil {
			c.RejectBy(*no)
			return false
		}
		if l.MessagesPerCaller != nil {
			counted = append(counted, limited{l.MessagesPerCaller, party})
		}
	}
	if len(counted) > 0 {
		c.Meter(&relay.Meter{Message: func() *relay.Rejection {
			for _, one := range counted {
				if no := p.take(one, from.stranger(), record, id, time.Now()); no != nil {
					return no
				}
			}
			return nil
		}})
	}
	return true
}

// take takes one from what a row allows a party, and makes the answer if there
// is nothing left.
func (p *proxy) take(l limited, stranger string, record *relay.CallRecord, id relay.Field, now time.Time) *relay.Rejection {
	wait, ok := p.used.Allow(l.row, l.who, now)
	if ok {
		return nil
	}
	no := relay.Exhausted(fmt.Sprintf("%s: more than %v, try again in %v", p.hop(), l.row, wait.Round(time.Millisecond)), "limit", wait)
	no.Extra = append(no.Extra, id)
	record.Denied = "limit"
	who := record.Caller
	if who == "" {
		who = stranger
	}
	p.denials.Add(who, record.Method, "limit", codes.ResourceExhausted, now)
	return &no
}
