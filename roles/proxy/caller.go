package proxy

import (
	"crypto/x509"
	"net/netip"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/policy"
	"sallyport/roles/policy/token"
	"sallyport/roles/relay"
)

// client is who is at the other end of a public connection, as far as the
// handshake tells.
type client struct {
	source  netip.AddrPort
	from    *source             // whose share its calls are of
	secure  bool                // TLS ended here
	http1   bool                // it speaks HTTP/1.1
	front   bool                // it is a trusted front, and says whom it brings
	obscure bool                // where source is this host, nothing shows that the caller is on it: a balancer brought it
	name    string              // source as components tell each other: the bare address
	chain   []*x509.Certificate // the client certificate it proved to hold, or nil
	judged  atomic.Pointer[judgement]
	calls   openCalls
}

// judgement is what a view says of a client's certificate. It is made once per
// view and connection and used by every call, until a certificate expires.
type judgement struct {
	view    *view
	until   time.Time
	who     policy.Claim
	claim   string // who, for core
	refusal *pki.Refusal
}

func newClient(source netip.AddrPort, chain []*x509.Certificate) *client {
	c := &client{source: source, chain: chain}
	if source.IsValid() {
		c.name = source.Addr().String()
	}
	return c
}

// certificate judges the client's certificate by v.
func (c *client) certificate(v *view, now time.Time) *judgement {
	if j := c.judged.Load(); j != nil && j.view == v && now.Before(j.until) {
		return j
	}
	j := &judgement{view: v, until: now.Add(time.Hour)}
	for _, cert := range c.chain {
		for _, t := range [2]time.Time{cert.NotBefore, cert.NotAfter} {
			if now.Before(t) && t.Before(j.until) {
				j.until = t
			}
		}
	}
	if j.who, j.refusal = v.callers.judge(c.chain, now); j.refusal == nil {
		j.claim = policy.EncodeClaim(j.who)
	}
	c.judged.Store(j)
	return j
}

// credentials is what authentication found out about one call.
type credentials struct {
	caller policy.Caller
	claim  string    // what core is told of the certificate
	until  time.Time // when this has to be found out again; zero: not by itself

	// undecided is why a token was not verified that core may be able to: its
	// issuer may have newer keys. What core does not see is refused for it.
	undecided *refused
}

// refused says why a call goes no further.
type refused struct {
	code    codes.Code
	reason  string // stable, snake_case
	message string // to the caller
}

// authenticate finds out who calls. Bad credentials are refused, also where
// none are needed. A caller with a certificate and an API key or a token is the
// key's owner or the token's subject; both have to be good.
func (p *proxy) authenticate(call *relay.Call, c *client, v *view, now time.Time) (credentials, *refused) {
	var out credentials
	if len(c.chain) > 0 {
		j := c.certificate(v, now)
		if j.refusal != nil {
			return out, &refused{codes.Unauthenticated, "certificate_" + j.refusal.Code, "client certificate: " + j.refusal.Error()}
		}
		out.claim, out.until = j.claim, j.until
		out.caller = j.who.CallerVia(p.name())
	}
	authorization, n := "", 0
	for _, f := range call.Header() {
		if f.Name == "authorization" {
			authorization = f.Value
			n++
		}
	}
	private, why := private(call.Front(), c)
	switch {
	case n == 0:
		return out, nil
	case n > 1:
		return out, &refused{codes.Unauthenticated, "many_authorizations", "the call carries more than one authorization header: send one"}
	case !private:
		return out, &refused{codes.Unauthenticated, "token_unencrypted", "tokens are not taken from an unencrypted connection: " + why}
	case authorization == "":
		return out, &refused{codes.Unauthenticated, "empty_authorization", "the authorization header is empty: send 'Bearer ' and an API key or a token, or leave it out"}
	}
	caller, no := token.Authenticate(v.keys, v.tokens, authorization, now)
	if no != nil {
		why := &refused{codes.Unauthenticated, no.Code, no.Message}
		if no.Unknown == "" {
			return out, why
		}
		out.undecided, out.caller = why, policy.Caller{}
		return out, nil
	}
	out.caller = caller
	if end := caller.Expires; !end.IsZero() && (out.until.IsZero() || end.Before(out.until)) {
		out.until = end
	}
	return out, nil
}
