package store

import (
	"context"
	"errors"
	"time"

	"sallyport/acme/pki"
)

// Why a key is refused.
var (
	ErrNotJoined    = errors.New("this identity has not joined here")
	ErrRevoked      = errors.New("this identity or certificate was revoked")
	ErrSuperseded   = errors.New("this key was superseded by a newer one of the same identity")
	ErrPendingOther = errors.New("a renewal with another key is pending")
	ErrKeyReused    = errors.New("a renewal needs a key that was never used before")
)

// KeyState is what core thinks of a key of a component.
type KeyState string

// States of a key.
const (
	KeyUnknown    KeyState = ""           // of no component that has joined here
	KeyConfirmed  KeyState = "confirmed"  // the last one that a control session ran with
	KeyPending    KeyState = "pending"    // issued, not seen on a control session yet
	KeySuperseded KeyState = "superseded" // a newer one was confirmed
	KeyRevoked    KeyState = "revoked"
)

// KeyUse is a component's certificate in use at a handshake. Its chain was
// verified: nothing here checks a signature.
type KeyUse struct {
	Certificate CertificateRecord // of the leaf: identity, incarnation, serial, key, times, DER
	Source      string            // address it came from, or was found at
	Begun       time.Time         // when its handshake began; zero: now
}

// KeyVerdict is what becomes of a [KeyUse].
type KeyVerdict struct {
	State KeyState
	Since time.Time // when the key came into this state
	Alarm bool      // this use wrote an alarm into the audit
}

// KeyRecord is one key of a component.
type KeyRecord struct {
	SPKI      []byte
	State     KeyState
	Since     time.Time
	Serial    string
	NotBefore time.Time
	NotAfter  time.Time
	Root      []byte
	Source    string // address that asked for it, or that it was confirmed from
}

// SawKey notes that a control session runs with a key.
func (c *Core) SawKey(ctx context.Context, use KeyUse, now time.Time) (KeyVerdict, error) {
	return KeyVerdict{}, errors.ErrUnsupported
}

// CheckKey judges a key on any other link.
func (c *Core) CheckKey(ctx context.Context, use KeyUse, now time.Time) (KeyVerdict, error) {
	return KeyVerdict{}, errors.ErrUnsupported
}

// Keys returns the keys of a component's present incarnation that are
// remembered, the newest first.
func (c *Core) Keys(ctx context.Context, role pki.Role, name string) ([]KeyRecord, error) {
	return nil, errors.ErrUnsupported
}
