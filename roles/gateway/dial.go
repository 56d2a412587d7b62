package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/relay"
)

// dialTimeout bounds one attempt to reach an upstream, TLS included.
const dialTimeout = 5 * time.Second

// dialer returns the function that opens a connection to u, ready for HTTP/2.
// Files are read at each attempt, so that renewed ones are used from the next
// connection on.
func dialer(u configs.Upstream) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		if u.Address.Scheme != configs.SchemeTLS {
			return connect(ctx, u.Address.Network(), u.Address.Target)
		}
		config, err := tlsConfig(u)
		if err != nil {
			return nil, err
		}
		raw, err := connect(ctx, "tcp", u.Address.Target)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, explained(err)
		}
		if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
			raw.Close()
			return nil, errors.New("its TLS does not offer HTTP/2 (ALPN h2): a gRPC server does; is this its gRPC port?")
		}
		return conn, nil
	}
}

// tlsConfig is how the gateway authenticates u, and itself towards u.
func tlsConfig(u configs.Upstream) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		NextProtos:                  []string{"h2"},
		ServerName:                  u.ServerName,
		DynamicRecordSizingDisabled: true,
	}
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(u.Address.Target)
		if err != nil {
			return nil, err
		}
		config.ServerName = host
	}
	if u.CA != "" {
		text, err := os.ReadFile(u.CA)
		if err != nil {
			return nil, fmt.Errorf("read its CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("CA file %s holds no certificate in PEM form", u.CA)
		}
	}
	if u.Cert != "" {
		cert, err := tls.LoadX509KeyPair(u.Cert, u.Key)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s: %w", u.Cert, err)
		}
		// A static certificate that does not match the server's hint is
		// silently left out by crypto/tls; this one is always shown.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return config, nil
}

// connect opens a TCP or unix connection for TLS or for calls.
func connect(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, explained(err)
	}
	return relay.Socket(nc), nil
}

// explained says what an error of a connection means and what mends it, where
// that is known.
func explained(err error) error {
	if why := pki.Explain(err); why.Code != pki.CodeOther {
		return &why
	}
	return err
}

// authority is what u is called in :authority of its calls.
func authority(u configs.Upstream) string {
	switch u.Address.Scheme {
	case configs.SchemeUnix:
		return "localhost"
	case configs.SchemeTLS:
		if u.ServerName != "" {
			if _, port, err := net.SplitHostPort(u.Address.Target); err == nil && port != "443" {
				return net.JoinHostPort(u.ServerName, port)
			}
			return u.ServerName
		}
	}
	return u.Address.Target
}

// listening remembers how reading ended. With TLS 1.3 a server judges the
// client's certificate after the handshake, and says so by an alert that is
// read when the first call has long failed for another reason.
type listening struct {
	net.Conn
	ended atomic.Pointer[error]
}

// Read reads.
func (l *listening) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if err != nil {
		l.ended.CompareAndSwap(nil, &err)
	}
	return n, err
}

// whySilent finds the reason why u gave no answer to the first call.
func (u *upstream) whySilent(err error, l *listening) error {
	if u.settings.Address.Scheme != configs.SchemeTLS {
		return err
	}
	if ended := l.ended.Load(); ended != nil {
		if why := pki.Explain(*ended); why.Code == pki.CodeCertificateRequired || why.Code == pki.CodeRefusedByPeer {
			return &why
		}
	}
	if u.settings.Cert == "" {
		return fmt.Errorf("%w; if it demands a client certificate, name one for this upstream (cert and key)", err)
	}
	return err
}
