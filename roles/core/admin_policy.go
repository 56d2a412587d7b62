package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/policy"
	"sallyport/roles/policy/token"
	"sallyport/roles/relay"
	"sallyport/store"
)

// CheckPolicy compares a policy with what gateways announced.
func (a *admin) CheckPolicy(ctx context.Context, in *control.CheckPolicyRequest) (*control.CheckPolicyResponse, error) {
	out, _, err := a.check(ctx, in.GetPolicy(), in.GetStrict())
	return out, err
}

// check parses and compares. The policy is nil when it cannot be applied.
func (a *admin) check(ctx context.Context, text []byte, strict bool) (*control.CheckPolicyResponse, *policy.Policy, error) {
	out := &control.CheckPolicyResponse{}
	if len(text) > maxPolicy {
		return nil, nil, wrong("the policy is larger than %d MiB", maxPolicy>>20)
	}
	p := a.core.router.ruling.Load().policy
	if len(text) > 0 {
		parsed, err := policy.Parse("policy", text)
		if err != nil {
			out.Errors = strings.Split(err.Error(), "\n")
			return out, nil, nil
		}
		p = parsed
	}
	inventory, err := a.inventory(ctx)
	if err != nil {
		return nil, nil, refusal(err)
	}
	out.Warnings, out.Denied = p.CheckAll(inventory)
	out.Warnings = append(out.Warnings, a.core.issuers.unreachable(ctx, p.Issuers())...)
	if strict && len(out.Warnings) > 0 {
		out.Errors, out.Warnings = out.Warnings, nil
		return out, nil, nil
	}
	return out, p, nil
}

// inventory is what a policy is compared with.
func (a *admin) inventory(ctx context.Context) (policy.Inventory, error) {
	inv := policy.Inventory{Services: []policy.ServiceMethods{}, TrustDomain: a.core.ca.get().TrustDomain(), Proxies: []string{}, Gateways: []string{}, APIKeys: []string{}}
	services, err := a.core.db.Services(ctx)
	if err != nil {
		return inv, err
	}
	for _, s := range services {
		inv.Services = append(inv.Services, policy.ServiceMethods{Service: s.Service, Methods: s.Methods})
	}
	components, err := a.core.db.Components(ctx, "")
	if err != nil {
		return inv, err
	}
	for _, r := range components {
		if r.Role == pki.RoleProxy {
			inv.Proxies = append(inv.Proxies, r.Name)
		} else {
			inv.Gateways = append(inv.Gateways, r.Name)
		}
	}
	keys, err := a.core.db.APIKeys(ctx)
	if err != nil {
		return inv, err
	}
	for _, k := range keys {
		if k.Revoked.IsZero() {
			inv.APIKeys = append(inv.APIKeys, k.Name)
		}
	}
	return inv, nil
}

// ApplyPolicy puts a policy into force, everywhere.
func (a *admin) ApplyPolicy(ctx context.Context, in *control.ApplyPolicyRequest) (*control.CheckPolicyResponse, error) {
	if len(in.GetPolicy()) == 0 {
		return nil, wrong("policy apply: the policy is empty; a file with a comment alone denies everything, if that is meant")
	}
	out, p, err := a.check(ctx, in.GetPolicy(), in.GetStrict())
	if err != nil || p == nil {
		return out, err
	}
	if out.Version, err = a.core.db.ApplyPolicy(ctx, actor(ctx), in.GetPolicy()); err != nil {
		return nil, refusal(err)
	}
	a.core.log.Info("policy was applied", "version", out.Version, "actor", actor(ctx))
	if err := a.core.publisher.publish(ctx); err != nil {
		return nil, refusal(fmt.Errorf("policy version %d is stored, but %w", out.Version, err))
	}
	return out, nil
}

// ShowPolicy returns a version of the policy.
func (a *admin) ShowPolicy(ctx context.Context, in *control.ShowPolicyRequest) (*control.ShowPolicyResponse, error) {
	r, err := a.core.db.Policy(ctx, in.GetVersion())
	if errors.Is(err, store.ErrNotFound) && in.GetVersion() == 0 {
		return &control.ShowPolicyResponse{Policy: a.core.router.ruling.Load().policy.Text(), Actor: "built in"}, nil
	}
	if err != nil {
		return nil, absent(err, "policy show", "version", strconv.FormatUint(in.GetVersion(), 10), "sallyport policy show prints the one in force, sallyport audit ls when each was applied", nil)
	}
	return &control.ShowPolicyResponse{Version: r.Version, Policy: r.Text, Actor: string(r.Actor), AppliedUnix: seconds(r.Applied)}, nil
}

// ExplainPolicy says which row and grant decide about a caller and a method.
func (a *admin) ExplainPolicy(_ context.Context, in *control.ExplainPolicyRequest) (*control.ExplainPolicyResponse, error) {
	m, ok := policy.ParseMethod(in.GetMethod())
	if !ok {
		return nil, wrong("policy explain: %q is no method: write it as /package.Service/Method", clean(in.GetMethod()))
	}
	r := a.core.router.ruling.Load()
	caller, why, err := a.callerOf(in, r)
	if err != nil || why != nil {
		return why, err
	}
	e := r.policy.Explain(in.GetMethod(), caller)
	out := &control.ExplainPolicyResponse{Allowed: e.Allowed, Code: relay.StatusName(e.Code), Reason: e.Reason, Row: e.Row, Needs: e.Needs, Holds: e.Holds, Grants: e.Deciding, Caller: caller.ID}
	if s := r.find(m.Service); s != nil {
		for i := range s.targets {
			out.Gateways = append(out.Gateways, s.targets[i].gateway.name)
		}
	}
	return out, nil
}

// callerOf reads the caller that a question is about. A token that is not
// accepted is an answer.
func (a *admin) callerOf(in *control.ExplainPolicyRequest, r *ruling) (policy.Caller, *control.ExplainPolicyResponse, error) {
	if raw := in.GetToken(); raw != "" {
		if in.GetCaller() != "" {
			return policy.Caller{}, nil, wrong("policy explain: name a caller or give a token, not both")
		}
		caller, no := token.Authenticate(r.keys, r.tokens, "Bearer "+raw, a.core.router.now())
		if no != nil {
			return caller, &control.ExplainPolicyResponse{Code: relay.StatusName(codes.Unauthenticated), Reason: no.Code, Refused: no.Message}, nil
		}
		return caller, nil, nil
	}
	id := in.GetCaller()
	c, err := policy.ParseCaller(id, in.GetClientCa(), in.GetVia())
	if err != nil {
		return c, nil, wrong("policy explain: %s", clean(err.Error()))
	}
	if words := in.GetClaims(); len(words) > 0 {
		issuer := issuerIn(r.policy, id)
		if c.Kind != policy.Token || issuer == nil {
			return c, nil, wrong("policy explain: claims are those of a token, and %s is no caller of an [[issuer]] of the policy", clean(id))
		}
		for _, word := range words {
			if issuer.Grants(word) {
				c.Permissions = append(c.Permissions, word)
			}
		}
		slices.Sort(c.Permissions)
	}
	return c, nil, nil
}

// issuerIn is the issuer of a token's caller.
func issuerIn(p *policy.Policy, identity string) *policy.Issuer {
	url, _, _ := strings.Cut(identity, "#")
	for _, i := range p.Issuers() {
		if i.URL == url {
			return &i
		}
	}
	return nil
}
