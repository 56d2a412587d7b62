package link

import (
	"context"
	"errors"

	"sallyport/acme/pki"
)

// Newcomer joins.
type Newcomer struct {
	Token   pki.Token
	Role    pki.Role // the role that this process runs
	Dir     string   // where key and credentials go; empty keeps them in memory
	Version string
}

// Grant is what a newcomer got: durable in Dir when Join returns it.
type Grant struct {
	Credentials *pki.Credentials
	Bundle      *pki.Bundle
	Name        string
	CoreAddress string // what a gateway dials from now on
}

// Join runs the newcomer's end on a connection of ALPNJoin, whichever side dialled.
func (n *Newcomer) Join(ctx context.Context, conn *Conn) (*Grant, error) {
	return nil, errors.ErrUnsupported
}
