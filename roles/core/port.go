package core

import (
	"errors"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// openPort reads the certificate that the gRPC port shows to the world, and
// the CAs that those of the proxies' ports are verified with, if there are any.
func (c *core) openPort() (err error) {
	if c.set.ACME != nil {
		return errors.New("this build orders no certificates of a public CA yet: use --grpc-tls files")
	}
	if c.set.GRPCTLS == link.ModeFiles {
		// What it shows is reported when it changes, with everything else.
		if c.outside, err = link.OpenOutside("gRPC port", c.set.GRPCCert, c.set.GRPCKey, c.log, nil); err != nil {
			return err
		}
	}
	if c.set.ProxyGRPCCA != "" {
		if c.anchors, err = link.OpenAnchors(c.set.ProxyGRPCCA, c.log); err != nil {
			return err
		}
	}
	return nil
}

// presents is what gateways are told of the port: in tokens, then in snapshots.
func (c *core) presents() *control.OutsideCertificate {
	if c.outside == nil {
		return nil
	}
	return &control.OutsideCertificate{Mode: link.ModeFiles}
}

// proxyMode is what core expects of its proxies' ports.
func (c *core) proxyMode() string {
	if c.anchors != nil {
		return link.ModeFiles
	}
	return link.ModeInternal
}

// checkMode refuses a proxy whose port would show itself otherwise than core
// expects it of its proxies.
func (c *core) checkMode(what string, role pki.Role, mode string) error {
	switch {
	case mode == "" || role == pki.RoleProxy && mode == c.proxyMode():
		return nil
	case role != pki.RoleProxy:
		return wrong("%s: --grpc-tls is for proxies, which core dials", what)
	case mode == link.ModeFiles:
		return wrong("%s: core has not been told which CA signs the certificates of its proxies' ports: start it with --proxy-grpc-ca FILE or --proxy-grpc-ca system", what)
	}
	return wrong("%s: core was started with --proxy-grpc-ca, so it expects of every proxy that its port shows a certificate of files: leave --grpc-tls out", what)
}

// recoveryVerifier judges the former certificates of who recovers an identity.
func (c *core) recoveryVerifier() *pki.Verifier {
	return c.ca.get().RecoveryVerifier(time.Now, c.self.Revoked)
}
