package link

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// Recovery is renewal on sallyport-renew/1, for an identity that the other
// ALPNs refuse: it expired at most 30 days ago, or the CA was rotated while
// the component was away. Whoever dials at other times dials here too. The
// frames are those of joining.
//
//   - Core believes the component by its former certificate, as of the end of
//     that (pki.Verifier.Recover), and by its key, which the handshake proved.
//     Revocations count as ever. Which key of an identity counts, decides the
//     registry (Registrar.Renew).
//   - The component believes core by the roots that it stored last. To one
//     that slept through a rotation, core's chain shows a certificate of the
//     new root by the old one.

// Recoverable reports whether err, from Dial or a control session, is of a
// kind that recovery can mend: one of the two identities has expired, or one
// side does not know the other's CA.
func Recoverable(err error) bool {
	r, ok := pki.AsRefusal(err)
	if !ok {
		return errors.Is(err, errExpired)
	}
	switch r.Code {
	case pki.CodeExpired, pki.CodeUnknownAuthority, pki.CodeWrongIssuer, pki.CodeIntermediateMissing:
		return true
	}
	return false
}

// RecoverStream is either end of a Recover RPC.
type RecoverStream interface {
	Send(*control.JoinFrame) error
	Recv() (*control.JoinFrame, error)
	Context() context.Context
}

var recoverExchange = exchange[control.JoinFrame]{
	drain: true,
	most:  256 << 10,
	open: func(ctx context.Context, cc *grpc.ClientConn, o ...grpc.CallOption) (stream[control.JoinFrame], error) {
		return control.NewRenewClient(cc).Recover(ctx, o...)
	},
}

// dialRecovery is the component's end, of a gateway.
func (r *Renewer) dialRecovery(ctx context.Context) error {
	conn, err := r.Dial(ctx)
	if err != nil {
		return fmt.Errorf("recover the identity: %w", err)
	}
	err = recoverExchange.run(ctx, conn, func(st stream[control.JoinFrame]) error {
		stop := expireStream(conn, joinTime)
		defer stop()
		return r.recover(ctx, conn, st)
	})
	if err != nil {
		return fmt.Errorf("recover the identity: %w", err)
	}
	return nil
}

// ServeRecover is the component's end, of a proxy, to which core has come: the
// Port's Recover.
func (r *Renewer) ServeRecover(ctx context.Context, conn *Conn, st RecoverStream) error {
	st0 := r.Self.state.Load()
	if st0.credentials == nil {
		return r.tell(st, refuseNotJoined())
	}
	// Nobody has verified the certificate on this ALPN yet.
	core, err := st0.rootVerifier(r.Self.now).Component(conn.Peer.Chain, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		return r.tell(st, refusalOf(err))
	}
	if core.TrustDomain != st0.credentials.ID.TrustDomain {
		return r.tell(st, refuseProtocol("it belongs to another trust domain"))
	}
	if err := r.recover(ctx, conn, st); err != nil {
		r.log().Warn("core came to renew the identity and it failed", "from", conn.Peer.Remote.String(), "cause", err.Error())
		return err
	}
	return nil
}

func (r *Renewer) tell(st RecoverStream, refusal *pki.Refusal) error {
	st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Refusal{Refusal: protoOf(refusal)}})
	return refusal
}

// recover asks for the next certificate; core is proven.
func (r *Renewer) recover(ctx context.Context, conn *Conn, st RecoverStream) error {
	r.renewing.Lock()
	defer r.renewing.Unlock()
	if !conn.own.Equal(r.Self.state.Load().leaf()) {
		return errOldSession // renewed since the handshake
	}
	key, csr, err := r.prepare()
	if err != nil {
		return err
	}
	if err := st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Request{Request: &control.JoinRequest{Csr: csr, Version: r.Version}}}); err != nil {
		return recvEnd[control.JoinFrame](ctx, st, err)
	}
	if err := r.at("request sent"); err != nil {
		return err
	}
	f, err := st.Recv()
	if err == nil && f.GetWantRevocations() != nil {
		if err := sendList(ctx, st, r.Self.Revocations()); err != nil {
			return err
		}
		f, err = st.Recv()
	}
	if err != nil {
		return endOf(ctx, err)
	}
	if refusal := pki.RefusalFromProto(f.GetRefusal()); refusal != nil {
		return fmt.Errorf("core refused: %w", answered(refusal))
	}
	grant := f.GetGrant()
	if grant == nil {
		return refuseProtocol("core answered the certificate request with neither a certificate nor a refusal")
	}
	bundle, err := pki.BundleFromProto(grant.GetBundle())
	if err != nil {
		return &finalError{fmt.Errorf("core's answer cannot be used: %w", err)}
	}
	if own := r.Self.Credentials().ID; bundle.TrustDomain != own.TrustDomain {
		return &finalError{fmt.Errorf("core's answer cannot be used: its trust bundle is for %s, this component belongs to %s", bundle.TrustDomain, own.TrustDomain)}
	}
	if err := r.take(key, grant.GetChain(), bundle); err != nil {
		return err
	}
	st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Stored{Stored: &control.JoinStored{}}})
	return nil
}

// Recover is core's end when core dialled: the way to an expired proxy. conn
// is of ALPNRenew, from a Dialler with Recovery.
func (r *Registrar) Recover(ctx context.Context, conn *Conn) error {
	return recoverExchange.run(ctx, conn, func(st stream[control.JoinFrame]) error {
		stop := expireStream(conn, joinTime)
		defer stop()
		return r.ServeRecover(ctx, conn, st)
	})
}

// Mend is what core does when a proxy could not be reached, because of why: if
// recovery can mend that, it dials and recovers the proxy's identity. The error
// is the one to report; nil if the proxy can be dialled again at once. d has
// Recovery.
func (r *Registrar) Mend(ctx context.Context, d *Dialler, address string, want pki.Expect, why error) error {
	if !Recoverable(why) {
		return why
	}
	conn, err := d.Dial(ctx, address, ALPNRenew, want)
	if err != nil {
		return fmt.Errorf("recover the identity of %s %s: %w", want.Role, want.Name, err)
	}
	defer conn.Close()
	if err := r.Recover(ctx, conn); err != nil {
		return fmt.Errorf("recover the identity of %s %s: %w", want.Role, want.Name, err)
	}
	return nil
}

// ServeRecover is core's end on a connection that a gateway dialled: the
// Port's Recover. The error of a refused component is the refusal.
func (r *Registrar) ServeRecover(ctx context.Context, conn *Conn, st RecoverStream) error {
	err := r.recover(ctx, conn, st)
	if refusal, ok := pki.AsRefusal(err); ok && !conn.Dialled {
		r.refusalLog().note(conn.Peer.Remote, conn.ALPN, refusal)
	}
	return err
}

func (r *Registrar) recover(ctx context.Context, conn *Conn, st RecoverStream) error {
	f, err := st.Recv()
	if err != nil {
		return endOf(ctx, err)
	}
	if refusal := pki.RefusalFromProto(f.GetRefusal()); refusal != nil {
		return fmt.Errorf("the component refused: %w", refusal)
	}
	attempt, refusal := r.readRecovery(f.GetRequest(), conn)
	if refusal == nil && r.WantRevocations != nil && r.WantRevocations(ctx, attempt) {
		list, err := askList(ctx, st)
		if err != nil {
			return err
		}
		r.Revocations(ctx, attempt, list)
	}
	var grant *control.JoinGrant
	if refusal == nil {
		grant, refusal = r.Renew(ctx, attempt)
	}
	if refusal != nil {
		st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Refusal{Refusal: protoOf(refusal)}})
		return refusal
	}
	if err := st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Grant{Grant: grant}}); err != nil {
		return recvEnd[control.JoinFrame](ctx, st, err)
	}
	if f, err = st.Recv(); err != nil {
		return endOf(ctx, err)
	}
	if refusal := pki.RefusalFromProto(f.GetRefusal()); refusal != nil {
		return fmt.Errorf("the component refused: %w", refusal)
	}
	if f.GetStored() == nil {
		return refuseProtocol("the component neither stored nor refused its certificate")
	}
	if r.Recovered != nil {
		r.Recovered(ctx, attempt)
	}
	return nil
}

// readRecovery finds out who asks: of the certificate, the handshake has
// proven the key and nothing else.
func (r *Registrar) readRecovery(q *control.JoinRequest, conn *Conn) (RenewAttempt, *pki.Refusal) {
	switch {
	case q == nil:
		return RenewAttempt{}, refuseProtocol("the component's first word is not a certificate request")
	case r.Verifier == nil || r.Renew == nil:
		return RenewAttempt{}, refuseProtocol("this core recovers no identities")
	case conn.Peer.BootstrapKey != nil:
		return RenewAttempt{}, refuseNotJoined()
	}
	role := pki.RoleGateway
	if conn.Dialled {
		role = pki.RoleProxy
	}
	peer := conn.Peer
	peer.Chain = slices.Clone(peer.Chain)
	id, err := r.Verifier().Recover(peer.Chain, pki.Expect{Role: role, Name: nameOf(conn)})
	if err != nil {
		return RenewAttempt{}, refusalOf(err)
	}
	peer.ID = id
	peer.Incarnation, _ = pki.Incarnation(peer.Chain[0])
	attempt, refusal := readRenewal(q.GetCsr(), &peer)
	attempt.Recovery, attempt.Version = true, printable(q.GetVersion(), 64)
	return attempt, refusal
}

// nameOf is the name that a dialled peer has proven, so that nobody answers
// for another.
func nameOf(conn *Conn) string {
	if conn.Dialled {
		return conn.Peer.ID.Name
	}
	return ""
}
