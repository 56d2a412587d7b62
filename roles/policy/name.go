package policy

import "strings"

// Name is a caller as upstreams (sallyport-caller), logs and audit read it: its
// percent-encoded identity; of one whom a foreign client CA vouches for, with the
// name that the proxy gives this CA, so that two CAs cannot speak for each other:
//
//	spiffe://example.org/client/billing
//	cn:grpc-client;ca=partner
//
// and of a gateway that called for an app, with the label of the entrance if that
// has one:
//
//	spiffe://example.org/gateway/shop;listener=batch
//
// An identity has no semicolon of its own in this form. Empty for a stranger.
func (c Caller) Name() string {
	if c.Listener != "" && c.ID != "" {
		return PercentEncode(c.ID) + ";listener=" + PercentEncode(c.Listener)
	}
	if c.ID == "" || c.ClientCA == "" {
		return PercentEncode(c.ID)
	}
	return PercentEncode(c.ID) + ";ca=" + PercentEncode(c.ClientCA)
}

// PercentEncode keeps what identities consist of and writes every other byte
// as %XX, the semicolon too, so that no name can put anything else into a header
// or a line of a log, nor look like two of its parts.
func PercentEncode(s string) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = unescaped(s[i])
	}
	if plain {
		return s
	}
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := range len(s) {
		if c := s[i]; unescaped(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}

func unescaped(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("-._~:/#@!$&'()*+,=?[]", c) >= 0
}
