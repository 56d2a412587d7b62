package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// callersIssuer is an issuer of callers' and services' certificates that stands
// in no hierarchy of ours that is in force.
type callersIssuer struct {
	issuer
	above []*x509.Certificate // what signed it, up to the root
}

// retired is an issuer of components that is trusted for recovery only.
type retired struct {
	cert  *x509.Certificate
	until time.Time
}

// state is everything that an authority is. It lies on disk as one sealed file.
type state struct {
	trustDomain string
	revision    uint64 // counts changes
	phase       Phase
	since       time.Time
	made        uint64     // hierarchies so far
	base        hierarchy  // the only one, or the older
	next        *hierarchy // during a rotation
	nextRootKey crypto.Signer
	cross       []*x509.Certificate // newest first; each root as its predecessor signed it
	imported    *callersIssuer
	former      []callersIssuer // newest first
	recovery    []retired
}

// issuing is the hierarchy whose certificates are given out.
func (s *state) issuing() *hierarchy {
	if s.phase == PhaseActivated {
		return s.next
	}
	return &s.base
}

// other is the hierarchy that is trusted beside the issuing one, nil if none.
func (s *state) other() *hierarchy {
	switch s.phase {
	case PhasePublished:
		return s.next
	case PhaseActivated:
		return &s.base
	}
	return nil
}

// clone is a copy to change.
func (s *state) clone() *state {
	c := *s
	if s.next != nil {
		next := *s.next
		c.next = &next
	}
	c.cross = slices.Clone(s.cross)
	c.former = slices.Clone(s.former)
	c.recovery = slices.Clone(s.recovery)
	return &c
}

// The state in JSON: certificates in DER, keys in PKCS #8.
type (
	stateFile struct {
		Version     int            `json:"version"`
		TrustDomain string         `json:"trust_domain"`
		Revision    uint64         `json:"revision"`
		Phase       Phase          `json:"phase"`
		Since       time.Time      `json:"since"`
		Made        uint64         `json:"made"`
		Base        hierarchyFile  `json:"base"`
		Next        *hierarchyFile `json:"next,omitempty"`
		NextRootKey []byte         `json:"next_root_key,omitempty"`
		Cross       [][]byte       `json:"cross,omitempty"`
		Imported    *callersFile   `json:"imported,omitempty"`
		Former      []callersFile  `json:"former,omitempty"`
		Recovery    []recoveryFile `json:"recovery,omitempty"`
	}
	hierarchyFile struct {
		Number     uint64      `json:"number"`
		Used       bool        `json:"used"`
		Root       issuerFile  `json:"root"`
		Components issuerFile  `json:"components"`
		Callers    *issuerFile `json:"callers,omitempty"`
	}
	issuerFile struct {
		Cert []byte `json:"cert"`
		Key  []byte `json:"key"`
	}
	callersFile struct {
		issuerFile
		Above [][]byte `json:"above,omitempty"`
	}
	recoveryFile struct {
		Cert  []byte    `json:"cert"`
		Until time.Time `json:"until"`
	}
)

const stateVersion = 1

func (s *state) encode() ([]byte, error) {
	var failed error
	key := func(k crypto.Signer) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			failed = fmt.Errorf("encode a private key of the CA: %w", err)
		}
		return der
	}
	pair := func(i issuer) issuerFile { return issuerFile{Cert: i.cert.Raw, Key: key(i.key)} }
	raw := func(certs []*x509.Certificate) (out [][]byte) {
		for _, c := range certs {
			out = append(out, c.Raw)
		}
		return out
	}
	level := func(h *hierarchy) *hierarchyFile {
		if h == nil {
			return nil
		}
		f := &hierarchyFile{Number: h.number, Used: h.used, Root: pair(h.root), Components: pair(h.components)}
		if h.callers.cert != nil {
			p := pair(h.callers)
			f.Callers = &p
		}
		return f
	}
	f := stateFile{Version: stateVersion, TrustDomain: s.trustDomain, Revision: s.revision, Phase: s.phase, Since: s.since, Made: s.made,
		Base: *level(&s.base), Next: level(s.next), Cross: raw(s.cross)}
	if s.nextRootKey != nil {
		f.NextRootKey = key(s.nextRootKey)
	}
	if s.imported != nil {
		f.Imported = &callersFile{pair(s.imported.issuer), raw(s.imported.above)}
	}
	for _, c := range s.former {
		f.Former = append(f.Former, callersFile{pair(c.issuer), raw(c.above)})
	}
	for _, r := range s.recovery {
		f.Recovery = append(f.Recovery, recoveryFile{r.cert.Raw, r.until})
	}
	if failed != nil {
		return nil, failed
	}
	return json.Marshal(f)
}

// decodeState reads what encode wrote and checks that it holds together.
func decodeState(text []byte) (*state, error) {
	var f stateFile
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("its content cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows its content")
	}
	if f.Version != stateVersion {
		return nil, fmt.Errorf("it has format %d and this version reads %d: use the version that wrote it, or a newer one", f.Version, stateVersion)
	}
	var failed error
	cert := func(der []byte) *x509.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			failed = fmt.Errorf("a certificate in it cannot be read: %w", err)
			return &x509.Certificate{}
		}
		return c
	}
	certs := func(ders [][]byte) (out []*x509.Certificate) {
		for _, der := range ders {
			out = append(out, cert(der))
		}
		return out
	}
	key := func(der []byte) crypto.Signer {
		k, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			failed = errors.New("a key in it cannot be read")
			return nil
		}
		s, ok := k.(crypto.Signer)
		if !ok {
			failed = errors.New("a key in it cannot sign")
		}
		return s
	}
	pair := func(p issuerFile) issuer {
		i := issuer{cert(p.Cert), key(p.Key)}
		if failed == nil && !samePublicKey(i.cert.PublicKey, i.key.Public()) {
			failed = refusef(CodeKeyMismatch, "restore it from a backup", "the key of %s in it belongs to another certificate", i.cert.Subject.CommonName)
		}
		return i
	}
	level := func(h *hierarchyFile) *hierarchy {
		if h == nil {
			return nil
		}
		out := &hierarchy{number: h.Number, used: h.Used, root: pair(h.Root), components: pair(h.Components)}
		if h.Callers != nil {
			out.callers = pair(*h.Callers)
		}
		return out
	}
	s := &state{trustDomain: f.TrustDomain, revision: f.Revision, phase: f.Phase, since: f.Since, made: f.Made,
		base: *level(&f.Base), next: level(f.Next), cross: certs(f.Cross)}
	if len(f.NextRootKey) > 0 {
		s.nextRootKey = key(f.NextRootKey)
	}
	if f.Imported != nil {
		s.imported = &callersIssuer{pair(f.Imported.issuerFile), certs(f.Imported.Above)}
	}
	for _, c := range f.Former {
		s.former = append(s.former, callersIssuer{pair(c.issuerFile), certs(c.Above)})
	}
	for _, r := range f.Recovery {
		s.recovery = append(s.recovery, retired{cert(r.Cert), r.Until})
	}
	if failed != nil {
		return nil, failed
	}
	return s, s.check()
}

// check holds for every state that is read or written.
func (s *state) check() error {
	switch s.phase {
	case PhaseSteady:
		if s.next != nil || s.nextRootKey == nil {
			return errors.New("it is steady and has not exactly one hierarchy and the key of the next root")
		}
	case PhasePublished, PhaseActivated:
		if s.next == nil || s.nextRootKey != nil {
			return fmt.Errorf("it is %s and has not exactly two hierarchies", s.phase)
		}
		if samePublicKey(s.base.root.cert.PublicKey, s.next.root.cert.PublicKey) {
			return errors.New("both of its roots have the same key")
		}
		if len(s.cross) == 0 || !bytes.Equal(s.cross[0].RawSubject, s.next.root.cert.RawSubject) || s.cross[0].CheckSignatureFrom(s.base.root.cert) != nil {
			return errors.New("the certificate that leads from the old root to the new one is missing")
		}
	default:
		return fmt.Errorf("its phase %q is unknown", string(s.phase))
	}
	for _, h := range []*hierarchy{&s.base, s.next} {
		if h == nil {
			continue
		}
		if h.number == 0 || h.number > s.made {
			return fmt.Errorf("its hierarchy has the number %d of %d", h.number, s.made)
		}
		below := []*x509.Certificate{h.root.cert, h.components.cert}
		if h.callers.cert != nil {
			below = append(below, h.callers.cert)
		} else if s.imported == nil {
			return errors.New("nobody in it issues to callers")
		}
		for _, c := range below {
			if err := c.CheckSignatureFrom(h.root.cert); err != nil {
				return fmt.Errorf("%s was not signed by this root: %w", c.Subject.CommonName, err)
			}
		}
		if td := h.components.cert.PermittedURIDomains; len(td) != 1 || td[0] != s.trustDomain {
			return fmt.Errorf("%s is for another trust domain than %s", h.components.cert.Subject.CommonName, s.trustDomain)
		}
	}
	return s.bundle().check()
}

// bundle is what components anchor on, the issuing hierarchy first.
func (s *state) bundle() *Bundle {
	b := &Bundle{TrustDomain: s.trustDomain}
	if s.imported != nil {
		b.CallerIntermediates = append(b.CallerIntermediates, s.imported.cert)
	}
	for _, h := range []*hierarchy{s.issuing(), s.other()} {
		if h == nil {
			continue
		}
		b.Roots = append(b.Roots, h.root.cert)
		b.ComponentIntermediates = append(b.ComponentIntermediates, h.components.cert)
		if h.callers.cert != nil {
			b.CallerIntermediates = append(b.CallerIntermediates, h.callers.cert)
		}
	}
	all := slices.Clone(s.former)
	if s.imported != nil {
		all = slices.Insert(all, 0, *s.imported)
	}
	for i, c := range all {
		if s.imported == nil || i > 0 {
			b.CallerIntermediates = append(b.CallerIntermediates, c.cert)
		}
		if top := c.top(); !slices.ContainsFunc(slices.Concat(b.Roots, b.CallerRoots), top.Equal) {
			b.CallerRoots = append(b.CallerRoots, top)
		}
	}
	return b
}

// top is the highest certificate known above an issuer of callers.
func (c *callersIssuer) top() *x509.Certificate {
	if n := len(c.above); n > 0 {
		return c.above[n-1]
	}
	return c.cert
}

// pins are the SHA-256 of the keys of the current and the next root.
func (s *state) pins() ([][32]byte, error) {
	pins := [][32]byte{SPKI(s.issuing().root.cert)}
	if o := s.other(); o != nil {
		return append(pins, SPKI(o.root.cert)), nil
	}
	pin, err := SPKIHash(s.nextRootKey.Public())
	return append(pins, pin), err
}
