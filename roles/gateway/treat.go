package gateway

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/roles/policy"
	"sallyport/roles/relay"
)

// treat does to a call what the policy says of its method, as core has done
// before: the caps on messages, either way, and on time.
func (g *gateway) treat(c *relay.Call, t policy.Treatment) (header []relay.Field) {
	header = c.Header()
	if t.MaxMessage > 0 {
		c.Meter(&relay.Meter{MaxMessage: t.MaxMessage, Large: func(size uint64, response bool) relay.Rejection {
			return relay.TooLarge(g.hop, size, t.MaxMessage, response)
		}})
	}
	if t.MaxDeadline > 0 {
		header = relay.CapTimeout(header, t.MaxDeadline)
		c.Cap(t.MaxDeadline, fmt.Sprintf("%s: the call took longer than this method may, %v", g.hop, t.MaxDeadline))
	}
	return header
}

const (
	recheckBatch = 512
	recheckPause = time.Millisecond
)

// recheck ends the open calls of methods that are not allowed any more: each
// method is judged once. What core takes away from single callers it ends
// itself.
func (g *gateway) recheck() {
	v := g.verdicts.Load()
	judged := map[string]*denial{}
	n := 0
	for _, conn := range g.links.open() {
		for _, c := range conn.Calls() {
			no, known := judged[c.Path()]
			if !known {
				no = g.allowed(v, c.Path())
				judged[c.Path()] = no
			}
			if no == nil {
				continue
			}
			g.denials.Add(c.Get(relay.HeaderCaller), c.Path(), no.reason, no.code, time.Now())
			c.Reject(no.code, g.hop+": the call was ended, because the policy has changed: "+no.message)
			if n++; n%recheckBatch == 0 {
				time.Sleep(recheckPause) // calls that come have to be served too
			}
		}
	}
}

// keepChecking looks at open calls after every change until ctx ends.
func (g *gateway) keepChecking(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.ruled:
			g.recheck()
		}
	}
}

// allowed is why an open call's method may not be called here any more, nil if
// it may. It asks only what core said. A service that core says nothing of any
// more was withdrawn, which ends no call.
func (g *gateway) allowed(v *verdicts, path string) *denial {
	method, _ := policy.ParseMethod(path)
	if !v.routed(method.Service) {
		if _, refused := v.refused[method.Service]; refused {
			return &denial{codes.PermissionDenied, "service_not_routed", g.hop + " may not serve this service"}
		}
		return nil
	}
	if _, allowed := v.rules.Match(path); !allowed {
		return &denial{codes.PermissionDenied, "gateway_policy", g.hop + " does not allow this method"}
	}
	return nil
}
