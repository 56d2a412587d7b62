package link

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs/fault"
	"sallyport/roles/control"
)

// Newcomer becomes a component with a join token.
//
// Why nobody in the middle can abuse it. The token is a seed; both ends derive
// from it an Ed25519 key with everything else the token says as input. Only
// the newcomer holds the private key, core holds the public one.
//
//   - Core knows the newcomer: the TLS handshake proves that key, whichever
//     side dialled. TLS 1.3 signs the transcript, which contains both key
//     shares, the ALPN and the other end's certificate, so a signature made in
//     one handshake is worth nothing in another: whoever forwards messages
//     between two connections of his own cannot make either end believe him,
//     and whoever forwards bytes forwards what he cannot read.
//   - The newcomer knows core: core proves, in the same handshake, a leaf of
//     role core under a root that the token pins. A thief of the token's
//     public key (of core's database) or of any other component's key has no
//     such leaf. A token of another core has other pins, hence another key.
//   - What the seed's owner can do: join once, under the name and role in the
//     token, from the first key he brings. A stolen token that is used first
//     shows as the refusal of the rightful newcomer, and raises an alarm.
//   - The CSR carries no signature over this connection, and needs none: it is
//     the one message of the one stream of a connection on which both ends are
//     proven, and its self-signature proves its key. A captured CSR, sent by
//     another owner of a token, would get a certificate for a key that he does
//     not hold: of no use to him, and never presented by who holds it. For the
//     same reason nothing is derived from the TLS exporter.
//   - The bootstrap key counts on sallyport-join/1 only (and for Why). It is
//     never certified: a CSR with it is refused.
//
// The seed is not sent, and no message depends on it but by those signatures.
type Newcomer struct {
	Token   pki.Token
	Role    pki.Role // the role that this process runs
	Dir     string   // where key and credentials go; empty keeps them in memory
	Version string

	key crypto.Signer // of the CSR, when Dir is empty
}

// Grant is what a newcomer got: durable in Dir when Join returns it.
type Grant struct {
	Credentials *pki.Credentials
	Bundle      *pki.Bundle
	Name        string
	CoreAddress string // what a gateway dials from now on
}

// Check says whether this process can use its token at all.
func (n *Newcomer) Check() error {
	if n.Token.Role != n.Role {
		return RefuseTokenRole(n.Token.Role, n.Role)
	}
	return nil
}

// Join runs the newcomer's end on a connection of ALPNJoin, whichever side
// dialled. A *pki.Refusal as error says who refused and what to do. It may be
// called again with the same token: the same key gets the same answer.
func (n *Newcomer) Join(ctx context.Context, conn *Conn) (*Grant, error) {
	var grant *Grant
	err := joinExchange.run(ctx, conn, func(st stream[control.JoinFrame]) error {
		stop := expireStream(conn, joinTime)
		defer stop()
		g, err := n.join(ctx, st, conn.Peer.Chain)
		if r, ok := pki.AsRefusal(err); ok {
			// Ours: say it. Core's: core knows, and has ended the stream.
			st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Refusal{Refusal: protoOf(r)}})
		}
		grant = g
		return err
	})
	if grant != nil { // stored here; whether core heard of it does not matter
		return grant, nil
	}
	return nil, fmt.Errorf("join as %s %s: %w", n.Token.Role, n.Token.Name, err)
}

const joinTime = 30 * time.Second

// expireStream closes the connection under a stream that takes too long.
func expireStream(conn *Conn, d time.Duration) (stop func()) {
	t := time.AfterFunc(d, func() { conn.NetConn().Close() })
	return func() { t.Stop() }
}

func (n *Newcomer) join(ctx context.Context, st stream[control.JoinFrame], chain []*x509.Certificate) (*Grant, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	coreID, err := n.Token.VerifyCore(chain, time.Now())
	if err != nil {
		return nil, refusalOf(err)
	}
	key, err := n.csrKey()
	if err != nil {
		return nil, err
	}
	fault.Point("join", "key saved")
	csr, err := pki.NewCSR(key)
	if err != nil {
		return nil, err
	}
	if err := st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Request{Request: &control.JoinRequest{Csr: csr, Version: n.Version}}}); err != nil {
		return nil, recvEnd(ctx, st, err)
	}
	fault.Point("join", "request sent")
	f, err := st.Recv()
	if err != nil {
		return nil, endOf(ctx, err)
	}
	if r := pki.RefusalFromProto(f.GetRefusal()); r != nil {
		return nil, r
	}
	if f.GetGrant() == nil {
		return nil, refuseProtocol("core answered the certificate request with neither a certificate nor a refusal")
	}
	fault.Point("join", "grant received")
	grant, err := n.accept(f.GetGrant(), key, coreID)
	if err != nil {
		return nil, fmt.Errorf("core's answer cannot be used: %w", err)
	}
	if n.Dir != "" {
		if err := pki.SaveCredentials(n.Dir, grant.Credentials, grant.Bundle); err != nil {
			return nil, fmt.Errorf("store the new identity: %w", err)
		}
	}
	fault.Point("join", "stored")
	st.Send(&control.JoinFrame{Frame: &control.JoinFrame_Stored{Stored: &control.JoinStored{}}})
	return grant, nil
}

// csrKey is the key to be certified: the one saved by an earlier attempt, or a
// new one, saved before it is used.
func (n *Newcomer) csrKey() (crypto.Signer, error) {
	if n.Dir == "" {
		if n.key == nil {
			key, err := pki.NewKey("p256")
			if err != nil {
				return nil, err
			}
			n.key = key
		}
		return n.key, nil
	}
	key, err := pki.PendingKey(n.Dir)
	if err == nil {
		return key, nil
	}
	if !errors.Is(err, pki.ErrNoPendingKey) {
		return nil, fmt.Errorf("read the key of an earlier attempt to join: %w", err)
	}
	if key, err = pki.NewKey("p256"); err != nil {
		return nil, err
	}
	if err := pki.SaveKey(n.Dir, key); err != nil {
		return nil, fmt.Errorf("store the new key: %w", err)
	}
	return key, nil
}

// accept reads a grant as strictly as a peer's certificate would be.
func (n *Newcomer) accept(g *control.JoinGrant, key crypto.Signer, core pki.ID) (*Grant, error) {
	bundle, err := pki.BundleFromProto(g.GetBundle())
	if err != nil {
		return nil, err
	}
	if bundle.TrustDomain != core.TrustDomain {
		return nil, fmt.Errorf("the trust bundle is for %s, core belongs to %s", bundle.TrustDomain, core.TrustDomain)
	}
	if !slices.ContainsFunc(bundle.Pins(), func(p [32]byte) bool { return slices.Contains(n.Token.Pins, p) }) {
		return nil, errors.New("the trust bundle has none of the roots that the token pins")
	}
	name := g.GetName()
	if name != n.Token.Name && !(n.Token.Reusable && strings.HasPrefix(name, n.Token.Name+"-")) {
		return nil, fmt.Errorf("the name given is %q, the token is for %q", clip(name, 64), n.Token.Name)
	}
	chain, err := pki.ParseChain(g.GetChain())
	if err != nil {
		return nil, err
	}
	id, err := bundle.ComponentVerifier(time.Now, nil).Component(chain, pki.Expect{Role: n.Token.Role, Name: name})
	if err != nil {
		return nil, err
	}
	want, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(chain[0].RawSubjectPublicKeyInfo, want) {
		return nil, errors.New("the certificate is for another key")
	}
	return &Grant{
		Credentials: &pki.Credentials{ID: id, Chain: chain, Key: key},
		Bundle:      bundle, Name: name, CoreAddress: g.GetCoreAddress(),
	}, nil
}

// recvEnd finds why a stream ended on which sending failed: gRPC says it to
// the receiver only.
func recvEnd[F any](ctx context.Context, st stream[F], err error) error {
	if _, recvErr := st.Recv(); recvErr != nil {
		err = recvErr
	}
	return endOf(ctx, err)
}
