package app

import "sallyport/roles/control"

// proxyNoun is the proxies at the public edge.
type proxyNoun struct {
	Add proxyAdd `cmd:"" help:"Invite a proxy: prints the one line that starts it."`
	Set proxySet `cmd:"" help:"Change where core finds a proxy and where core comes from."`
	Ls  proxyLs  `cmd:"" help:"List the proxies."`
	Rm  proxyRm  `cmd:"" help:"Remove a proxy; its identity is revoked."`
}

type proxyAdd struct {
	Name       string   `arg:"" help:"Its name: lower-case letters, digits and dashes."`
	Address    string   `placeholder:"HOST:PORT" help:"Where core dials it: its gRPC port, 50051 by default. Required."`
	CoreIP     []string `name:"core-ip" placeholder:"IP|CIDR|NAME|any" help:"Addresses core comes from, as that proxy sees them. Required; may be given again."`
	ServerName string   `placeholder:"NAME" help:"Name expected in the proxy's outside certificate, if not the host of --address."`
	GRPCTLS    string   `name:"grpc-tls" placeholder:"MODE" help:"What its gRPC port shows: internal (its identity), files (--grpc-cert there) or acme. Default: files if core has --proxy-grpc-ca, else internal."`
	Reusable   bool     `help:"The token is good again after a restart, for places without a disk. Needs --ttl."`
	TTL        period   `name:"ttl" placeholder:"30m" help:"How long the token is good for."`
	coreFlags
	jsonFlag
}

func (proxyAdd) Help() string {
	return `When a host in the DMZ or the cloud shall take calls from the internet: run this beside core, then paste the printed line there. Core dials the proxy; the proxy never dials in.

Example:

    sallyport proxy add dmz1 --address dmz1.example.org:50051 --core-ip 203.0.113.7`
}

func (v *proxyAdd) Run(c *cli) error {
	if v.Address == "" {
		return wrong("proxy add "+v.Name+": --address is required, because core dials the proxy and not the other way",
			"give the host and gRPC port of the proxy as core reaches it, such as --address dmz1.example.org:50051")
	}
	if len(v.CoreIP) == 0 {
		return wrong("proxy add "+v.Name+": --core-ip is required, because the proxy's gRPC port is closed to everybody but core",
			"give the address that the proxy sees core come from, such as --core-ip 203.0.113.7\nor write --core-ip any if it may come from anywhere")
	}
	return addComponent(c, v.coreFlags, v.jsonFlag, &control.AddComponentRequest{
		Role: "proxy", Name: v.Name, Peers: v.CoreIP, Address: v.Address, ServerName: v.ServerName, GrpcTls: v.GRPCTLS,
		Reusable: v.Reusable, TtlSeconds: v.TTL.seconds(),
	})
}

type proxySet struct {
	Name       string   `arg:"" help:"The proxy."`
	Address    string   `placeholder:"HOST:PORT" help:"Where core dials it from now on."`
	CoreIP     []string `name:"core-ip" placeholder:"IP|CIDR|NAME|any" help:"Replace the addresses core comes from."`
	Force      bool     `help:"Take addresses that leave out the one core comes from now: the proxy then closes its port to this core at once."`
	ServerName string   `placeholder:"NAME" help:"Name expected in its outside certificate."`
	GRPCTLS    string   `name:"grpc-tls" placeholder:"MODE" help:"What its gRPC port shows from now on: internal, files or acme."`
	coreFlags
	jsonFlag
}

func (proxySet) Help() string {
	return `When a proxy, or core, has moved. What is not given stays. Before core moves, give both of its addresses, and afterwards the new one alone. If core has moved already and the proxy refuses it, start the proxy with --core-ip there.

Example:

    sallyport proxy set dmz1 --core-ip 203.0.113.7 --core-ip 203.0.113.8`
}

func (v *proxySet) Run(c *cli) error {
	if v.Address == "" && len(v.CoreIP) == 0 && v.ServerName == "" && v.GRPCTLS == "" {
		return wrong("proxy set "+v.Name+": nothing to change was given", "give --address, --core-ip, --server-name or --grpc-tls")
	}
	return setComponent(c, v.coreFlags, v.jsonFlag, &control.SetComponentRequest{
		Role: "proxy", Name: v.Name, Peers: v.CoreIP, Force: v.Force, Address: v.Address, ServerName: v.ServerName, GrpcTls: v.GRPCTLS,
	})
}

type proxyLs struct {
	coreFlags
	jsonFlag
}

func (proxyLs) Help() string {
	return `Example:

    sallyport proxy ls`
}

func (v *proxyLs) Run(c *cli) error {
	return listComponents(c, v.coreFlags, v.jsonFlag, "proxy", "no proxy yet: sallyport proxy add NAME --address HOST:PORT --core-ip ADDRESS")
}

type proxyRm struct {
	Name string `arg:"" help:"The proxy."`
	coreFlags
	jsonFlag
}

func (proxyRm) Help() string {
	return `When a proxy is gone for good, or its host is no longer trusted. The name can be added again as a new identity.

Example:

    sallyport proxy rm dmz1`
}

func (v *proxyRm) Run(c *cli) error {
	return removeComponent(c, v.coreFlags, v.jsonFlag, "proxy", v.Name)
}
