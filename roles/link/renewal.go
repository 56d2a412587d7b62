package link

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs/fault"
	"sallyport/roles/control"
)

// RenewAttempt is a component that asks for its next certificate: on its
// control session, or on sallyport-renew/1. It has proven that it holds the
// keys of Holder and of its request.
type RenewAttempt struct {
	ID          pki.ID
	Incarnation uint64
	Holder      *x509.Certificate // the one that asks: verified, not revoked as far as Self knows
	Recovery    bool              // Holder may have expired, or be of a retired issuer

	PublicKey crypto.PublicKey // of the CSR; nothing else of the CSR counts
	SPKI      [32]byte         // SHA-256 of PublicKey's SubjectPublicKeyInfo
	Version   string           // of its software, as it says; empty on a session
	Source    netip.AddrPort   // where it came from, or was found: not judged yet on recovery
	Begun     time.Time        // when its handshake began
}

// readRenewal checks what a component asks for, before anything is decided.
func readRenewal(csrDER []byte, peer *Peer) (RenewAttempt, *pki.Refusal) {
	csr, err := pki.ParseCSR(csrDER)
	if err != nil {
		return RenewAttempt{}, refuseUnreadableCSR(err)
	}
	if _, ok := csr.PublicKey.(ed25519.PublicKey); ok {
		return RenewAttempt{}, refuseProtocol("the certificate request is for a key of the kind that only join tokens make")
	}
	spki, err := pki.SPKIHash(csr.PublicKey)
	if err != nil {
		return RenewAttempt{}, refuseUnreadableCSR(err)
	}
	if spki == pki.SPKI(peer.Chain[0]) {
		return RenewAttempt{}, &pki.Refusal{Code: "key_reused",
			Cause:  "the certificate request is for the key that the identity has already",
			Remedy: "bring both components to the same version; a renewal of ours always brings a new key"}
	}
	return RenewAttempt{ID: peer.ID, Incarnation: peer.Incarnation, Holder: peer.Chain[0],
		PublicKey: csr.PublicKey, SPKI: spki, Source: peer.Remote, Begun: peer.Begun}, nil
}

// renewIdentity answers PURPOSE_IDENTITY on a control session.
func (s *Session) renewIdentity(ctx context.Context, q *control.CertificateRequest) ([][]byte, *pki.Refusal) {
	attempt, refusal := readRenewal(q.GetCsr(), &s.Peer)
	if refusal != nil {
		return nil, refusal
	}
	attempt.Version = s.Hello.GetVersion()
	grant, refusal := s.owner.Renew(ctx, attempt)
	if refusal != nil {
		return nil, refusal
	}
	return grant.GetChain(), nil
}

// errFinal marks a failure that time alone does not mend.
var errFinal = errors.New("final")

type finalError struct{ err error }

func (e *finalError) Error() string   { return e.err.Error() }
func (e *finalError) Unwrap() []error { return []error{e.err, errFinal} }

func isFinal(err error) bool { return errors.Is(err, errFinal) }

// answered is what core's answer means: what it says of its own troubles
// passes, everything else is its decision.
func answered(r *pki.Refusal) error {
	switch r.Code {
	case "too_many_requests", "core_error", pki.CodeNoAnswer, pki.CodeConnectionClosed:
		return r
	}
	return &finalError{r}
}

const (
	requestTime  = 15 * time.Second
	requestLeast = 2 * time.Second
)

// once is one attempt to get the certificate that follows leaf.
func (r *Renewer) once(ctx context.Context, leaf *x509.Certificate) error {
	r.mu.Lock()
	trouble := r.trouble
	r.mu.Unlock()
	expired := !r.clock().Before(leaf.NotAfter)
	connected := r.End != nil && r.End.Connected()
	ctx, cancel := context.WithTimeout(ctx, clamp(lifeOf(leaf)/10, requestLeast, requestTime))
	defer cancel()
	switch {
	case (expired || trouble != nil && !connected) && r.Dial != nil:
		return r.dialRecovery(ctx)
	case connected:
		return r.request(ctx, leaf)
	case trouble != nil:
		return fmt.Errorf("core does not recognise this identity, and has to come and renew it: %w", trouble)
	case expired:
		return errors.New("the identity has expired, and core has not come to renew it")
	}
	return errors.New("there is no control session with core")
}

// errOldSession: to core, who asks is who the session was opened by. A request
// with the former key for yet another one would look like a clone's.
var errOldSession = errors.New("the control session runs on the former identity still")

// request renews over the control session.
func (r *Renewer) request(ctx context.Context, leaf *x509.Certificate) error {
	r.renewing.Lock()
	defer r.renewing.Unlock()
	if r.Self.state.Load().leaf() != leaf {
		return nil // core came and recovered it meanwhile
	}
	if !r.End.runsOn(leaf) {
		return errOldSession
	}
	key, csr, err := r.prepare()
	if err != nil {
		return err
	}
	chain, err := r.End.Request(ctx, csr, control.CertificateRequest_PURPOSE_IDENTITY)
	if err != nil {
		if refusal, ok := pki.AsRefusal(err); ok {
			return fmt.Errorf("core refused the renewal: %w", answered(refusal))
		}
		return err
	}
	return r.take(key, chain, r.Self.Bundle())
}

// prepare finds or makes the key to be certified, durable before its request
// leaves.
func (r *Renewer) prepare() (crypto.Signer, []byte, error) {
	key, err := r.nextKey()
	if err != nil {
		return nil, nil, &finalError{fmt.Errorf("the next key of the identity: %w", err)}
	}
	if err := r.at("key saved"); err != nil {
		return nil, nil, err
	}
	csr, err := pki.NewCSR(key)
	return key, csr, err
}

// nextKey is the key that was saved before a former request, or a new one.
func (r *Renewer) nextKey() (crypto.Signer, error) {
	current := r.Self.Credentials().Key
	if r.Dir == "" {
		if r.pending == nil || samePublicKey(r.pending.Public(), current.Public()) {
			key, err := pki.NewKey("p256")
			if err != nil {
				return nil, err
			}
			r.pending = key
		}
		return r.pending, nil
	}
	key, err := pki.PendingKey(r.Dir)
	switch {
	case errors.Is(err, pki.ErrNoPendingKey):
	case err != nil:
		return nil, err
	case samePublicKey(key.Public(), current.Public()):
		// Stopped between storing the certificate and forgetting the key.
		if err := pki.DropPendingKey(r.Dir); err != nil {
			return nil, err
		}
	default:
		return key, nil
	}
	if key, err = pki.NewKey("p256"); err != nil {
		return nil, err
	}
	return key, pki.SaveKey(r.Dir, key)
}

// take puts a certificate in force: read as strictly as a peer's would be, on
// disk, then in Self.
func (r *Renewer) take(key crypto.Signer, der [][]byte, bundle *pki.Bundle) error {
	if err := r.at("chain received"); err != nil {
		return err
	}
	former := r.Self.Credentials()
	next, err := ownCredentials(former.ID, key, der, bundle)
	if err != nil {
		return &finalError{fmt.Errorf("core's answer cannot be used: %w", err)}
	}
	if r.Dir != "" {
		if err := pki.SaveCredentials(r.Dir, next, bundle); err != nil {
			return &finalError{fmt.Errorf("store the renewed identity: %w", err)}
		}
	}
	if err := r.at("stored"); err != nil {
		return err
	}
	r.Self.Set(next, bundle)
	r.pending = nil
	r.mu.Lock()
	r.trouble, r.fresh = nil, time.Now().Add(defaultHandshakeTimeout)
	r.mu.Unlock()
	r.judge(nil, next.Chain[0]) // it may have been core that came, and not Run that asked
	r.log().Info("the identity is renewed", "identity", next.ID.String(), "serial", pki.Serial(next.Chain[0]), "not_after", next.NotAfter().UTC())
	if r.End != nil {
		r.End.renewed()
	}
	if r.Renewed != nil {
		r.Renewed()
	}
	return nil
}

// at is where tests stop.
func (r *Renewer) at(step string) error {
	fault.Point("renewal", step)
	if r.step == nil {
		return nil
	}
	return r.step(step)
}

// ownCredentials checks a chain that core has sent for key. Its times are not
// compared with this machine's clock: that they are right is core's word, and
// a component whose clock is wrong could otherwise never renew.
func ownCredentials(id pki.ID, key crypto.Signer, der [][]byte, bundle *pki.Bundle) (*pki.Credentials, error) {
	chain, err := pki.ParseChain(der)
	if err != nil {
		return nil, err
	}
	now := chain[0].NotBefore.Add(backdate)
	if now.After(chain[0].NotAfter) {
		now = chain[0].NotAfter
	}
	got, err := bundle.ComponentVerifier(func() time.Time { return now }, nil).Component(chain, pki.Expect{Role: id.Role, Name: id.Name})
	if err != nil {
		return nil, err
	}
	if got != id {
		return nil, fmt.Errorf("the certificate is that of %s, not of %s", got, id)
	}
	want, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(chain[0].RawSubjectPublicKeyInfo, want) {
		return nil, errors.New("the certificate is for another key")
	}
	return &pki.Credentials{ID: id, Chain: chain, Key: key}, nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
