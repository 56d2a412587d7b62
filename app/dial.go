package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"sallyport/acme/pki"
	"sallyport/configs"
)

// caFile is the roots of the embedded CA in a data directory, for clients on
// the same host.
const caFile = "ca.crt"

// dial opens the connection of a call. What goes wrong below gRPC is kept in
// handshakes, because gRPC hands on only its text.
func (v *callVerb) dial(c *cli) (*grpc.ClientConn, *handshakes, error) {
	network, address, plain := "tcp", v.Address, false
	if path, ok := strings.CutPrefix(v.Address, "unix://"); ok {
		network, address, plain = "unix", path, true
	} else if _, _, err := net.SplitHostPort(v.Address); err != nil {
		return nil, nil, wrong(fmt.Sprintf("call: --address %q is not HOST:PORT", v.Address), "write for example --address localhost:8443, or unix:///run/sallyport/call.sock for a gateway's entrance (--listen)")
	}
	if plain && (v.Cert != "" || v.CA != "" || v.ServerName != "") {
		return nil, nil, wrong("call: --ca, --cert and --server-name concern TLS, and a unix socket has none", "leave them out, or call a tls:// entrance by HOST:PORT")
	}
	roots, file, err := v.roots(c)
	if err != nil {
		return nil, nil, err
	}
	config := &tls.Config{RootCAs: roots, ServerName: v.ServerName, MinVersion: tls.VersionTLS12}
	if (v.Cert == "") != (v.Key == "") {
		return nil, nil, wrong("call: --cert and --key belong together", "give both or none")
	}
	if v.Cert != "" {
		pair, err := tls.LoadX509KeyPair(v.Cert, v.Key)
		if err != nil {
			return nil, nil, failed(fmt.Sprintf("call: --cert %s with --key %s: %v", v.Cert, v.Key, err), "both have to be PEM and belong to each other")
		}
		// A static certificate is left out in silence when the server's list
		// of issuers does not name its own; this one is always shown.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	h := &handshakes{TransportCredentials: credentials.NewTLS(config), file: file, shared: new(lastError)}
	if plain {
		h.TransportCredentials = insecure.NewCredentials()
	}
	authority := address
	if plain {
		authority = "localhost"
	}
	conn, err := grpc.NewClient("passthrough:///"+authority,
		grpc.WithTransportCredentials(h),
		grpc.WithNoProxy(),
		grpc.WithUserAgent("sallyport-call/"+version()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, address)
			h.shared.set(err)
			return nc, err
		}))
	return conn, h, err
}

// roots are what the server is verified with: those of --ca alone, else the
// system's and, if there is a data directory on this host, those of the
// embedded CA. file is where those are from that are not the system's; empty:
// there are no others.
func (v *callVerb) roots(c *cli) (pool *x509.CertPool, file string, err error) {
	file = v.CA
	if file == "" {
		dir := v.DataDir
		if dir == "" {
			dir = configs.DataDir(c.environ, os.Getuid())
		}
		file = filepath.Join(dir, caFile)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		if v.CA != "" {
			return nil, "", failed("call: --ca: "+err.Error(), "")
		}
		return nil, "", nil
	}
	certs, err := pki.ParseCertificatesPEM(text)
	if err != nil {
		return nil, "", failed("call: "+file+": "+asProblem(err).What, "it has to hold certificates in PEM, as sallyport ca export writes them")
	}
	if v.CA == "" {
		pool, _ = x509.SystemCertPool()
	}
	if pool == nil {
		pool = x509.NewCertPool()
	}
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool, file, nil
}

// handshakes is TLS credentials that remember why a handshake failed.
type handshakes struct {
	credentials.TransportCredentials
	file   string // of roots beside the system's, or in their place
	shared *lastError
}

func (h *handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	nc, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, raw)
	h.shared.set(err)
	return nc, info, err
}

func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{TransportCredentials: h.TransportCredentials.Clone(), file: h.file, shared: h.shared}
}

type lastError struct {
	mu  sync.Mutex
	err error // of the newest attempt, nil when it succeeded
}

func (l *lastError) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *lastError) get() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// explain names the cause of a connection that never came about; nil when it
// did.
func (h *handshakes) explain(address string) error {
	err := h.shared.get()
	if err == nil {
		return nil
	}
	var unknown x509.UnknownAuthorityError
	var resolve *net.DNSError
	switch {
	case strings.HasPrefix(address, "unix://") && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)):
		return failed("nothing listens at "+address, "does the gateway run, with --listen "+address+"?")
	case errors.Is(err, syscall.EACCES):
		return failed("this user may not use "+address, "the gateway's own user may, and the members of its --listen-group")
	case errors.Is(err, syscall.ECONNREFUSED):
		return failed("nothing listens at "+address, "is the proxy running? its public port is the one to call: --address HOST:PORT")
	case errors.As(err, &resolve):
		return failed("the name in "+address+" is not known: "+resolve.Err, "check --address")
	case errors.As(err, &unknown) && h.file == "":
		return failed("the certificate of "+address+" is signed by an authority this machine does not know",
			"give its root: --ca FILE, as sallyport ca export writes it on the host of core")
	case errors.As(err, &unknown):
		return failed("the certificate of "+address+" is signed by an authority that is not in "+h.file,
			"the CA may have been rotated since, or it is another core's: write the file anew on the host of core: sallyport ca export > FILE\na port with a certificate of a public CA: leave --ca out")
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return failed("no answer from "+address+" in time", "a firewall may drop the packets: check the address and the port")
	}
	refusal := pki.Explain(err)
	return failed(address+": "+refusal.Cause, refusal.Remedy)
}
