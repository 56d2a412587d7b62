package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

func parseCRLs(t *testing.T, ders [][]byte) []*x509.RevocationList {
	t.Helper()
	var out []*x509.RevocationList
	for _, der := range ders {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestCRLs(t *testing.T) {
	a := testAuthority(t)
	component := issueComponent(t, a, RoleGateway, "office", 1).Chain[0]
	client, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: testKey(t).Public(), Client: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	now := epoch.Add(2 * time.Hour)
	ders, err := a.CRLs([]CRLEntry{
		CRLEntryOf(component, epoch.Add(time.Hour), "key-compromise"),
		CRLEntryOf(client.Chain[0], epoch.Add(time.Hour), "removed by hand"),
		CRLEntryOf(client.Chain[0], epoch.Add(30*time.Minute), "superseded"), // the earlier one counts
		{Serial: "abc", Revoked: epoch},
		{Serial: "def", Revoked: epoch, NotAfter: now.Add(-25 * time.Hour)},
		{Serial: "fed", Revoked: epoch, NotAfter: now.Add(-23 * time.Hour)},
	}, 7, now)
	if err != nil {
		t.Fatal(err)
	}
	lists := parseCRLs(t, ders)
	if len(lists) != 2 {
		t.Fatalf("%d lists", len(lists))
	}
	for i, by := range []*x509.Certificate{a.callers.cert, a.components.cert} {
		l := lists[i]
		if err := l.CheckSignatureFrom(by); err != nil {
			t.Errorf("list %d: %v", i, err)
		}
		if l.Number.Cmp(big.NewInt(7)) != 0 || !l.ThisUpdate.Equal(now) || !l.NextUpdate.Equal(now.Add(crlLifetime)) || !bytes.Equal(l.AuthorityKeyId, by.SubjectKeyId) {
			t.Errorf("list %d: number %s, %s to %s", i, l.Number, l.ThisUpdate, l.NextUpdate)
		}
		has := map[string]x509.RevocationListEntry{}
		for _, e := range l.RevokedCertificateEntries {
			has[e.SerialNumber.Text(16)] = e
		}
		own, foreign := client.Chain[0], component
		reason, at := 4, epoch.Add(30*time.Minute)
		if i == 1 {
			own, foreign, reason, at = component, client.Chain[0], 1, epoch.Add(time.Hour)
		}
		if e, ok := has[Serial(own)]; !ok || e.ReasonCode != reason || !e.RevocationTime.Equal(at) {
			t.Errorf("list %d: %+v", i, e)
		}
		if _, ok := has[Serial(foreign)]; ok || len(has) != 3 {
			t.Errorf("list %d has %d entries", i, len(has))
		}
		if _, ok := has["abc"]; !ok {
			t.Errorf("list %d: a certificate of whom nobody knows the issuer is missing", i)
		}
		if _, ok := has["fed"]; !ok {
			t.Errorf("list %d: one that has just ended is missing", i)
		}
	}
	b, _ := pem.Decode(MarshalCRLsPEM(ders))
	if b == nil || b.Type != "X509 CRL" || !bytes.Equal(b.Bytes, ders[0]) {
		t.Errorf("%v", b)
	}
	// Numbers from the clock grow.
	first, err := a.CRLs(nil, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.CRLs(nil, 0, now.Add(time.Millisecond))
	if err != nil || parseCRLs(t, first)[0].Number.Cmp(parseCRLs(t, second)[0].Number) >= 0 {
		t.Errorf("%v", err)
	}
	if _, err := a.CRLs([]CRLEntry{{Serial: "x"}}, 1, now); err == nil {
		t.Error("no serial number was taken")
	}
	if CheckReason("superseded") != nil || CheckReason("because") == nil {
		t.Error("CheckReason")
	}
}

// TestCRLsOfFormerIssuers: the certificates of a retired issuer of callers live
// on and can be revoked.
func TestCRLsOfFormerIssuers(t *testing.T) {
	a := testAuthority(t)
	client, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: testKey(t).Public(), Client: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	entry := CRLEntryOf(client.Chain[0], epoch, "superseded")
	b := rotate(t, a, epoch)
	ders, err := b.CRLs([]CRLEntry{entry}, 1, epoch)
	if err != nil {
		t.Fatal(err)
	}
	lists := parseCRLs(t, ders)
	if len(lists) != 3 || len(lists[0].RevokedCertificateEntries) != 0 || len(lists[1].RevokedCertificateEntries) != 1 || lists[1].CheckSignatureFrom(a.callers.cert) != nil {
		t.Errorf("%d lists", len(lists))
	}
}

func TestParseSerial(t *testing.T) {
	for in, want := range map[string]string{
		"ab01": "ab01", " AB:01 ": "ab01", "0x0AB01": "ab01", "serial=00AB01\n": "ab01",
		"": "", "0": "", "-1": "", "+1": "", "x": "", "a_b": "", "0x": "", "a b": "",
	} {
		if got, err := ParseSerial(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
}
