package policy

import (
	"errors"
	"fmt"
	"strings"
)

// maxClaim bounds the header that holds a claim.
const maxClaim = 8 << 10

// ErrClaim is a claim that no component of ours writes.
var ErrClaim = errors.New("malformed claim about a client certificate")

// Claim is what a proxy, or a gateway, says of a client certificate that it verified. It is
// written as
//
//	ID            identity under the embedded CA
//	ID;CA         identity under the foreign client CA of that name
//
// percent-encoded, one spelling for each claim. It is no more than a word:
// what follows from it is decided by the grants that name the proxy.
type Claim struct {
	ID       string // spiffe://… or cn:NAME
	ClientCA string // the foreign CA it was verified under; empty: ours
}

// EncodeClaim writes a claim as the value of a header between components. It
// is empty for a claim that ParseClaim would not accept.
func EncodeClaim(c Claim) string {
	if c.check() != nil {
		return ""
	}
	s := escape(c.ID)
	if c.ClientCA != "" {
		s += ";" + c.ClientCA
	}
	return s
}

// ParseClaim reads what EncodeClaim wrote, and nothing else.
func ParseClaim(s string) (Claim, error) {
	if len(s) > maxClaim {
		return Claim{}, ErrClaim
	}
	id, ca, foreign := strings.Cut(s, ";")
	id, ok := unescape(id)
	if !ok || foreign && ca == "" {
		return Claim{}, ErrClaim
	}
	c := Claim{ID: id, ClientCA: ca}
	if err := c.check(); err != nil {
		return Claim{}, fmt.Errorf("%w: %w", ErrClaim, err)
	}
	if EncodeClaim(c) != s {
		return Claim{}, ErrClaim
	}
	return c, nil
}

// check says whether a proxy can say this of a certificate. An identity of a
// component is proven on links and never claimed.
func (c Claim) check() error {
	if c.ClientCA != "" && !label(c.ClientCA) {
		return fmt.Errorf("%q is no name of a client CA", c.ClientCA)
	}
	key, err := parseIdentity(c.ID, c.ClientCA)
	if err == nil && key.kind != Certificate {
		err = fmt.Errorf("%s is a component and no client", c.ID)
	}
	return err
}

// CallerVia is the caller a claim names, on the word of a proxy.
func (c Claim) CallerVia(proxy string) Caller {
	return Caller{Kind: Certificate, ID: c.ID, ClientCA: c.ClientCA, ViaProxy: proxy}
}

// CallerViaGateway is the caller a claim names, on the word of a gateway.
func (c Claim) CallerViaGateway(gateway string) Caller {
	return Caller{Kind: Certificate, ID: c.ID, ClientCA: c.ClientCA, ViaGateway: gateway}
}

// CallerGateway is a gateway that calls by itself, for an app that came to one of
// its listeners. id is what its link proved.
func CallerGateway(id, listener string) Caller {
	return Caller{Kind: Gateway, ID: id, Listener: listener}
}

// ListenerLabel says whether s can be the label of a listener.
func ListenerLabel(s string) bool { return label(s) }

const hexDigits = "0123456789ABCDEF"

func literal(c byte) bool {
	return class[c] != other || c == '-' || c == '~' || c == ':'
}

func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if literal(s[i]) {
			b.WriteByte(s[i])
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hexDigits[s[i]>>4])
		b.WriteByte(hexDigits[s[i]&15])
	}
	return b.String()
}

func unescape(s string) (string, bool) {
	if !strings.Contains(s, "%") {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), true
}
