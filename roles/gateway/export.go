package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// The files of an exported pair. They are symbolic links into exportCurrent,
// itself a symbolic link to a directory that holds one whole pair and is never
// changed: replacing exportCurrent replaces all three in one instant, as
// Kubernetes does it. Who resolves exportCurrent once and reads there never reads
// half of a pair; the former directory stays until the next pair comes.
const (
	exportCert    = "tls.crt"
	exportKey     = "tls.key"
	exportCA      = "ca.crt"
	exportCurrent = "..current"
	exportPrefix  = "..pair-"
)

// exportWait is how long an answer of core is waited for.
const exportWait = 30 * time.Second

// exporter keeps a renewed certificate, its key and the CA in a directory, for
// a service beside this gateway.
type exporter struct {
	dir     string
	request func(ctx context.Context, csr []byte) ([][]byte, error)
	bundle  func() *pki.Bundle
	names   func() (names []string, known bool) // as core knows them now
	issuer  func() []byte                       // SHA-256 of the key of who issues now; nil: not known
	now     func() time.Time
	log     *slog.Logger
	upkeep  *link.Upkeep
	held    atomic.Pointer[exported]
}

// exported is what lies in the directory.
type exported struct {
	leaf  *x509.Certificate
	names []string // that were asked for
	cert  []byte
	key   []byte
	ca    []byte
}

// openExporter reads what a former run left. Files of others in the directory
// are left alone: if they have our names, that is an error.
func openExporter(e *exporter) (*exporter, error) {
	if err := os.MkdirAll(e.dir, 0o755); err != nil {
		return nil, fmt.Errorf("--export-cert: %w", err)
	}
	for _, name := range []string{exportCert, exportKey, exportCA} {
		path := filepath.Join(e.dir, name)
		target, err := os.Readlink(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && target == filepath.Join(exportCurrent, name) {
			continue
		}
		return nil, fmt.Errorf("--export-cert: %s exists and was not made by this gateway: give a directory of its own, or move the file away", path)
	}
	e.upkeep = link.NewUpkeep("the pair in "+e.dir, e.now, e.log, func(ctx context.Context) (*x509.Certificate, error) {
		err := e.look(ctx)
		return e.leaf(), err
	})
	if held, err := e.read(); err == nil {
		e.held.Store(held)
	}
	return e, nil
}

// read reads the pair that is there.
func (e *exporter) read() (*exported, error) {
	dir := filepath.Join(e.dir, exportCurrent)
	cert, certErr := os.ReadFile(filepath.Join(dir, exportCert))
	key, keyErr := os.ReadFile(filepath.Join(dir, exportKey))
	ca, caErr := os.ReadFile(filepath.Join(dir, exportCA))
	if err := errors.Join(certErr, keyErr, caErr); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return &exported{leaf: pair.Leaf, cert: cert, key: key, ca: ca}, nil
}

// look does what is to be done now: a new pair when the time has come or the
// names are others, the CA alone when that has changed.
func (e *exporter) look(ctx context.Context) error {
	names, known := e.names()
	if !known {
		return nil // core has not said yet
	}
	held, ca := e.held.Load(), e.bundle().PEM()
	switch {
	case held == nil, !e.now().Before(link.RenewalOf(held.leaf)), !e.issues(held.leaf), !covers(held.leaf, names), held.names != nil && !slices.Equal(held.names, names):
		return e.renew(ctx, names, ca)
	case !bytes.Equal(held.ca, ca):
		return e.place(&exported{leaf: held.leaf, names: held.names, cert: held.cert, key: held.key, ca: ca})
	}
	return nil
}

// issues reports whether leaf is from the CA that issues now: after a rotation
// others may know the new root alone.
func (e *exporter) issues(leaf *x509.Certificate) bool { return e.bundle().Current(leaf, e.issuer()) }

// covers reports whether leaf is good for every name.
func covers(leaf *x509.Certificate, names []string) bool {
	for _, name := range names {
		if !slices.Contains(leaf.DNSNames, name) && !slices.ContainsFunc(leaf.IPAddresses, func(ip net.IP) bool { return ip.String() == name }) {
			return false
		}
	}
	return true
}

// renew gets a certificate for a new key and puts both in place.
func (e *exporter) renew(ctx context.Context, names []string, ca []byte) error {
	asking, cancel := context.WithTimeout(ctx, exportWait)
	defer cancel()
	key, chain, err := link.RequestCertificate(asking, e.request)
	if err != nil {
		return err
	}
	text, err := pki.MarshalKeyPEM(key)
	if err != nil {
		return err
	}
	next := &exported{leaf: chain[0], names: append([]string{}, names...), cert: pki.MarshalCertificatesPEM(chain), key: text, ca: ca}
	if err := e.place(next); err != nil {
		return err
	}
	e.log.Info("the exported certificate is renewed", "directory", e.dir, "names", chain[0].DNSNames, "until", chain[0].NotAfter.UTC())
	return nil
}

// place puts a pair into the directory: durable first, then in one rename.
func (e *exporter) place(next *exported) error {
	former, _ := os.Readlink(filepath.Join(e.dir, exportCurrent))
	dir, err := os.MkdirTemp(e.dir, exportPrefix)
	if err != nil {
		return fmt.Errorf("export the certificate: %w", err)
	}
	if err := e.fill(dir, next); err != nil {
		os.RemoveAll(dir)
		return fmt.Errorf("export the certificate: %w", err)
	}
	e.held.Store(next)
	e.sweep(filepath.Base(dir), former)
	return nil
}

func (e *exporter) fill(dir string, next *exported) error {
	for _, f := range []struct {
		name string
		text []byte
		mode os.FileMode
	}{{exportCert, next.cert, 0o644}, {exportKey, next.key, 0o600}, {exportCA, next.ca, 0o644}} {
		if err := writeDurably(filepath.Join(dir, f.name), f.text, f.mode); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o755), syncDir(dir)); err != nil {
		return err
	}
	if err := e.point(filepath.Base(dir), exportCurrent); err != nil {
		return err
	}
	for _, name := range []string{exportCert, exportKey, exportCA} { // the first time, or when one was deleted
		target := filepath.Join(exportCurrent, name)
		if is, err := os.Readlink(filepath.Join(e.dir, name)); err == nil && is == target {
			continue
		}
		if err := e.point(target, name); err != nil {
			return err
		}
	}
	return syncDir(e.dir)
}

// point makes a symbolic link, or turns it, in one instant.
func (e *exporter) point(target, name string) error {
	temp := filepath.Join(e.dir, exportPrefix+"link")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(e.dir, name))
}

// sweep removes former pairs, but for the last: somebody may be reading it; and
// what a killed process left.
func (e *exporter) sweep(keep ...string) {
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		return
	}
	for _, f := range entries {
		if strings.HasPrefix(f.Name(), exportPrefix) && !slices.Contains(keep, f.Name()) {
			_ = os.RemoveAll(filepath.Join(e.dir, f.Name())) // again the next time
		}
	}
}

func (e *exporter) leaf() *x509.Certificate {
	if held := e.held.Load(); held != nil {
		return held.leaf
	}
	return nil
}

// report is what core is told of the pair; nil while there is none.
func (e *exporter) report() *control.Certificate { return e.upkeep.Report("export", e.leaf()) }

func writeDurably(name string, text []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
