package configs

import (
	"fmt"
	"strings"
)

// MethodPattern checks a pattern of methods as --allow and the policy write
// it: a full method /pkg.Service/Method, a service /pkg.Service/*, or a
// package with all below it /pkg.*. There is no pattern for everything: one
// row would undo the rule that what is not listed is denied.
func MethodPattern(s string) error {
	rest, ok := strings.CutPrefix(s, "/")
	switch {
	case s == "/*" || s == "*" || s == "/*/*" || s == "/.*":
		return fmt.Errorf("%q would match every method there is; name a package, such as /acme.*", s)
	case !ok:
		return fmt.Errorf("%q does not begin with a slash; write /pkg.Service/Method, /pkg.Service/* or /pkg.*", s)
	}
	service, method, two := strings.Cut(rest, "/")
	if !two {
		if pkg, ok := strings.CutSuffix(service, ".*"); ok && ServiceName(pkg) {
			return nil
		}
		return fmt.Errorf("%q names no method; write /pkg.Service/Method, /pkg.Service/* or /pkg.*", s)
	}
	if !ServiceName(service) {
		return fmt.Errorf("%q is no service name in %q; write letters, digits and _ separated by dots, such as acme.orders.v1.Orders", service, s)
	}
	if method != "*" && !identifier(method) {
		return fmt.Errorf("%q is no method name in %q; write letters, digits and _, or * alone for all methods of the service", method, s)
	}
	return nil
}

// ServicePattern checks a service as it is listed for an upstream or in
// --serve: a full name acme.orders.v1.Orders, or a package with all below it,
// acme.stock.v1.*.
func ServicePattern(s string) error {
	name := strings.TrimSuffix(s, ".*")
	if !ServiceName(name) {
		return fmt.Errorf("%q is no service; write its full name, such as acme.orders.v1.Orders, or a package, such as acme.orders.v1.*", s)
	}
	return nil
}

// ServiceName says whether s is the full name of a service or package:
// identifiers separated by dots.
func ServiceName(s string) bool {
	for {
		part, rest, more := strings.Cut(s, ".")
		if !identifier(part) {
			return false
		}
		if !more {
			return true
		}
		s = rest
	}
}

// MatchService says whether a service pattern covers a service.
func MatchService(pattern, service string) bool {
	if pkg, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(service, pkg) && len(service) > len(pkg)
	}
	return pattern == service
}

func identifier(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		letter := c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
