package link

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
)

// Anchors are the CA certificates that outside certificates are verified with:
// those of a file that somebody else keeps up to date, or the system's. An
// intermediate alone is an anchor too, as chain.pem of certbot has it. If it
// chains to a root of the system, that root is one as well, so that the CA's
// change of intermediates is survived.
type Anchors struct {
	file   string // "" for the system's
	log    *slog.Logger
	system func() (*x509.CertPool, error)
	pool   atomic.Pointer[x509.CertPool]
	watch  watched
}

// OpenAnchors reads what --grpc-ca or --proxy-grpc-ca names: a PEM file, or
// "system". Run keeps it up to date.
func OpenAnchors(name string, log *slog.Logger) (*Anchors, error) {
	return openAnchors(name, log, x509.SystemCertPool)
}

func openAnchors(name string, log *slog.Logger, system func() (*x509.CertPool, error)) (*Anchors, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Anchors{file: name, log: log, system: system}
	if name == "system" {
		pool, err := system()
		if err != nil {
			return nil, fmt.Errorf("the system's CA certificates: %w: give a CA file instead", err)
		}
		a.file = ""
		a.pool.Store(pool)
		return a, nil
	}
	pool, sum, err := a.read()
	if err != nil {
		return nil, err
	}
	a.watch.seen = sum
	a.pool.Store(pool)
	return a, nil
}

// Pool is what is in force now.
func (a *Anchors) Pool() *x509.CertPool { return a.pool.Load() }

// Run looks for changes of the file until ctx ends. A new file that cannot be
// used leaves the former in force and is reported once.
func (a *Anchors) Run(ctx context.Context) error {
	if a.file == "" {
		<-ctx.Done()
		return nil
	}
	return every(ctx, reloadEvery, a.look)
}

func (a *Anchors) look() {
	pool, sum, err := a.read()
	if !a.watch.changed(sum, err) {
		return
	}
	if err != nil {
		a.log.Error("the new CA file cannot be used, the former stays in force", "cause", err.Error())
		return
	}
	a.pool.Store(pool)
	a.log.Info("the CA file has changed and is in force", "file", a.file)
}

func (a *Anchors) read() (*x509.CertPool, [sha256.Size]byte, error) {
	text, err := readBounded(a.file)
	sum := sha256.Sum256(fmt.Appendf(nil, "%v\n%s", err, text))
	if err != nil {
		return nil, sum, fmt.Errorf("CA file: %w", err)
	}
	certs, err := pki.ParseCertificatesPEM(text)
	if err != nil {
		return nil, sum, fmt.Errorf("CA file %s: %w", a.file, err)
	}
	if len(certs) == 0 {
		return nil, sum, fmt.Errorf("CA file %s holds no certificate: give the CA's certificates in PEM, or the word system", a.file)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	for _, root := range a.above(certs) {
		pool.AddCert(root)
		a.log.Info("the CA file holds an intermediate of a public CA: its root is trusted as well, so that a change of intermediates is survived",
			"file", a.file, "root", printable(root.Subject.String(), 200))
	}
	return pool, sum, nil
}

// above are the system's roots to which intermediates of the file chain.
func (a *Anchors) above(certs []*x509.Certificate) []*x509.Certificate {
	system, err := a.system()
	if err != nil || system == nil {
		return nil
	}
	given, between := map[string]bool{}, x509.NewCertPool()
	for _, c := range certs {
		given[string(c.Raw)] = true
		between.AddCert(c)
	}
	var roots []*x509.Certificate
	for _, c := range certs {
		if !c.IsCA || string(c.RawSubject) == string(c.RawIssuer) {
			continue
		}
		paths, err := c.Verify(x509.VerifyOptions{Roots: system, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			continue
		}
		for _, path := range paths {
			if root := path[len(path)-1]; !given[string(root.Raw)] {
				given[string(root.Raw)] = true
				roots = append(roots, root)
			}
		}
	}
	return roots
}

// reloadEvery is how often files are looked at. They are read and compared,
// not watched: so a renamed file, a symbolic link that points elsewhere and a
// Kubernetes secret are all seen.
const reloadEvery = 2 * time.Second

func every(ctx context.Context, d time.Duration, f func()) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f()
		case <-ctx.Done():
			return nil
		}
	}
}

// watched is what is known of files that somebody else writes.
type watched struct {
	seen      [sha256.Size]byte // as last judged
	unsettled [sha256.Size]byte // of bad content seen once
}

// changed reports whether content is new and to be judged. Files are not
// written, nor several replaced, in one instant: bad content is no news before
// it has been seen twice.
func (w *watched) changed(sum [sha256.Size]byte, err error) bool {
	if sum == w.seen {
		return false
	}
	if err != nil && sum != w.unsettled {
		w.unsettled = sum
		return false
	}
	w.seen = sum
	return true
}

// maxCertificateFile bounds what is read of a file.
const maxCertificateFile = 1 << 20

func readBounded(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New(name + " is no file")
	}
	if info.Size() > maxCertificateFile {
		return nil, fmt.Errorf("%s is larger than %d KiB", name, maxCertificateFile>>10)
	}
	return os.ReadFile(name)
}
