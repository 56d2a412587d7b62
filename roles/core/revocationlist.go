package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/store"
)

// revocationList is the signed list of every revocation, which outlives
// core.db: it lies beside it in a file (a serialized control.RevocationList),
// and every component holds a copy. It is made of the store's entries in their
// order, so that the same entries are the same list.
type revocationList struct {
	path string
	log  *slog.Logger
	db   *store.Core
	ca   *authority

	mu       sync.Mutex
	entries  []store.RevocationEntry
	epoch    uint64
	signer   *pki.Authority
	signed   *control.RevocationList
	signedAt uint64 // how many entries it has
	behind   bool   // the file is not what it should be
}

func revocationsPath(dataDir string) string { return filepath.Join(dataDir, "revocations") }

// readRevocations reads the list that lies beside a database; nil if there is
// none. It has the same protection on disk as the database. What it says
// counts also when it was signed by a CA that is gone: what was revoked stays
// revoked.
func readRevocations(path string) (*pki.RevocationList, error) {
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &control.RevocationList{}
	if err := proto.Unmarshal(body, p); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	list, err := pki.ParseRevocations(p.GetPayload())
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return list, nil
}

// adopt merges the file into the database, which may be an older copy.
func (l *revocationList) adopt(ctx context.Context) error {
	list, err := readRevocations(l.path)
	if err != nil {
		l.log.Error("the list of revocations cannot be read; it is kept aside and made anew from the database", "cause", err)
		return os.Rename(l.path, l.path+".unreadable")
	}
	if list == nil {
		return nil
	}
	if td := l.ca.get().TrustDomain(); list.TrustDomain != td {
		return fmt.Errorf("%s is the list of revocations of %s, and this core is that of %s: files of two cores were mixed up", l.path, list.TrustDomain, td)
	}
	n, err := l.db.MergeRevocations(ctx, actorCore, storedRevocations(list), time.Now())
	if err != nil {
		return err
	}
	if n > 0 {
		l.log.Warn("the database did not know of revocations that are in the list beside it: they count", "count", n)
	}
	_, err = l.db.OpenEpoch(ctx, actorCore, max(list.Epoch, 1)-1, "the list of revocations is of it", time.Now())
	return err
}

// current is the signed list of what is revoked now, and the number of its
// newest entry in the store.
func (l *revocationList) current(ctx context.Context, epoch uint64) (*control.RevocationList, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	after := uint64(len(l.entries))
	more, err := l.db.RevocationEntries(ctx, after)
	if err != nil {
		return nil, 0, err
	}
	l.entries = append(l.entries, more...)
	sequence, ca := uint64(len(l.entries)), l.ca.get()
	if l.signed == nil || l.signedAt != sequence || l.epoch != epoch || l.signer != ca {
		signed, err := signRevocations(ca, epoch, l.entries, time.Now())
		if err != nil {
			return nil, 0, err
		}
		l.behind = l.behind || !proto.Equal(signed, l.signed)
		l.signed, l.signedAt, l.epoch, l.signer = signed, sequence, epoch, ca
	}
	if l.behind {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(l.signed)
		if err == nil {
			err = writeFile(l.path, body)
		}
		if err != nil {
			l.log.Error("the list of revocations could not be written; it is tried again", "file", l.path, "cause", err)
		} else {
			l.behind = false
		}
	}
	return l.signed, sequence, nil
}

// head names the list in force.
func (l *revocationList) head() *control.RevocationListHead {
	l.mu.Lock()
	defer l.mu.Unlock()
	return pki.RevocationsHead(l.signed)
}

// signRevocations signs the list of the entries. One that no message could
// carry any more leaves out what has ended by itself.
func signRevocations(ca *pki.Authority, epoch uint64, entries []store.RevocationEntry, now time.Time) (*control.RevocationList, error) {
	list := &pki.RevocationList{TrustDomain: ca.TrustDomain(), Epoch: epoch}
	list.Append(listedRevocations(ca.TrustDomain(), entries)...)
	signed, err := ca.SignRevocations(list)
	if err == nil {
		return signed, nil
	}
	var live []store.RevocationEntry
	for _, e := range entries {
		if e.Ends.IsZero() || e.Ends.After(now) {
			live = append(live, e)
		}
	}
	if len(live) == len(entries) {
		return nil, fmt.Errorf("sign the list of revocations: %w", err)
	}
	list = &pki.RevocationList{TrustDomain: ca.TrustDomain(), Epoch: epoch}
	list.Append(listedRevocations(ca.TrustDomain(), live)...)
	if signed, err = ca.SignRevocations(list); err != nil {
		return nil, fmt.Errorf("sign the list of revocations: %w", err)
	}
	return signed, nil
}

// listedRevocations is how the signed list says what the store says: a
// certificate is revoked by its number, and then by its key, an API key by its
// hash alone.
func listedRevocations(domain string, rows []store.RevocationEntry) []pki.RevocationEntry {
	out := make([]pki.RevocationEntry, 0, len(rows))
	for _, r := range rows {
		e := pki.RevocationEntry{At: r.At, Reason: r.Reason}
		if r.Role != "" {
			e.Identity, e.Incarnation = pki.ID{TrustDomain: domain, Role: r.Role, Name: r.Name}, r.Incarnation
			out = append(out, e)
			continue
		}
		if r.Serial != "" {
			e.Serial = r.Serial
			out = append(out, e)
		}
		if len(r.SPKI) == 32 {
			out = append(out, pki.RevocationEntry{Key: r.SPKI, At: r.At, Reason: r.Reason})
		}
	}
	return out
}

// storedRevocations is the reverse. A key that follows a number of which no key
// is known may be another one's; it is revoked either way.
func storedRevocations(list *pki.RevocationList) []store.Revocation {
	var out []store.Revocation
	for _, e := range list.Entries {
		switch {
		case e.Serial != "":
			out = append(out, store.Revocation{Serial: e.Serial, Reason: e.Reason, At: e.At})
		case len(e.Key) == 32:
			if n := len(out); n > 0 && out[n-1].Serial != "" && out[n-1].SPKI == nil {
				out[n-1].SPKI = e.Key
			} else {
				out = append(out, store.Revocation{SPKI: e.Key, Reason: e.Reason, At: e.At})
			}
		case e.Incarnation > 0:
			out = append(out, store.Revocation{Role: e.Identity.Role, Name: e.Identity.Name, Incarnation: e.Incarnation, Reason: e.Reason, At: e.At})
		}
	}
	return out
}

// writeFile gives path a new content, durably and at once, for its owner only.
func writeFile(path string, body []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".tmp-"+filepath.Base(path)+"-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
