package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"
)

const (
	// crlLifetime is how far the next update of a list lies ahead. Whoever
	// serves lists makes them anew long before.
	crlLifetime = 24 * time.Hour
	maxCRL      = 100_000
)

// crlReasons are those of RFC 5280, 5.3.1, that an operator may state. 0 is
// left out of the entry, as the RFC asks.
var crlReasons = map[string]int{
	"": 0, "unspecified": 0, "key-compromise": 1, "ca-compromise": 2, "affiliation-changed": 3, "superseded": 4,
	"cessation-of-operation": 5, "privilege-withdrawn": 9,
}

// CRLReasons are the reasons that CheckReason accepts, sorted.
var CRLReasons = slices.DeleteFunc(slices.Sorted(maps.Keys(crlReasons)), func(r string) bool { return r == "" })

// CheckReason accepts the reasons of a revocation that a list can state.
func CheckReason(reason string) error {
	if _, ok := crlReasons[reason]; !ok {
		return fmt.Errorf("%q is not a reason for a revocation: use one of %s", printable(reason, 64), strings.Join(CRLReasons, ", "))
	}
	return nil
}

// CRLEntry is one revoked certificate.
type CRLEntry struct {
	Serial   string    // as Serial writes it
	Revoked  time.Time // when
	Reason   string    // one of CRLReasons; what is none of them counts as unspecified
	NotAfter time.Time // of the certificate: it is listed a day longer; zero: unknown, stays listed
	Issuer   []byte    // its authority key id; empty: unknown, stands in every list
}

// CRLEntryOf is the entry of a certificate.
func CRLEntryOf(c *x509.Certificate, revoked time.Time, reason string) CRLEntry {
	return CRLEntry{Serial: Serial(c), Revoked: revoked, Reason: reason, NotAfter: c.NotAfter, Issuer: c.AuthorityKeyId}
}

// CRLs makes the revocation lists (RFC 5280, version 2, DER) of every issuer in
// force: those of callers first, the one that issues at present before former
// ones, then those of components. number has to grow from list to list; 0 takes
// it from the clock. An imported CA that may not sign
// revocation lists is left out.
func (a *Authority) CRLs(entries []CRLEntry, number uint64, now time.Time) ([][]byte, error) {
	if number == 0 {
		number = uint64(now.UnixNano())
	}
	issuers := []issuer{a.callers.issuer}
	components := []issuer{a.components}
	if o := a.state.other(); o != nil {
		if o.callers.cert != nil {
			issuers = append(issuers, o.callers)
		}
		components = append(components, o.components)
	}
	for _, f := range a.state.former {
		issuers = append(issuers, f.issuer)
	}
	var out [][]byte
	for _, by := range append(issuers, components...) {
		if !signsCRLs(by.cert) {
			continue
		}
		der, err := signCRL(by, entries, number, now)
		if err != nil {
			return nil, fmt.Errorf("make the revocation list of %s: %w", printable(by.cert.Subject.CommonName, 200), err)
		}
		out = append(out, der)
	}
	return out, nil
}

func signCRL(by issuer, entries []CRLEntry, number uint64, now time.Time) ([]byte, error) {
	now = now.UTC().Truncate(time.Second)
	listed := map[string]x509.RevocationListEntry{}
	for _, e := range entries {
		if len(e.Issuer) > 0 && !bytes.Equal(e.Issuer, by.cert.SubjectKeyId) {
			continue
		}
		if !e.NotAfter.IsZero() && now.After(e.NotAfter.Add(crlLifetime)) {
			continue
		}
		serial, ok := new(big.Int).SetString(e.Serial, 16)
		if !ok || serial.Sign() <= 0 {
			return nil, fmt.Errorf("%q is not a serial number", printable(e.Serial, 80))
		}
		r := x509.RevocationListEntry{SerialNumber: serial, RevocationTime: e.Revoked.UTC().Truncate(time.Second), ReasonCode: crlReasons[e.Reason]}
		key := serial.Text(16)
		if was, ok := listed[key]; !ok || r.RevocationTime.Before(was.RevocationTime) {
			listed[key] = r
		}
	}
	if len(listed) > maxCRL {
		return nil, fmt.Errorf("%d entries are too many", len(listed))
	}
	t := &x509.RevocationList{Number: new(big.Int).SetUint64(number), ThisUpdate: now, NextUpdate: now.Add(crlLifetime)}
	for _, key := range slices.Sorted(maps.Keys(listed)) {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, listed[key])
	}
	// An imported CA without key usage may sign everything, and one without a
	// key id gets the usual; crypto/x509 wants to see both.
	as := *by.cert
	as.KeyUsage |= x509.KeyUsageCRLSign
	if len(as.SubjectKeyId) == 0 {
		id := SPKI(by.cert)
		as.SubjectKeyId = id[:20]
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, &as, by.key)
	if err != nil {
		return nil, err
	}
	back, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	if err := back.CheckSignatureFrom(&as); err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	return der, nil
}

func signsCRLs(c *x509.Certificate) bool {
	return c.KeyUsage == 0 || c.KeyUsage&x509.KeyUsageCRLSign != 0
}

// MarshalCRLsPEM encodes lists in the given order.
func MarshalCRLsPEM(crls [][]byte) []byte {
	var out []byte
	for _, der := range crls {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return out
}
