package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

const backupPassphrase = "correct horse battery staple"

// backup is a backup file of the core, as the command line makes it.
func (r *running) backup() []byte {
	r.t.Helper()
	var file bytes.Buffer
	w, err := SealBackup(&file, backupPassphrase)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := errors.Join(r.admin.(*admin).core.archive(context.Background(), w), w.Close()); err != nil {
		r.t.Fatal(err)
	}
	return file.Bytes()
}

// restoreTo restores a backup file with the settings.
func restoreTo(t testing.TB, s configs.Core, file []byte, change func(*Restoration)) (Restored, error) {
	t.Helper()
	plain, err := OpenBackup(bytes.NewReader(file), backupPassphrase)
	if err != nil {
		t.Fatal(err)
	}
	r := Restoration{Set: s, Archive: plain, Actor: "test"}
	if change != nil {
		change(&r)
	}
	return Restore(context.Background(), r)
}

// revokedAfterBackup is a core whose gateway was removed after the backup.
func revokedAfterBackup(t *testing.T, s configs.Core) (r *running, g, other *gateway, p *proxy, file []byte) {
	r = start(t, s)
	r.apply(openPolicy)
	g, other = r.addGateway("thief"), r.addGateway("orders")
	other.connect()
	other.announce(true, "acme.v1.Orders")
	p = r.addProxy("dmz1")
	eventually(t, "a first call", func() error { return second(p.call("/acme.v1.Orders/Get")) })
	for _, name := range []string{"leaked", "ci"} {
		must(r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: name}))
	}
	file = r.backup()
	must(r.admin.RevokeAPIKey(context.Background(), &control.RevokeAPIKeyRequest{Name: "leaked"}))
	out, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "thief"})
	if err != nil || out.GetRevocation().GetEnforced() != 2 {
		t.Fatal(out, err)
	}
	return r, g, other, p, file
}

func stillRevoked(t *testing.T, r *running, g *gateway) {
	t.Helper()
	_, err := (&link.Dialler{Self: g.self, Log: g.log}).Dial(context.Background(), r.info.GRPCAddress, link.ALPNControl, pki.Expect{Role: pki.RoleCore})
	if got := code(err); got != pki.CodeRevoked {
		t.Errorf("a gateway that was revoked after the backup is answered with %v", err)
	}
	if m := r.component("gateway", "thief"); m != nil {
		t.Errorf("it is there: %v", m)
	}
	for _, k := range must(r.admin.ListAPIKeys(context.Background(), &control.ListAPIKeysRequest{})).GetKeys() {
		if revoked := k.GetRevokedUnix() != 0; revoked != (k.GetName() == "leaked") {
			t.Errorf("API key %v", k)
		}
	}
}

func TestRestoreOnTheSameHost(t *testing.T) {
	if testing.Short() {
		t.Skip("deriving keys from passphrases takes long under the race detector; not with -short")
	}
	s := settings(t)
	r, g, _, p, file := revokedAfterBackup(t, s)
	if _, err := restoreTo(t, s, file, nil); err == nil || !strings.Contains(err.Error(), "core is running") {
		t.Errorf("restored over a running core: %v", err)
	}
	before := r.admin.(*admin).core.publisher.epoch.Load()
	r.end()
	out, err := restoreTo(t, s, file, nil)
	if err != nil || len(out.Awaits) > 0 || !out.KeptCA || out.Epoch <= before {
		t.Fatalf("%+v %v", out, err)
	}
	// Nor is the list beside it needed.
	if err := os.Remove(revocationsPath(s.DataDir)); err != nil {
		t.Fatal(err)
	}
	r = start(t, s)
	stillRevoked(t, r, g)
	eventually(t, "the proxy is back", func() error {
		if m := r.component("proxy", "dmz1"); m.GetState() != "connected" || m.GetAcknowledgedGeneration() == 0 {
			return errors.New(m.String())
		}
		return nil
	})
	_ = p
}

// TestAFreshHostAsksItsComponents loses core's host: the newest backup and its
// passphrase are all there is.
func TestAFreshHostAsksItsComponents(t *testing.T) {
	s := settings(t)
	r, g, other, p, file := revokedAfterBackup(t, s)
	r.end()
	fresh := settings(t)
	fresh.CAPassphrase = "another secret of the fresh host"
	out, err := restoreTo(t, fresh, file, nil)
	if err != nil || fmt.Sprint(out.Awaits) != "[gateway/orders gateway/thief proxy/dmz1]" || out.KeptCA {
		t.Fatalf("%+v %v", out, err)
	}
	for _, path := range []string{"ca.key", "restoring", "restoring.tmp"} {
		if exists(filepath.Join(fresh.DataDir, path)) {
			t.Errorf("%s was left", path)
		}
	}
	r = start(t, fresh)
	if _, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "early", Peers: []string{"any"}}); err == nil || !strings.Contains(err.Error(), "gateway/orders") {
		t.Errorf("core issues before it knows what was revoked: %v", err)
	}
	// The proxy has come back by itself, and knows that thief was revoked, so
	// that only orders is waited for.
	eventually(t, "core has learnt from the proxy", func() error {
		if awaits := r.admin.(*admin).core.relearning.awaits(); fmt.Sprint(awaits) != "[gateway/orders]" {
			return fmt.Errorf("it waits for %v", awaits)
		}
		return nil
	})
	stillRevoked(t, r, g)
	expectStatus(t, second(p.call("/acme.v1.Orders/Get")), codes.Unavailable)
	moved := &gateway{member: newMember(t, pki.RoleGateway, "orders", r.log), core: r.info.GRPCAddress, upstream: other.upstream, seen: make(chan []relay.Field, 100)}
	moved.self.Set(other.self.Credentials(), other.self.Bundle())
	moved.connect()
	moved.announce(true, "acme.v1.Orders")
	eventually(t, "core relays again", func() error { return second(p.call("/acme.v1.Orders/Get")) })
	if exists(relearningPath(fresh.DataDir)) {
		t.Error("the note is still there")
	}
}

func TestAFreshHostMayAcceptTheLoss(t *testing.T) {
	r := start(t, settings(t))
	r.addGateway("orders")
	file := r.backup()
	r.end()
	fresh := settings(t)
	out, err := restoreTo(t, fresh, file, func(r *Restoration) { r.AcceptLoss = true })
	if err != nil || len(out.Awaits) > 0 {
		t.Fatalf("%+v %v", out, err)
	}
	r = start(t, fresh)
	r.addGateway("new")
}

// TestKilledWhileRestoring stops a restoration at each of its steps: what starts
// afterwards is the old core or the restored one.
func TestKilledWhileRestoring(t *testing.T) {
	if testing.Short() {
		t.Skip("deriving keys from passphrases takes long under the race detector; not with -short")
	}
	r := start(t, settings(t))
	r.addGateway("orders")
	file := r.backup()
	r.end()
	killed := errors.New("killed")
	for _, step := range []string{"staged", "decided", "database", "ca aside", "ca", "awaits"} {
		t.Run(step, func(t *testing.T) {
			s := settings(t)
			_, err := restoreTo(t, s, file, func(r *Restoration) {
				r.at = func(at string) error {
					if at == step {
						return killed
					}
					return nil
				}
			})
			if !errors.Is(err, killed) {
				t.Fatal(err)
			}
			restored := start(t, s)
			if m := restored.component("gateway", "orders"); (m != nil) != (step != "staged") {
				t.Errorf("after %s: %v", step, m)
			}
			if waits := restored.admin.(*admin).core.relearning.active.Load(); waits != (step != "staged") {
				t.Errorf("after %s core waits for its components: %v", step, waits)
			}
			if exists(restoringPath(s.DataDir)) {
				t.Error("the restoration is still there")
			}
			restored.end()
		})
	}
}

func TestABackupIsRefusedThatIsDamaged(t *testing.T) {
	if testing.Short() {
		t.Skip("deriving keys from passphrases takes long under the race detector; not with -short")
	}
	r := start(t, settings(t))
	file := r.backup()
	r.end()
	for name, change := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)-100] },
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
	} {
		s := settings(t)
		if out, err := restoreTo(t, s, change(bytes.Clone(file)), nil); err == nil {
			t.Errorf("%s: restored %+v", name, out)
		}
		if exists(filepath.Join(s.DataDir, "core.db")) || exists(filepath.Join(s.DataDir, "ca")) {
			t.Errorf("%s: something was left", name)
		}
	}
	if _, err := OpenBackup(bytes.NewReader(file), "another passphrase"); err == nil || !strings.Contains(err.Error(), "passphrase") {
		t.Errorf("opened with another passphrase: %v", err)
	}
	for _, secret := range []string{"AGE-SECRET-KEY", "PRIVATE KEY", "SQLite format"} {
		if bytes.Contains(file, []byte(secret)) {
			t.Errorf("%q stands in the backup in the clear", secret)
		}
	}
}

func TestScheduledBackups(t *testing.T) {
	s := settings(t)
	s.BackupDir, s.BackupEvery, s.BackupKeep, s.BackupPassphrase = filepath.Join(t.TempDir(), "backups"), time.Hour, 2, backupPassphrase
	r := start(t, s)
	eventually(t, "the first one", func() error {
		if n := len(backupFiles(s.BackupDir)); n != 1 {
			return fmt.Errorf("%d backups", n)
		}
		return nil
	})
	c := r.admin.(*admin).core
	for i := range 3 {
		if _, err := c.backupNow(context.Background(), time.Now().Add(time.Duration(i+1)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	made := backupFiles(s.BackupDir)
	if len(made) != 2 || len(globIn(s.BackupDir, "*")) != 2 {
		t.Fatalf("%v", made)
	}
	info, err := os.Stat(made[1].path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	file, err := os.ReadFile(made[1].path)
	if err != nil {
		t.Fatal(err)
	}
	r.end()
	if out, err := restoreTo(t, settings(t), file, nil); err != nil || out.TrustDomain != "test.internal" {
		t.Errorf("%+v %v", out, err)
	}
}
