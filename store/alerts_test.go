package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

func TestAlertOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	c := openCore(t, path)
	for i, want := range []bool{true, false, false} {
		if first, err := c.AlertOnce(t.Context(), "expires 01 1/4"); err != nil || first != want {
			t.Errorf("%d: %v, %v", i, first, err)
		}
		c.Close()
		c = openCore(t, path)
	}
	if first, err := c.AlertOnce(t.Context(), "expires 01 1/10"); err != nil || !first {
		t.Errorf("another one: %v, %v", first, err)
	}
	if err := c.ForgetAlert(t.Context(), "expires 01 1/4"); err != nil {
		t.Fatal(err)
	}
	if first, err := c.AlertOnce(t.Context(), "expires 01 1/4"); err != nil || !first {
		t.Errorf("after it was over: %v, %v", first, err)
	}
	if _, err := c.AlertOnce(t.Context(), strings.Repeat("x", 513)); err == nil {
		t.Error("a key without bound")
	}
}

func TestAlertsAreBounded(t *testing.T) {
	c, err := OpenMemoryCore()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.db.writer.Exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?) INSERT INTO alerts (key, at) SELECT 'old ' || i, i FROM n", maxAlerts); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if first, err := c.AlertOnce(t.Context(), fmt.Sprint("new ", i)); err != nil || !first {
			t.Fatal(first, err)
		}
	}
	if n, err := one(t.Context(), c.db.reader, value[int], "SELECT count(*) FROM alerts"); err != nil || n != maxAlerts {
		t.Errorf("%d alerts, %v", n, err)
	}
	if first, err := c.AlertOnce(t.Context(), "new 0"); err != nil || first {
		t.Errorf("the newest gave way: %v, %v", first, err)
	}
}

func TestReportedCertificates(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})
		add(t, c, ComponentRecord{Role: pki.RoleProxy, Name: "p"}, tokenFor("p"))
		held := func(what string, end time.Duration) HeldCertificate {
			return HeldCertificate{What: what, Subject: "CN=" + what, Serial: "0a", Warning: "CA ends", NotBefore: noon, NotAfter: noon.Add(end)}
		}
		if err := errors.Join(
			c.ReportCertificates(ctx, pki.RoleGateway, "a", []HeldCertificate{held("export", time.Hour), held("upstream orders", 9*time.Hour)}),
			c.ReportCertificates(ctx, pki.RoleProxy, "p", []HeldCertificate{held("public port", 2*time.Hour), held("public port\nforged line", 3*time.Hour)}),
			c.ReportCertificates(ctx, pki.RoleGateway, "a", []HeldCertificate{held("export", 5*time.Hour)}),
		); err != nil {
			t.Fatal(err)
		}
		list, err := c.HeldCertificates(ctx)
		if err != nil || len(list) != 3 || list[0].Name != "p" || list[2].Role != pki.RoleGateway || list[2].What != "export" || !list[2].NotAfter.Equal(noon.Add(5*time.Hour)) || list[2].Reported != noon || list[2].Warning != "CA ends" {
			t.Fatalf("%+v, %v", list, err)
		}
		if strings.Contains(list[1].What, "\n") {
			t.Errorf("a peer's text is not cleaned: %q", list[1].What)
		}
		if err := c.ReportCertificates(ctx, pki.RoleGateway, "a", make([]HeldCertificate, MaxHeldCertificates+1)); !errors.Is(err, ErrTooMany) {
			t.Errorf("too many: %v", err)
		}
		if err := c.ReportCertificates(ctx, pki.RoleGateway, "nobody", nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("of nobody: %v", err)
		}
		if _, err := c.RemoveComponent(ctx, operator, pki.RoleProxy, "p"); err != nil {
			t.Fatal(err)
		}
		if list, err := c.HeldCertificates(ctx); err != nil || len(list) != 1 {
			t.Errorf("after a removal: %+v, %v", list, err)
		}
	})
}
