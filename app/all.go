package app

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/core"
)

// ownName is what a core calls the proxy and the gateway that run in its own
// process.
const ownName = "local"

// adoptOwn makes the proxy and the gateway of this process known to its core,
// and hands them their join tokens, unless they have joined before or were
// given a token. They join like any other component, over real sockets.
func (p *process) adoptOwn(ctx context.Context, up core.Info) error {
	admin := core.Admin(up)
	if err := p.exportRoots(ctx, admin); err != nil {
		return err
	}
	if s := p.settings.Proxy; s != nil && s.Join == "" {
		address, err := reach(s.GRPCAddress)
		if err != nil {
			return err
		}
		name, err := outsideName(s)
		if err != nil {
			return err
		}
		token, err := p.adopt(ctx, admin, s.DataDir, &control.AddComponentRequest{
			Role: "proxy", Name: ownName, Address: address, Peers: peersAt(address), GrpcTls: s.GRPCTLS, ServerName: name,
		})
		if err != nil {
			return err
		}
		s.Join = token
	}
	if s := p.settings.Gateway; s != nil && s.Join == "" && s.Core == "" {
		address, err := reach(up.GRPCAddress)
		if err != nil {
			return err
		}
		token, err := p.adopt(ctx, admin, s.DataDir, &control.AddComponentRequest{
			Role: "gateway", Name: ownName, Peers: peersAt(address),
		})
		if err != nil {
			return err
		}
		s.Join, s.Core = token, address
	}
	return nil
}

// outsideName is a name by which core can verify the certificate that the proxy
// of this process was given for its gRPC port; core dials it by its address.
func outsideName(s *configs.Proxy) (string, error) {
	if s.GRPCCert == "" {
		return "", nil
	}
	text, err := os.ReadFile(s.GRPCCert)
	if err != nil {
		return "", failed("proxy: --grpc-cert: "+err.Error(), "")
	}
	chain, err := pki.ParseCertificatesPEM(text)
	if err != nil {
		return "", failed("proxy: --grpc-cert "+s.GRPCCert+": "+asProblem(err).What, "give a chain in PEM, leaf first")
	}
	for _, name := range chain[0].DNSNames {
		return strings.Replace(name, "*", ownName, 1), nil
	}
	return "", nil
}

// peersAt are the addresses that a connection from this machine to address
// comes from.
func peersAt(address string) []string {
	peers := []string{"127.0.0.1", "::1"}
	host, _, _ := net.SplitHostPort(address)
	if ip, err := netip.ParseAddr(host); err == nil && !slices.Contains(peers, ip.String()) {
		peers = append(peers, ip.String())
	}
	return peers
}

// adopt returns a join token for a component of this process, or none if it
// has its identity already.
func (p *process) adopt(ctx context.Context, admin control.AdminServer, dataDir string, req *control.AddComponentRequest) (token string, err error) {
	known, err := find(ctx, admin, req.Role)
	if err != nil {
		return "", fromCore(err)
	}
	credentials, _, err := pki.LoadCredentials(identityDir(dataDir, req.Role))
	switch {
	case err != nil && !errors.Is(err, pki.ErrNoCredentials):
		return "", err
	case err == nil && credentials.ID.Name != ownName:
		return "", nil // it joined under a name of its own
	case err == nil && known == nil:
		return "", failed("the identity of the "+req.Role+" in "+identityDir(dataDir, req.Role)+" is not known to the core in "+p.settings.Core.DataDir,
			"it was removed, or core's state was replaced: delete "+identityDir(dataDir, req.Role)+" to let it join again")
	case err == nil:
		return "", fromCore(follow(ctx, admin, known, req))
	}
	if known != nil { // it was invited once and has lost its identity, or never had one
		if _, err := admin.RemoveComponent(ctx, &control.RemoveComponentRequest{Role: req.Role, Name: req.Name}); err != nil {
			return "", fromCore(err)
		}
	}
	added, err := admin.AddComponent(ctx, req)
	if err != nil {
		return "", fromCore(err)
	}
	return added.GetToken(), nil
}

// find is the record of this process's component, nil if core has none.
func find(ctx context.Context, admin control.AdminServer, role string) (*control.Component, error) {
	list, err := admin.ListComponents(ctx, &control.ListComponentsRequest{Role: role})
	if err != nil {
		return nil, err
	}
	for _, c := range list.GetComponents() {
		if c.GetName() == ownName && c.GetState() != "removed" {
			return c, nil
		}
	}
	return nil, nil
}

// follow brings core's record in line with ports that were changed since.
func follow(ctx context.Context, admin control.AdminServer, known *control.Component, want *control.AddComponentRequest) error {
	same := func(is, want string) bool { return want == "" || is == want }
	if known.GetAddress() == want.GetAddress() && same(known.GetGrpcTls(), want.GetGrpcTls()) && same(known.GetServerName(), want.GetServerName()) {
		return nil
	}
	_, err := admin.SetComponent(ctx, &control.SetComponentRequest{
		Role: want.GetRole(), Name: want.GetName(), Address: want.GetAddress(), Peers: want.GetPeers(),
		GrpcTls: want.GetGrpcTls(), ServerName: want.GetServerName(),
	})
	return err
}

// exportRoots puts ca.crt beside core's state, for call and for other clients
// on this host.
func (p *process) exportRoots(ctx context.Context, admin control.AdminServer) error {
	ca, err := admin.ShowCA(ctx, &control.ShowCARequest{})
	if err != nil {
		return fromCore(err)
	}
	text, err := rootsPEM(ca)
	if err != nil {
		return err
	}
	return writeFiles(true, file{filepath.Join(p.settings.Core.DataDir, caFile), text, 0o644})
}

// followRoots keeps ca.crt in line with the CA, which a rotation or an import
// changes while core runs.
func (p *process) followRoots(ctx context.Context, admin control.AdminServer) error {
	ticker := time.NewTicker(rootsEvery)
	defer ticker.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := p.exportRoots(ctx, admin)
		switch {
		case err == nil || ctx.Err() != nil:
			last = ""
		case err.Error() != last:
			last = err.Error()
			p.log.Warn("the CA file for others could not be written and may be out of date", "file", filepath.Join(p.settings.Core.DataDir, caFile), "cause", err)
		}
	}
}

// rootsEvery is how often ca.crt is compared with the CA. A new root is in it
// long before anything is issued under it.
const rootsEvery = 2 * time.Second

// demo reports whether the built-in service is what this process serves.
func (p *process) demo() bool {
	return p.settings.Process.All && p.settings.Gateway != nil && p.settings.Gateway.Demo
}
