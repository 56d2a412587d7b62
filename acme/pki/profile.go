package pki

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const (
	// DefaultComponentLifetime and DefaultLeafLifetime stand for a lifetime of 0.
	DefaultComponentLifetime = 24 * time.Hour
	DefaultLeafLifetime      = 90 * 24 * time.Hour

	minLifetime = 10 * time.Second
	maxNames    = 100
)

// componentPolicy marks the certificates of the component hierarchy
// (certificatePolicies): the intermediate has it because the root, whose key
// signs nothing else, wrote it there; a leaf has it because that intermediate
// made it. It keeps the two hierarchies apart where only the root is known, as
// when a newcomer meets core by the pin in its token.
//
// It is a UUID in seven numbers, under an arc for such, because parsers stumble
// over the one large number that it would be under 2.25.
var componentPolicy = mustOID("1.2.840.113556.1.8000.2554.36250.3310.61624.17442.46426.16463036.4550869")

func mustOID(s string) x509.OID {
	oid, err := x509.ParseOID(s)
	if err != nil {
		panic(err)
	}
	return oid
}

// markComponentIssuer turns a CA template into that of the intermediate that
// issues component identities: one level, marked, and bound to URIs of the
// trust domain.
func markComponentIssuer(t *x509.Certificate, trustDomain string) {
	t.MaxPathLenZero = true
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.Policies = []x509.OID{componentPolicy}
	t.PermittedDNSDomainsCritical = true // the whole extension
	t.PermittedURIDomains = []string{trustDomain}
}

// ComponentRequest asks for the certificate of a core, proxy or gateway. All
// names in it are core's knowledge; of a CSR only the key is used.
type ComponentRequest struct {
	ID          ID
	Incarnation uint64 // from 1
	PublicKey   crypto.PublicKey
	DNS         []string
	IPs         []netip.Addr
	Lifetime    time.Duration // from now; 0: DefaultComponentLifetime. Ends with the CA at the latest
}

// LeafRequest asks for a certificate of a caller or a service. ID may be zero:
// a certificate with names but no identity, for TLS servers (and clients of
// other software, which our edge refuses with ErrNoIdentity).
type LeafRequest struct {
	ID             ID // RoleClient or RoleService
	PublicKey      crypto.PublicKey
	Subject        *pkix.Name // nil: CN=NAME, or the first DNS name or address
	DNS            []string   // a leading *. is allowed
	IPs            []netip.Addr
	URIs           []string // beside the identity; none may be a spiffe:// URI
	Client, Server bool
	Lifetime       time.Duration // from now; 0: DefaultLeafLifetime, or what is left of the CA
}

// prepared is a request that has passed its profile. Only the two prepare
// functions make one and only issue takes one, so that nothing unchecked can
// be signed.
type prepared struct {
	template *x509.Certificate
	by       issuer
	above    []*x509.Certificate // of by, to send along
	public   crypto.PublicKey
	verify   func(chain []*x509.Certificate, now time.Time) error // how the result must look
}

func (a *Authority) prepareComponent(r ComponentRequest, now time.Time) (*prepared, error) {
	if err := a.checkID(r.ID); err != nil {
		return nil, err
	}
	if !r.ID.Role.Component() {
		return nil, fmt.Errorf("role %s is not a component: issue it as a caller's or service's certificate", r.ID.Role)
	}
	if r.Incarnation == 0 {
		return nil, errors.New("incarnation 0: incarnations count from 1")
	}
	if r.Lifetime == 0 {
		r.Lifetime = DefaultComponentLifetime
	}
	t, err := leafTemplate(a.components.cert, r.PublicKey, now, r.Lifetime)
	if err != nil {
		return nil, err
	}
	if t.NotAfter.After(a.components.cert.NotAfter) {
		t.NotAfter = a.components.cert.NotAfter
	}
	if err := a.ownKey(r.PublicKey); err != nil {
		return nil, err
	}
	if err := setNames(t, r.DNS, r.IPs, []string{r.ID.String()}, false); err != nil {
		return nil, err
	}
	t.Subject = pkix.Name{CommonName: r.ID.Name, SerialNumber: strconv.FormatUint(r.Incarnation, 10)}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.Policies = []x509.OID{componentPolicy}
	return &prepared{template: t, by: a.components, public: r.PublicKey, verify: func(chain []*x509.Certificate, now time.Time) error {
		for _, anchor := range []*x509.Certificate{a.components.cert, a.root} {
			v := a.verifier(anchor, now)
			if id, err := v.Component(chain, Expect{Role: r.ID.Role, Name: r.ID.Name}); err != nil {
				return err
			} else if id != r.ID {
				return fmt.Errorf("it says %s instead of %s", id, r.ID)
			}
		}
		if n, err := Incarnation(chain[0]); err != nil || n != r.Incarnation {
			return fmt.Errorf("it says incarnation %d instead of %d", n, r.Incarnation)
		}
		return nil
	}}, nil
}

func (a *Authority) prepareLeaf(r LeafRequest, now time.Time) (*prepared, error) {
	if !r.ID.IsZero() {
		if err := a.checkID(r.ID); err != nil {
			return nil, err
		}
		if !r.ID.Role.Leaf() {
			return nil, fmt.Errorf("identity %s: the role %s is given to components only, which join by a token; use client or service", r.ID, r.ID.Role)
		}
	}
	switch {
	case !r.Client && !r.Server:
		return nil, errors.New("the certificate would be of no use: ask for client, server or both")
	case r.ID.Role == RoleClient && !r.Client:
		return nil, fmt.Errorf("identity %s is a client's: ask for client use too", r.ID)
	case r.ID.Role == RoleService && !r.Server:
		return nil, fmt.Errorf("identity %s is a service's: ask for server use too", r.ID)
	case r.Server && len(r.DNS) == 0 && len(r.IPs) == 0:
		return nil, errors.New("a server certificate needs the DNS names or IP addresses by which clients call the server; common names are ignored by all of them")
	}
	byDefault := r.Lifetime == 0
	if byDefault {
		r.Lifetime = DefaultLeafLifetime
	}
	t, err := leafTemplate(a.callers.cert, r.PublicKey, now, r.Lifetime)
	if err != nil {
		return nil, err
	}
	if err := a.ownKey(r.PublicKey); err != nil {
		return nil, err
	}
	if end := a.callers.cert.NotAfter; t.NotAfter.After(end) && byDefault {
		t.NotAfter = end
	} else if t.NotAfter.After(end) {
		return nil, fmt.Errorf("the certificate would be valid until %s, longer than its CA, which ends at %s: ask for a shorter validity", clock(t.NotAfter), clock(end))
	}
	var uris []string
	if !r.ID.IsZero() {
		uris = append(uris, r.ID.String())
	}
	for _, u := range r.URIs {
		if isSPIFFE(u) {
			return nil, fmt.Errorf("URI %q: an identity is not asked for as a URI; the name and the role of the certificate make it", printable(u, 256))
		}
		uris = append(uris, u)
	}
	if err := setNames(t, r.DNS, r.IPs, uris, true); err != nil {
		return nil, err
	}
	if t.Subject, err = leafSubject(r, t); err != nil {
		return nil, err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := r.PublicKey.(*rsa.PublicKey); ok && r.Server {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment // key exchange of TLS 1.2 and older software
	}
	if r.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	return &prepared{template: t, by: a.callers.issuer, above: a.aboveCallers(now), public: r.PublicKey, verify: func(chain []*x509.Certificate, now time.Time) error {
		return a.verifyLeaf(chain, r, now)
	}}, nil
}

// verifyLeaf checks a finished certificate of a caller or service the way its
// users will, and that no component port would take it.
func (a *Authority) verifyLeaf(chain []*x509.Certificate, r LeafRequest, now time.Time) error {
	for _, anchor := range []*x509.Certificate{a.components.cert, a.callers.cert, a.root} {
		if id, err := a.verifier(anchor, now).Identity(chain, nil); err == nil {
			return fmt.Errorf("a component port would take it for %s", id)
		}
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.callers.top())
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	uses := []x509.ExtKeyUsage{}
	if r.Server {
		uses = append(uses, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		uses = append(uses, x509.ExtKeyUsageClientAuth)
	}
	for _, use := range uses {
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			return err
		}
	}
	if r.ID.Role != RoleClient {
		return nil
	}
	id, err := a.verifier(a.callers.cert, now).Caller(chain)
	if err == nil && id != r.ID {
		err = fmt.Errorf("it says %s instead of %s", id, r.ID)
	}
	return err
}

// aboveCallers is what has to be sent above the callers' issuer, so that who has
// installed the CA can verify: an imported CA's own intermediates, and after a
// rotation what leads over from the root before.
func (a *Authority) aboveCallers(now time.Time) []*x509.Certificate {
	if a.state.imported == nil {
		return a.leadOver(now)
	}
	above := a.callers.above
	if n := len(above); n > 0 && selfSigned(above[n-1]) {
		above = above[:n-1]
	}
	return above
}

func (a *Authority) verifier(anchor *x509.Certificate, now time.Time) *Verifier {
	return &Verifier{TrustDomain: a.trustDomain, Anchors: []*x509.Certificate{anchor}, Now: func() time.Time { return now }}
}

func (a *Authority) checkID(id ID) error {
	if err := id.Validate(); err != nil {
		return err
	}
	if id.TrustDomain != a.trustDomain {
		return fmt.Errorf("identity %s: this authority is that of %s", id, a.trustDomain)
	}
	return nil
}

// leafTemplate is what all end-entity certificates have in common.
func leafTemplate(ca *x509.Certificate, pub crypto.PublicKey, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	if err := CheckKey(pub); err != nil {
		return nil, err
	}
	if samePublicKey(pub, ca.PublicKey) {
		return nil, errKeyOfCA
	}
	if lifetime < minLifetime {
		return nil, fmt.Errorf("a validity of %s is too short: %s is the least", lifetime, minLifetime)
	}
	if now.Before(ca.NotBefore) || now.After(ca.NotAfter) {
		return nil, fmt.Errorf("%s is valid from %s to %s and this machine's clock says %s: check the clock, or rotate the CA", ca.Subject.CommonName, clock(ca.NotBefore), clock(ca.NotAfter), clock(now))
	}
	hash, err := SPKIHash(pub)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(lifetime).UTC().Truncate(time.Second),
		BasicConstraintsValid: true,
		SubjectKeyId:          hash[:20],
	}, nil
}

var errKeyOfCA = errors.New("the key is that of the CA itself: make a new one")

// ownKey refuses every key that belongs to this CA.
func (a *Authority) ownKey(pub crypto.PublicKey) error {
	for _, c := range a.Certificates() {
		if samePublicKey(pub, c.Cert.PublicKey) {
			return errKeyOfCA
		}
	}
	return nil
}

// selfSigned reports whether a certificate is a root.
func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

func isSPIFFE(uri string) bool {
	return len(uri) >= 7 && strings.EqualFold(uri[:7], "spiffe:")
}

// clock writes a time as messages to people do.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
