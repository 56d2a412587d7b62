package core

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sallyport/acme/pki"
	"sallyport/store"
)

// crls keeps the certificate revocation lists that others fetch. They are made
// anew when something was revoked, when the CA has changed, and long before
// they end; in between, and over a restart, they stay the same, so that no
// snapshot moves for their sake.
type crls struct {
	path string
	log  *slog.Logger
	db   *store.Core
	ca   *authority

	mu   sync.Mutex
	kept keptCRLs
}

type keptCRLs struct {
	Of   string    `json:"of"` // hash of what they say and who signs
	Made time.Time `json:"made"`
	DER  [][]byte  `json:"der"` // callers' issuer first
}

// crlFresh is for how long a list is served before it is made anew; it is good
// for a day.
const crlFresh = 8 * time.Hour

func openCRLs(dataDir string, log *slog.Logger, db *store.Core, ca *authority) *crls {
	c := &crls{path: filepath.Join(dataDir, "crl.json"), log: log, db: db, ca: ca}
	if text, err := os.ReadFile(c.path); err == nil {
		if err := json.Unmarshal(text, &c.kept); err != nil {
			c.kept = keptCRLs{}
		}
	}
	return c
}

// current are the lists of now, in DER.
func (c *crls) current(ctx context.Context, now time.Time) ([][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows, err := c.db.RevokedCertificates(ctx, now)
	if err != nil {
		return nil, err
	}
	ca := c.ca.get()
	of := crlState(ca, rows)
	if age := now.Sub(c.kept.Made); c.kept.Of == of && age >= 0 && age < crlFresh {
		return c.kept.DER, nil
	}
	entries := make([]pki.CRLEntry, 0, len(rows))
	for _, r := range rows {
		entries = append(entries, pki.CRLEntry{Serial: r.Serial, Revoked: r.At, Reason: r.Reason, NotAfter: r.NotAfter})
	}
	ders, err := ca.CRLs(entries, 0, now)
	if err != nil {
		return nil, fmt.Errorf("make the revocation lists for others: %w", err)
	}
	c.kept = keptCRLs{Of: of, Made: now, DER: ders}
	text, err := json.Marshal(c.kept)
	if err == nil {
		err = writeFile(c.path, text)
	}
	if err != nil {
		c.log.Warn("the revocation lists for others are not on disk and will be made again at the next start", "cause", err)
	}
	return ders, nil
}

// due reports whether the lists are to be made anew although nothing changed.
func (c *crls) due(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Sub(c.kept.Made) >= crlFresh
}

func crlState(ca *pki.Authority, rows []store.RevokedCertificate) string {
	h := sha256.New()
	for _, cert := range ca.Certificates() {
		fmt.Fprintf(h, "%s %x\n", cert.What, pki.SPKI(cert.Cert))
	}
	for _, r := range rows {
		fmt.Fprintf(h, "%s %d %q\n", r.Serial, r.At.Unix(), r.Reason)
	}
	return hex.EncodeToString(h.Sum(nil))
}
