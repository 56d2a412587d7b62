package configs

// How a gateway reaches an upstream.
const (
	SchemePlain = "plain" // HTTP/2 without TLS, towards this host only
	SchemeTLS   = "tls"
	SchemeUnix  = "unix"
	SchemeH2C   = "h2c" // HTTP/2 without TLS, over a network, asked for in words
)

// UpstreamAddress says where an upstream is and how it is spoken to.
type UpstreamAddress struct {
	Scheme string // SchemePlain, SchemeTLS, SchemeUnix or SchemeH2C
	Target string // HOST:PORT, or the path of a socket
}

// String writes the address as ParseUpstreamAddress reads it.
func (a UpstreamAddress) String() string {
	switch a.Scheme {
	case SchemePlain:
		return a.Target
	case "":
		return ""
	}
	return a.Scheme + "://" + a.Target
}

// Network is the first argument of a net.Dialer.
func (a UpstreamAddress) Network() string {
	if a.Scheme == SchemeUnix {
		return "unix"
	}
	return "tcp"
}
