package gateway

import (
	"context"
	"fmt"

	"sallyport/acme/pki"
	"sallyport/roles/link"
)

// The names under which gateway.db keeps core's address, and the name in the
// outside certificate of its port, as they were when the gateway joined.
const (
	keyCore       = "core_address"
	keyServerName = "core_server_name"
)

// join gets the gateway its identity. It tries until it succeeds, core
// refuses, or ctx ends: core may not be up yet.
func (g *gateway) join(ctx context.Context, token pki.Token) error {
	address := token.Core
	if g.settings.Core != "" {
		address = g.settings.Core
	}
	if address == "" {
		return fmt.Errorf("the join token names no address of core: start with --core HOST:PORT, or set --advertise on core and add the gateway again")
	}
	// What has to hold for who starts with the identity that Join stores is on
	// disk before it, since the process may be killed right after: what a former
	// identity in this directory was told does not count, and core is there.
	if err := g.db.ForgetSnapshot(); err != nil {
		return err
	}
	if err := g.db.Put(keyCore, []byte(address)); err != nil {
		return err
	}
	if err := g.db.Put(keyServerName, []byte(token.ServerName)); err != nil {
		return err
	}
	outside, err := link.OutsideFor(token.GRPCTLS, token.ServerName, g.anchors, g.settings.GRPCServerName, "--grpc-ca")
	if err != nil {
		return fmt.Errorf("join core at %s: %w", address, err)
	}
	dialler := &link.Dialler{Self: g.self, Token: &token, Log: g.log, Connect: connectOut, Outside: outside}
	newcomer := &link.Newcomer{Token: token, Role: pki.RoleGateway, Dir: g.dir(), Version: g.deps.Version}
	ctx, done := context.WithCancel(ctx)
	defer done()
	var grant *link.Grant
	var refused error
	link.Keep(ctx, g.log, "joining core at "+address, func(ctx context.Context) error {
		conn, err := dialler.Dial(ctx, address, link.ALPNJoin, pki.Expect{Role: pki.RoleCore})
		if err == nil {
			defer conn.Close()
			grant, err = newcomer.Join(ctx, conn)
		}
		if final(err) {
			refused = err
		}
		if err == nil || refused != nil {
			done()
		}
		return err
	})
	switch {
	case refused != nil:
		return fmt.Errorf("join core at %s: %w", address, refused)
	case grant == nil:
		return ctx.Err()
	}
	if grant.CoreAddress != "" {
		address = grant.CoreAddress
		if err := g.db.Put(keyCore, []byte(address)); err != nil {
			return err
		}
	}
	g.self.Set(grant.Credentials, grant.Bundle)
	g.log.Info("joined", "identity", grant.Credentials.ID.String(), "core", address)
	return nil
}

// dialRenewal dials core where an identity is renewed that no other protocol
// accepts any more.
func (g *gateway) dialRenewal(ctx context.Context) (*link.Conn, error) {
	return g.dialCore(ctx, link.ALPNRenew, g.renewals.Add(1)-1)
}

// outside is how core's port is verified, beyond its identity. With --grpc-ca
// that check is made always, whatever core says of its port: nobody who has
// another key of core's can do without it. What core says last counts for the
// name alone.
func (g *gateway) outside() (*link.Outside, error) {
	if g.anchors == nil {
		return nil, nil
	}
	name := g.snapshots.Snapshot().GetListener().GetServerName()
	if name == "" {
		if kept, err := g.db.Get(keyServerName); err == nil {
			name = string(kept)
		}
	}
	return link.OutsideFor(link.ModeFiles, name, g.anchors, g.settings.GRPCServerName, "--grpc-ca")
}

// final reports whether trying to join again is useless: core said no, or what
// answers is not the core that made the token.
func final(err error) bool {
	r, ok := pki.AsRefusal(err)
	if !ok {
		return false
	}
	switch r.Code {
	case "token_unknown", "token_expired", "token_other_role", "token_used_by_another_key", "token_closed", "token_exhausted", pki.CodePinMismatch, "csr_bad":
		return true
	}
	return false
}

// coreAddresses are where core is to be found, the best first: the setting,
// what core said last, what it said when the gateway joined.
func (g *gateway) coreAddresses() []string {
	if g.settings.Core != "" {
		return []string{g.settings.Core}
	}
	if a := g.snapshots.Snapshot().GetCoreAddresses(); len(a) > 0 {
		return a
	}
	if a, err := g.db.Get(keyCore); err == nil && len(a) > 0 {
		return []string{string(a)}
	}
	return []string{""}
}
