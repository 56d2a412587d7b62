package core

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"sallyport/acme/pki"
	"sallyport/store"
)

// estranged says of each component that it has to be removed and added again,
// until that is done: the CA was made anew (ca rotate --compromised), and it has
// nothing but a certificate or a join token of the one before.
func (c *core) estranged(ctx context.Context) ([]string, error) {
	ca := c.ca.get()
	components, err := c.db.Components(ctx, "")
	if err != nil {
		return nil, err
	}
	inUse, err := c.db.CertificatesInUse(ctx)
	if err != nil {
		return nil, err
	}
	var anew time.Time
	if root := ca.Anew(); root != nil {
		if anew, err = c.db.Recorded(ctx, pki.Serial(root)); err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	known := map[string]bool{}
	for _, r := range inUse {
		leaf, err := x509.ParseCertificate(r.DER)
		known[r.Identity] = known[r.Identity] || err == nil && !ca.Disowned(leaf)
	}
	var out []string
	for _, m := range components {
		id := pki.ID{TrustDomain: ca.TrustDomain(), Role: m.Role, Name: m.Name}
		lost := m.State == store.StateJoined && !known[id.String()]
		if m.State == store.StateInvited || m.Reusable {
			lost = m.Added.Before(anew) // its token pins the root before
		}
		if lost && m.Parent == "" {
			out = append(out, fmt.Sprintf("%s/%s has to join again: sallyport %s rm %s, then sallyport %s add %s …", m.Role, m.Name, m.Role, m.Name, m.Role, m.Name))
		}
	}
	return out, nil
}
