package core

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"google.golang.org/protobuf/proto"

	"sallyport/roles/control"
)

// A backup is a tar archive of everything that core is, in this order:
//
//	manifest.json  what follows: manifest, below
//	core.db        a consistent copy of the database
//	ca             the CA with its keys in the clear: (*pki.Authority).Backup
//	revocations    the signed list of revocations, a serialized RevocationList
//
// So the archive alone makes a core on a fresh host, and whoever has it has the
// CA: it leaves core's memory only towards the operator's own socket, or inside
// an age file (age-encryption.org/v1) with a passphrase, which is what backup
// files are. The database is copied first and the list last, so that a
// revocation in between is in the list.
type manifest struct {
	Format      int       `json:"format"` // 1
	Made        time.Time `json:"made"`
	Version     string    `json:"version"`
	TrustDomain string    `json:"trust_domain"`
	Epoch       uint64    `json:"epoch"`
}

const (
	backupFormat   = 1
	fileManifest   = "manifest.json"
	fileDatabase   = "core.db"
	fileCA         = "ca"
	fileList       = "revocations"
	backupChunk    = 256 << 10
	backupTempBase = ".tmp-backup-"

	// backupWork bounds what scrypt is told to do by a file that nothing has
	// authenticated yet: 1 GiB. Ours take a quarter of that.
	backupWork = 20
)

// SealBackup is the envelope of a backup file: what is written to the returned
// writer goes to w encrypted, and is complete when the writer was closed.
func SealBackup(w io.Writer, passphrase string) (io.WriteCloser, error) {
	if len(passphrase) < 8 {
		return nil, errors.New("the passphrase of a backup has at least 8 characters: use a random one, such as `openssl rand -base64 24` makes")
	}
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypt the backup: %w", err)
	}
	return age.Encrypt(w, to)
}

// OpenBackup is the reverse of SealBackup. What is read from it has been
// authenticated, up to where it was read.
func OpenBackup(r io.Reader, passphrase string) (io.Reader, error) {
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("open the backup: %w", err)
	}
	id.SetMaxWorkFactor(backupWork)
	plain, err := age.Decrypt(r, id)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, errors.New("the passphrase does not open this backup: use the one that it was made with")
	}
	if err != nil {
		return nil, fmt.Errorf("this is no backup file, or it is damaged: %w", err)
	}
	return plain, nil
}

// archive writes a backup in the clear.
func (c *core) archive(ctx context.Context, w io.Writer) error {
	dir, err := os.MkdirTemp(c.set.DataDir, backupTempBase) // 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := manifest{Format: backupFormat, Made: time.Now().UTC(), Version: c.version, Epoch: c.publisher.epoch.Load()}
	snapshot := filepath.Join(dir, fileDatabase)
	if err := c.db.Snapshot(ctx, snapshot); err != nil {
		return err
	}
	ca := c.ca.get()
	m.TrustDomain = ca.TrustDomain()
	keys, err := ca.Backup()
	if err != nil {
		return err
	}
	signed, _, err := c.publisher.list.current(ctx, m.Epoch)
	if err != nil {
		return err
	}
	list, err := proto.MarshalOptions{Deterministic: true}.Marshal(signed)
	if err != nil {
		return err
	}
	about, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	add := func(name string, size int64, body io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: m.Made.Truncate(time.Second), Format: tar.FormatPAX}); err != nil {
			return err
		}
		n, err := io.Copy(t, body)
		if err == nil && n != size {
			err = fmt.Errorf("%s changed while it was read", name)
		}
		return err
	}
	bytesOf := func(name string, body []byte) error { return add(name, int64(len(body)), bytes.NewReader(body)) }
	if err := bytesOf(fileManifest, about); err != nil {
		return err
	}
	db, err := os.Open(snapshot)
	if err != nil {
		return err
	}
	defer db.Close()
	info, err := db.Stat()
	if err != nil {
		return err
	}
	if err := add(fileDatabase, info.Size(), db); err != nil {
		return err
	}
	return errors.Join(bytesOf(fileCA, keys), bytesOf(fileList, list), t.Close())
}

// Backup streams a backup in the clear to the operator, who encrypts it before
// it touches a disk.
func (a *admin) Backup(_ *control.BackupRequest, stream control.Admin_BackupServer) error {
	ctx := stream.Context()
	if err := a.core.db.Audit(ctx, actor(ctx), "core.backup", "core", "streamed to the operator"); err != nil {
		return refusal(err)
	}
	w := &chunks{stream: stream}
	if err := a.core.archive(ctx, w); err != nil {
		return refusal(fmt.Errorf("backup: %w", err))
	}
	if err := w.flush(); err != nil {
		return refusal(err)
	}
	a.core.log.Info("a backup was made", "actor", actor(ctx))
	return nil
}

// chunks sends what is written to it.
type chunks struct {
	stream control.Admin_BackupServer
	buffer []byte
}

func (c *chunks) Write(b []byte) (int, error) {
	written := len(b)
	for len(b) > 0 {
		n := min(backupChunk-len(c.buffer), len(b))
		c.buffer, b = append(c.buffer, b[:n]...), b[n:]
		if len(c.buffer) == backupChunk {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

func (c *chunks) flush() error {
	if len(c.buffer) == 0 {
		return nil
	}
	err := c.stream.Send(&control.BackupChunk{Data: c.buffer})
	c.buffer = nil // the message may still be on its way
	return err
}

// Scheduled backups are files sallyport-DATE.backup, the oldest of which give
// way.
const (
	backupPrefix = "sallyport-"
	backupSuffix = ".backup"
	backupDate   = "20060102T150405Z"
	backupRetry  = 5 * time.Minute
)

// backups makes a backup file whenever one is due, until ctx ends.
func (c *core) backups(ctx context.Context) error {
	if c.set.BackupDir == "" {
		return nil
	}
	for {
		wait := time.Duration(0)
		if made := backupFiles(c.set.BackupDir); len(made) > 0 {
			wait = time.Until(made[len(made)-1].at.Add(c.set.BackupEvery))
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-c.backupDue:
			timer.Stop()
		}
		name, err := c.backupNow(ctx, time.Now())
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			c.alerts.raise(ctx, alert{Code: "backup_failed", Subject: "core", Once: "backup", Text: "the scheduled backup could not be made: " + clean(err.Error()),
				Remedy: "see to " + c.set.BackupDir + "; it is tried again every few minutes"})
			if !pause(ctx, min(backupRetry, c.set.BackupEvery)) {
				return nil
			}
			continue
		}
		c.alerts.over(ctx, "backup")
		c.log.Info("a scheduled backup was made", "file", name)
	}
}

// backupSoon makes a backup due: the CA has changed, and an older one would
// bring back what components do not believe any more.
func (c *core) backupSoon() {
	select {
	case c.backupDue <- struct{}{}:
	default:
	}
}

// backupNow makes one backup file, complete or not at all, and removes those
// that are too many.
func (c *core) backupNow(ctx context.Context, now time.Time) (string, error) {
	dir := c.set.BackupDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for _, left := range globIn(dir, backupTempBase+"*") {
		os.Remove(left)
	}
	f, err := os.CreateTemp(dir, backupTempBase) // 0600
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	w, err := SealBackup(f, c.secrets.Load().backup.Reveal())
	if err != nil {
		return "", err
	}
	if err := c.archive(ctx, w); err != nil {
		return "", err
	}
	if err := errors.Join(w.Close(), f.Sync(), f.Close()); err != nil {
		return "", err
	}
	name := filepath.Join(dir, backupPrefix+now.UTC().Format(backupDate)+backupSuffix)
	if err := os.Rename(f.Name(), name); err != nil {
		return "", err
	}
	if err := syncDir(dir); err != nil {
		return "", err
	}
	if err := c.db.Audit(ctx, actorCore, "core.backup", "core", "scheduled, to "+name); err != nil {
		return "", err
	}
	made := backupFiles(dir)
	for _, old := range made[:max(len(made)-max(c.set.BackupKeep, 1), 0)] {
		if err := os.Remove(old.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return name, nil
}

type backupFile struct {
	path string
	at   time.Time
}

// backupFiles are the backups in dir, the oldest first; by name, since times of
// files do not survive copying.
func backupFiles(dir string) (out []backupFile) {
	for _, path := range globIn(dir, backupPrefix+"*"+backupSuffix) {
		date := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), backupPrefix), backupSuffix)
		if at, err := time.Parse(backupDate, date); err == nil {
			out = append(out, backupFile{path, at})
		}
	}
	slices.SortFunc(out, func(a, b backupFile) int { return a.at.Compare(b.at) })
	return out
}

// globIn is what in dir has a name of a pattern; dir itself is none.
func globIn(dir, pattern string) (out []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if ok, err := filepath.Match(pattern, e.Name()); ok && err == nil {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}
