package core

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// A revocation takes effect in this order: it is in the store and in the list
// beside it, so that a crash cannot undo it; then handshakes are refused, here
// and, as their snapshots arrive, everywhere; then what is open is cut. Every
// component acknowledges the snapshot that says it, and until then the operator
// is told who has not.

// enforceWait is how long an answer waits for acknowledgements. They take some
// milliseconds; a component that has not answered by then is told of.
const enforceWait = 3 * time.Second

// enforcement waits until everybody who is connected enforces what was revoked
// at since, and says how far it has come.
func (c *core) enforcement(ctx context.Context, since time.Time, enforces func(*component) bool) *control.RevokeCertificateResponse {
	timer := time.NewTimer(enforceWait)
	defer timer.Stop()
	for {
		changed := c.registry.waiter()
		out := &control.RevokeCertificateResponse{}
		for _, m := range c.registry.list("") {
			if m.current() == nil {
				continue
			}
			out.Components++
			if enforces(m) {
				out.Enforced++
			} else {
				out.Missing = append(out.Missing, string(m.role)+"/"+m.name)
			}
		}
		out.ElapsedNano = int64(time.Since(since))
		if len(out.Missing) == 0 {
			return out
		}
		select {
		case <-changed:
		case <-timer.C:
			return out
		case <-ctx.Done():
			return out
		}
	}
}

// hasRevocations is what a revocation waits for: the list up to an entry.
func hasRevocations(sequence uint64) func(*component) bool {
	return func(m *component) bool { return m.enforces.Load() >= sequence }
}

// hasSnapshot is what any other change waits for: the snapshot of now.
func hasSnapshot(m *component) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snapshot == nil || m.acknowledged.Load() >= m.snapshot.GetGeneration().GetGeneration()
}

// RevokeCertificate revokes a certificate, or what an identity has had until
// now, and cuts what is open with it.
func (a *admin) RevokeCertificate(ctx context.Context, in *control.RevokeCertificateRequest) (*control.RevokeCertificateResponse, error) {
	c := a.core
	since := time.Now()
	request := store.RevokeRequest{Identity: in.GetIdentity(), Reason: in.GetReason()}
	if err := pki.CheckReason(in.GetReason()); err != nil {
		return nil, wrong("cert revoke: %v", err)
	}
	if in.GetSerial() != "" {
		serial, err := pki.ParseSerial(in.GetSerial())
		if err != nil {
			return nil, wrong("cert revoke: %v", err)
		}
		// With both, somebody has read the certificate itself: it is one of ours
		// even if no database knows it any more.
		request = store.RevokeRequest{Serial: serial, Reason: in.GetReason(), Unrecorded: in.GetIdentity() != ""}
	} else if in.GetIdentity() == "" {
		return nil, wrong("cert revoke: name a certificate by its serial number or file, or an identity (spiffe://…)")
	}
	done, err := c.db.RevokeCertificate(ctx, actor(ctx), request, since)
	if err != nil {
		return nil, a.noCertificate(ctx, err, request.Identity, request.Serial)
	}
	c.log.Info("revoked", "serials", len(done.Serials), "components", len(done.Components), "identity", clean(request.Identity), "serial", request.Serial,
		"reason", clean(in.GetReason()), "actor", actor(ctx))
	if err := c.cutRevoked(ctx); err != nil {
		return nil, refusal(err)
	}
	if request.Identity != "" {
		c.router.cut(func(p *passage) bool { return p.record.Caller == request.Identity }, codes.Unauthenticated, "core: the caller's certificate was revoked")
	}
	out := c.enforcement(ctx, since, hasRevocations(done.Sequence))
	out.Revoked = done.Serials
	for _, r := range done.Components {
		id := identityOf(c.ca.get(), r)
		out.Revoked = append(out.Revoked, id.String())
	}
	return out, nil
}

// cutRevoked makes the revocations in the store take effect: for handshakes
// first, so that no new link comes while the old are cut.
func (c *core) cutRevoked(ctx context.Context) error {
	published := c.publisher.publish(ctx)
	records, err := c.db.Components(context.WithoutCancel(ctx), "")
	if err != nil {
		return err
	}
	known := map[key]bool{}
	for _, r := range records {
		known[key{r.Role, r.Name}] = true
	}
	for _, m := range c.registry.list("") {
		if !known[m.key] {
			c.registry.remove(m.key, refuseRemoved(m.key))
			c.settle(context.WithoutCancel(ctx), m.key)
			continue
		}
		m.cutIf(func(peer link.Peer) *pki.Refusal {
			if len(peer.Chain) == 0 || !c.self.Revoked(peer.Chain[0], peer.ID, peer.Incarnation) {
				return nil
			}
			return &pki.Refusal{Code: pki.CodeRevoked, Cause: fmt.Sprintf("the certificate of %s (serial %s) was revoked", m.key, pki.Serial(peer.Chain[0])),
				Remedy: fmt.Sprintf("if it is to go on: sallyport %s rm %s, add it again, and start it with the new token", m.role, m.name)}
		})
	}
	c.proxies.kick()
	return published
}

// GetCRL returns the lists of revoked certificates for other software.
func (a *admin) GetCRL(ctx context.Context, _ *control.GetCRLRequest) (*control.GetCRLResponse, error) {
	ders, err := a.core.crls.current(ctx, time.Now())
	if err != nil {
		return nil, refusal(err)
	}
	return &control.GetCRLResponse{Crls: ders}, nil
}
