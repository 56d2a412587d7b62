package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// Self is what this component proves (its credentials) and believes (trust
// bundle, revocations). All of it can be replaced at any time; each handshake
// reads the newest, whole.
type Self struct {
	now   func() time.Time
	mu    sync.Mutex // serialises replacements
	state atomic.Pointer[selfState]
}

type selfState struct {
	credentials *pki.Credentials
	bundle      *pki.Bundle
	revoked     revocations
}

// NewSelf returns a Self that can prove and believe nothing yet.
func NewSelf() *Self {
	s := &Self{now: time.Now}
	s.state.Store(&selfState{})
	return s
}

// Set replaces credentials and bundle. Nil leaves the one in force.
func (s *Self) Set(c *pki.Credentials, b *pki.Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state.Load()
	if c != nil {
		next.credentials = c
	}
	if b != nil {
		next.bundle = b
	}
	s.state.Store(&next)
}

// SetRevocations replaces the revocations.
func (s *Self) SetRevocations(rows []*control.Revocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state.Load()
	next.revoked = newRevocations(rows)
	s.state.Store(&next)
}

// Apply takes bundle and revocations from a snapshot, both or neither.
func (s *Self) Apply(snapshot *control.Snapshot) error {
	b, err := pki.BundleFromProto(snapshot.GetBundle())
	if err != nil {
		return fmt.Errorf("trust bundle of the snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state.Load()
	if next.bundle != nil && next.bundle.TrustDomain != b.TrustDomain {
		return fmt.Errorf("trust bundle of the snapshot is for %s, this component belongs to %s", b.TrustDomain, next.bundle.TrustDomain)
	}
	next.bundle, next.revoked = b, newRevocations(snapshot.GetRevocations())
	s.state.Store(&next)
	return nil
}

// Credentials are those in force; nil before joining.
func (s *Self) Credentials() *pki.Credentials { return s.state.Load().credentials }

// Bundle is the trust bundle in force; nil before joining.
func (s *Self) Bundle() *pki.Bundle { return s.state.Load().bundle }

// Verifier judges peers by the bundle and revocations in force now. Component
// identities anchor on the component intermediates alone.
func (s *Self) Verifier() *pki.Verifier { return s.state.Load().verifier(s.now) }

func (st *selfState) verifier(now func() time.Time) *pki.Verifier {
	v := &pki.Verifier{Now: now, Revoked: st.revoked.covers}
	if st.bundle != nil {
		v.TrustDomain = st.bundle.TrustDomain
		v.Anchors = st.bundle.ComponentIntermediates
	}
	return v
}

var errNoIdentity = errors.New("this component has no identity yet: it has to join first")

// certificate is what this component presents. For joining the chain carries
// the roots as well: a newcomer looks for the one it has pinned.
func (st *selfState) certificate(joining bool) (*tls.Certificate, error) {
	if st.credentials == nil {
		return nil, errNoIdentity
	}
	c := st.credentials.TLS()
	if joining && st.bundle != nil {
		c = st.credentials.JoinTLS(st.bundle)
	}
	return &c, nil
}

func (st *selfState) leaf() *x509.Certificate {
	if st.credentials == nil || len(st.credentials.Chain) == 0 {
		return nil
	}
	return st.credentials.Chain[0]
}

// revocations by identity (up to an incarnation) and by serial number.
type revocations struct {
	identity map[string]uint64
	serial   map[string]bool
}

func newRevocations(rows []*control.Revocation) revocations {
	r := revocations{identity: map[string]uint64{}, serial: map[string]bool{}}
	for _, row := range rows {
		if id := row.GetIdentity(); id != "" {
			r.identity[id] = max(r.identity[id], row.GetIncarnation())
		}
		if s := row.GetSerial(); s != "" {
			r.serial[normalSerial(s)] = true
		}
	}
	return r
}

func (r revocations) covers(cert *x509.Certificate, id pki.ID, incarnation uint64) bool {
	if last, ok := r.identity[id.String()]; ok && incarnation <= last {
		return true
	}
	return cert != nil && r.serial[normalSerial(pki.Serial(cert))]
}

func normalSerial(s string) string {
	return strings.TrimLeft(strings.ToLower(s), "0")
}
