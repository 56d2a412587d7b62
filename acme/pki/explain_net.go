package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// alerts maps the texts of TLS alerts to their numbers. crypto/tls gives a
// remote alert a type of its own that is not exported.
var alerts = func() map[string]uint8 {
	m := map[string]uint8{}
	for n := range 256 {
		m[tls.AlertError(n).Error()] = uint8(n)
	}
	return m
}()

const remedyPeerLog = "the other side's log says why"

func explainTLS(err error) (Refusal, bool) {
	var header tls.RecordHeaderError
	if errors.As(err, &header) {
		return explainRecord(header), true
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" && op.Err != nil {
		if n, ok := alerts[op.Err.Error()]; ok {
			return explainAlert(n, op.Err.Error()), true
		}
	}
	text := err.Error()
	for _, known := range []struct {
		part    string
		refusal Refusal
	}{
		{"client didn't provide a certificate", Refusal{CodeCertificateRequired, "the client presented no certificate", "only joined components and callers with a client certificate may connect here"}},
		{"client offered only unsupported versions", noCommonVersion},
		{"server selected unsupported protocol version", noCommonVersion},
		{"no cipher suite supported by both", noCommonCipher},
		{"client requested unsupported application protocols", noCommonProtocol},
		{"server did not select an ALPN protocol", noCommonProtocol},
		{"server selected unadvertised ALPN protocol", noCommonProtocol},
		{"private key does not match public key", Refusal{CodeKeyMismatch, "the private key does not belong to the certificate", "use the key that the certificate was made for"}},
		{"private key type does not match public key type", Refusal{CodeKeyMismatch, "the private key does not belong to the certificate", "use the key that the certificate was made for"}},
		{"first record does not look like a TLS handshake", Refusal{CodePlaintext, "the other side does not speak TLS", remedyPlaintext}},
		{"does not match certificate's public key", Refusal{CodeKeyMismatch, "the private key does not belong to the certificate", "use the key that the certificate was made for"}},
		{"unsupported type of public key", Refusal{CodeWeakKey, "the certificate has a key of a kind that is not supported", "make one with ECDSA P-256"}},
	} {
		if strings.Contains(text, known.part) {
			return known.refusal, true
		}
	}
	return Refusal{}, false
}

const remedyPlaintext = "let both sides speak TLS to this port, and check the port number and any proxy between them"

var (
	noCommonVersion = Refusal{CodeNoCommonVersion, "the two sides have no TLS version in common",
		"components need TLS 1.3, the public port 1.2 or 1.3: update the older side"}
	noCommonCipher = Refusal{CodeNoCommonCipher, "the two sides have no cipher suite in common",
		"enable a modern suite (AES-GCM or ChaCha20-Poly1305) on the other side"}
	noCommonProtocol = Refusal{CodeNoCommonProtocol, "the two sides have no application protocol (ALPN) in common",
		"check the port (callers belong to the public port, components to the gRPC port), and that nothing between the two ends TLS"}
)

func explainRecord(e tls.RecordHeaderError) Refusal {
	start := string(e.RecordHeader[:])
	switch {
	case strings.HasPrefix(start, "PRI"):
		return Refusal{CodePlaintext, "the other side spoke HTTP/2 without TLS", remedyPlaintext}
	case strings.HasPrefix(start, "HTTP") || strings.HasPrefix(start, "GET") || strings.HasPrefix(start, "POST") || strings.HasPrefix(start, "HEAD"):
		return Refusal{CodePlaintext, "the other side spoke HTTP without TLS", remedyPlaintext}
	case start[:3] == "\x00\x00\x12" || start[:2] == "\x00\x00":
		return Refusal{CodePlaintext, "the other side answered with HTTP/2 frames without TLS", remedyPlaintext}
	case strings.HasPrefix(start, "PROXY"):
		return Refusal{CodeNotTLS, "the other side sent a PROXY protocol header", "allow the load balancer's addresses for it, or switch it off there"}
	case strings.HasPrefix(start, "SSH"):
		return Refusal{CodeNotTLS, "the other side is an SSH server", "check the port number"}
	}
	return Refusal{CodePlaintext, "the other side does not speak TLS", remedyPlaintext}
}

// explainAlert explains what the peer said about us when it closed the
// handshake.
func explainAlert(n uint8, text string) Refusal {
	peer := func(code, cause, remedy string) Refusal { return Refusal{code, "the other side " + cause, remedy} }
	switch n {
	case 40:
		return peer(CodeRefusedByPeer, "found no parameters in common (TLS alert: handshake failure)", "update the older side; "+remedyPeerLog)
	case 42, 46:
		return peer(CodeRefusedByPeer, "refused our certificate (TLS alert: "+strings.TrimPrefix(text, "tls: ")+")", remedyPeerLog)
	case 43:
		return peer(CodeWrongUsage, "does not support our kind of certificate", "make one with ECDSA P-256, for this use; "+remedyPeerLog)
	case 44:
		return peer(CodeRevoked, "says that our certificate is revoked", remedyRejoin)
	case 45:
		return peer(CodeExpired, "says that our certificate has expired or is not valid yet", remedyClock)
	case 48:
		return peer(CodeUnknownAuthority, "does not know the CA of our certificate", "give it that CA, or join this component to that core; "+remedyPeerLog)
	case 49:
		return peer(CodeRefusedByPeer, "denied us access (TLS alert)", remedyPeerLog)
	case 70:
		return noCommonVersion
	case 71:
		return noCommonCipher
	case 112:
		return peer(CodeNameMismatch, "serves nothing by the name we asked for", "check the server name")
	case 116:
		return peer(CodeCertificateRequired, "wants a client certificate and got none", "join this component, or give the client a certificate: sallyport cert issue NAME --client")
	case 120:
		return noCommonProtocol
	}
	return peer(CodeRefusedByPeer, "ended the TLS handshake ("+strings.TrimPrefix(text, "tls: ")+")", remedyPeerLog)
}

func explainNetwork(err error) (Refusal, bool) {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return Refusal{CodeNameUnknown, fmt.Sprintf("the name %q has no address: %s", printable(dns.Name, 253), printable(dns.Err, 200)),
			"check its spelling and the name server of this machine"}, true
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refusal{CodeConnectionRefused, "nothing listens there (connection refused)", "check that the other side runs, its address and its port"}, true
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Refusal{CodeNoRoute, "there is no way to that address (no route to host)", "check the address, this machine's network and firewalls that reject"}, true
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT),
		errors.As(err, &timeout) && timeout.Timeout():
		return Refusal{CodeNoAnswer, "there was no answer in time", "a firewall that drops looks like this: check that this machine's address is among the peers of the other side"}, true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Refusal{CodeConnectionClosed, "the other side closed the connection without a word", "look at its log; it may be another kind of server, too busy, or not expect this machine's address"}, true
	}
	return Refusal{}, false
}
