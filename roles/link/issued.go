package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// issuedWait is how long an answer of core is waited for while there is a
// certificate; while there is none, for as long as core is away.
const issuedWait = 20 * time.Second

// Issued is a certificate of the embedded CA that a listener shows, asked of
// core with a new key each time. Key and certificate are only ever in memory.
type Issued struct {
	What    string // in the log: "the public port"
	As      string // in reports
	Request func(ctx context.Context, csr []byte) ([][]byte, error)
	// Good says whether a certificate is still right before its time: whether it
	// has the names, and the issuer, of now. It is asked after each Kick.
	Good    func(*x509.Certificate) bool
	Changed func()       // there is another certificate; nil: nobody asks
	Missing *pki.Refusal // the error of handshakes while there is none
	Now     func() time.Time
	Log     *slog.Logger

	*Upkeep // made by Open
	held    atomic.Pointer[tls.Certificate]
}

// Open makes an Issued of its settings. It has no certificate before [Upkeep.Run]
// has got one.
func (i *Issued) Open() *Issued {
	i.Upkeep = NewUpkeep(i.What, i.Now, i.Log, i.look)
	return i
}

// Certificate is what handshakes show now.
func (i *Issued) Certificate() (*tls.Certificate, error) {
	if c := i.held.Load(); c != nil && i.Now().Before(c.Leaf.NotAfter) {
		return c, nil
	}
	return nil, i.Missing
}

// Report is what core is told of it; nil while there is none.
func (i *Issued) Report() *control.Certificate { return i.Upkeep.Report(i.As, i.leaf()) }

func (i *Issued) leaf() *x509.Certificate {
	if c := i.held.Load(); c != nil {
		return c.Leaf
	}
	return nil
}

// look asks for a certificate if there is none, its time has come, or it is not
// right any more.
func (i *Issued) look(ctx context.Context) (*x509.Certificate, error) {
	leaf := i.leaf()
	if leaf != nil {
		if i.Now().Before(RenewalOf(leaf)) && i.Good(leaf) {
			return leaf, nil
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, issuedWait)
		defer cancel()
	}
	key, chain, err := RequestCertificate(ctx, i.Request)
	if err != nil {
		return leaf, err
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, part := range chain {
		c.Certificate = append(c.Certificate, part.Raw)
	}
	i.held.Store(c)
	i.Log.Info(i.What+" has a certificate from core", "names", c.Leaf.DNSNames, "until", c.Leaf.NotAfter.UTC())
	if i.Changed != nil {
		i.Changed()
	}
	return c.Leaf, nil
}
