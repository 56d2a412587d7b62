package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
)

// explain says why an order failed, and what to do, in one line.
func explain(err error, name string, s *Settings) string {
	if p, ok := errors.AsType[acme.Problem](err); ok {
		for len(p.Subproblems) > 0 { // the one that says most
			sub := p.Subproblems[0]
			if sub.Detail == "" {
				break
			}
			p = sub.Problem
		}
		cause := fmt.Sprintf("the CA %s refused it (%s): %s", hostOf(s.CA.Directory), strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace), oneLine(p.Detail))
		if remedy := remedyFor(p, name, s); remedy != "" {
			return cause + "; " + remedy
		}
		return cause
	}
	host := hostOf(s.CA.Directory)
	var unknown x509.UnknownAuthorityError
	var lookup *net.DNSError
	var dial *net.OpError
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("nobody known here vouches for the TLS of the CA's directory %s; give its CA with --acme-root FILE", host)
	case errors.As(err, &lookup):
		return fmt.Sprintf("the name of the CA %s cannot be looked up (%s); this host needs DNS, and a way to the CA by HTTPS", host, lookup.Err)
	case errors.As(err, &dial):
		return fmt.Sprintf("the CA %s cannot be reached (%s); this host needs a way to it by HTTPS, or use %s", host, dial.Err, s.Instead)
	case errors.Is(err, context.DeadlineExceeded):
		return "the CA " + host + " does not answer in time"
	}
	return oneLine(err.Error())
}

func remedyFor(p acme.Problem, name string, s *Settings) string {
	var ports []string
	if s.HTTP {
		ports = append(ports, "port 80 (--http-address)")
	}
	if s.TLSALPN {
		ports = append(ports, "port 443 (--public-address)")
	}
	reach := "the CA comes to " + strings.Join(ports, " or ") + " of " + name + ", and both the records in DNS and every firewall have to lead it here; where no CA can come, use " + s.Instead
	switch p.Type {
	case acme.ProblemTypeDNS, acme.ProblemTypeConnection, acme.ProblemTypeTLS, acme.ProblemTypeIncorrectResponse, acme.ProblemTypeUnauthorized, acme.ProblemTypeMalformed:
		return reach
	case acme.ProblemTypeCAA:
		return "a CAA record of the domain allows other CAs only: add this one"
	case acme.ProblemTypeRateLimited:
		return "wait, and try things out with --acme-staging"
	case acme.ProblemTypeExternalAccountRequired:
		return "give --acme-eab-key-id and --acme-eab-mac-key-file, which the CA hands out"
	case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
		return "this CA signs no certificate for that name: use another with --acme-directory, or " + s.Instead
	case acme.ProblemTypeUserActionRequired:
		return "its terms have changed: read them where it says"
	case acme.ProblemTypeInvalidContact, acme.ProblemTypeUnsupportedContact:
		return "give another --acme-email"
	}
	return ""
}

func hostOf(text string) string {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		return u.Host
	}
	return text
}

// oneLine makes text of the CA fit for a line: at most 500 bytes, nothing that
// controls a terminal.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }), " ")
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "…"
	}
	return s
}
