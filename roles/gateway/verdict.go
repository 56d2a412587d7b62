package gateway

import (
	"fmt"
	"log/slog"
	"strings"

	"google.golang.org/grpc/codes"

	"sallyport/roles/control"
	"sallyport/roles/policy"
)

// verdicts is core's word about what this gateway may serve: which of its
// services core routes to it, and its slice of the policy. It comes with the
// snapshot and is immutable.
type verdicts struct {
	rules    *policy.Rules
	exact    map[string]bool
	prefixes []string // routed services that were announced as package.*
	refused  map[string]string
}

func newVerdicts(part *control.GatewayPart) (*verdicts, error) {
	rules, err := policy.NewRules(part.GetMethods())
	if err != nil {
		return nil, fmt.Errorf("method rules of the snapshot: %w", err)
	}
	v := &verdicts{rules: rules, exact: make(map[string]bool), refused: make(map[string]string)}
	for _, s := range part.GetServices() {
		prefix, pattern := strings.CutSuffix(s.GetService(), "*")
		switch {
		case !s.GetRouted():
			v.refused[s.GetService()] = s.GetReason()
		case pattern:
			v.prefixes = append(v.prefixes, prefix)
		default:
			v.exact[s.GetService()] = true
		}
	}
	return v, nil
}

// routed reports whether core routes service to this gateway.
func (v *verdicts) routed(service string) bool {
	if v.exact[service] {
		return true
	}
	for _, p := range v.prefixes {
		if strings.HasPrefix(service, p) {
			return true
		}
	}
	return false
}

// logNew says which services core newly refuses to route here, and why.
func (v *verdicts) logNew(log *slog.Logger, former *verdicts) {
	for service, reason := range v.refused {
		if former == nil || former.refused[service] != reason {
			log.Warn("core does not route a service to this gateway", "service", service, "reason", reason)
		}
	}
}

// denial is why a call is not let through here.
type denial struct {
	code    codes.Code
	reason  string // stable, snake_case
	message string
}

// judge is the third check of a call, after the proxy's and core's: it
// concerns what this gateway may be used for, whoever asks. It returns the
// upstream that serves the method and how the method is treated, or why not.
func (g *gateway) judge(path string) (*upstream, policy.Treatment, *denial) {
	var none policy.Treatment
	method, ok := policy.ParseMethod(path)
	if !ok {
		return nil, none, &denial{codes.Unimplemented, "bad_method", "the method name is malformed"}
	}
	if !g.ceiling.Match(path) {
		return nil, none, &denial{codes.PermissionDenied, "gateway_ceiling", g.hop + " does not allow this method (its --allow setting)"}
	}
	v := g.verdicts.Load()
	if v == nil {
		return nil, none, &denial{codes.Unavailable, "no_snapshot", g.hop + " has not heard from core yet what it may serve"}
	}
	if !v.routed(method.Service) {
		return nil, none, &denial{codes.PermissionDenied, "service_not_routed", g.hop + " may not serve this service"}
	}
	treatment, allowed := v.rules.Match(path)
	if !allowed {
		return nil, none, &denial{codes.PermissionDenied, "gateway_policy", g.hop + " does not allow this method"}
	}
	u := g.routes.Load().find(method.Service)
	if u == nil {
		return nil, none, &denial{codes.Unavailable, "service_gone", g.hop + " no longer has this service"}
	}
	return u, treatment, nil
}
