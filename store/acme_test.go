package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

func openTestACME(t *testing.T, path string) *ACME {
	t.Helper()
	a, err := OpenACME(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// TestACMELikeFiles does the same thousand things to our storage and to
// certmagic's own on files, and finds the same everywhere.
func TestACMELikeFiles(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for name, ours := range map[string]func() *ACME{
		"file": func() *ACME { return openTestACME(t, filepath.Join(t.TempDir(), "acme.db")) },
		"memory": func() *ACME {
			a, err := OpenMemoryACME()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { a.Close() })
			return a
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := certmagic.Storage(ours()), certmagic.Storage(&certmagic.FileStorage{Path: t.TempDir()})
			random := rand.New(rand.NewPCG(1, 2))
			names := []string{"a", "b", "ab", "a.b", "a0", "a-", "A", "é"}
			key := func() string {
				parts := make([]string, 1+random.IntN(3))
				for i := range parts {
					parts[i] = names[random.IntN(len(names))]
				}
				return strings.Join(parts, "/")
			}
			// Files call what lies below a file no directory.
			missing := func(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }
			for i := range 1000 {
				k := key()
				step := fmt.Sprintf("step %d, %s", i, k)
				switch random.IntN(7) {
				case 0, 1, 2:
					v := []byte(strconv.Itoa(i))
					ea, eb := a.Store(ctx, k, v), b.Store(ctx, k, v)
					if (ea == nil) != (eb == nil) {
						t.Fatalf("%s: store gives %v, files give %v", step, ea, eb)
					}
				case 3:
					if random.IntN(3) > 0 { // or nothing lasts
						continue
					}
					if ea, eb := a.Delete(ctx, k), b.Delete(ctx, k); ea != nil || eb != nil && !missing(eb) {
						t.Fatalf("%s: delete gives %v, files give %v", step, ea, eb)
					}
				case 4:
					va, ea := a.Load(ctx, k)
					vb, eb := b.Load(ctx, k)
					// A folder cannot be read: files say so in their own way.
					if !bytes.Equal(va, vb) || (ea == nil) != (eb == nil) || missing(eb) && !missing(ea) {
						t.Fatalf("%s: load gives %q %v, files give %q %v", step, va, ea, vb, eb)
					}
				case 5:
					ia, ea := a.Stat(ctx, k)
					ib, eb := b.Stat(ctx, k)
					if (ea == nil) != (eb == nil) || missing(ea) != missing(eb) || ia.Key != ib.Key || ia.IsTerminal != ib.IsTerminal || ib.IsTerminal && ia.Size != ib.Size {
						t.Fatalf("%s: stat gives %+v %v, files give %+v %v", step, ia, ea, ib, eb)
					}
					if ib.IsTerminal && (ia.Modified.Before(ib.Modified.Add(-time.Minute)) || ia.Modified.After(ib.Modified.Add(time.Minute))) {
						t.Fatalf("%s: modified %v, files say %v", step, ia.Modified, ib.Modified)
					}
					if a.Exists(ctx, k) != (eb == nil) {
						t.Fatalf("%s: exists differs", step)
					}
				case 6:
					if random.IntN(4) == 0 {
						k = ""
					}
					recursive := random.IntN(2) == 0
					la, ea := a.List(ctx, k, recursive)
					lb, eb := b.List(ctx, k, recursive)
					slices.Sort(la)
					slices.Sort(lb)
					if !slices.Equal(la, lb) || missing(ea) != missing(eb) {
						t.Fatalf("%s: list (recursive %v) gives %q %v, files give %q %v", step, recursive, la, ea, lb, eb)
					}
				}
			}
		})
	}
}

// site is the keys of a certificate's files as certmagic makes them.
func site(name string) (key, crt, meta string) {
	k := certmagic.StorageKeys
	return k.SitePrivateKey("ca", name), k.SiteCert("ca", name), k.SiteMeta("ca", name)
}

// TestACMEWholeCertificates: the files of a certificate are the former ones
// until all of the new ones are there.
func TestACMEWholeCertificates(t *testing.T) {
	t.Parallel()
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "acme.db")
	a := openTestACME(t, path)
	key, crt, meta := site("x.example")
	all := []string{key, crt, meta}
	put := func(version string, keys ...string) {
		t.Helper()
		for _, k := range keys {
			if err := a.Store(ctx, k, []byte(version)); err != nil {
				t.Fatal(err)
			}
		}
	}
	is := func(a *ACME, want ...string) {
		t.Helper()
		for i, k := range all {
			v, err := a.Load(ctx, k)
			if want[i] == "" && !errors.Is(err, fs.ErrNotExist) || want[i] != "" && string(v) != want[i] {
				t.Errorf("%s is %q (%v), want %q", k, v, err, want[i])
			}
			if a.Exists(ctx, k) != (want[i] != "") {
				t.Errorf("%s: exists is %v", k, want[i] == "")
			}
		}
	}
	put("1", key, crt)
	is(a, "", "", "")
	put("1", meta)
	is(a, "1", "1", "1")
	put("2", key, crt)
	is(a, "1", "1", "1")

	// As seen by others, and after a crash: what was held back is gone.
	b := openTestACME(t, path)
	is(b, "1", "1", "1")
	for _, k := range all {
		if err := b.Store(ctx, k, []byte("3")); err != nil {
			t.Fatal(err)
		}
	}
	is(a, "3", "3", "3")
	for _, k := range all {
		if v, err := a.Former(ctx, k); string(v) != "1" || err != nil {
			t.Errorf("formerly %s was %q (%v)", k, v, err)
		}
	}

	// What certmagic takes back when it could not store everything is what it
	// stored, not what was there before.
	for _, k := range []string{crt, key} {
		if err := a.Delete(ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	is(a, "3", "3", "3")
	put("4", meta) // alone: news about renewal
	is(a, "3", "3", "4")
	if err := a.Delete(ctx, "certificates/ca/x.example"); err != nil {
		t.Fatal(err)
	}
	is(a, "", "", "")
	if _, err := a.Former(ctx, key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is deleted is still there: %v", err)
	}

	registration, private := "acme/ca/users/me@x.example/me.json", "acme/ca/users/me@x.example/me.key"
	put("1", registration)
	if a.Exists(ctx, registration) {
		t.Error("half an account is there")
	}
	put("1", private)
	if !a.Exists(ctx, registration) || !a.Exists(ctx, private) {
		t.Error("the account is not there")
	}
}

// TestACMELeases: one has it at a time, also with several processes' worth of
// handles; what is not given back runs out.
func TestACMELeases(t *testing.T) {
	t.Parallel()
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "acme.db")
	a, b := openTestACME(t, path), openTestACME(t, path)
	var inside, runs atomic.Int32
	var running sync.WaitGroup
	for i := range 8 {
		s := []*ACME{a, b}[i%2]
		running.Go(func() {
			for range 5 {
				if err := s.Lock(ctx, "job"); err != nil {
					t.Error(err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two have the lease")
				}
				runs.Add(1)
				inside.Add(-1)
				if err := s.Unlock(ctx, "job"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if n := runs.Load(); n != 40 {
		t.Errorf("%d of 40 had it", n)
	}

	if ok, err := a.TryLock(ctx, "job"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for _, s := range []*ACME{a, b} {
		if ok, err := s.TryLock(ctx, "job"); ok || err != nil {
			t.Errorf("taken twice: %v", err)
		}
	}
	impatient, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := b.Lock(impatient, "job"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting ended with %v", err)
	}
	if err := a.RenewLockLease(ctx, "job", time.Hour); err != nil {
		t.Error(err)
	}
	if err := b.RenewLockLease(ctx, "job", time.Hour); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("renewed by another: %v", err)
	}
	if err := b.Unlock(ctx, "job"); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("given back by another: %v", err)
	}
	if err := a.Unlock(ctx, "job"); err != nil {
		t.Error(err)
	}

	// It is renewed while it is held, for longer than it lasts by itself.
	a, b = openTestACME(t, path), openTestACME(t, path)
	a.LeaseTime, b.LeaseTime = 2*time.Second, 2*time.Second
	if ok, err := a.TryLock(ctx, "job"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	until := time.Now().Add(3 * time.Second)
	for time.Now().Before(until) {
		if ok, _ := b.TryLock(ctx, "job"); ok {
			t.Fatal("taken although it is renewed")
		}
		time.Sleep(20 * time.Millisecond)
	}
	// A clock that says that its owner is silent.
	late := openTestACME(t, path)
	late.Now = func() time.Time { return time.Now().Add(time.Hour) }
	if ok, err := late.TryLock(ctx, "job"); !ok || err != nil {
		t.Fatalf("what ran out is not to be had: %v", err)
	}
	if err := a.RenewLockLease(ctx, "job", time.Minute); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("its former owner renews it: %v", err)
	}
	if err := a.Unlock(ctx, "job"); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("its former owner gives it back: %v", err)
	}
}

// TestACMELeaseOfAWrongClock: a lease that was taken while the clock was ahead runs
// out in its time once the clock is right, and is not lost to who lives.
func TestACMELeaseOfAWrongClock(t *testing.T) {
	t.Parallel()
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "acme.db")
	a, b := openTestACME(t, path), openTestACME(t, path)
	var ahead atomic.Int64
	a.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	a.LeaseTime, b.LeaseTime = 2*time.Second, 2*time.Second
	ahead.Store(int64(1000 * time.Hour))
	if ok, err := a.TryLock(ctx, "job"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	ahead.Store(0)
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if ok, _ := b.TryLock(ctx, "job"); ok {
			t.Fatal("taken although it is renewed")
		}
	}
	// Its owner is killed while the clock is ahead.
	ahead.Store(int64(1000 * time.Hour))
	if err := a.RenewLockLease(ctx, "job", time.Minute); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	close(a.leases["job"].stop)
	delete(a.leases, "job")
	a.mu.Unlock()
	patient, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := b.Lock(patient, "job"); err != nil {
		t.Fatalf("what nobody renews is not to be had: %v", err)
	}
	if err := b.Unlock(ctx, "job"); err != nil {
		t.Error(err)
	}
}

// TestACMEOpening: processes that start together agree on who makes the tables,
// and an older one in the way is named.
func TestACMEOpening(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "acme.db")
	var running sync.WaitGroup
	var all [6]*ACME
	for i := range all {
		running.Go(func() {
			var err error
			if all[i], err = OpenACME(path); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	defer func() {
		for _, a := range all {
			if a != nil {
				a.Close()
			}
		}
	}()
	for _, name := range []string{"", "-wal", "-shm", ".lock"} {
		if info, err := os.Stat(path + name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s%s: %v %v", path, name, info, err)
		}
	}
	later := acmeKind
	later.migrations = os.DirFS(t.TempDir())
	dir := t.TempDir()
	for _, name := range []string{"0001_a.sql", "0002_b.sql"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("SELECT 1;"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	later.migrations = os.DirFS(dir)
	if d, err := openShared(path, later); !errors.Is(err, ErrInUse) {
		t.Errorf("the tables change under an older process: %v", err)
		d.close()
	}
}

// acmePath makes of this binary the other process of TestACMEOwnerKilled.
const acmePath = "SALLYPORT_TEST_ACME"

func acmeChild(path string) {
	a, err := OpenACME(path)
	if err == nil {
		a.LeaseTime = 3 * time.Second
		err = a.Lock(context.Background(), "job")
	}
	if err == nil {
		err = a.Store(context.Background(), certmagic.StorageKeys.SitePrivateKey("ca", "x.example"), []byte("half"))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	select {} // until killed
}

// TestACMEOwnerKilled: what a killed process held is to be had after a while,
// and what it had written in half is not there.
func TestACMEOwnerKilled(t *testing.T) {
	t.Parallel()
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "acme.db")
	a := openTestACME(t, path)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), acmePath+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 64)
	n, _ := out.Read(line)
	if ok, err := a.TryLock(ctx, "job"); ok || err != nil {
		t.Errorf("the other process said %q, and its lease was to be had (%v)", line[:n], err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	patient, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := a.Lock(patient, "job"); err != nil {
		t.Fatal(err)
	}
	if a.Exists(ctx, certmagic.StorageKeys.SitePrivateKey("ca", "x.example")) {
		t.Error("half a certificate is there")
	}
}
