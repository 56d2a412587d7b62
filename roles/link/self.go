package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
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

	recovery []*x509.Certificate         // core: what it presents on join and renew
	list     *control.RevocationList     // the newest signed one, nil if none
	listed   *pki.RevocationList         // what it says
	listener *control.OutsideCertificate // how core's port presents itself
	issuer   []byte                      // which intermediate issues components now
	lifetime time.Duration               // what core gives components, 0: not known
}

// NewSelf returns a Self that can prove and believe nothing yet.
func NewSelf() *Self {
	s := &Self{now: time.Now}
	s.state.Store(&selfState{})
	return s
}

// SetCore is Set for core: recovery is the whole chain that it presents to who
// joins or recovers, (*pki.Authority).RecoveryChain of c.
func (s *Self) SetCore(c *pki.Credentials, b *pki.Bundle, recovery []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state.Load()
	next.credentials, next.bundle, next.recovery = c, b, recovery
	s.state.Store(&next)
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

// Revoked reports whether a certificate is revoked, by the revocations in
// force now: by its identity's incarnation, serial number or key.
func (s *Self) Revoked(cert *x509.Certificate, id pki.ID, incarnation uint64) bool {
	return s.state.Load().revoked.covers(cert, id, incarnation)
}

// Listener is how core's gRPC port presents itself to gateways, as core said
// last; nil: not known, or internal.
func (s *Self) Listener() *control.OutsideCertificate { return s.state.Load().listener }

// Apply takes from a snapshot what it says of the CA: trust bundle,
// revocations, which intermediate issues, how core's port presents itself. All
// or nothing.
func (s *Self) Apply(snapshot *control.Snapshot) error {
	put, _, err := s.prepare(snapshot, false)
	if err != nil {
		return err
	}
	put()
	return nil
}

// prepare reads a snapshot; put then takes it, and cannot fail. list is the
// newest signed revocation list, which may be newer than the snapshot's. A
// snapshot that was on disk (stored) does not take the place of a trust bundle
// that the identity needs, which a recovery brought after it.
func (s *Self) prepare(snapshot *control.Snapshot, stored bool) (put func(), list *control.RevocationList, err error) {
	b, err := pki.BundleFromProto(snapshot.GetBundle())
	if err != nil {
		return nil, nil, fmt.Errorf("trust bundle of the snapshot: %w", err)
	}
	st := s.state.Load()
	if st.bundle != nil && st.bundle.TrustDomain != b.TrustDomain {
		return nil, nil, fmt.Errorf("trust bundle of the snapshot is for %s, this component belongs to %s", b.TrustDomain, st.bundle.TrustDomain)
	}
	list, listed, err := st.newerList(snapshot.GetRevocationList(), b, stored)
	if err != nil {
		return nil, nil, fmt.Errorf("signed revocation list of the snapshot: %w", err)
	}
	rows := snapshot.GetRevocations()
	if listed != nil {
		rows = slices.Concat(listed.Proto(), rows)
	}
	revoked := newRevocations(rows)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		next := *s.state.Load()
		if !stored || next.bundle == nil || next.verifiesOwn(b) || !next.verifiesOwn(next.bundle) {
			next.bundle = b
		}
		next.revoked, next.list, next.listed = revoked, list, listed
		next.listener, next.issuer = snapshot.GetListener(), snapshot.GetComponentIssuer()
		next.lifetime = time.Duration(max(snapshot.GetComponentLifetimeNano(), 0))
		s.state.Store(&next)
	}, list, nil
}

// verifiesOwn reports whether the own certificate is one of b's.
func (st *selfState) verifiesOwn(b *pki.Bundle) bool {
	if st.credentials == nil {
		return false
	}
	end := st.leaf().NotAfter
	_, err := b.ComponentVerifier(func() time.Time { return end }, nil).Identity(st.credentials.Chain, nil)
	return err == nil
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

// rootVerifier judges by the roots: on sallyport-renew/1, where the other side
// may have another issuer by now.
func (st *selfState) rootVerifier(now func() time.Time) *pki.Verifier {
	v := st.verifier(now)
	v.Anchors = nil
	if st.bundle != nil {
		v.Anchors = st.bundle.Roots
	}
	return v
}

// certificate is what this component presents. For joining and renewal the
// chain carries the roots as well: a newcomer looks for the one it has pinned,
// who slept through a rotation for the way from the root it knows.
func (st *selfState) certificate(joining bool) (*tls.Certificate, error) {
	if st.credentials == nil {
		return nil, errNoIdentity
	}
	c := st.credentials.TLS()
	switch {
	case joining && len(st.recovery) > 0 && st.recovery[0].Equal(st.leaf()):
		c.Certificate = nil
		for _, cert := range st.recovery {
			c.Certificate = append(c.Certificate, cert.Raw)
		}
	case joining && st.bundle != nil:
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

// revocations by identity (up to an incarnation), serial number, and key.
type revocations struct {
	identity map[string]uint64
	serial   map[string]bool
	key      map[[32]byte]bool
}

func newRevocations(rows []*control.Revocation) revocations {
	r := revocations{identity: map[string]uint64{}, serial: map[string]bool{}, key: map[[32]byte]bool{}}
	for _, row := range rows {
		if id := row.GetIdentity(); id != "" {
			r.identity[id] = max(r.identity[id], row.GetIncarnation())
		}
		if s := row.GetSerial(); s != "" {
			r.serial[normalSerial(s)] = true
		}
		if k := row.GetKey(); len(k) == 32 {
			r.key[[32]byte(k)] = true
		}
	}
	return r
}

func (r revocations) covers(cert *x509.Certificate, id pki.ID, incarnation uint64) bool {
	if last, ok := r.identity[id.String()]; ok && incarnation <= last {
		return true
	}
	if cert == nil {
		return false
	}
	if len(r.serial) > 0 && r.serial[normalSerial(pki.Serial(cert))] {
		return true
	}
	return len(r.key) > 0 && r.key[pki.SPKI(cert)]
}

func normalSerial(s string) string {
	return strings.TrimLeft(strings.ToLower(s), "0")
}
