package core

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs/fault"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// renew gives a component its next certificate: on its control session, or by
// recovery, to one whose identity has expired or whose CA was rotated. Which of
// its keys counts, decides the store.
func (c *core) renew(ctx context.Context, a link.RenewAttempt) (*control.JoinGrant, *pki.Refusal) {
	k := key{a.ID.Role, a.ID.Name}
	now, ca := time.Now(), c.ca.get()
	if ca.Disowned(a.Holder) {
		return nil, refuseDisowned(k)
	}
	holder := pki.SPKI(a.Holder)
	if refusal := c.checkAddress(ctx, k, a.Source, "the identity", holder[:]); refusal != nil {
		return nil, refusal
	}
	if refusal := c.mayIssue(); refusal != nil {
		return nil, refusal
	}
	root := issuingRoot(ca)
	use, err := keyUse(ca, a.ID, a.Incarnation, []*x509.Certificate{a.Holder}, a.Begun, addressOf(a.Source))
	if err != nil {
		return nil, explain(err)
	}
	renewed, err := c.db.Renew(ctx, store.Actor(string(k.role)+"/"+k.name+" from "+addressOf(a.Source)), store.Renewal{
		Holder: use, NewSPKI: a.SPKI[:],
		Stale: func(r store.CertificateRecord) bool { return string(r.Root) != string(root) },
		Issue: func(r store.ComponentRecord) (store.CertificateRecord, [][]byte, error) {
			if !c.renewals.allow(string(k.role) + "/" + k.name) {
				return store.CertificateRecord{}, nil, &pki.Refusal{Code: "too_many_requests", Cause: "this component asks for certificates too often",
					Remedy: "it tries again by itself; if it persists, look at its log"}
			}
			issued, err := ca.IssueComponent(c.componentRequest(ca, r, a.PublicKey), now)
			if err != nil {
				return store.CertificateRecord{}, nil, err
			}
			if a.Recovery {
				fault.Point("recovery", "issued")
			}
			record, err := recordOf(ca, issued, string(r.Role), identityOf(ca, r), r.Incarnation)
			return record, issued.DER(), err
		}}, now)
	if err != nil {
		return nil, c.refuseKey(ctx, k, use, true, err)
	}
	if a.Recovery {
		fault.Point("recovery", "recorded")
	}
	if !renewed.Again {
		how := "renewed its certificate"
		if a.Recovery {
			how = "recovered its identity"
		}
		c.log.Info(string(k.role)+" "+how, string(k.role), k.name, "address", a.Source, "serial", renewed.Serial)
	}
	c.alerts.over(ctx, onceRenewal(k))
	grant := &control.JoinGrant{Chain: renewed.Chain, Bundle: ca.Bundle().Proto(), Name: k.name}
	if k.role == pki.RoleGateway {
		grant.CoreAddress = c.advertise
	}
	return grant, nil
}

// Every certificate that is issued is rows that are kept, wherever it was asked
// for: on a session, or on recovery, where each new key may ask for the next.
const (
	renewalEvery = 5 * time.Second
	renewalBurst = 10
)

// onceRenewal is the key of the alert that a component cannot renew.
func onceRenewal(k key) string { return "renewal " + string(k.role) + "/" + k.name }

// recovered hears that a component has its new identity on disk.
func (c *core) recovered(_ context.Context, a link.RenewAttempt) {
	c.log.Debug("component has stored its recovered identity", "role", a.ID.Role, "name", a.ID.Name, "address", a.Source)
	c.proxies.kick()
}

// keyUse is a certificate in use at a handshake, as the store judges it.
func keyUse(ca *pki.Authority, id pki.ID, incarnation uint64, chain []*x509.Certificate, begun time.Time, source string) (store.KeyUse, error) {
	if len(chain) == 0 {
		return store.KeyUse{}, errors.New("the component showed no certificate")
	}
	record, err := recordOf(ca, &pki.Issued{Chain: chain[:1], Serial: pki.Serial(chain[0])}, string(id.Role), id, incarnation)
	return store.KeyUse{Certificate: record, Source: source, Begun: begun}, err
}

func (c *core) useOf(peer link.Peer) (store.KeyUse, error) {
	return keyUse(c.ca.get(), peer.ID, peer.Incarnation, peer.Chain, peer.Begun, addressOf(peer.Remote))
}

// judgeKey asks the store about the key that a peer has proven. seen: a control
// session runs with it, so that it is the one that counts from now on.
func (c *core) judgeKey(ctx context.Context, peer link.Peer, seen bool) *pki.Refusal {
	k := key{peer.ID.Role, peer.ID.Name}
	use, err := c.useOf(peer)
	if err != nil {
		return explain(err)
	}
	judge := c.db.CheckKey
	if seen {
		judge = c.db.SawKey
	}
	verdict, err := judge(ctx, use, time.Now())
	if err == nil && !verdict.Alarm {
		return nil
	}
	if err == nil {
		c.alarmOfKey(ctx, k, use, "unrecorded_key", fmt.Sprintf("%s uses a certificate that core has no record of (serial %s)", k, use.Certificate.Serial))
		return nil
	}
	return c.refuseKey(ctx, k, use, verdict.Alarm, err)
}

// refuseKey says why the store refuses a key. alarm: it has written an alarm
// into the audit, or may have.
func (c *core) refuseKey(ctx context.Context, k key, use store.KeyUse, alarm bool, err error) *pki.Refusal {
	again := fmt.Sprintf("if it is this component that is to go on: remove and add it again (sallyport %s rm %s, sallyport %s add %s …) and start it with the new token", k.role, k.name, k.role, k.name)
	switch {
	case errors.Is(err, store.ErrSuperseded):
		text := fmt.Sprintf("%s came from %s with a key that a newer one has replaced: its disk was rolled back, or there is a copy of it that has renewed", k, orUnknown(use.Source))
		if alarm {
			c.alarmOfKey(ctx, k, use, "superseded_key", text)
		}
		return &pki.Refusal{Code: "superseded_key", Cause: text, Remedy: again}
	case errors.Is(err, store.ErrPendingOther):
		text := fmt.Sprintf("%s asks for a certificate for another key while one is on its way to it: its disk was rolled back, or there is a copy of it", k)
		if alarm {
			c.alarmOfKey(ctx, k, use, "pending_other", text+"; from "+orUnknown(use.Source))
		}
		return &pki.Refusal{Code: "pending_other", Cause: text, Remedy: again}
	case errors.Is(err, store.ErrKeyReused):
		return &pki.Refusal{Code: "key_reused", Cause: "a renewal needs a key that was never used before", Remedy: "bring both components to the same version; a renewal of ours always brings a new key"}
	case errors.Is(err, store.ErrRevoked):
		return &pki.Refusal{Code: pki.CodeRevoked, Cause: fmt.Sprintf("the certificate of %s (serial %s) or its key was revoked", k, use.Certificate.Serial), Remedy: again}
	case errors.Is(err, store.ErrTokenExhausted):
		return &pki.Refusal{Code: "token_exhausted", Cause: clean(err.Error()), Remedy: "it returns by itself when a place is free: remove an instance that is gone on core (sallyport gateway ls, gateway rm), or make a token with more --uses"}
	case errors.Is(err, store.ErrNotJoined):
		if alarm {
			c.alarmOfKey(ctx, k, use, "unknown_key", fmt.Sprintf("%s came with a certificate of this CA that core has no record of (serial %s)", k, use.Certificate.Serial))
		}
		return &pki.Refusal{Code: "not_joined", Cause: fmt.Sprintf("core does not know this identity of %s: %s", k, clean(err.Error())),
			Remedy: fmt.Sprintf("if it was added after the backup that core was restored from, or its state is from another time than core's: add it again (sallyport %s rm %s if core lists it, sallyport %s add %s …) and start it with the new token", k.role, k.name, k.role, k.name)}
	}
	if refusal, ok := pki.AsRefusal(err); ok {
		return refusal
	}
	c.log.Error("a component's key could not be judged", string(k.role), k.name, "cause", err)
	return &pki.Refusal{Code: "core_error", Cause: "core could not decide about this identity", Remedy: "see core's log; the component tries again by itself"}
}

// alarmOfKey raises an alarm that the store has audited, once per key.
func (c *core) alarmOfKey(ctx context.Context, k key, use store.KeyUse, code, text string) {
	c.alerts.raise(ctx, alert{Code: code, Subject: string(k.role) + "/" + k.name, Text: text, Alarm: true,
		Once:   fmt.Sprintf("%s %s/%s %x", code, k.role, k.name, use.Certificate.SPKI),
		Remedy: fmt.Sprintf("find out whether a backup was put back or somebody has copied its key; then sallyport %s rm %s, and add it again", k.role, k.name)})
}

func orUnknown(address string) string {
	if address == "" {
		return "an unknown address"
	}
	return address
}
