package relay

import (
	"encoding/hex"
	"math/rand/v2"
)

// Headers that components write for each other and for upstreams. What
// strangers send under these names is dropped at every entrance; on links each
// hop reads its neighbour's, judges them and writes its own.
const (
	HeaderRequestID   = "sallyport-request-id"  // every hop, and back to the caller
	HeaderClientCert  = "sallyport-client-cert" // proxy or gateway to core: what it says of the caller's certificate
	HeaderSource      = "sallyport-source"      // proxy to core: the address the call came from; core to gateway: whose share of memory it has
	HeaderListener    = "sallyport-listener"    // gateway to core: the call is its own, for an app at the entrance of that label
	HeaderCaller      = "sallyport-caller"      // core to gateway, gateway to upstream
	HeaderPermissions = "sallyport-permissions" // core to gateway, gateway to upstream; comma separated
	HeaderTraceparent = "traceparent"           // every hop, as it came
)

// NewRequestID returns 16 hexadecimal digits that name one call in the logs of
// every component. It need not be secret, only unlikely to repeat.
func NewRequestID() string {
	var raw [8]byte
	n := rand.Uint64()
	for i := range raw {
		raw[i] = byte(n >> (8 * i))
	}
	return hex.EncodeToString(raw[:])
}

// ValidRequestID reports whether a neighbour's request id may be repeated in
// logs and headers: 1 to 64 letters, digits, dots, dashes or underscores.
func ValidRequestID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
