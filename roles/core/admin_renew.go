package core

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

const (
	renewWait    = 30 * time.Second
	maxRenewWait = 10 * time.Minute
	renewAtOnce  = 16 // components that renew at a time, when all do
)

// RenewComponents asks connected components to renew now, and waits until each
// has a control session with its next certificate.
func (a *admin) RenewComponents(ctx context.Context, in *control.RenewComponentsRequest) (*control.RenewComponentsResponse, error) {
	c := a.core
	wait := time.Duration(in.GetWaitSeconds()) * time.Second
	switch {
	case in.GetWaitSeconds() < 0 || in.GetWaitSeconds() > int64(maxRenewWait/time.Second):
		return nil, wrong("cert renew: --wait is at most %s", maxRenewWait)
	case wait == 0:
		wait = renewWait
	}
	if (len(in.GetComponents()) > 0) == in.GetAll() {
		return nil, wrong("cert renew: name components (gateway/NAME, proxy/NAME), or give --all")
	}
	if refusal := c.mayIssue(); refusal != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "cert renew: %v", refusal)
	}
	var who []*component
	if in.GetAll() {
		for _, m := range c.registry.list("") {
			if m.current() != nil {
				who = append(who, m)
			}
		}
	}
	for _, label := range in.GetComponents() {
		role, name, _ := strings.Cut(label, "/")
		of, err := roleOf(role)
		if err != nil {
			return nil, err
		}
		if _, err := c.db.Component(ctx, of, name); err != nil {
			return nil, a.noComponent(ctx, err, "cert renew "+clean(label), of, name)
		}
		who = append(who, c.registry.get(key{of, name}))
	}
	out := &control.RenewComponentsResponse{Components: make([]*control.RenewedComponent, len(who))}
	var group errgroup.Group
	group.SetLimit(renewAtOnce)
	for i, m := range who {
		group.Go(func() error {
			out.Components[i] = c.renewNow(ctx, m, wait)
			return nil
		})
	}
	group.Wait()
	c.log.Info("components were asked to renew", "count", len(who), "actor", actor(ctx))
	return out, ctx.Err()
}

// renewNow lets one component renew.
func (c *core) renewNow(ctx context.Context, m *component, wait time.Duration) *control.RenewedComponent {
	row := &control.RenewedComponent{Component: string(m.role) + "/" + m.name}
	began := m.current()
	if began == nil || len(began.Peer.Chain) == 0 {
		row.Error = "it is not connected; it renews by itself when it comes back"
		return row
	}
	former := began.Peer.Chain[0]
	row.FormerSerial, row.FormerNotAfterUnix = pki.Serial(former), former.NotAfter.Unix()
	began.RenewNow()
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond) // a session says nothing when it is replaced
	defer tick.Stop()
	asked := began
	for {
		s := m.current()
		if s != nil && len(s.Peer.Chain) > 0 && !s.Peer.Chain[0].Equal(former) {
			row.Serial, row.NotAfterUnix = pki.Serial(s.Peer.Chain[0]), s.Peer.Chain[0].NotAfter.Unix()
			return row
		}
		if s != nil && s != asked { // the wish may have been lost with the former session
			s.RenewNow()
			asked = s
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			row.Error = ctx.Err().Error()
			return row
		case <-deadline.C:
			row.Error = notRenewed(s, wait)
			return row
		}
	}
}

func notRenewed(s *link.Session, wait time.Duration) string {
	if s == nil {
		return "it disconnected, and did not come back within " + wait.String()
	}
	return fmt.Sprintf("it has not renewed within %s (version %s): its log says why, or its version cannot be asked; it renews by itself when it is due", wait, clean(s.Hello.GetVersion()))
}
