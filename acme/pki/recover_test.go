package pki

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

func TestRecover(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	c := issueComponent(t, a, RoleGateway, "office", 3)
	end := c.NotAfter()
	var asked uint64
	revoked := false
	at := func(now time.Time) *Verifier {
		return a.RecoveryVerifier(func() time.Time { return now }, func(_ *x509.Certificate, _ ID, incarnation uint64) bool {
			asked = incarnation
			return revoked
		})
	}
	want := Expect{Role: RoleGateway, Name: "office"}
	for name, tc := range map[string]struct {
		now   time.Time
		chain []*x509.Certificate
		want  Expect
		code  string
	}{
		"in time":                 {epoch, c.Chain, want, ""},
		"at its end":              {end, c.Chain, want, ""},
		"a moment late":           {end.Add(time.Nanosecond), c.Chain, want, ""},
		"ten days late":           {end.Add(10 * 24 * time.Hour), c.Chain, want, ""},
		"thirty days late":        {end.Add(MaxRecovery), c.Chain, want, ""},
		"a moment more":           {end.Add(MaxRecovery + time.Nanosecond), c.Chain, want, CodeExpiredTooLong},
		"not valid yet":           {epoch.Add(-time.Hour), c.Chain, want, CodeNotYetValid},
		"late, another role":      {end.Add(time.Hour), c.Chain, Expect{Role: RoleProxy}, CodeWrongRole},
		"late, another name":      {end.Add(time.Hour), c.Chain, Expect{Role: RoleGateway, Name: "depot"}, CodeWrongName},
		"late, no role expected":  {end.Add(time.Hour), c.Chain, Expect{}, CodeOther},
		"late, another authority": {end.Add(time.Hour), issueComponent(t, other, RoleGateway, "office", 3).Chain, want, CodeUnknownAuthority},
		"nothing":                 {end, nil, want, CodeCertificateRequired},
	} {
		id, err := at(tc.now).Recover(tc.chain, tc.want)
		if refusalCode(err) != tc.code || (err == nil) != (id == c.ID) {
			t.Errorf("%s: code %q, want %q: %v %v", name, refusalCode(err), tc.code, id, err)
		}
		anyID, err := at(tc.now).RecoverIdentity(tc.chain, nil)
		if tc.code == "" && (err != nil || anyID != c.ID) || tc.code == CodeExpiredTooLong && refusalCode(err) != tc.code {
			t.Errorf("%s, any role: %v %v", name, anyID, err)
		}
	}
	if asked != 3 {
		t.Errorf("revocation was asked about incarnation %d", asked)
	}
	revoked = true
	if _, err := at(end.Add(time.Hour)).Recover(c.Chain, want); refusalCode(err) != CodeRevoked {
		t.Errorf("a revoked one: %v", err)
	}
	_, err := at(end.Add(31*24*time.Hour)).Recover(c.Chain, want)
	for _, part := range []string{"gateway/office", "31d", "30 days", "add it again"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	// Everywhere else it stays expired.
	if _, err := a.Bundle().ComponentVerifier(func() time.Time { return end.Add(time.Second) }, nil).Component(c.Chain, want); refusalCode(err) != CodeExpired {
		t.Errorf("the ordinary verifier: %v", err)
	}
}
