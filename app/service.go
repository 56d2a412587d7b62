package app

import (
	"context"
	"strconv"

	"sallyport/roles/control"
)

// serviceNoun is the services that gateways announce.
type serviceNoun struct {
	Ls    serviceLs    `cmd:"" help:"List announced services and who serves them."`
	Allow serviceAllow `cmd:"" help:"Let a gateway serve what another one serves already."`
}

type serviceLs struct {
	coreFlags
	jsonFlag
}

func (serviceLs) Help() string {
	return `When a call answers UNIMPLEMENTED or UNAVAILABLE: is the service announced, by whom, and is it routed?

Example:

    sallyport service ls`
}

func (v *serviceLs) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		list, err := core.ListServices(ctx, &control.ListServicesRequest{})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(list)
		}
		return c.services(list.GetServices())
	})
}

func (c *cli) services(rows []*control.ServiceRow) error {
	t := c.table("SERVICE", "GATEWAY", "STATE", "METHODS", "UPSTREAM", "CALLS", "WHY")
	for _, s := range rows {
		t.row(s.GetService(), s.GetGateway(), s.GetState(), strconv.Itoa(len(s.GetMethods())), s.GetUpstream(), strconv.Itoa(int(s.GetCallsInFlight())), s.GetDetail())
	}
	return t.flush("no gateway has announced a service yet")
}

type serviceAllow struct {
	Service string `arg:"" help:"Full name of the service: package.Service."`
	Gateway string `arg:"" help:"The gateway that may serve it too."`
	coreFlags
	jsonFlag
}

func (serviceAllow) Help() string {
	return `When service ls shows a second gateway waiting: a service belongs to the gateway that announced it first until this says otherwise.

Example:

    sallyport service allow acme.orders.v1.Orders orders-2`
}

func (v *serviceAllow) Run(c *cli) error {
	return v.core(c, func(ctx context.Context, core control.AdminClient) error {
		row, err := core.AllowService(ctx, &control.AllowServiceRequest{Service: v.Service, Gateway: v.Gateway})
		if err != nil {
			return err
		}
		if v.JSON {
			return c.printJSON(row)
		}
		c.say("gateway %s may serve %s.", v.Gateway, v.Service)
		return nil
	})
}
