package store

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// version1 is a core's database as the first version of this program wrote it
// and left it: gateway "orders" and proxy "edge" (reusable, taken over once)
// joined, proxy "dmz1" invited, gateway "gone" removed, one instance of the
// reusable gateway "fleet".
func version1(t *testing.T) string {
	t.Helper()
	f, err := os.Open("testdata/core-v1.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "core.db")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// held is a certificate of before the migration in use.
func heldBefore(t *testing.T, c *Core, key string) KeyUse {
	t.Helper()
	list, err := c.Certificates(t.Context(), true, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if bytes.Equal(r.SPKI, hash(key)) {
			return KeyUse{Certificate: r, Source: here}
		}
	}
	t.Fatalf("the certificate of %s is gone", key)
	return KeyUse{}
}

func TestMigrateVersion1(t *testing.T) {
	path := version1(t)
	c := openCore(t, path)
	ctx := t.Context()
	verify(t, c)
	if info, err := os.Stat(path + ".v1"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("no copy of version 1: %v", err)
	}
	rows, err := c.AuditRows(ctx, 0, 100)
	if err != nil || len(rows) < 12 {
		t.Errorf("%d audit rows, %v", len(rows), err)
	}

	list, err := c.Components(ctx, "")
	if err != nil || len(list) != 5 {
		t.Fatalf("components %+v, %v", list, err)
	}
	for _, r := range list {
		if r.GRPCTLS != "" || r.CertNames != nil {
			t.Errorf("%s: %+v", r.Label(), r)
		}
	}
	for key, want := range map[string]error{"orders-key": nil, "edge-2": nil, "fleet-1": nil, "gone-key": ErrRevoked, "edge-1": ErrRevoked} {
		u := heldBefore(t, c, key)
		v, err := c.SawKey(ctx, u, noon.Add(time.Hour))
		if !errors.Is(err, want) || want == nil && v.State != KeyConfirmed {
			t.Errorf("%s: %+v, %v, want %v", key, v, err, want)
		}
		if (want == nil) != u.Certificate.Revoked.IsZero() || (want == nil) != (u.Certificate.Reason == "") {
			t.Errorf("%s: revoked %v for %q", key, u.Certificate.Revoked, u.Certificate.Reason)
		}
	}
	keys, err := c.Keys(ctx, pki.RoleGateway, "orders")
	if err != nil || len(keys) != 1 || keys[0].Serial != heldBefore(t, c, "orders-key").Certificate.Serial || !keys[0].NotAfter.Equal(noon.Add(day)) || keys[0].Root != nil {
		t.Errorf("keys %+v, %v", keys, err)
	}
	if keys, err := c.Keys(ctx, pki.RoleProxy, "dmz1"); err != nil || len(keys) != 0 {
		t.Errorf("of one that has not joined: %+v, %v", keys, err)
	}
	entries, err := c.RevocationEntries(ctx, 0)
	if err != nil || len(entries) != 2 || entries[0].Name != "gone" || entries[0].SPKI != nil || !bytes.Equal(entries[1].SPKI, hash("edge-1")) {
		t.Errorf("revocations %+v, %v", entries, err)
	}

	// Life goes on.
	if _, err := c.Renew(ctx, "core", Renewal{Holder: heldBefore(t, c, "orders-key"), NewSPKI: hash("orders-2"), Issue: issue(hash("orders-2"))}, noon.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SawKey(ctx, heldBefore(t, c, "orders-2"), noon.Add(2*time.Hour)); err != nil {
		t.Error(err)
	}
	if _, err := c.SawKey(ctx, heldBefore(t, c, "orders-key"), noon.Add(3*time.Hour)); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the key of before: %v", err)
	}
	if a := adopt(t, c, tokenFor("dmz1"), "dmz1-key"); a.Component.Name != "dmz1" {
		t.Errorf("a token of before: %+v", a)
	}
	if n, err := c.NextGeneration(ctx, pki.RoleGateway, "orders"); err != nil || n != 2 {
		t.Errorf("generation %d, %v", n, err)
	}
	if _, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, "fleet"); err != nil {
		t.Fatal(err)
	}
	verify(t, c)
	c.Close()

	// A backup of version 1 restores as well.
	if _, err := RestoreCore(ctx, operator, version1(t), path, Restoration{}, noon.Add(4*time.Hour)); err != nil {
		t.Fatal(err)
	}
	c = openCore(t, path)
	if _, err := c.SawKey(ctx, heldBefore(t, c, "fleet-1"), noon.Add(4*time.Hour)); !errors.Is(err, ErrRevoked) {
		t.Errorf("an instance that was removed after the backup: %v", err)
	}
	verify(t, c)
}
