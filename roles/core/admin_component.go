package core

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/firewall"
	"sallyport/roles/control"
	"sallyport/store"
)

const (
	tokenLifetime    = 30 * time.Minute
	maxTokenLifetime = 400 * 24 * time.Hour
	defaultProxyPort = "50051"
)

// roleOf reads the role of a component in a request.
func roleOf(role string) (pki.Role, error) {
	switch r := pki.Role(role); r {
	case pki.RoleGateway, pki.RoleProxy:
		return r, nil
	}
	return "", wrong("role %q: components that are added are gateways and proxies", clean(role))
}

// AddComponent invites a gateway or proxy and makes the token it joins with.
func (a *admin) AddComponent(ctx context.Context, in *control.AddComponentRequest) (*control.AddComponentResponse, error) {
	c := a.core
	role, err := roleOf(in.GetRole())
	if err != nil {
		return nil, err
	}
	if err := pki.ValidName(in.GetName()); err != nil {
		return nil, wrong("%s add: %v", role, err)
	}
	if refusal := c.mayIssue(); refusal != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%s add %s: %v", role, in.GetName(), refusal)
	}
	if err := c.checkMode(string(role)+" add "+clean(in.GetName()), role, in.GetGrpcTls()); err != nil {
		return nil, err
	}
	record := store.ComponentRecord{Role: role, Name: in.GetName(), Reusable: in.GetReusable(), ServerName: in.GetServerName(), GRPCTLS: in.GetGrpcTls()}
	what := string(role) + " add " + record.Name
	if record.Peers, err = peersOf(what, role, in.GetPeers()); err != nil {
		return nil, err
	}
	if err := setRole(what, &record, in.GetAddress(), in.GetServe()); err != nil {
		return nil, err
	}
	if role == pki.RoleGateway && c.advertise == "" {
		return nil, status.Errorf(codes.FailedPrecondition, "%s: core listens on %s and does not know the address that gateways reach it at: start core with --advertise HOST:PORT (port 50055 if none is given), then add the gateway", what, c.address)
	}
	lifetime, err := lifetimeOf(what, in)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	wish := pki.Token{Role: role, Name: record.Name, Expires: now.Add(lifetime).Truncate(time.Second), Pins: c.ca.get().Pins(), Reusable: record.Reusable}
	if role == pki.RoleGateway {
		wish.Core = c.advertise
		wish.GRPCTLS, wish.ServerName = c.presents().GetMode(), c.presents().GetServerName()
	} else {
		wish.Peers = record.Peers
		wish.GRPCTLS, wish.ServerName = c.modeOf(record), record.ServerName
	}
	token, err := pki.NewToken(wish, rand.Reader)
	if err != nil {
		return nil, wrong("%s: %v", what, err)
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	added, err := c.db.AddComponent(ctx, actor(ctx), record, store.TokenRecord{PublicKey: token.PublicKey(), Role: role, Name: record.Name,
		Expires: token.Expires, Reusable: record.Reusable, Uses: int(in.GetUses())})
	if err != nil {
		return nil, refusal(err)
	}
	c.log.Info("component was added", "role", role, "name", added.Name, "incarnation", added.Incarnation, "actor", actor(ctx))
	if role == pki.RoleProxy {
		c.proxies.kick()
	} else if err := c.publisher.publish(ctx); err != nil { // its addresses count from now on
		c.log.Error("the gateway's addresses are not taken into the set yet; core tries again within a minute", "gateway", added.Name, "cause", err)
	}
	return &control.AddComponentResponse{Component: a.componentRow(added), Token: token.String(), ExpiresUnix: token.Expires.Unix(),
		Command: startCommand(added, token.String())}, nil
}

// startCommand is the one line that starts the component that was added.
func startCommand(r store.ComponentRecord, token string) string {
	line := "sallyport --role " + string(r.Role)
	if r.Reusable { // for places without a disk
		line += " --state memory"
	}
	line += " --join " + token
	if r.Role == pki.RoleGateway {
		return line
	}
	host, port, err := net.SplitHostPort(r.Address)
	if err != nil || port == defaultProxyPort {
		return line
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		host = ""
	}
	return line + " --grpc-address " + net.JoinHostPort(host, port)
}

// lifetimeOf is how long the token that is asked for is good.
func lifetimeOf(what string, in *control.AddComponentRequest) (time.Duration, error) {
	ttl := time.Duration(in.GetTtlSeconds()) * time.Second
	switch {
	case in.GetTtlSeconds() < 0 || in.GetTtlSeconds() > int64(maxTokenLifetime/time.Second):
		return 0, wrong("%s: a token is good for at most %d days", what, maxTokenLifetime/(24*time.Hour))
	case !in.GetReusable() && in.GetUses() > 0:
		return 0, wrong("%s: --uses is for tokens with --reusable; any other is good for one", what)
	case in.GetReusable() && ttl == 0:
		return 0, wrong("%s: a reusable token needs an end: say how long it is good for with --ttl", what)
	case in.GetReusable() && in.GetUses() == 0 && in.GetRole() == string(pki.RoleGateway):
		return 0, wrong("%s: a reusable token needs a bound: say with --uses how many instances may live at a time", what)
	case ttl == 0:
		return tokenLifetime, nil
	}
	return ttl, nil
}

// peersOf checks where a component, or core, may come from.
func peersOf(what string, role pki.Role, list []string) ([]string, error) {
	flag, whose := "--ip", "core's gRPC port is open to the addresses of its gateways and to nobody else: name those that core sees this gateway come from"
	if role == pki.RoleProxy {
		flag, whose = "--core-ip", "the proxy's gRPC port is open to core's addresses and to nobody else: name those that the proxy sees core come from"
	}
	peers, err := firewall.ParsePeers(list)
	if errors.Is(err, firewall.ErrNoPeers) {
		return nil, wrong("%s: %s is required. %s (IP, CIDR or DNS name), or write %s any to leave it to mutual TLS alone", what, flag, strings.ToUpper(whose[:1])+whose[1:], flag)
	}
	if err != nil {
		return nil, wrong("%s: %s: %v", what, flag, err)
	}
	return peers.Strings(), nil
}

// setRole checks and sets what only one of the roles has.
func setRole(what string, r *store.ComponentRecord, address string, serve []string) error {
	if r.Role == pki.RoleGateway {
		if address != "" || r.ServerName != "" {
			return wrong("%s: a gateway has no address that core dials; it dials core. Leave --address and --server-name out", what)
		}
		for _, s := range serve {
			if s != "*" && !validService(s) {
				return wrong("%s: --serve %q is neither a service (acme.orders.v1.Orders) nor a pattern (acme.orders.*)", what, clean(s))
			}
		}
		r.Serve = serve
		return nil
	}
	if len(serve) > 0 {
		return wrong("%s: a proxy serves nothing of its own. Leave --serve out", what)
	}
	if address == "" {
		return wrong("%s: --address is required: core dials the proxy, so it has to know HOST:PORT of its gRPC port (%s unless set otherwise)", what, defaultProxyPort)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = strings.Trim(address, "[]"), defaultProxyPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return wrong("%s: --address %q: the port is no number from 1 to 65535", what, clean(address))
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return wrong("%s: --address %q is no address that core can dial", what, clean(address))
		}
	} else if p, err := firewall.ParsePeers([]string{host}); err != nil || len(p.Names()) != 1 {
		return wrong("%s: --address %q: the host is neither an IP address nor a DNS name", what, clean(address))
	}
	if n := r.ServerName; n != "" {
		if p, err := firewall.ParsePeers([]string{n}); err != nil || len(p.Names()) != 1 {
			return wrong("%s: --server-name %q is no DNS name", what, clean(n))
		}
	}
	r.Address = net.JoinHostPort(host, port)
	return nil
}

// SetComponent changes what is given and leaves the rest.
func (a *admin) SetComponent(ctx context.Context, in *control.SetComponentRequest) (*control.Component, error) {
	role, err := roleOf(in.GetRole())
	if err != nil {
		return nil, err
	}
	what := string(role) + " set " + clean(in.GetName())
	if err := a.core.checkMode(what, role, in.GetGrpcTls()); err != nil {
		return nil, err
	}
	if len(in.GetServe()) > 0 && in.GetClearServe() {
		return nil, wrong("%s: --serve and --clear-serve contradict each other", what)
	}
	if role == pki.RoleProxy && len(in.GetPeers()) > 0 && !in.GetForce() {
		if err := a.core.keepsCore(ctx, what, in.GetName(), in.GetPeers()); err != nil {
			return nil, err
		}
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	r, err := a.core.db.SetComponent(ctx, actor(ctx), role, in.GetName(), func(r *store.ComponentRecord) error {
		if len(in.GetPeers()) > 0 {
			if r.Peers, err = peersOf(what, role, in.GetPeers()); err != nil {
				return err
			}
		}
		if len(in.GetCertificateNames()) > 0 || in.GetClearCertificateNames() {
			if r.CertNames, err = certNamesOf(what, role, in); err != nil {
				return err
			}
		}
		if in.GetServerName() != "" {
			r.ServerName = in.GetServerName()
		}
		if in.GetGrpcTls() != "" {
			r.GRPCTLS = in.GetGrpcTls()
		}
		address, serve := r.Address, r.Serve
		if in.GetAddress() != "" {
			address = in.GetAddress()
		}
		if len(in.GetServe()) > 0 || in.GetClearServe() {
			serve = in.GetServe()
		}
		return setRole(what, r, address, serve)
	})
	if err != nil {
		return nil, a.noComponent(ctx, unwrapStatus(err), what, role, in.GetName())
	}
	was := a.core.connectedFrom(key{role, r.Name})
	a.core.log.Info("component was changed", "role", role, "name", r.Name, "actor", actor(ctx))
	if role == pki.RoleProxy {
		a.core.proxies.kick()
	}
	if err := a.core.publisher.publish(ctx); err != nil {
		return nil, refusal(err)
	}
	row := a.componentRow(r)
	a.core.setNotes(row, len(in.GetPeers()) > 0, was)
	return row, nil
}

// certNamesOf checks the names that a gateway's exported certificate gets.
func certNamesOf(what string, role pki.Role, in *control.SetComponentRequest) ([]string, error) {
	if role != pki.RoleGateway {
		return nil, wrong("%s: --cert-name is for gateways, which export certificates for the services beside them", what)
	}
	if in.GetClearCertificateNames() && len(in.GetCertificateNames()) > 0 {
		return nil, wrong("%s: --cert-name and --clear-cert-names contradict each other", what)
	}
	for _, n := range in.GetCertificateNames() {
		p, err := firewall.ParsePeers([]string{n})
		if ip, ipErr := netip.ParseAddr(n); ipErr == nil && !ip.IsUnspecified() {
			continue
		}
		if err != nil || len(p.Names()) != 1 {
			return nil, wrong("%s: --cert-name %q is neither a DNS name nor an IP address", what, clean(n))
		}
	}
	return in.GetCertificateNames(), nil
}

// unwrapStatus finds a status that a callback returned through the store.
func unwrapStatus(err error) error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if s, ok := e.(interface{ GRPCStatus() *status.Status }); ok {
			return s.GRPCStatus().Err()
		}
	}
	return err
}

// ListComponents lists gateways, proxies or both.
func (a *admin) ListComponents(ctx context.Context, in *control.ListComponentsRequest) (*control.ListComponentsResponse, error) {
	var role pki.Role
	if in.GetRole() != "" {
		var err error
		if role, err = roleOf(in.GetRole()); err != nil {
			return nil, err
		}
	}
	records, err := a.core.db.Components(ctx, role)
	if err != nil {
		return nil, refusal(err)
	}
	out := &control.ListComponentsResponse{}
	for _, r := range records {
		out.Components = append(out.Components, a.componentRow(r))
	}
	return out, nil
}

// RemoveComponent revokes a component's identity and cuts everything that is
// open with it.
func (a *admin) RemoveComponent(ctx context.Context, in *control.RemoveComponentRequest) (*control.Component, error) {
	c := a.core
	role, err := roleOf(in.GetRole())
	if err != nil {
		return nil, err
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	since := time.Now()
	r, err := c.db.RemoveComponent(ctx, actor(ctx), role, in.GetName())
	if err != nil {
		return nil, a.noComponent(ctx, err, string(role)+" rm "+clean(in.GetName()), role, in.GetName())
	}
	published := c.cutRevoked(ctx)
	c.settle(context.WithoutCancel(ctx), key{role, r.Name})
	c.rotation.kick()
	c.log.Info("component was removed and its identity revoked", "role", role, "name", r.Name, "actor", actor(ctx))
	if published != nil {
		return nil, refusal(published)
	}
	entries, err := c.db.RevocationEntries(ctx, 0)
	if err != nil {
		return nil, refusal(err)
	}
	row := a.componentRow(r)
	row.Revocation = c.enforcement(ctx, since, hasRevocations(uint64(len(entries))))
	id := identityOf(c.ca.get(), r)
	row.Revocation.Revoked = []string{id.String()}
	return row, nil
}
