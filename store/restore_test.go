package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

func backUp(t *testing.T, c *Core) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	if err := c.Snapshot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSnapshotWhileWriting copies a database that others write to: each copy is
// one state, whole and readable by itself.
func TestSnapshotWhileWriting(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				if _, err := c.ApplyPolicy(ctx, operator, fmt.Append(nil, i)); err != nil {
					if ctx.Err() != nil {
						err = nil
					}
					done <- err
					return
				}
			}
		}()
		dir := filepath.Join(t.TempDir(), "päth with #?%20 in it")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		last := 0
		for i := range 5 {
			path := filepath.Join(dir, fmt.Sprint(i, ".db"))
			if err := c.Snapshot(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
			copied, err := OpenCore(path)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, copied)
			rows, err := copied.AuditRows(t.Context(), 0, 1_000_000)
			policy, perr := copied.Policy(t.Context(), 0)
			if err != nil || perr != nil && !errors.Is(perr, ErrNotFound) || int(policy.Version) != len(rows) || len(rows) < last {
				t.Errorf("copy %d: policy %d, %d rows after %d, %v, %v", i, policy.Version, len(rows), last, err, perr)
			}
			last = len(rows)
			copied.Close()
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if last == 0 {
			t.Error("nothing was written meanwhile: this test proves nothing")
		}
		taken := filepath.Join(dir, "0.db")
		before, _ := os.ReadFile(taken)
		if err := c.Snapshot(t.Context(), taken); !errors.Is(err, ErrExists) {
			t.Errorf("over another file: %v", err)
		}
		if after, _ := os.ReadFile(taken); !bytes.Equal(before, after) {
			t.Error("the other file was changed")
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.partial")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// lived is a core with a past: what was done before a backup and after it.
func lived(t *testing.T, path string) (c *Core, p *cast, backup string) {
	t.Helper()
	c = openCore(t, path)
	p = &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
	for _, name := range []string{"orders", "quiet", "late", "doomed"} {
		p.join(name, name, noon)
	}
	add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "invited"}, tokenFor("invited"))
	if _, err := c.CreateAPIKey(t.Context(), operator, APIKeyRecord{Name: "ci", SHA256: hash("ci"), Prefix: "spk_"}); err != nil {
		t.Fatal(err)
	}
	for range 7 {
		if _, err := c.NextGeneration(t.Context(), pki.RoleGateway, "orders"); err != nil {
			t.Fatal(err)
		}
	}
	renew(t, p, "late", "late", "late2", noon.Add(5*time.Minute), false) // pending at the backup
	if _, err := c.SettleRotation(t.Context(), "core", ca(PhaseSteady, "one"), noon); err != nil {
		t.Fatal(err)
	}
	if err := c.IntendRotation(t.Context(), operator, StepCompromised, 0, noon); err != nil {
		t.Fatal(err)
	}
	backup = backUp(t, c)

	later := noon.Add(6 * time.Hour)
	c.Now = func() time.Time { return later }
	renew(t, p, "orders", "orders", "orders2", later, true)
	renew(t, p, "orders", "orders2", "orders3", later.Add(time.Hour), true)
	renew(t, p, "late", "late2", "late3", later, true)
	if _, err := c.Adopt(t.Context(), "newcomer", Adoption{TokenPublicKey: tokenFor("invited").PublicKey, SPKI: hash("invited"), Issue: p.issue("invited", noon.Add(20*time.Minute))}, noon.Add(20*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveComponent(t.Context(), operator, pki.RoleGateway, "doomed"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RevokeAPIKey(t.Context(), operator, "ci"); err != nil {
		t.Fatal(err)
	}
	return c, p, backup
}

// renew takes a component to its next key.
func renew(t *testing.T, p *cast, name, key, next string, at time.Time, seen bool) {
	t.Helper()
	if _, err := p.c.Renew(t.Context(), "core", Renewal{Holder: KeyUse{Certificate: p.certs[key]}, NewSPKI: hash(next), Issue: p.issue(next, at)}, at); err != nil {
		t.Fatal(name, err)
	}
	if !seen {
		return
	}
	if _, err := p.c.SawKey(t.Context(), KeyUse{Certificate: p.certs[next]}, at); err != nil {
		t.Fatal(name, err)
	}
}

// TestRestore restores a backup on the same host, where the database is still
// there, and on a fresh one, where the components' lists say what was revoked.
func TestRestore(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		t.Run(map[bool]string{false: "same host", true: "fresh host"}[fresh], func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "core.db")
			c, p, backup := lived(t, path)
			r := Restoration{Made: noon.Add(10 * time.Minute)}
			if fresh {
				list, err := c.Revocations(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				r.Revocations, r.Epoch = list, 41
			}
			restored := noon.Add(12 * time.Hour)
			if _, err := RestoreCore(t.Context(), operator, backup, path, r, restored); !errors.Is(err, ErrInUse) {
				t.Fatalf("while core runs: %v", err)
			}
			c.Close()
			if fresh {
				path = filepath.Join(t.TempDir(), "new", "core.db")
			}
			epoch, err := RestoreCore(t.Context(), operator, backup, path, r, restored)
			if err != nil || epoch != uint64(restored.Unix()) {
				t.Fatalf("epoch %d, %v", epoch, err)
			}
			left, _ := filepath.Glob(path + "*")
			for _, f := range left {
				if f != path && f != path+".lock" {
					t.Errorf("left behind: %s", f)
				}
			}
			c = openCore(t, path)
			c.Now = func() time.Time { return restored.Add(time.Minute) }
			verify(t, c)
			if got, err := c.Epoch(t.Context()); err != nil || got != epoch {
				t.Errorf("epoch %d, %v", got, err)
			}
			if n, err := c.NextGeneration(t.Context(), pki.RoleGateway, "orders"); err != nil || n != 1 {
				t.Errorf("generation %d, %v", n, err)
			}
			if rows, err := c.AuditRows(t.Context(), 0, 1); err != nil || rows[0].Action != "core.restore" || rows[0].Actor != operator {
				t.Errorf("audited %+v, %v", rows, err)
			}

			if r, err := c.Rotation(t.Context()); err != nil || r.Intent != "" || r.Phase != PhaseSteady {
				t.Errorf("a step that was intended then is still to be done: %+v, %v", r, err)
			}
			saw := func(key string, want error) {
				t.Helper()
				if _, err := c.SawKey(t.Context(), KeyUse{Certificate: p.certs[key], Source: here}, restored.Add(time.Minute)); !errors.Is(err, want) {
					t.Errorf("key %s: %v, want %v", key, err, want)
				}
			}
			saw("quiet", nil)             // has not renewed since
			saw("doomed", ErrRevoked)     // removed after the backup
			saw("orders3", nil)           // has renewed twice since
			saw("orders3", nil)           //
			saw("orders2", ErrSuperseded) // older than the one that was seen, and not known either
			saw("orders", ErrSuperseded)
			saw("late3", nil) // was pending, confirmed, and renewed
			saw("late2", ErrSuperseded)
			saw("invited", nil) // joined after the backup
			if r, err := c.Component(t.Context(), pki.RoleGateway, "invited"); err != nil || r.State != StateJoined || !bytes.Equal(r.SPKI, hash("invited")) {
				t.Errorf("%+v, %v", r, err)
			}
			if n := strings.Count(strings.Join(actions(t, c), "\n"), "alarm.superseded_key"); n != 3 {
				t.Errorf("%d alarms", n)
			}
			atMostOneOfEach(t, c)
			// The next renewal goes on from there.
			p.c = c
			renew(t, p, "orders", "orders3", "orders4", restored.Add(time.Hour), true)

			keys, err := c.APIKeys(t.Context())
			if err != nil || len(keys) != 1 || keys[0].Revoked.IsZero() {
				t.Errorf("API keys %+v, %v", keys, err)
			}
		})
	}
}

// TestRestoredAcceptsNothingElse: a certificate of before the backup, or of
// after the restoration, that is not known was never issued.
func TestRestoredAcceptsNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	c, p, backup := lived(t, path)
	c.Close()
	restored := noon.Add(12 * time.Hour)
	if _, err := RestoreCore(t.Context(), operator, backup, path, Restoration{Made: noon.Add(10 * time.Minute)}, restored); err != nil {
		t.Fatal(err)
	}
	c = openCore(t, path)
	orders := ComponentRecord{Role: pki.RoleGateway, Name: "orders", Incarnation: 1}
	for at, want := range map[time.Duration]error{7 * time.Minute: ErrNotJoined, 13*time.Hour + time.Minute: ErrNotJoined} {
		forged := p.made(orders, fmt.Sprint("forged ", at), noon.Add(at))
		if _, err := c.SawKey(t.Context(), KeyUse{Certificate: forged}, restored.Add(2*time.Hour)); !errors.Is(err, want) {
			t.Errorf("issued %s after noon: %v", at, err)
		}
	}
}

func TestEpochsAreNeverUsedTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	c, _, backup := lived(t, path)
	c.Close()
	last := uint64(1)
	for i, r := range []Restoration{{}, {}, {Epoch: 1 << 40}, {}} {
		epoch, err := RestoreCore(t.Context(), operator, backup, path, r, noon.Add(time.Duration(i)*time.Second))
		if err != nil || epoch <= last {
			t.Fatalf("restoration %d: epoch %d after %d, %v", i, epoch, last, err)
		}
		last = epoch
	}
	c = openCore(t, path)
	for _, above := range []uint64{0, last - 1} {
		if epoch, err := c.OpenEpoch(t.Context(), "core", above, "a component has seen it", noon); err != nil || epoch != last {
			t.Errorf("above %d: %d, %v", above, epoch, err)
		}
	}
	if _, err := c.NextGeneration(t.Context(), pki.RoleGateway, "orders"); err != nil {
		t.Fatal(err)
	}
	if epoch, err := c.OpenEpoch(t.Context(), "core", last+5, "a component has seen it", noon); err != nil || epoch != last+6 {
		t.Errorf("epoch %d, %v", epoch, err)
	}
	if n, err := c.NextGeneration(t.Context(), pki.RoleGateway, "orders"); err != nil || n != 1 {
		t.Errorf("generation %d, %v", n, err)
	}
	if _, err := c.OpenEpoch(t.Context(), "core", 1<<63, "nonsense", noon); err == nil {
		t.Error("an epoch that nothing comes after")
	}
}

func TestRestoreRefusals(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "core.db")
	c, _, backup := lived(t, path)
	c.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		p := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(p, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	forged := filepath.Join(t.TempDir(), "forged.db")
	if err := os.WriteFile(forged, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	f := openCore(t, forged)
	if _, err := f.db.writer.Exec("DROP TRIGGER audit_is_not_changed; UPDATE audit SET detail = 'nothing' WHERE sequence = 2"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	other := filepath.Join(t.TempDir(), "proxy.db")
	if component, err := OpenComponent(other); err != nil {
		t.Fatal(err)
	} else {
		component.Close()
	}
	for name, test := range map[string]struct {
		from string
		want error
	}{
		"nothing":            {filepath.Join(dir, "nowhere"), fs.ErrNotExist},
		"rubbish":            {file("x", []byte("rubbish")), nil},
		"half of it":         {file("x", whole[:len(whole)/2]), nil},
		"a component's":      {other, ErrForeign},
		"with forged audit":  {forged, ErrAuditBroken},
		"with a broken page": {file("x", append(append(bytes.Clone(whole[:len(whole)-9000]), bytes.Repeat([]byte{7}, 5000)...), whole[len(whole)-4000:]...)), nil},
	} {
		if epoch, err := RestoreCore(t.Context(), operator, test.from, path, Restoration{}, noon); err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: epoch %d, %v", name, epoch, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Fatalf("%s: the database that was there has changed, %v", name, err)
		}
	}
	if _, err := RestoreCore(t.Context(), "", backup, path, Restoration{}, noon); !errors.Is(err, ErrNoActor) {
		t.Errorf("without actor: %v", err)
	}

	// One that is there and cannot be read is not passed over silently.
	if err := os.WriteFile(path, append([]byte("broken"), before[6:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreCore(t.Context(), operator, backup, path, Restoration{}, noon); err == nil || !strings.Contains(err.Error(), "--accept-loss") {
		t.Errorf("over one that cannot be read: %v", err)
	}
	if _, err := RestoreCore(t.Context(), operator, backup, path, Restoration{AcceptLoss: true}, noon); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path + ".unreadable"); err != nil || !bytes.HasPrefix(kept, []byte("broken")) {
		t.Errorf("it was not kept: %v", err)
	}
	verify(t, openCore(t, path))
}

const restoreDir = "SALLYPORT_STORE_RESTORE_DIR"

// restoreChild restores until it is killed, or done.
func restoreChild(dir string) {
	fmt.Println("go")
	_, err := RestoreCore(context.Background(), operator, filepath.Join(dir, "backup.db"), filepath.Join(dir, "core.db"), Restoration{}, noon)
	fmt.Println("done", err)
}

// TestKilledRestoreIsOldOrNew kills the process at times that fall into each part
// of a restoration.
func TestKilledRestoreIsOldOrNew(t *testing.T) {
	c, _, backup := lived(t, filepath.Join(t.TempDir(), "core.db"))
	original := backUp(t, c)
	c.Close()
	outcome := map[string]int{}
	for round := range 16 {
		dir := t.TempDir()
		path := filepath.Join(dir, "core.db")
		for from, to := range map[string]string{original: path, backup: filepath.Join(dir, "backup.db")} {
			if err := copyFile(from, to); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), restoreDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			killer := time.AfterFunc(time.Duration(round-1)*3*time.Millisecond, func() { cmd.Process.Kill() })
			defer killer.Stop()
		}
		cmd.Wait()

		c := openCore(t, path)
		verify(t, c)
		_, err = c.Component(t.Context(), pki.RoleGateway, "doomed")
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("round %d: what was revoked is back: %v", round, err)
		}
		keys, err := c.Keys(t.Context(), pki.RoleGateway, "orders")
		epoch, err2 := c.Epoch(t.Context())
		switch {
		case err != nil || err2 != nil:
			t.Error(round, err, err2)
		case epoch == 1 && bytes.Equal(keys[0].SPKI, hash("orders3")):
			outcome["old"]++
		case epoch == uint64(noon.Unix()) && bytes.Equal(keys[0].SPKI, hash("orders")):
			outcome["new"]++
		default:
			t.Errorf("round %d: epoch %d with key %x is neither the old state nor the new one", round, epoch, keys[0].SPKI)
		}
		c.Close()
		// And it can be done again.
		if _, err := RestoreCore(t.Context(), operator, filepath.Join(dir, "backup.db"), path, Restoration{}, noon.Add(time.Minute)); err != nil {
			t.Errorf("round %d: once more: %v", round, err)
		}
	}
	t.Log(outcome)
	if outcome["new"] == 0 {
		t.Errorf("outcomes %v: the undisturbed one has to be new", outcome)
	}
}
