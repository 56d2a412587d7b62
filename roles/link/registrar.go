package link

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net/netip"

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
	Version   string
	Source    netip.AddrPort
}

// Registrar is core's end of joining.
type Registrar struct {
	// Adopt decides and issues, in one transaction. It returns the refusal, and
	// raises the alarm, when the token is bound to another key.
	Adopt func(ctx context.Context, a JoinAttempt) (*control.JoinGrant, *pki.Refusal)
	// Stored, if set, hears that the newcomer has its grant on disk.
	Stored func(ctx context.Context, a JoinAttempt)
	Log    *slog.Logger
}

// Serve runs core's end on a connection of ALPNJoin, whichever side dialled.
// The error of a refused newcomer is the refusal.
func (r *Registrar) Serve(ctx context.Context, conn *Conn) error { return errors.ErrUnsupported }
