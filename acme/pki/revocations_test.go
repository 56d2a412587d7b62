package pki

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/roles/control"
)

func someRevocations() *RevocationList {
	l := &RevocationList{TrustDomain: testDomain, Epoch: 3}
	l.Append(
		RevocationEntry{Identity: testID(RoleGateway, "office"), Incarnation: 1, At: epoch.Add(time.Nanosecond), Reason: "removed"},
		RevocationEntry{Serial: "ab01", At: epoch.Add(time.Minute), Reason: "key-compromise"},
		RevocationEntry{Key: bytes.Repeat([]byte{7}, 32), At: epoch.Add(time.Hour)},
		RevocationEntry{Identity: testID(RoleClient, "billing"), At: epoch.Add(2 * time.Hour)},
	)
	return l
}

func TestRevocationList(t *testing.T) {
	l := someRevocations()
	text, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseRevocations(text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := back.Encode(); err != nil || !bytes.Equal(again, text) || back.Epoch != 3 || back.Sequence() != 4 || !back.Extends(l) || !l.Extends(back) {
		t.Errorf("%+v came back as %+v: %v", l, back, err)
	}
	rows := back.Proto()
	if len(rows) != 4 || rows[0].Identity != "spiffe://sallyport.internal/gateway/office" || rows[0].Incarnation != 1 || rows[1].Serial != "ab01" || len(rows[2].Key) != 32 {
		t.Errorf("%v", rows)
	}
	// What is covered already adds nothing.
	if l.Append(l.Entries...) || l.Append(RevocationEntry{Identity: testID(RoleClient, "billing"), At: epoch, Reason: "again"}) {
		t.Error("an entry was added twice")
	}
	if !l.Append(RevocationEntry{Identity: testID(RoleGateway, "office"), Incarnation: 4, At: epoch, Reason: strings.Repeat("\x1b", 400)}) {
		t.Error("a later incarnation was not added")
	}
	if l.Append(RevocationEntry{Identity: testID(RoleGateway, "office"), Incarnation: 3, At: epoch}) {
		t.Error("an incarnation that is covered was added")
	}
	if _, err := l.Encode(); err != nil {
		t.Errorf("a long reason full of escapes: %v", err)
	}
	if !l.Extends(back) || back.Extends(l) {
		t.Error("Extends")
	}
	// A new epoch keeps what counts.
	c := l.Compact(4)
	if c.Epoch != 4 || len(c.Entries) != 4 || c.Entries[3].Incarnation != 4 || c.Extends(l) {
		t.Errorf("%+v", c)
	}
	for name, e := range map[string]RevocationEntry{
		"nothing":                {At: epoch},
		"two things":             {At: epoch, Serial: "1", Identity: testID(RoleClient, "x")},
		"no time":                {Serial: "1"},
		"another trust domain":   {At: epoch, Identity: ID{"example.org", RoleClient, "x"}},
		"a component's life 0":   {At: epoch, Identity: testID(RoleProxy, "x")},
		"a role that is unknown": {At: epoch, Identity: ID{testDomain, "admin", "x"}},
		"a serial in capitals":   {At: epoch, Serial: "AB"},
		"a serial with zeros":    {At: epoch, Serial: "0ab"},
		"a serial of nothing":    {At: epoch, Serial: "0"},
		"half a key":             {At: epoch, Key: make([]byte, 16)},
	} {
		l := &RevocationList{TrustDomain: testDomain, Entries: []RevocationEntry{e}}
		if _, err := l.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestRevocationListBound(t *testing.T) {
	l := &RevocationList{TrustDomain: testDomain, Epoch: 1}
	for i := range 70_000 {
		l.Entries = append(l.Entries, RevocationEntry{Serial: fmt.Sprintf("ffffffffffffffffffffffffff%06x", i), At: epoch})
	}
	if text, err := l.Encode(); err != nil || len(text) > maxRevocations {
		t.Errorf("70 000 certificates: %v", err)
	}
	l.Entries = append(l.Entries, slices.Clone(l.Entries[:15_000])...)
	if _, err := l.Encode(); err == nil || !strings.Contains(err.Error(), "epoch") {
		t.Errorf("85 000 certificates: %v", err)
	}
}

// TestParseRevocationsTamper changes every byte of a list, and cuts it at every
// length: all are refused.
func TestParseRevocationsTamper(t *testing.T) {
	text, err := someRevocations().Encode()
	if err != nil {
		t.Fatal(err)
	}
	epochAt := len(revocationsMagic) + 1 + len(testDomain)
	for i := range text {
		if i >= epochAt && i < epochAt+8 {
			continue // the signature's to guard; the hash chain goes over epochs
		}
		bad := bytes.Clone(text)
		bad[i] ^= 1
		if _, err := ParseRevocations(bad); refusalCode(err) != CodeBadRevocations {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := ParseRevocations(text[:i]); refusalCode(err) != CodeBadRevocations {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	if _, err := ParseRevocations(append(bytes.Clone(text), 0)); err == nil {
		t.Error("a byte more was taken")
	}
	huge := bytes.Clone(text)
	binary.BigEndian.PutUint32(huge[epochAt+8:], 1<<32-1)
	if _, err := ParseRevocations(huge); err == nil {
		t.Error("a count of billions was taken")
	}
}

func TestSignRevocations(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	l := someRevocations()
	p, err := a.SignRevocations(l)
	if err != nil {
		t.Fatal(err)
	}
	roots := a.Bundle().Roots
	if back, err := VerifyRevocations(p, roots); err != nil || !back.Extends(l) || back.Epoch != 3 {
		t.Fatalf("%v", err)
	}
	if again, err := a.SignRevocations(l); err != nil || !proto.Equal(p, again) {
		t.Errorf("the same list was signed in two ways: %v", err)
	}
	if h := RevocationsHead(p); h.GetSequence() != 4 || len(h.GetSha256()) != 32 {
		t.Errorf("%v", h)
	}
	if h := RevocationsHead(nil); h != nil {
		t.Errorf("%v", h)
	}
	// Written out, so that a signature of this version stays one of the next.
	const context = "sallyport-revocations-v1\x00"
	sign := func(key crypto.Signer, payload []byte, before string) []byte {
		digest := sha256.Sum256(append([]byte(before), payload...))
		sig, err := key.Sign(nil, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	domain := *l
	domain.TrustDomain, domain.Entries = "example.org", nil
	foreign, err := domain.Encode()
	if err != nil {
		t.Fatal(err)
	}
	leaf := issueComponent(t, a, RoleProxy, "dmz1", 1)
	for name, spoil := range map[string]func(p *control.RevocationList){
		"nothing":                    func(p *control.RevocationList) { proto.Reset(p) },
		"another payload":            func(p *control.RevocationList) { p.Payload[len(revocationsMagic)+1+len(testDomain)] ^= 1 },
		"no signature":               func(p *control.RevocationList) { p.Signature = nil },
		"another signature":          func(p *control.RevocationList) { p.Signature[9] ^= 1 },
		"no chain":                   func(p *control.RevocationList) { p.Chain = nil },
		"a chain of another CA":      func(p *control.RevocationList) { p.Chain = [][]byte{other.components.cert.Raw} },
		"signed without the context": func(p *control.RevocationList) { p.Signature = sign(a.components.key, p.Payload, "") },
		"of another trust domain": func(p *control.RevocationList) {
			p.Payload = foreign
			p.Signature = sign(a.components.key, foreign, context)
		},
		"garbage, well signed": func(p *control.RevocationList) {
			p.Payload = []byte("x")
			p.Signature = sign(a.components.key, p.Payload, context)
		},
		"signed by the callers' issuer": func(p *control.RevocationList) {
			p.Chain = [][]byte{a.callers.cert.Raw}
			p.Signature = sign(a.callers.key, p.Payload, context)
		},
		"signed by a component": func(p *control.RevocationList) {
			p.Chain = [][]byte{leaf.Chain[0].Raw, leaf.Chain[1].Raw}
			p.Signature = sign(leaf.Key, p.Payload, context)
		},
		"signed by another CA": func(p *control.RevocationList) {
			q, err := other.SignRevocations(l)
			if err != nil {
				t.Fatal(err)
			}
			proto.Reset(p)
			proto.Merge(p, q)
		},
	} {
		q := proto.Clone(p).(*control.RevocationList)
		spoil(q)
		l, err := VerifyRevocations(q, roots)
		if err == nil {
			t.Errorf("%s: accepted %+v", name, l)
		}
		for part, want := range map[string]string{"signed by the callers": "issues no components", "signed by a component": "issues no components",
			"signed without": "signature", "garbage": "cannot be read", "trust domain": "trust domain"} {
			if strings.Contains(name, part) && !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: refused for another reason: %v", name, err)
			}
		}
	}
	if _, err := VerifyRevocations(p, nil); err == nil {
		t.Error("without roots it was accepted")
	}
	if _, err := other.SignRevocations(&domain); err == nil {
		t.Error("a list of another trust domain was signed")
	}
}

// TestRevocationsOverRotation: who still knows the old root alone believes the
// list that the new issuer signs; after a compromise nobody believes the other.
func TestRevocationsOverRotation(t *testing.T) {
	a := testAuthority(t)
	old := a.Bundle().Roots
	before, err := a.SignRevocations(someRevocations())
	if err != nil {
		t.Fatal(err)
	}
	rotated := rotate(t, a, epoch)
	p, err := rotated.SignRevocations(someRevocations())
	if err != nil {
		t.Fatal(err)
	}
	for name, roots := range map[string][]*x509.Certificate{"old": old, "new": rotated.Bundle().Roots} {
		if _, err := VerifyRevocations(p, roots); err != nil {
			t.Errorf("the new list under the %s root: %v", name, err)
		}
	}
	fresh, err := rotated.Compromised(epoch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyRevocations(before, fresh.Bundle().Roots); err == nil {
		t.Error("a list of the compromised CA was believed")
	}
	if p, err = fresh.SignRevocations(someRevocations()); err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyRevocations(p, old); err == nil {
		t.Error("the compromised root leads to the new CA")
	}
}

func TestMergeRevocations(t *testing.T) {
	gateway := func(name string, n uint64) RevocationEntry {
		return RevocationEntry{Identity: testID(RoleGateway, name), Incarnation: n, At: epoch}
	}
	list := func(epoch uint64, entries ...RevocationEntry) *RevocationList {
		l := &RevocationList{TrustDomain: testDomain, Epoch: epoch}
		l.Append(entries...)
		return l
	}
	names := func(l *RevocationList) (out []string) {
		for _, e := range l.Entries {
			out = append(out, fmt.Sprint(e.Identity.Name, e.Incarnation))
		}
		return out
	}
	for name, tc := range map[string]struct {
		lists []*RevocationList
		want  string
		epoch uint64
	}{
		"one":                        {[]*RevocationList{list(1, gateway("a", 1))}, "[a1]", 1},
		"a longer one":               {[]*RevocationList{list(1, gateway("a", 1)), nil, list(1, gateway("a", 1), gateway("b", 1))}, "[a1 b1]", 1},
		"the newer epoch first":      {[]*RevocationList{list(1, gateway("a", 1), gateway("b", 1)), list(2, gateway("b", 1))}, "[b1 a1]", 2},
		"they fork":                  {[]*RevocationList{list(1, gateway("a", 1), gateway("c", 1)), list(1, gateway("a", 1), gateway("b", 1))}, "[a1 c1 b1]", 1},
		"what is covered stays away": {[]*RevocationList{list(2, gateway("a", 5)), list(1, gateway("a", 1), gateway("a", 3), gateway("a", 7))}, "[a5 a7]", 2},
		"empty":                      {[]*RevocationList{list(2), list(1, gateway("a", 1))}, "[a1]", 2},
	} {
		out, err := MergeRevocations(tc.lists...)
		if err != nil || fmt.Sprint(names(out)) != tc.want || out.Epoch != tc.epoch {
			t.Errorf("%s: %v epoch %d, want %s: %v", name, names(out), out.Epoch, tc.want, err)
		}
	}
	if _, err := MergeRevocations(nil); err == nil {
		t.Error("nothing was merged")
	}
	if _, err := MergeRevocations(list(1), &RevocationList{TrustDomain: "example.org"}); err == nil {
		t.Error("two trust domains were merged")
	}
}

func FuzzParseRevocations(f *testing.F) {
	text, err := someRevocations().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(revocationsMagic))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseRevocations(text)
		if err != nil {
			return
		}
		if again, err := l.Encode(); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%x came back as %x: %v", text, again, err)
		}
		merged, err := MergeRevocations(l, l)
		if err != nil || !merged.Extends(l) {
			t.Errorf("merged with itself: %v", err)
		}
	})
}
