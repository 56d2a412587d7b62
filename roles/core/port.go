package core

import (
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// openPort reads the certificate that the gRPC port shows to the world, and
// the CAs that those of the proxies' ports are verified with, if there are any.
func (c *core) openPort() (err error) {
	if c.set.ACME != nil {
		if err := c.openOrdered(); err != nil {
			return err
		}
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
	switch {
	case c.ordered != nil:
		return &control.OutsideCertificate{Mode: link.ModeACME, ServerName: c.ordered.domain}
	case c.outside == nil:
		return nil
	}
	return &control.OutsideCertificate{Mode: link.ModeFiles}
}

// modeOf is what a proxy's gRPC port shows: as its record says, else files if
// core was told who vouches for them.
func (c *core) modeOf(r store.ComponentRecord) string {
	switch {
	case r.GRPCTLS != "":
		return r.GRPCTLS
	case c.anchors != nil:
		return link.ModeFiles
	}
	return link.ModeInternal
}

// checkMode refuses a mode of a gRPC port that core could not verify.
func (c *core) checkMode(what string, role pki.Role, mode string) error {
	switch {
	case mode == "":
		return nil
	case role != pki.RoleProxy:
		return wrong("%s: --grpc-tls is for proxies, which core dials", what)
	case mode == link.ModeInternal:
		return nil
	case mode != link.ModeFiles && mode != link.ModeACME:
		return wrong("%s: --grpc-tls %q: a gRPC port shows internal (its identity), files, or acme", what, clean(mode))
	case c.anchors == nil:
		return wrong("%s: core has not been told which CA signs the certificates of its proxies' ports: start it with --proxy-grpc-ca FILE or --proxy-grpc-ca system", what)
	}
	return nil
}

// recoveryVerifier judges the former certificates of who recovers an identity.
func (c *core) recoveryVerifier() *pki.Verifier {
	return c.ca.get().RecoveryVerifier(time.Now, c.self.Revoked)
}
