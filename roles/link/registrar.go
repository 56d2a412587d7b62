package link

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// JoinAttempt is a newcomer that has proven that it holds TokenKey and
// PublicKey.
type JoinAttempt struct {
	Role      pki.Role          // gateway when it dialled core, proxy when core dialled it
	TokenKey  ed25519.PublicKey // names the token
	PublicKey crypto.PublicKey  // of the CSR; nothing else of the CSR counts
	SPKI      [32]byte          // SHA-256 of PublicKey's SubjectPublicKeyInfo: what the token is bound to
	Version   string            // of the newcomer's software, as it says
	Source    netip.AddrPort    // the newcomer's address
}

// Registrar is core's end of joining and of recovery.
type Registrar struct {
	// Adopt decides and issues, in one transaction. It returns the refusal, and
	// raises the alarm, when the token is bound to another key. The same
	// attempt may come again and gets the same grant.
	Adopt func(ctx context.Context, a JoinAttempt) (*control.JoinGrant, *pki.Refusal)

	// Stored, if set, hears that the newcomer has its grant on disk. It may
	// never come: the newcomer, or the network, can fail in between.
	Stored func(ctx context.Context, a JoinAttempt)

	// Verifier, at core, verifies the former certificates of components that
	// recover: (*pki.Authority).RecoveryVerifier, with Self.Revoked. Nil
	// recovers nobody.
	Verifier func() *pki.Verifier

	// Renew decides about a component's next certificate and issues it, in one
	// transaction, and judges where it comes from; the same as CoreEnd.Renew.
	// The same attempt may come again and gets the same grant.
	Renew func(ctx context.Context, a RenewAttempt) (*control.JoinGrant, *pki.Refusal)

	// WantRevocations, if set, says that a component which recovers is to show
	// the signed revocation list it holds first; Revocations then takes it, as
	// CoreEnd's does. It holds none when the list is empty.
	WantRevocations func(ctx context.Context, a RenewAttempt) bool
	Revocations     func(ctx context.Context, a RenewAttempt, list *control.RevocationList)

	// Recovered, if set, hears that a component has its grant on disk. It may
	// never come.
	Recovered func(ctx context.Context, a RenewAttempt)

	// Log has why newcomers that dialled did not join, bounded per source; when
	// core dialled, that is the error of Serve alone.
	Log *slog.Logger

	once     sync.Once
	refusals *refusalLog
}

// Serve runs core's end on a connection of ALPNJoin, whichever side dialled.
// The error of a refused newcomer is the refusal.
func (r *Registrar) Serve(ctx context.Context, conn *Conn) error {
	err := joinExchange.run(ctx, conn, func(st stream[control.JoinFrame]) error {
		stop := expireStream(conn, joinTime)
		defer stop()
		return r.join(ctx, st, conn)
	})
	if err != nil && !conn.Dialled && ctx.Err() == nil {
		refusal, ok := pki.AsRefusal(err)
		if !ok { // anybody can connect and leave
			refusal = &pki.Refusal{Code: "join_interrupted", Cause: "joining was interrupted: " + err.Error(),
				Remedy: "a newcomer tries again by itself; else it was a stranger"}
		}
		r.refusalLog().note(conn.Peer.Remote, conn.ALPN, refusal)
	}
	return err
}

func (r *Registrar) refusalLog() *refusalLog {
	r.once.Do(func() {
		log := r.Log
		if log == nil {
			log = slog.New(slog.DiscardHandler)
		}
		r.refusals = newRefusalLog(log)
	})
	return r.refusals
}

// refusedByNewcomer is a refusal that came from the other side.
func refusedByNewcomer(r *pki.Refusal) error {
	return fmt.Errorf("the newcomer refused: %w", r)
}

func (r *Registrar) join(ctx context.Context, st stream[control.JoinFrame], conn *Conn) error {
	f, err := st.Recv()
	if err != nil {
		return endOf(ctx, err)
	}
	if refusal := pki.RefusalFromProto(f.GetRefusal()); refusal != nil {
		return refusedByNewcomer(refusal)
	}
	attempt, refusal := readAttempt(f.GetRequest(), conn)
	var grant *control.JoinGrant
	if refusal == nil {
		grant, refusal = r.Adopt(ctx, attempt)
	}
	if refusal != nil {
		st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Refusal{Refusal: protoOf(refusal)}})
		return refusal
	}
	if err := st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Grant{Grant: grant}}); err != nil {
		return recvEnd(ctx, st, err)
	}
	f, err = st.Recv()
	if err != nil {
		return endOf(ctx, err)
	}
	if refusal := pki.RefusalFromProto(f.GetRefusal()); refusal != nil {
		return refusedByNewcomer(refusal)
	}
	if f.GetStored() == nil {
		return refuseProtocol("the newcomer neither stored nor refused its certificate")
	}
	if r.Stored != nil {
		r.Stored(ctx, attempt)
	}
	return nil
}

// readAttempt checks what the newcomer asks for, before anything is decided.
func readAttempt(q *control.JoinRequest, conn *Conn) (JoinAttempt, *pki.Refusal) {
	if q == nil {
		return JoinAttempt{}, refuseProtocol("the newcomer's first word is not a certificate request")
	}
	if conn.Peer.BootstrapKey == nil {
		return JoinAttempt{}, refuseNotBootstrap()
	}
	csr, err := pki.ParseCSR(q.GetCsr())
	if err != nil {
		return JoinAttempt{}, refuseUnreadableCSR(err)
	}
	if _, ok := csr.PublicKey.(ed25519.PublicKey); ok {
		// Ed25519 is the kind of bootstrap keys alone. Whatever else it is, the
		// newcomer's own bootstrap key must never be certified.
		return JoinAttempt{}, refuseProtocol("the certificate request is for a key of the kind that only join tokens make")
	}
	spki, err := pki.SPKIHash(csr.PublicKey)
	if err != nil {
		return JoinAttempt{}, refuseUnreadableCSR(err)
	}
	role := pki.RoleGateway
	if conn.Dialled {
		role = pki.RoleProxy
	}
	return JoinAttempt{
		Role: role, TokenKey: conn.Peer.BootstrapKey, PublicKey: csr.PublicKey, SPKI: spki,
		Version: printable(q.GetVersion(), 64), Source: conn.Peer.Remote,
	}, nil
}
