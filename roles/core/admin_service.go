package core

import (
	"context"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/store"
)

// ListServices lists what gateways announced, and where calls go.
func (a *admin) ListServices(ctx context.Context, _ *control.ListServicesRequest) (*control.ListServicesResponse, error) {
	rows, err := a.core.db.Services(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	out := &control.ListServicesResponse{}
	for _, r := range rows {
		out.Services = append(out.Services, a.serviceRow(r))
	}
	return out, nil
}

// AllowService lets a gateway serve what another one holds.
func (a *admin) AllowService(ctx context.Context, in *control.AllowServiceRequest) (*control.ServiceRow, error) {
	if in.GetService() != "*" && !validService(in.GetService()) {
		return nil, wrong("service allow: %q is no service: give its full name, such as acme.orders.v1.Orders", clean(in.GetService()))
	}
	r, err := a.core.db.AllowService(ctx, actor(ctx), in.GetService(), in.GetGateway())
	if err != nil {
		return nil, a.noComponent(ctx, err, "service allow "+in.GetService(), pki.RoleGateway, in.GetGateway())
	}
	a.core.log.Info("service was allowed", "service", r.Service, "gateway", r.Gateway, "actor", actor(ctx))
	if err := a.core.publisher.publish(ctx); err != nil {
		return nil, refusal(err)
	}
	return a.serviceRow(r), nil
}

// serviceRow is a service at one gateway as the operator sees it: by what
// decides about calls.
func (a *admin) serviceRow(r store.ServiceRecord) *control.ServiceRow {
	row := &control.ServiceRow{Service: r.Service, Gateway: r.Gateway, State: r.State, Detail: whyNotRouted(r), Methods: r.Methods}
	g := a.core.registry.find(key{pki.RoleGateway, r.Gateway})
	if g == nil {
		if r.State == store.ServiceRouted {
			row.State, row.Detail = "away", "gateway "+r.Gateway+" is not connected"
		}
		return row
	}
	row.CallsInFlight = uint32(max(g.counter(r.Service).Load(), 0))
	announced := g.announcement()
	if announced != nil {
		row.Upstream = announced.services[r.Service].upstream
	}
	if r.State != store.ServiceRouted {
		return row
	}
	t := a.core.router.ruling.Load().target(r.Service, g)
	switch {
	case !g.connected.Load():
		row.State, row.Detail = "away", "gateway "+r.Gateway+" is not connected"
	case t != nil && !t.known:
		row.State, row.Detail = "away", "gateway "+r.Gateway+" has not announced its services yet"
	case t == nil:
		row.State, row.Detail = "away", "gateway "+r.Gateway+" does not announce it any more"
	case !t.serving:
		row.State, row.Detail = "down", t.why
	}
	return row
}
