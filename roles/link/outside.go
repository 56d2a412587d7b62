package link

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"sallyport/acme/pki"
)

// Modes of a gRPC port, as tokens and snapshots name them: which certificate
// its TLS shows.
const (
	ModeInternal = "internal" // its identity
	ModeFiles    = "files"    // files that something else renews
	ModeACME     = "acme"     // from a public CA, by ourselves
)

// Outside is how a dialler verifies the certificate that a listener shows to
// the world.
type Outside struct {
	// Roots are the anchors: (*Anchors).Pool. They may be intermediates.
	Roots func() *x509.CertPool
	// ServerName is the name expected; empty: the host that is dialled.
	ServerName string
}

// OutsideFor makes of a listener's mode and server name, as the token or the
// last snapshot tells them, and of this side's settings, how to dial. anchors
// is what --grpc-ca (at a gateway) or --proxy-grpc-ca (at core) named, nil if
// nothing; override is --grpc-server-name. Nil and no error: internal.
func OutsideFor(mode, serverName string, anchors *Anchors, override, flag string) (*Outside, error) {
	switch mode {
	case "", ModeInternal:
		if anchors != nil {
			return nil, &pki.Refusal{Code: "listener_mode",
				Cause:  fmt.Sprintf("%s is set, and the other side shows its internal identity, which no public or own CA has signed", flag),
				Remedy: fmt.Sprintf("start the other side with --grpc-cert and --grpc-key, or this one without %s; either way both ends prove their identities", flag)}
		}
		return nil, nil
	case ModeFiles, ModeACME:
		if anchors == nil {
			return nil, &pki.Refusal{Code: "listener_mode",
				Cause:  "the other side's port shows a certificate of its own (mode " + mode + "), and this side was not told which CA to verify it with",
				Remedy: fmt.Sprintf("start this side with %s FILE (the CA's certificates, or chain.pem), or %s system for a public CA", flag, flag)}
		}
		if override != "" {
			serverName = override
		}
		return &Outside{Roots: anchors.Pool, ServerName: serverName}, nil
	}
	return nil, &pki.Refusal{Code: "listener_mode", Cause: fmt.Sprintf("the other side's port is in the mode %q, which this version does not know", printable(mode, 32)),
		Remedy: "bring both components to the same version"}
}

// verify judges the outside certificate: any CA among the roots, the name.
func (o *Outside) verify(cs *tls.ConnectionState, host string, now time.Time) *pki.Refusal {
	name := o.ServerName
	if name == "" {
		name = host
	}
	chain := cs.PeerCertificates
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	var roots *x509.CertPool
	if o.Roots != nil {
		roots = o.Roots()
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err == nil {
		if err = pki.CheckKey(chain[0].PublicKey); err == nil {
			return nil
		}
	}
	r := *refusalOf(err)
	r.Cause = "the outside certificate of the other side's port: " + r.Cause
	if r.Code == pki.CodeUnknownAuthority || r.Code == pki.CodeNameMismatch {
		r.Remedy = fmt.Sprintf("give its CA with --grpc-ca (gateway) or --proxy-grpc-ca (core), and its name, if it is not %s, with --grpc-server-name or 'proxy set --server-name'; %s", name, r.Remedy)
	}
	return &r
}
