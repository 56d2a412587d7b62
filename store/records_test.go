package store

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"sallyport/acme/pki"
)

func TestAPIKeys(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		k := APIKeyRecord{Name: "ci", SHA256: hash("1"), Prefix: "spk_abcd", Expires: noon.Add(time.Hour)}
		got, err := c.CreateAPIKey(ctx, operator, k)
		k.Created = noon
		if err != nil || !reflect.DeepEqual(got, k) {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := c.CreateAPIKey(ctx, operator, APIKeyRecord{Name: "ci", SHA256: hash("2")}); !errors.Is(err, ErrExists) {
			t.Errorf("a second live key of one name: %v", err)
		}
		if _, err := c.CreateAPIKey(ctx, operator, APIKeyRecord{Name: "other", SHA256: hash("1")}); err == nil {
			t.Error("two names have one key")
		}
		for _, bad := range []APIKeyRecord{{Name: "a b", SHA256: hash("3")}, {Name: "x", SHA256: []byte("secret")}} {
			if _, err := c.CreateAPIKey(ctx, operator, bad); err == nil {
				t.Errorf("%+v was created", bad)
			}
		}
		if got, err := c.RevokeAPIKey(ctx, operator, "ci"); err != nil || got.Revoked != noon {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := c.RevokeAPIKey(ctx, operator, "ci"); !errors.Is(err, ErrNotFound) {
			t.Errorf("revoked twice: %v", err)
		}
		// The name is free after a revocation, and after an expiry.
		if _, err := c.CreateAPIKey(ctx, operator, APIKeyRecord{Name: "ci", SHA256: hash("4"), Expires: noon.Add(time.Minute)}); err != nil {
			t.Fatal(err)
		}
		c.Now = func() time.Time { return noon.Add(time.Minute) }
		if _, err := c.CreateAPIKey(ctx, operator, APIKeyRecord{Name: "ci", SHA256: hash("5")}); err != nil {
			t.Fatal(err)
		}
		keys, err := c.APIKeys(ctx)
		if err != nil || len(keys) != 3 || keys[1].Revoked != noon.Add(time.Minute) || !keys[2].Revoked.IsZero() || !keys[2].Expires.IsZero() {
			t.Errorf("%+v, %v", keys, err)
		}
		if got := actions(t, c); len(got) != 4 {
			t.Errorf("audited %v", got)
		}
		verify(t, c)
	})
}

func TestPolicies(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		if _, err := c.Policy(ctx, 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("before any: %v", err)
		}
		for i, text := range []string{"a", "a", "b", "b", "a", ""} {
			if v, err := c.ApplyPolicy(ctx, operator, []byte(text)); err != nil || v != []uint64{1, 1, 2, 2, 3, 4}[i] {
				t.Errorf("%d: version %d, %v", i, v, err)
			}
		}
		for version, want := range map[uint64]string{0: "", 1: "a", 2: "b", 3: "a", 4: ""} {
			if r, err := c.Policy(ctx, version); err != nil || string(r.Text) != want || r.Actor != operator || r.Applied != noon {
				t.Errorf("version %d: %+v, %v", version, r, err)
			}
		}
		if _, err := c.Policy(ctx, 5); !errors.Is(err, ErrNotFound) {
			t.Errorf("version 5: %v", err)
		}
		if got := actions(t, c); len(got) != 4 || got[3] != "policy.apply policy version 4" {
			t.Errorf("audited %v", got)
		}
	})
}

func TestCertificates(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		record := func(serial, identity, kind string, end time.Duration) CertificateRecord {
			return CertificateRecord{Serial: serial, Identity: identity, Kind: kind, Subject: "CN=" + serial, NotBefore: noon.Add(-time.Minute),
				NotAfter: noon.Add(end), SPKI: hash(serial), DER: []byte(serial)}
		}
		const core, billing = "spiffe://sallyport.internal/core/core", "spiffe://sallyport.internal/client/billing"
		want := []CertificateRecord{
			record("04", core, "core", time.Hour), // superseded by 05
			record("05", core, "core", 2*time.Hour),
			record("02", billing, "client", 3*time.Hour), // two of a caller are both in use
			record("03", billing, "client", 4*time.Hour),
			record("01", "", "root", 1000*time.Hour),
		}
		for _, i := range []int{4, 2, 3, 0, 1} {
			if err := c.RecordCertificate(ctx, operator, want[i]); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := c.Certificates(ctx, true, noon); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("all: %+v, %v", got, err)
		}
		if got, err := c.Certificates(ctx, false, noon); err != nil || !reflect.DeepEqual(got, want[1:]) {
			t.Errorf("current: %+v, %v", got, err)
		}
		if got, err := c.Certificates(ctx, false, noon.Add(3*time.Hour)); err != nil || !reflect.DeepEqual(got, want[3:]) {
			t.Errorf("three hours later: %+v, %v", got, err)
		}
		if err := c.RecordCertificate(ctx, operator, want[0]); !errors.Is(err, ErrExists) {
			t.Errorf("one serial number twice: %v", err)
		}
		for name, bad := range map[string]CertificateRecord{
			"identity": record("06", "spiffe://sallyport.internal/nobody/x", "client", 1),
			"serial":   record("", billing, "client", 1),
			"kind":     record("07", billing, "", 1),
			"key":      {Serial: "08", Kind: "client", DER: []byte("x"), SPKI: []byte("short")},
		} {
			if err := c.RecordCertificate(ctx, operator, bad); err == nil {
				t.Errorf("a certificate without a proper %s was recorded", name)
			}
		}
		if got := actions(t, c); len(got) != 5 || got[0] != "certificate.issue CN=01" || got[1] != "certificate.issue "+billing {
			t.Errorf("audited %v", got)
		}
	})
}

func TestGenerations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	c := openCore(t, path)
	ctx := t.Context()
	if e, err := c.Epoch(ctx); err != nil || e != 1 {
		t.Errorf("epoch %d, %v", e, err)
	}
	for i, content := range []string{"a", "a", "b", "b", "a"} {
		n, moved, err := c.Generation(ctx, pki.RoleGateway, "x", hash(content))
		if err != nil || n != []uint64{1, 1, 2, 2, 3}[i] || moved != (i%2 == 0) {
			t.Errorf("%d: generation %d, moved %v, %v", i, n, moved, err)
		}
	}
	c.Close()
	c = openCore(t, path)
	if n, moved, err := c.Generation(ctx, pki.RoleGateway, "x", hash("a")); err != nil || n != 3 || moved {
		t.Errorf("after a restart: generation %d, moved %v, %v", n, moved, err)
	}
	if n, err := c.NextGeneration(ctx, pki.RoleGateway, "x"); err != nil || n != 4 {
		t.Errorf("next is %d, %v", n, err)
	}
	if n, moved, err := c.Generation(ctx, pki.RoleGateway, "x", hash("a")); err != nil || n != 5 || !moved {
		t.Errorf("after one without content: generation %d, moved %v, %v", n, moved, err)
	}
	if n, _, err := c.Generation(ctx, pki.RoleProxy, "x", hash("a")); err != nil || n != 1 {
		t.Errorf("of another role: %d, %v", n, err)
	}
	if _, _, err := c.Generation(ctx, pki.RoleProxy, "x", nil); err == nil {
		t.Error("a generation without content")
	}
}

func TestComponentDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gateway.db")
	disk, err := OpenComponent(path)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := OpenMemoryComponent()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for _, c := range []*Component{disk, memory} {
		if body, e, g, err := c.Snapshot(); body != nil || e != 0 || g != 0 || err != nil {
			t.Errorf("before any: %q %d %d %v", body, e, g, err)
		}
		for i, s := range []struct {
			body string
			e, g uint64
			want error
		}{{"a", 1, 5, nil}, {"b", 1, 6, nil}, {"b", 1, 6, nil}, {"c", 1, 5, ErrStaleSnapshot}, {"d", 2, 1, nil}, {"e", 1, 99, ErrStaleSnapshot}} {
			if err := c.SaveSnapshot([]byte(s.body), s.e, s.g); !errors.Is(err, s.want) {
				t.Errorf("%d: %v, want %v", i, err, s.want)
			}
		}
		if body, e, g, err := c.Snapshot(); string(body) != "d" || e != 2 || g != 1 || err != nil {
			t.Errorf("held: %q %d %d %v", body, e, g, err)
		}
		if v, err := c.Get("announced"); v != nil || err != nil {
			t.Errorf("%q %v", v, err)
		}
		if err := errors.Join(c.Put("announced", []byte("x")), c.Put("announced", []byte("y")), c.Put("empty", nil), c.Put("gone", nil), c.Delete("gone")); err != nil {
			t.Fatal(err)
		}
		if v, err := c.Get("gone"); v != nil || err != nil {
			t.Errorf("%q %v", v, err)
		}
		if v, err := c.Get("empty"); v == nil || len(v) != 0 || err != nil {
			t.Errorf("%v %v", v, err)
		}
		if err := c.Put("big", make([]byte, maxValue+1)); err == nil {
			t.Error("too big a value was kept")
		}
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenComponent(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if body, e, g, err := again.Snapshot(); string(body) != "d" || e != 2 || g != 1 || err != nil {
		t.Errorf("after a restart: %q %d %d %v", body, e, g, err)
	}
	if v, err := again.Get("announced"); string(v) != "y" || err != nil {
		t.Errorf("after a restart: %q %v", v, err)
	}
	if err := again.ForgetSnapshot(); err != nil {
		t.Fatal(err)
	}
	if err := again.SaveSnapshot([]byte("new"), 1, 1); err != nil {
		t.Errorf("after joining anew: %v", err)
	}
}

// TestHoldersHaveOneCertificate: of what a component renews for itself only the
// newest is in use, and only that one can alert.
func TestHoldersHaveOneCertificate(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		var want []string
		for serial, holder := range map[string]string{"01": "proxy/p: public port", "02": "gateway/g: export", "03": ""} {
			for _, s := range []string{serial + "a", serial + "b"} {
				r := CertificateRecord{Serial: s, Kind: "service", NotBefore: noon, NotAfter: noon.Add(time.Hour), SPKI: hash(s), DER: []byte(s), Holder: holder, Root: hash("root")}
				if err := c.RecordCertificate(t.Context(), "core", r); err != nil {
					t.Fatal(err)
				}
			}
			want = append(want, serial+"b")
		}
		want = append(want, "03a")
		list, err := c.Certificates(t.Context(), false, noon)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range list {
			got = append(got, r.Serial)
			if !reflect.DeepEqual(r.Root, hash("root")) || r.Serial == "01b" && r.Holder != "proxy/p: public port" {
				t.Errorf("%+v", r)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("in use: %v, want %v", got, want)
		}
		if all, err := c.Certificates(t.Context(), true, noon); err != nil || len(all) != 6 {
			t.Errorf("all: %+v, %v", all, err)
		}
		bad := CertificateRecord{Serial: "04", Kind: "service", SPKI: hash("04"), DER: []byte("x"), Root: []byte("short")}
		if err := c.RecordCertificate(t.Context(), "core", bad); err == nil {
			t.Error("a root that is no hash was recorded")
		}
	})
}
