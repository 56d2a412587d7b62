package app

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"sallyport/roles/control"
)

// gatewayNoun is the gateways beside private services.
type gatewayNoun struct {
	Add gatewayAdd `cmd:"" help:"Invite a gateway: prints the one line that starts it."`
	Set gatewaySet `cmd:"" help:"Change where a gateway may come from and what it may serve."`
	Ls  gatewayLs  `cmd:"" help:"List the gateways."`
	Rm  gatewayRm  `cmd:"" help:"Remove a gateway; its identity is revoked."`
}

type gatewayAdd struct {
	Name     string   `arg:"" help:"Its name: lower-case letters, digits and dashes."`
	IP       []string `name:"ip" placeholder:"IP|CIDR|NAME|any" help:"Addresses it comes from, as core sees them: core's port is open to them, and this gateway's key is good from them alone. Required; may be given again."`
	Serve    []string `placeholder:"PATTERN" help:"Services it may announce: acme.orders.v1.Orders, acme.*. Default: whatever no other gateway serves."`
	Reusable bool     `help:"The token starts several instances, for places without a disk. Needs --ttl and --uses."`
	TTL      period   `name:"ttl" placeholder:"30m" help:"How long the token is good for."`
	Uses     uint32   `placeholder:"N" help:"How many instances may live at a time (with --reusable)."`
	coreFlags
	jsonFlag
}

func (gatewayAdd) Help() string {
	return `When a service on another machine shall be reachable: run this beside core, then paste the printed line there. The gateway dials out; its network needs no inbound port.

Example:

    sallyport gateway add orders --ip 10.0.0.7 --serve 'acme.orders.*'`
}

func (v *gatewayAdd) Run(c *cli) error {
	if len(v.IP) == 0 {
		return wrong("gateway add "+v.Name+": --ip is required, because core's port is closed to everybody who is not named",
			"give the address that core sees this gateway come from, such as --ip 10.0.0.7 or --ip 10.0.0.0/24\nor write --ip any if it may come from anywhere")
	}
	return addComponent(c, v.coreFlags, v.jsonFlag, &control.AddComponentRequest{
		Role: "gateway", Name: v.Name, Peers: v.IP, Serve: v.Serve,
		Reusable: v.Reusable, TtlSeconds: v.TTL.seconds(), Uses: v.Uses,
	})
}

// addComponent invites a gateway or proxy and prints the line that starts it.
func addComponent(c *cli, f coreFlags, j jsonFlag, req *control.AddComponentRequest) error {
	if req.Reusable && (req.TtlSeconds == 0 || req.Role == "gateway" && req.Uses == 0) {
		return wrong(req.Role+" add "+req.Name+": a reusable token needs an end",
			"say how long it is good for with --ttl, and for gateways how many may live at a time with --uses")
	}
	if !req.Reusable && req.Uses != 0 {
		return wrong(req.Role+" add "+req.Name+": --uses is for tokens with --reusable; any other token is good for one", "leave it out, or add --reusable --ttl")
	}
	return f.core(c, func(ctx context.Context, core control.AdminClient) error {
		added, err := core.AddComponent(ctx, req)
		if err != nil {
			return err
		}
		if j.JSON {
			return c.printJSON(added)
		}
		fmt.Fprintln(c.out, added.GetCommand())
		uses := "it is good once"
		if req.Reusable {
			uses = "whoever has it can start an instance until then"
		}
		c.say("%s %s is invited. Run the line above on its host within %s (until %s); %s.",
			req.Role, req.Name, span(time.Until(time.Unix(added.GetExpiresUnix(), 0)).Round(time.Minute)), clock(added.GetExpiresUnix()), uses)
		c.say("On a shared host the token shows in ps: write it to a file and use --join-file FILE instead of --join TOKEN.")
		for _, p := range req.Peers {
			if p == "any" {
				c.say("Warning: any address may connect as far as the firewall is concerned.")
			}
		}
		return nil
	})
}

type gatewaySet struct {
	Name       string   `arg:"" help:"The gateway."`
	IP         []string `name:"ip" placeholder:"IP|CIDR|NAME|any" help:"Replace the addresses it comes from."`
	Serve      []string `placeholder:"PATTERN" help:"Replace the services it may announce."`
	ClearServe bool     `help:"Let it announce whatever no other gateway serves."`
	CertName   []string `placeholder:"NAME|IP" help:"Replace the names of the certificate that it keeps for a local service (--export-cert)."`
	ClearCert  bool     `name:"clear-cert-names" help:"That certificate names localhost only."`
	coreFlags
	jsonFlag
}

func (gatewaySet) Help() string {
	return `When a gateway has moved, or shall serve something else. What is not given stays. A gateway that runs with --export-cert DIR keeps a renewed certificate there for the service beside it, good for localhost and the names given here.

Examples:

    sallyport gateway set orders --ip 10.0.0.8
    sallyport gateway set orders --cert-name orders.internal --cert-name 10.0.0.7`
}

func (v *gatewaySet) Run(c *cli) error {
	if len(v.IP) == 0 && len(v.Serve) == 0 && !v.ClearServe && len(v.CertName) == 0 && !v.ClearCert {
		return wrong("gateway set "+v.Name+": nothing to change was given", "give --ip, --serve, --clear-serve, --cert-name or --clear-cert-names")
	}
	if len(v.CertName) > 0 && v.ClearCert {
		return wrong("gateway set "+v.Name+": --cert-name and --clear-cert-names contradict each other", "give one of them")
	}
	if len(v.Serve) > 0 && v.ClearServe {
		return wrong("gateway set "+v.Name+": --serve and --clear-serve contradict each other", "give one of them")
	}
	return setComponent(c, v.coreFlags, v.jsonFlag, &control.SetComponentRequest{
		Role: "gateway", Name: v.Name, Peers: v.IP, Serve: v.Serve, ClearServe: v.ClearServe,
		CertificateNames: v.CertName, ClearCertificateNames: v.ClearCert,
	})
}

func setComponent(c *cli, f coreFlags, j jsonFlag, req *control.SetComponentRequest) error {
	return f.core(c, func(ctx context.Context, core control.AdminClient) error {
		set, err := core.SetComponent(ctx, req)
		if err != nil {
			return err
		}
		if j.JSON {
			return c.printJSON(set)
		}
		c.say("%s %s is changed.", req.Role, req.Name)
		c.notes(set)
		return nil
	})
}

type gatewayLs struct {
	coreFlags
	jsonFlag
}

func (gatewayLs) Help() string {
	return `Example:

    sallyport gateway ls`
}

func (v *gatewayLs) Run(c *cli) error {
	return listComponents(c, v.coreFlags, v.jsonFlag, "gateway", "no gateway yet: sallyport gateway add NAME --ip ADDRESS")
}

func listComponents(c *cli, f coreFlags, j jsonFlag, role, ifEmpty string) error {
	return f.core(c, func(ctx context.Context, core control.AdminClient) error {
		list, err := core.ListComponents(ctx, &control.ListComponentsRequest{Role: role})
		if err != nil {
			return err
		}
		if j.JSON {
			return c.printJSON(list)
		}
		return c.components(list.GetComponents(), role, ifEmpty)
	})
}

// components prints a table of gateways or proxies.
func (c *cli) components(list []*control.Component, role, ifEmpty string) error {
	now := time.Now()
	headings := []string{"NAME", "STATE", "FROM", "SERVES", "SEEN AT", "LAST SEEN", "CERTIFICATE", "VERSION", "CALLS", "WHY"}
	if role == "proxy" {
		headings[2], headings[3] = "ADDRESS", "CORE FROM"
	}
	t := c.table(headings...)
	for _, m := range list {
		from, serves := strings.Join(m.GetPeers(), ","), strings.Join(m.GetServe(), ",")
		if role == "proxy" {
			from, serves = m.GetAddress(), strings.Join(m.GetPeers(), ",")
		}
		t.row(m.GetName(), m.GetState(), from, serves, m.GetObservedAddress(), ago(m.GetLastSeenUnix(), now),
			left(m.GetCertificateNotAfterUnix(), now), m.GetVersion(), strconv.Itoa(int(m.GetCallsInFlight())), m.GetDetail())
	}
	if err := t.flush(ifEmpty); err != nil {
		return err
	}
	c.notes(list...)
	return nil
}

// notes prints what their operator should know of where components come from.
func (c *cli) notes(list ...*control.Component) {
	for _, m := range list {
		for _, note := range m.GetNotes() {
			c.say("%s", c.warning(oneLine(note)))
		}
	}
}

type gatewayRm struct {
	Name string `arg:"" help:"The gateway."`
	coreFlags
	jsonFlag
}

func (gatewayRm) Help() string {
	return `When a gateway is gone for good, or its key may be in wrong hands. Its calls end; the name can be added again as a new identity.

Example:

    sallyport gateway rm orders`
}

func (v *gatewayRm) Run(c *cli) error {
	return removeComponent(c, v.coreFlags, v.jsonFlag, "gateway", v.Name)
}

func removeComponent(c *cli, f coreFlags, j jsonFlag, role, name string) error {
	return f.core(c, func(ctx context.Context, core control.AdminClient) error {
		gone, err := core.RemoveComponent(ctx, &control.RemoveComponentRequest{Role: role, Name: name})
		if err != nil {
			return err
		}
		if j.JSON {
			if err := c.printJSON(gone); err != nil {
				return err
			}
			return unenforced(gone.GetRevocation())
		}
		c.say("%s %s is removed and its identity revoked.", role, name)
		return c.enforced(gone.GetRevocation())
	})
}

// clock is a time as people read it, in their zone.
func clock(unix int64) string { return time.Unix(unix, 0).Format("2006-01-02 15:04 MST") }
