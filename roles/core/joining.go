package core

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// adopt makes a newcomer a component: the store binds its token to its key and
// records the certificate that the authority issues, in one transaction.
func (c *core) adopt(ctx context.Context, a link.JoinAttempt) (*control.JoinGrant, *pki.Refusal) {
	if refusal := c.judgeRole(ctx, a); refusal != nil {
		return nil, refusal
	}
	if refusal := c.judgeSource(ctx, a.TokenKey, a.Role, a.Source); refusal != nil {
		return nil, refusal
	}
	if refusal := c.mayIssue(); refusal != nil {
		return nil, refusal
	}
	now, ca := time.Now(), c.ca.get()
	actor := store.Actor("joining " + string(a.Role) + " at " + addressOf(a.Source))
	adopted, err := c.db.Adopt(ctx, actor, store.Adoption{TokenPublicKey: a.TokenKey, SPKI: a.SPKI[:], Source: addressOf(a.Source), Version: a.Version,
		Issue: func(r store.ComponentRecord) (store.CertificateRecord, [][]byte, error) {
			issued, err := ca.IssueComponent(c.componentRequest(ca, r, a.PublicKey), now)
			if err != nil {
				return store.CertificateRecord{}, nil, err
			}
			record, err := recordOf(ca, issued, string(r.Role), identityOf(ca, r), r.Incarnation)
			return record, issued.DER(), err
		}}, now)
	if err != nil {
		return nil, c.refuseAdoption(ctx, a, err)
	}
	r := adopted.Component
	if !adopted.Again {
		c.log.Info(string(r.Role)+" has joined", string(r.Role), r.Name, "address", a.Source, "version", clean(a.Version), "serial", adopted.Serial)
	}
	if err := c.publisher.publish(ctx); err != nil {
		c.log.Error("cannot compose snapshots", "cause", err)
	}
	grant := &control.JoinGrant{Chain: adopted.Chain, Bundle: c.ca.get().Bundle().Proto(), Name: r.Name}
	if r.Role == pki.RoleGateway {
		grant.CoreAddress = c.advertise
	}
	return grant, nil
}

// componentRequest is the certificate of a component: its names are what core
// knows of it.
func (c *core) componentRequest(ca *pki.Authority, r store.ComponentRecord, key crypto.PublicKey) pki.ComponentRequest {
	request := pki.ComponentRequest{ID: identityOf(ca, r), Incarnation: r.Incarnation, PublicKey: key, Lifetime: c.set.CertLifetime}
	if r.Role == pki.RoleProxy {
		request.DNS, request.IPs = addHost(nil, []netip.Addr(nil), r.Address)
	}
	return request
}

func identityOf(ca *pki.Authority, r store.ComponentRecord) pki.ID {
	return pki.ID{TrustDomain: ca.TrustDomain(), Role: r.Role, Name: r.Name}
}

// judgeRole refuses a token that was made for the other role.
func (c *core) judgeRole(ctx context.Context, a link.JoinAttempt) *pki.Refusal {
	token, err := c.db.TokenByKey(ctx, a.TokenKey)
	if err == nil && token.Role != a.Role {
		return link.RefuseTokenRole(token.Role, a.Role)
	}
	return nil
}

// refuseAdoption says why a newcomer was not adopted, and raises the alarm when
// its token was used with another key.
func (c *core) refuseAdoption(ctx context.Context, a link.JoinAttempt, err error) *pki.Refusal {
	source := addressOf(a.Source)
	var bound *store.TokenBoundError
	switch {
	case errors.As(err, &bound):
		refusal := link.RefuseTokenBound(bound.Source, source)
		name := ""
		if token, err := c.db.TokenByKey(ctx, a.TokenKey); err == nil {
			name = token.Name
		}
		// The store has audited it, with both addresses. Who has the token can
		// try as often as he likes; the store says which attempts are news.
		if !bound.Alarm {
			return refusal
		}
		c.alerts.raise(ctx, alert{Code: "second_key", Subject: string(a.Role) + "/" + name, Alarm: true, Once: fmt.Sprintf("second_key %s/%s %x", a.Role, name, a.SPKI),
			Text:   fmt.Sprintf("a join token was used with a second key: first from %s, then from %s: %s", bound.Source, source, refusal.Cause),
			Remedy: refusal.Remedy})
		return refusal
	case errors.Is(err, store.ErrTokenUnknown), errors.Is(err, store.ErrTokenExpired), errors.Is(err, store.ErrTokenClosed):
		if refusal := c.judgeToken(ctx, a.TokenKey, a.Role); refusal != nil {
			return refusal
		}
		return link.RefuseTokenClosed()
	case errors.Is(err, store.ErrTokenExhausted):
		return &pki.Refusal{Code: "token_exhausted", Cause: err.Error(), Remedy: "remove an instance that is gone on core (sallyport gateway ls, gateway rm), or make a token with more --uses"}
	case errors.Is(err, store.ErrBootstrapKey):
		return &pki.Refusal{Code: "bootstrap_key_reused", Cause: err.Error(), Remedy: "bring both components to the same version; one of ours never does this"}
	}
	if refusal, ok := pki.AsRefusal(err); ok {
		return refusal
	}
	c.log.Error("a newcomer could not be adopted", string(a.Role), source, "cause", err)
	return &pki.Refusal{Code: "core_error", Cause: "core could not adopt the newcomer", Remedy: "see core's log; the newcomer tries again by itself"}
}

// judgeToken says what core thinks of a token, by the key that it makes, before
// anything else is known of the newcomer. No role is any role.
func (c *core) judgeToken(ctx context.Context, public ed25519.PublicKey, role pki.Role) *pki.Refusal {
	token, err := c.db.TokenByKey(ctx, public)
	switch {
	case errors.Is(err, store.ErrTokenUnknown):
		return link.RefuseTokenUnknown()
	case err != nil:
		return &pki.Refusal{Code: "core_error", Cause: "core cannot read its join tokens", Remedy: "see core's log; the newcomer tries again by itself"}
	case role != "" && token.Role != role:
		return link.RefuseTokenRole(token.Role, role)
	case !token.Withdrawn.IsZero():
		return link.RefuseTokenUnknown()
	case time.Now().Before(token.Expires):
		return nil
	case token.BoundSPKI != nil:
		return link.RefuseTokenClosed()
	}
	return link.RefuseTokenExpired(token.Expires)
}

// joinKey says what core thinks of a bootstrap key, for a newcomer that asks
// why it was refused.
func (c *core) joinKey(public ed25519.PublicKey, from netip.AddrPort) *pki.Refusal {
	if refusal := c.judgeToken(context.Background(), public, pki.RoleGateway); refusal != nil {
		return refusal
	}
	return c.judgeSource(context.Background(), public, pki.RoleGateway, from)
}

// judgeSource refuses a gateway's token that is used from an address that is
// not that gateway's. What else is wrong with a token, others say.
func (c *core) judgeSource(ctx context.Context, public ed25519.PublicKey, role pki.Role, from netip.AddrPort) *pki.Refusal {
	token, err := c.db.TokenByKey(ctx, public)
	k := key{role, token.Name}
	if err != nil || token.Role != role || !token.Withdrawn.IsZero() || role == pki.RoleGateway && !c.peers.set.View().Knows(ownerOf(k)) {
		return nil
	}
	return c.checkAddress(ctx, k, from, "the join token", public)
}

// stored hears that a newcomer has its identity on disk.
func (c *core) stored(_ context.Context, a link.JoinAttempt) {
	c.log.Debug("newcomer has stored its identity", "role", a.Role, "address", a.Source)
	c.proxies.kick()
}
