package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sallyport/acme/pki"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		crashChild(dir)
		return
	}
	if dir := os.Getenv(restoreDir); dir != "" {
		restoreChild(dir)
		return
	}
	if path := os.Getenv(acmePath); path != "" {
		acmeChild(path)
		return
	}
	goleak.VerifyTestMain(m)
}

const operator = Actor("operator uid 1000")

var noon = time.Date(2031, 5, 4, 12, 0, 0, 0, time.UTC)

// openCore opens a core in a directory of its own, with a clock that stands at noon.
func openCore(t *testing.T, path string) *Core {
	t.Helper()
	c, err := OpenCore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Now = func() time.Time { return noon }
	return c
}

// eachCore runs a test on disk and in memory: both have to be the same.
func eachCore(t *testing.T, test func(t *testing.T, c *Core)) {
	t.Run("disk", func(t *testing.T) { test(t, openCore(t, filepath.Join(t.TempDir(), "core.db"))) })
	t.Run("memory", func(t *testing.T) {
		c, err := OpenMemoryCore()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.Now = func() time.Time { return noon }
		test(t, c)
	})
}

// hash stands for the hash of a key.
func hash(key string) []byte {
	h := sha256.Sum256([]byte(key))
	return h[:]
}

// tokenFor is an open token; its public key is derived from its name alone.
func tokenFor(name string) TokenRecord {
	return TokenRecord{PublicKey: hash("token " + name), Expires: noon.Add(30 * time.Minute)}
}

// issue stands for the authority: serial numbers tell issuances apart.
func issue(key []byte) func(ComponentRecord) (CertificateRecord, [][]byte, error) {
	return func(r ComponentRecord) (CertificateRecord, [][]byte, error) {
		id := pki.ID{TrustDomain: "sallyport.internal", Role: r.Role, Name: r.Name}
		serial := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %d %x", id, r.Incarnation, key)))[:16]
		der := []byte("certificate " + serial)
		return CertificateRecord{
			Serial: serial, Identity: id.String(), Kind: string(r.Role), NotBefore: noon, NotAfter: noon.Add(24 * time.Hour), SPKI: key, DER: der,
		}, [][]byte{der, []byte("intermediate")}, nil
	}
}

func add(t *testing.T, c *Core, r ComponentRecord, token TokenRecord) ComponentRecord {
	t.Helper()
	r, err := c.AddComponent(t.Context(), operator, r, token)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// join adds a gateway and lets it join.
func join(t *testing.T, c *Core, r ComponentRecord) Adopted {
	t.Helper()
	r = add(t, c, r, tokenFor(fmt.Sprint(r.Name, r.Role, time.Now().UnixNano())))
	token, err := c.TokenOf(t.Context(), r.Role, r.Name)
	if err != nil {
		t.Fatal(err)
	}
	return adopt(t, c, token, r.Name+fmt.Sprint(r.Incarnation))
}

func adopt(t *testing.T, c *Core, token TokenRecord, key string) Adopted {
	t.Helper()
	a, err := c.Adopt(t.Context(), "newcomer", Adoption{TokenPublicKey: token.PublicKey, SPKI: hash(key), Source: "192.0.2.1:4", Issue: issue(hash(key))}, noon)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// actions are what was audited, oldest first.
func actions(t *testing.T, c *Core) []string {
	t.Helper()
	rows, err := c.AuditRows(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for i := len(rows) - 1; i >= 0; i-- {
		list = append(list, rows[i].Action+" "+rows[i].Subject)
	}
	return list
}

func verify(t *testing.T, c *Core) {
	t.Helper()
	if err := c.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAnUnauditedChangeDoesNotCommit(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		err := c.decide(t.Context(), operator, func(t *tx) error {
			_, err := t.exec("INSERT INTO generations (role, name, generation) VALUES ('gateway', 'a', 7)")
			return err
		})
		if err == nil {
			t.Fatal("a privileged change without audit row was committed")
		}
		if n, err := c.NextGeneration(t.Context(), pki.RoleGateway, "a"); err != nil || n != 1 {
			t.Fatalf("generation %d, %v: the change is there", n, err)
		}
	})
}

func TestEveryDecisionNeedsAnActor(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		gateway := ComponentRecord{Role: pki.RoleGateway, Name: "a"}
		calls := map[string]func() error{
			"AddComponent": func() error { _, err := c.AddComponent(ctx, "", gateway, tokenFor("a")); return err },
			"SetComponent": func() error {
				_, err := c.SetComponent(ctx, "", pki.RoleGateway, "a", func(*ComponentRecord) error { return nil })
				return err
			},
			"RemoveComponent": func() error { _, err := c.RemoveComponent(ctx, "", pki.RoleGateway, "a"); return err },
			"ForgetInstances": func() error { _, err := c.ForgetInstances(ctx, "", noon); return err },
			"Adopt": func() error {
				_, err := c.Adopt(ctx, "", Adoption{SPKI: hash("k"), Issue: issue(hash("k"))}, noon)
				return err
			},
			"RecordCertificate": func() error { return c.RecordCertificate(ctx, "", CertificateRecord{}) },
			"CreateAPIKey": func() error {
				_, err := c.CreateAPIKey(ctx, "", APIKeyRecord{Name: "k", SHA256: hash("k")})
				return err
			},
			"RevokeAPIKey": func() error { _, err := c.RevokeAPIKey(ctx, "", "k"); return err },
			"ApplyPolicy":  func() error { _, err := c.ApplyPolicy(ctx, "", []byte("x")); return err },
			"AllowService": func() error { _, err := c.AllowService(ctx, "", "a.B", "a"); return err },
			"Audit":        func() error { return c.Audit(ctx, "", "a", "b", "c") },
			"Renew": func() error {
				_, err := c.Renew(ctx, "", Renewal{NewSPKI: hash("k"), Issue: issue(hash("k"))}, noon)
				return err
			},
			"RevokeCertificate": func() error {
				_, err := c.RevokeCertificate(ctx, "", RevokeRequest{Serial: "01", Unrecorded: true}, noon)
				return err
			},
			"MergeRevocations": func() error { _, err := c.MergeRevocations(ctx, "", nil, noon); return err },
			"IntendRotation":   func() error { return c.IntendRotation(ctx, "", StepPublish, 0, noon) },
			"ExtendRotation":   func() error { return c.ExtendRotation(ctx, "", day, noon) },
			"SettleRotation":   func() error { _, err := c.SettleRotation(ctx, "", ca(PhaseSteady, "x"), noon); return err },
			"SkipInRotation":   func() error { return c.SkipInRotation(ctx, "", pki.RoleGateway, "a") },
			"OpenEpoch":        func() error { _, err := c.OpenEpoch(ctx, "", 7, "x", noon); return err },
		}
		for name, call := range calls {
			if err := call(); !errors.Is(err, ErrNoActor) {
				t.Errorf("%s without actor: %v", name, err)
			}
		}
	})
}

// TestNothingSecretIsStored greps the files: what a token or an API key
// consists of must not be there, what identifies it must.
func TestNothingSecretIsStored(t *testing.T) {
	dir := t.TempDir()
	c := openCore(t, filepath.Join(dir, "core.db"))
	secret := []byte("spk_0123456789abcdefghijklmnopqrstuvwxyz")
	sum := sha256.Sum256(secret)
	if _, err := c.CreateAPIKey(t.Context(), operator, APIKeyRecord{Name: "ci", SHA256: sum[:], Prefix: "spk_0123"}); err != nil {
		t.Fatal(err)
	}
	add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "orders"}, tokenFor("orders"))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	if bytes.Contains(text, secret) || bytes.Contains(text, secret[9:]) {
		t.Error("the secret of an API key is in the database")
	}
	if !bytes.Contains(text, sum[:]) || !bytes.Contains(text, tokenFor("orders").PublicKey) {
		t.Error("the hash of the API key or the token's public key is not in the database: this test looks at the wrong place")
	}
}

func TestOpenMemoryTwinsAreApart(t *testing.T) {
	a, err := OpenMemoryCore()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := OpenMemoryCore()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := a.ApplyPolicy(context.Background(), operator, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Policy(context.Background(), 0); err == nil {
		t.Errorf("the other one has it: %+v", r)
	}
	if _, err := a.Policy(context.Background(), 1); err != nil {
		t.Error(err)
	}
}
