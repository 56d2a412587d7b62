package gateway

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/configs"
	"sallyport/roles/relay"
)

// serve takes one call from core: checks it the third time, writes its
// headers anew and brings it to the upstream. It runs on the link's reader
// goroutine and does not block.
func (g *gateway) serve(c *relay.Call) {
	record := &relay.CallRecord{Method: c.Path(), Caller: c.Get(relay.HeaderCaller), RequestID: c.Get(relay.HeaderRequestID)}
	g.metrics.Begin()
	holder := c.Get(relay.HeaderSource) // who hoards does so at nobody else's expense
	room := c.Charge(g.shares.Take(holder))
	c.OnDone(func(o relay.Outcome) {
		g.shares.Leave(holder)
		record.Code, record.Duration = o.Code, o.Duration
		if o.OriginHop && record.Message == "" {
			record.Message = o.Message
		}
		g.metrics.End(*record)
		g.access.Write(*record)
	})
	if !room {
		c.Reject(codes.ResourceExhausted, g.hop+": no memory is left for another call from this source")
		return
	}
	u, treatment, no := g.judge(c.Path())
	if no != nil {
		if no.code == codes.PermissionDenied {
			record.Denied = no.reason
			g.denials.Add(record.Caller, record.Method, no.reason, no.code, time.Now())
		}
		if no.code == codes.Unavailable { // another gateway may still have it
			record.Message = no.message
			c.Refuse(no.message)
			return
		}
		c.Reject(no.code, no.message)
		return
	}
	record.Upstream = u.name()
	u.calls.carry(&carried{
		call:    c,
		header:  towardsUpstream(g.treat(c, treatment), treatment.ForwardAuthorization && u.private()),
		options: relay.ForwardOptions{Authority: u.authority},
		refuse: func(reason error) {
			record.Message = fmt.Sprintf("%s: upstream %s: %v", g.hop, u.name(), reason)
			c.Refuse(record.Message)
		},
	})
}

// private reports whether tokens may be sent to the upstream: over TLS or
// inside this host, never in plaintext over a network.
func (u *upstream) private() bool { return u.settings.Address.Scheme != configs.SchemeH2C }

// towardsUpstream is the header an upstream gets: what the caller sent, and
// of what components tell each other only what is meant for it.
func towardsUpstream(in []relay.Field, authorization bool) []relay.Field {
	out := make([]relay.Field, 0, len(in))
	for _, f := range in {
		if strings.HasPrefix(f.Name, "sallyport-") {
			switch f.Name {
			case relay.HeaderCaller, relay.HeaderPermissions, relay.HeaderRequestID:
			default:
				continue
			}
		}
		if f.Name == "authorization" {
			if !authorization {
				continue
			}
			f.Sensitive = true
		}
		out = append(out, f)
	}
	return out
}
