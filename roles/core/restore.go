package core

import (
	"archive/tar"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/configs/fault"
	"sallyport/store"
)

// Restoration is a backup that is to become a core.
type Restoration struct {
	Set     configs.Core // DataDir, TrustDomain, and what the CA's keys are to be sealed with
	Archive io.Reader    // in the clear: OpenBackup

	// AcceptLoss goes on where revocations may be lost: although the database
	// that is there cannot be read, and on a fresh host without hearing the
	// components.
	AcceptLoss bool

	Actor string // who restores, for the audit
	Log   *slog.Logger

	at func(step string) error // tests stop here
}

// Restored is what a restoration came to.
type Restored struct {
	Made        time.Time // when the backup was made
	Version     string    // of the software that made it
	TrustDomain string
	Epoch       uint64   // that begins
	KeptCA      bool     // the CA that was here has gone on since the backup, and stays
	Awaits      []string // core issues and relays nothing before it has heard these: gateway/orders
	Any         bool     // or one of them, since none has a disk

	// APIKeys, where loss was accepted, are those that are good now: one that
	// was revoked after the backup may be among them.
	APIKeys []string
}

// Restore puts a backup in the place of what is in the data directory, while no
// core runs on it. Revocations are not undone by it: those of the database that
// is there, of the list beside it and of the backup's own list are merged, and
// on a fresh host, which has neither, core begins with what its components
// hold, see relearning. The CA that is there stays if it has gone on since the
// backup (a rotation cannot be taken back like that); its keys are sealed as
// the settings say.
//
// Everything is made ready in a directory beside, which gets its name by one
// rename; from then on the restoration happens, here or at core's next start,
// wherever it is interrupted. Until then nothing has changed.
func Restore(ctx context.Context, r Restoration) (Restored, error) {
	out, err := restore(ctx, r)
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	return out, nil
}

// restoration is the plan that lies in the directory.
type restoration struct {
	Manifest    manifest           `json:"manifest"`
	Epoch       uint64             `json:"epoch"` // the newest one known
	Revocations []store.Revocation `json:"revocations,omitempty"`
	AcceptLoss  bool               `json:"accept_loss"`
	Actor       string             `json:"actor"`
	ReplaceCA   bool               `json:"replace_ca"`
	Awaits      []string           `json:"awaits,omitempty"`
	Any         bool               `json:"any,omitempty"`

	liveKeys []string
	roots    []*x509.Certificate // of the CA in the backup, and of the one that is there
}

const filePlan = "plan.json"

// backupFileNames are the files of an archive.
var backupFileNames = []string{fileManifest, fileDatabase, fileCA, fileList}

func restoringPath(dataDir string) string { return filepath.Join(dataDir, "restoring") }

func restore(ctx context.Context, r Restoration) (Restored, error) {
	if r.at == nil {
		r.at = func(step string) error {
			fault.Point("restore", step)
			return nil
		}
	}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	s := r.Set
	if err := privateDir(s.DataDir); err != nil {
		return Restored{}, err
	}
	if err := nobodyRuns(s.DataDir); err != nil {
		return Restored{}, err
	}
	stage := restoringPath(s.DataDir) + ".tmp"
	if err := errors.Join(os.RemoveAll(stage), os.RemoveAll(restoringPath(s.DataDir)), os.MkdirAll(stage, 0o700)); err != nil {
		return Restored{}, err
	}
	defer os.RemoveAll(stage)
	plan := restoration{AcceptLoss: r.AcceptLoss, Actor: r.Actor}
	if plan.Actor == "" {
		plan.Actor = "restore"
	}
	var err error
	var keys []byte
	if plan.Manifest, keys, err = extract(r.Archive, stage); err != nil {
		return Restored{}, err
	}
	if err := r.at("unpacked"); err != nil {
		return Restored{}, err
	}
	if err := plan.prepareCA(ctx, r, stage, keys); err != nil {
		return Restored{}, err
	}
	if err := plan.prepareRevocations(ctx, r, stage); err != nil {
		return Restored{}, err
	}
	text, err := json.Marshal(plan)
	if err == nil {
		err = writeFile(filepath.Join(stage, filePlan), text)
	}
	if err := errors.Join(err, syncDir(stage), r.at("staged")); err != nil {
		return Restored{}, err
	}
	if err := errors.Join(os.Rename(stage, restoringPath(s.DataDir)), syncDir(s.DataDir)); err != nil {
		return Restored{}, err
	}
	if err := r.at("decided"); err != nil {
		return Restored{}, err
	}
	epoch, err := carryOut(ctx, s.DataDir, true, r.Log, r.at)
	if err != nil {
		return Restored{}, err
	}
	return Restored{Made: plan.Manifest.Made, Version: plan.Manifest.Version, TrustDomain: plan.Manifest.TrustDomain, Epoch: epoch,
		KeptCA: !plan.ReplaceCA, Awaits: plan.Awaits, Any: plan.Any, APIKeys: plan.liveKeys}, nil
}

// nobodyRuns refuses while a core answers on the data directory's socket.
func nobodyRuns(dataDir string) error {
	short, done, err := shortPath(filepath.Join(dataDir, "admin.sock"))
	if err != nil {
		return err
	}
	defer done()
	nc, err := net.DialTimeout("unix", short, time.Second)
	if err != nil {
		return nil
	}
	nc.Close()
	return fmt.Errorf("core is running on %s: stop it first, and start it again afterwards", dataDir)
}

// Bounds on the files of an archive; those that are kept in memory are small.
const (
	maxBackupFile = 64 << 30
	maxBackupKeys = 64 << 20
)

// extract unpacks an archive: the files that one has, and no others. The CA's
// keys stay in memory.
func extract(from io.Reader, stage string) (m manifest, keys []byte, err error) {
	bad := func(err error) (manifest, []byte, error) {
		return manifest{}, nil, fmt.Errorf("the backup is damaged or none of ours: %w", err)
	}
	seen := map[string]bool{}
	t := tar.NewReader(from)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return bad(err)
		}
		name := h.Name
		known := slices.Contains(backupFileNames, name)
		if !known || seen[name] || h.Typeflag != tar.TypeReg || h.Size > maxBackupFile || name == fileCA && h.Size > maxBackupKeys {
			return bad(fmt.Errorf("it contains %q", clean(name)))
		}
		seen[name] = true
		if name == fileCA {
			if keys, err = io.ReadAll(t); err != nil {
				return bad(err)
			}
			continue
		}
		f, err := os.OpenFile(filepath.Join(stage, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return manifest{}, nil, err
		}
		_, err = io.Copy(f, t)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return bad(err)
		}
	}
	for _, name := range backupFileNames {
		if !seen[name] {
			return bad(fmt.Errorf("%s is missing", name))
		}
	}
	// To its end, so that a file that was cut off is noticed.
	if _, err := io.Copy(io.Discard, from); err != nil {
		return bad(err)
	}
	text, err := os.ReadFile(filepath.Join(stage, fileManifest))
	if err != nil {
		return manifest{}, nil, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return bad(err)
	}
	if m.Format != backupFormat {
		return manifest{}, nil, fmt.Errorf("the backup was made by a newer version (%s, format %d): restore it with that", clean(m.Version), m.Format)
	}
	return m, keys, nil
}

// prepareCA decides which CA stays, and seals the backup's for this host.
func (p *restoration) prepareCA(ctx context.Context, r Restoration, stage string, keys []byte) error {
	staged, dir := filepath.Join(stage, "ca"), authorityDir(r.Set.DataDir)
	secret := secretOf(r.Set)
	if secret.Passphrase == "" && secret.KeyFile == "" {
		secret.KeyFile = pki.KeyFileBeside(dir)
	}
	backup, err := pki.RestoreAuthority(staged, secret, keys)
	if err != nil {
		return fmt.Errorf("the CA in the backup: %w", err)
	}
	p.roots = backup.Bundle().Roots
	td := backup.TrustDomain()
	if td != p.Manifest.TrustDomain {
		return fmt.Errorf("the backup is damaged: it is of %s and its CA of %s", p.Manifest.TrustDomain, td)
	}
	if r.Set.TrustDomain != "" && r.Set.TrustDomain != td && r.Set.TrustDomain != defaultTrustDomain {
		return fmt.Errorf("the backup is of the trust domain %s, and the settings say %s: leave --trust-domain out", td, r.Set.TrustDomain)
	}
	here, err := unseal(dir, r.Set, r.Log)
	switch {
	case err == nil && here.TrustDomain() != td:
		return fmt.Errorf("%s holds the CA of another trust domain, %s, and the backup is of %s: use an empty data directory", dir, here.TrustDomain(), td)
	case err == nil:
		if err := sameCore(ctx, r.Set.DataDir, here, backup); err != nil {
			return err
		}
		p.roots = append(p.roots, here.Bundle().Roots...)
		p.ReplaceCA = here.Generation() < backup.Generation() || here.Generation() == backup.Generation() && here.Since().Before(backup.Since())
	case errors.Is(err, pki.ErrWrongSecret):
		return fmt.Errorf("the CA that is there may have gone on since the backup, and cannot be opened: %w; if it is lost, move %s away", err, dir)
	default: // there is none, or it is damaged and kept aside
		if err := sameCore(ctx, r.Set.DataDir, nil, backup); err != nil {
			return err
		}
		p.ReplaceCA = true
	}
	if !p.ReplaceCA {
		return os.RemoveAll(staged)
	}
	return nil
}

// prepareRevocations collects what must not be forgotten, and who has to be
// heard if that may not be all.
func (p *restoration) prepareRevocations(ctx context.Context, r Restoration, stage string) error {
	p.Epoch = p.Manifest.Epoch
	list, err := readRevocations(filepath.Join(stage, fileList))
	if err != nil {
		return fmt.Errorf("the backup's list of revocations: %w", err)
	}
	beside, err := readRevocations(revocationsPath(r.Set.DataDir))
	if err != nil && !r.AcceptLoss {
		return fmt.Errorf("the list of revocations that is there cannot be read (--accept-loss goes on without): %w", err)
	}
	for _, l := range []*pki.RevocationList{list, beside} {
		if l == nil {
			continue
		}
		if l.TrustDomain != p.Manifest.TrustDomain {
			return fmt.Errorf("a list of revocations is of %s, and the backup of %s: files of two cores were mixed up", l.TrustDomain, p.Manifest.TrustDomain)
		}
		p.Epoch = max(p.Epoch, l.Epoch)
		p.Revocations = append(p.Revocations, storedRevocations(l)...)
	}
	_, err = os.Stat(filepath.Join(r.Set.DataDir, fileDatabase))
	if err == nil {
		return nil // it says itself what was revoked
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := store.OpenCore(filepath.Join(stage, fileDatabase))
	if err != nil {
		return fmt.Errorf("the backup's database: %w", err)
	}
	defer db.Close()
	if beside != nil && p.signed(revocationsPath(r.Set.DataDir)) {
		return nil
	}
	if r.AcceptLoss {
		keys, err := db.APIKeys(ctx)
		for _, k := range keys {
			if k.Revoked.IsZero() {
				p.liveKeys = append(p.liveKeys, k.Name)
			}
		}
		return err
	}
	components, err := db.Components(ctx, "")
	var passing []string // without a disk: each may be gone, but hardly all
	for _, c := range components {
		switch {
		case c.Parent != "":
			c.Name = c.Parent
			if label := c.Label(); !slices.Contains(passing, label) {
				passing = append(passing, label)
			}
		case c.State != store.StateJoined:
		case c.Reusable:
			passing = append(passing, c.Label())
		default:
			p.Awaits = append(p.Awaits, c.Label())
		}
	}
	if len(p.Awaits) == 0 {
		p.Awaits, p.Any = passing, len(passing) > 0
	}
	return err
}

// finishRestore carries out a restoration that was decided and interrupted.
func finishRestore(ctx context.Context, s configs.Core, log *slog.Logger) error {
	for _, left := range append(globIn(s.DataDir, backupTempBase+"*"), restoringPath(s.DataDir)+".tmp") {
		os.RemoveAll(left)
	}
	if _, err := os.Stat(restoringPath(s.DataDir)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	log.Warn("a restoration was interrupted and is finished now")
	if _, err := carryOut(ctx, s.DataDir, false, log, func(string) error { return nil }); err != nil {
		return fmt.Errorf("finish the restoration in %s: %w", restoringPath(s.DataDir), err)
	}
	return nil
}

// carryOut does what a decided restoration says; all of it can be done twice.
// A first attempt that fails before anything has changed is withdrawn.
func carryOut(ctx context.Context, dataDir string, first bool, log *slog.Logger, at func(string) error) (uint64, error) {
	dir := restoringPath(dataDir)
	text, err := os.ReadFile(filepath.Join(dir, filePlan))
	if err != nil {
		return 0, err
	}
	var p restoration
	if err := json.Unmarshal(text, &p); err != nil {
		return 0, fmt.Errorf("%s: %w", filePlan, err)
	}
	epoch, err := store.RestoreCore(ctx, store.Actor(p.Actor), filepath.Join(dir, fileDatabase), filepath.Join(dataDir, fileDatabase),
		store.Restoration{Made: p.Manifest.Made, Epoch: p.Epoch, Revocations: p.Revocations, AcceptLoss: p.AcceptLoss}, time.Now())
	if err != nil {
		if first {
			os.RemoveAll(dir)
		}
		return 0, err
	}
	if err := at("database"); err != nil {
		return 0, err
	}
	if staged := filepath.Join(dir, "ca"); p.ReplaceCA && exists(staged) {
		ca := authorityDir(dataDir)
		if exists(ca) {
			aside := fmt.Sprintf("%s.replaced-%d", ca, time.Now().Unix())
			if err := os.Rename(ca, aside); err != nil {
				return 0, err
			}
			log.Warn("the CA that was there is kept aside", "directory", aside)
		}
		if err := at("ca aside"); err != nil {
			return 0, err
		}
		if err := errors.Join(os.Rename(staged, ca), syncDir(dataDir)); err != nil {
			return 0, err
		}
	}
	if err := at("ca"); err != nil {
		return 0, err
	}
	if len(p.Awaits) > 0 {
		text, err := json.Marshal(relearningState{Restored: time.Now().UTC(), Awaits: p.Awaits, Any: p.Any})
		if err == nil {
			err = writeFile(relearningPath(dataDir), text)
		}
		if err != nil {
			return 0, err
		}
	} else if p.AcceptLoss { // else what an earlier restoration still waits for stays
		if err := os.Remove(relearningPath(dataDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	if err := at("awaits"); err != nil {
		return 0, err
	}
	return epoch, errors.Join(os.RemoveAll(dir), syncDir(dataDir))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
