package store

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// recorded is a certificate of a caller or a service, or of the CA.
func recorded(t *testing.T, c *Core, serial, identity, kind string, end time.Duration) CertificateRecord {
	t.Helper()
	r := CertificateRecord{Serial: serial, Identity: identity, Kind: kind, Subject: "CN=" + serial, NotBefore: noon.Add(-time.Minute),
		NotAfter: noon.Add(end), SPKI: hash(serial), DER: []byte(serial)}
	if err := c.RecordCertificate(t.Context(), operator, r); err != nil {
		t.Fatal(err)
	}
	return r
}

const billing = "spiffe://sallyport.internal/client/billing"

func TestRevokeCertificate(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		recorded(t, c, "01", billing, "client", 24*time.Hour)
		recorded(t, c, "02", billing, "client", 48*time.Hour)
		recorded(t, c, "03", billing, "client", -time.Hour) // has ended
		gateway := join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})

		got, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Serial: "01", Reason: "keyCompromise"}, noon)
		if err != nil || !reflect.DeepEqual(got, Revoked{Serials: []string{"01"}, Sequence: 1}) {
			t.Fatalf("%+v, %v", got, err)
		}
		before := len(actions(t, c))
		if got, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Serial: "01"}, noon); err != nil || len(got.Serials) != 0 || got.Sequence != 1 || len(actions(t, c)) != before {
			t.Errorf("again: %+v, %v", got, err)
		}
		if got, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Identity: billing}, noon); err != nil || !reflect.DeepEqual(got, Revoked{Serials: []string{"02"}, Sequence: 2}) {
			t.Errorf("the identity: %+v, %v", got, err)
		}
		if got, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Identity: billing}, noon); err != nil || len(got.Serials) != 0 || got.Sequence != 2 {
			t.Errorf("the identity again: %+v, %v", got, err)
		}
		// A component is removed with its identity, and can be added again.
		got, err = c.RevokeCertificate(ctx, operator, RevokeRequest{Identity: "spiffe://sallyport.internal/gateway/a"}, noon)
		if err != nil || !reflect.DeepEqual(got.Serials, []string{gateway.Serial}) || len(got.Components) != 1 || got.Components[0].Name != "a" || got.Sequence != 3 {
			t.Errorf("a component: %+v, %v", got, err)
		}
		if again := join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"}); again.Component.Incarnation != 2 {
			t.Errorf("added again: %+v", again.Component)
		}
		// What was never recorded.
		if got, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Serial: "0f", Unrecorded: true}, noon); err != nil || !reflect.DeepEqual(got, Revoked{Serials: []string{"0f"}, Sequence: 4}) {
			t.Errorf("unrecorded: %+v, %v", got, err)
		}
		if got, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Serial: "0f", Unrecorded: true}, noon); err != nil || len(got.Serials) != 0 {
			t.Errorf("unrecorded again: %+v, %v", got, err)
		}

		entries, err := c.RevocationEntries(ctx, 0)
		if err != nil || len(entries) != 4 || entries[0].Serial != "01" || entries[0].Reason != "keyCompromise" || !reflect.DeepEqual(entries[0].SPKI, hash("01")) || entries[0].Ends.IsZero() ||
			entries[1].Reason != "unspecified" || entries[2].Name != "a" || entries[2].Incarnation != 1 || entries[3].Serial != "0f" || !entries[3].Ends.IsZero() {
			t.Errorf("entries %+v, %v", entries, err)
		}
		for i, e := range entries {
			if e.Sequence != uint64(i+1) {
				t.Errorf("entry %d has number %d", i, e.Sequence)
			}
		}
		if rest, err := c.RevocationEntries(ctx, 3); err != nil || !reflect.DeepEqual(rest, entries[3:]) {
			t.Errorf("after 3: %+v, %v", rest, err)
		}

		crl := func(at time.Time) (serials string) {
			list, err := c.RevokedCertificates(ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				serials += r.Serial + ":" + r.Kind + ":" + r.Reason + " "
			}
			return serials
		}
		if got := crl(noon); !strings.Contains(got, "01:client:keyCompromise") || !strings.Contains(got, "02:client:unspecified") ||
			!strings.Contains(got, gateway.Serial+":gateway:") || !strings.Contains(got, "0f::") || strings.Contains(got, "03:") {
			t.Errorf("CRL %s", got)
		}
		if got := crl(noon.Add(25 * time.Hour)); !strings.Contains(got, "01:") { // one more CRL after its end
			t.Errorf("CRL just after the end %s", got)
		}
		if got := crl(noon.Add(30 * day)); got != "0f::unspecified " {
			t.Errorf("CRL a month later %s", got)
		}
		verify(t, c)
	})
}

func TestRevokeRefusals(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		const core = "spiffe://sallyport.internal/core/core"
		recorded(t, c, "0a", "", "root", 1000*time.Hour)
		recorded(t, c, "0b", "", "intermediate", 1000*time.Hour)
		recorded(t, c, "0c", core, "core", time.Hour)
		recorded(t, c, "0d", core, "core", 2*time.Hour)
		before := len(actions(t, c))
		for name, test := range map[string]struct {
			r    RevokeRequest
			want error
			text string
		}{
			"nothing":           {RevokeRequest{}, nil, "either"},
			"both":              {RevokeRequest{Serial: "0c", Identity: billing}, nil, "either"},
			"unknown serial":    {RevokeRequest{Serial: "ff"}, ErrNotFound, "serial ff"},
			"unknown caller":    {RevokeRequest{Identity: billing}, ErrNotFound, billing},
			"unknown component": {RevokeRequest{Identity: "spiffe://sallyport.internal/gateway/x"}, ErrNotFound, ""},
			"no serial":         {RevokeRequest{Serial: "0C", Unrecorded: true}, nil, "lower-case"},
			"no identity":       {RevokeRequest{Identity: "billing"}, nil, ""},
			"root":              {RevokeRequest{Serial: "0a"}, nil, "ca rotate --compromised"},
			"intermediate":      {RevokeRequest{Serial: "0b"}, nil, "ca rotate --compromised"},
			"core":              {RevokeRequest{Identity: core}, nil, "ca rotate --compromised"},
			"core at work":      {RevokeRequest{Serial: "0d"}, nil, "ca rotate --compromised"},
		} {
			if got, err := c.RevokeCertificate(t.Context(), operator, test.r, noon); err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
		if n := len(actions(t, c)); n != before {
			t.Errorf("%d rows were audited", n-before)
		}
		if _, err := c.RevokeCertificate(t.Context(), operator, RevokeRequest{Serial: "0c"}, noon); err != nil {
			t.Errorf("a former certificate of core: %v", err)
		}
	})
}

func TestRevocationsOnlyGrow(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		recorded(t, c, "01", billing, "client", time.Hour)
		if _, err := c.RevokeCertificate(t.Context(), operator, RevokeRequest{Serial: "01"}, noon); err != nil {
			t.Fatal(err)
		}
		for _, statement := range []string{"DELETE FROM revocations", "UPDATE revocations SET serial = '02'"} {
			if _, err := c.db.writer.Exec(statement); err == nil || !strings.Contains(err.Error(), "never") {
				t.Errorf("%s: %v", statement, err)
			}
		}
	})
}

func TestMergeRevocations(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		p.join("orders", "a", noon)
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "fleet"})
		recorded(t, c, "01", billing, "client", 24*time.Hour)
		if _, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Serial: "0e", Unrecorded: true}, noon); err != nil {
			t.Fatal(err)
		}
		list := []Revocation{
			{Serial: "0e", Reason: "known", At: noon},
			{Serial: "01", Reason: "keyCompromise", At: noon.Add(time.Hour), SPKI: hash("01")},
			{Role: pki.RoleGateway, Name: "orders", Incarnation: 3, Reason: "removed", At: noon.Add(2 * time.Hour)},
			{Role: pki.RoleProxy, Name: "never-here", Incarnation: 1, Reason: "removed", At: noon.Add(3 * time.Hour)},
		}
		for i, want := range []int{3, 0} {
			before := len(actions(t, c))
			n, err := c.MergeRevocations(ctx, "core", list, noon)
			if err != nil || n != want || len(actions(t, c)) != before+1-i {
				t.Errorf("%d: %d merged, %v", i, n, err)
			}
		}
		entries, err := c.RevocationEntries(ctx, 0)
		if err != nil || len(entries) != 4 || entries[0].Reason != "unspecified" || entries[1].Serial != "01" || entries[2].Name != "orders" || entries[3].Name != "never-here" || entries[1].At != noon.Add(time.Hour) {
			t.Errorf("entries %+v, %v", entries, err)
		}
		if _, err := c.SawKey(ctx, KeyUse{Certificate: p.certs["a"]}, noon); !errors.Is(err, ErrRevoked) {
			t.Errorf("a component that was revoked elsewhere: %v", err)
		}
		if _, err := c.Component(ctx, pki.RoleGateway, "orders"); !errors.Is(err, ErrNotFound) {
			t.Errorf("it is still there: %v", err)
		}
		if _, err := c.Component(ctx, pki.RoleGateway, "fleet"); err != nil {
			t.Errorf("another one: %v", err)
		}
		if r := join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "orders"}); r.Component.Incarnation != 4 {
			t.Errorf("added again: incarnation %d", r.Component.Incarnation)
		}
		certs, err := c.RevokedCertificates(ctx, noon)
		if err != nil || len(certs) != 3 {
			t.Errorf("CRL %+v, %v", certs, err)
		}
		for _, bad := range []Revocation{{}, {Serial: "01", Role: pki.RoleGateway, Name: "x", Incarnation: 1}, {Role: pki.RoleGateway, Name: "x"}, {Serial: "no serial"},
			{SPKI: []byte("short")}, {Serial: "02", SPKI: []byte{}}, {SPKI: hash("x"), Role: pki.RoleGateway, Name: "x", Incarnation: 1}} {
			if n, err := c.MergeRevocations(ctx, "core", []Revocation{{Serial: "aa", At: noon}, bad}, noon); err == nil {
				t.Errorf("%+v: %d merged", bad, n)
			}
		}
		if after, err := c.RevocationEntries(ctx, 4); err != nil || len(after) != 0 {
			t.Errorf("half of a bad list was merged: %+v, %v", after, err)
		}
		verify(t, c)
	})
}

// TestMergeRevokedKeys: a key that is revoked by itself, that of a certificate
// which is listed without it, and an API key. Half of it was dropped once, as
// the number was known.
func TestMergeRevokedKeys(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		p.join("orders", "a", noon)
		if _, err := c.RevokeCertificate(ctx, operator, RevokeRequest{Serial: "0e", Unrecorded: true}, noon); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"ci", "nightly"} {
			if _, err := c.CreateAPIKey(ctx, operator, APIKeyRecord{Name: name, SHA256: hash("api " + name), Prefix: "spk_"}); err != nil {
				t.Fatal(err)
			}
		}
		list := []Revocation{
			{Serial: "0e", Reason: "known", At: noon, SPKI: hash("a")},
			{SPKI: hash("api ci"), Reason: "API key ci", At: noon.Add(time.Hour)},
			{Serial: "0f", Reason: "unspecified", At: noon.Add(time.Hour), SPKI: hash("of nobody")},
		}
		for i, want := range []int{3, 0} {
			if n, err := c.MergeRevocations(ctx, "core", list, noon); err != nil || n != want {
				t.Errorf("%d: %d merged, %v", i, n, err)
			}
		}
		if _, err := c.CheckKey(ctx, KeyUse{Certificate: p.certs["a"]}, noon); !errors.Is(err, ErrRevoked) {
			t.Errorf("the key of a number that was listed without it: %v", err)
		}
		keys, err := c.APIKeys(ctx)
		if err != nil || keys[0].Revoked != noon.Add(time.Hour) || !keys[1].Revoked.IsZero() {
			t.Errorf("%+v, %v", keys, err)
		}
		if _, err := c.RevokeAPIKey(ctx, operator, "nightly"); err != nil {
			t.Fatal(err)
		}
		entries, err := c.RevocationEntries(ctx, 4)
		if err != nil || len(entries) != 1 || entries[0].Sequence != 5 || !bytes.Equal(entries[0].SPKI, hash("api nightly")) || entries[0].Serial != "" {
			t.Errorf("%+v, %v", entries, err)
		}
		// A key alone covers no certificate of another key.
		p.join("stock", "b", noon)
		if _, err := c.SawKey(ctx, KeyUse{Certificate: p.certs["b"]}, noon); err != nil {
			t.Error(err)
		}
		renew(t, p, "stock", "b", "c", noon.Add(time.Hour), true)
		verify(t, c)
	})
}
