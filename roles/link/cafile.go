package link

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync/atomic"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// CAFile is a file of CA certificates, and of nothing else, that somebody else
// keeps up to date. A new one that cannot be used leaves the former in force.
type CAFile struct {
	what, file string
	changed    func()
	log        *slog.Logger
	held       atomic.Pointer[[]*x509.Certificate]
	bad        atomic.Pointer[string]
	watch      watched
}

// OpenCAFile reads the file for the first time; it has to be good. changed, if
// set, hears when another content is in force.
func OpenCAFile(what, file string, log *slog.Logger, changed func()) (*CAFile, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &CAFile{what: what, file: file, log: log, changed: changed}
	certs, sum, err := f.read()
	if err != nil {
		return nil, err
	}
	f.watch.seen = sum
	f.held.Store(&certs)
	return f, nil
}

// Certificates are those in force; the slice is not to be changed.
func (f *CAFile) Certificates() []*x509.Certificate { return *f.held.Load() }

// Run looks for changes until ctx ends.
func (f *CAFile) Run(ctx context.Context) error { return every(ctx, reloadEvery, f.look) }

func (f *CAFile) look() {
	certs, sum, err := f.read()
	if !f.watch.changed(sum, err) {
		return
	}
	if err != nil {
		why := err.Error()
		f.bad.Store(&why)
		f.log.Error("the new file of "+f.what+" cannot be used, the former stays in force", "cause", why)
		return
	}
	f.bad.Store(nil)
	f.held.Store(&certs)
	f.log.Info("the file of "+f.what+" has changed and is in force", "file", f.file, "certificates", len(certs))
	if f.changed != nil {
		f.changed()
	}
}

func (f *CAFile) read() ([]*x509.Certificate, [sha256.Size]byte, error) {
	text, err := readBounded(f.file)
	sum := sha256.Sum256(fmt.Appendf(nil, "%v\n%s", err, text))
	if err != nil {
		return nil, sum, fmt.Errorf("%s: %w", f.what, err)
	}
	certs, err := pki.ParseCertificatesPEM(text)
	if err == nil && len(certs) == 0 {
		err = fmt.Errorf("it holds no certificate")
	}
	if err != nil {
		return nil, sum, fmt.Errorf("%s: %s: %w", f.what, f.file, err)
	}
	for _, c := range certs {
		if !c.IsCA {
			return nil, sum, fmt.Errorf("%s: %s holds the certificate of %s, which is not a CA's: give the certificate that issued it", f.what, f.file, printable(c.Subject.String(), 200))
		}
	}
	return certs, sum, nil
}

// Report is what core is told: the certificate that ends first.
func (f *CAFile) Report() *control.Certificate {
	certs := f.Certificates()
	first := certs[0]
	for _, c := range certs {
		if c.NotAfter.Before(first.NotAfter) {
			first = c
		}
	}
	r := Report(f.what, first)
	if why := f.bad.Load(); why != nil {
		r.Error = printable(*why, 1024)
	}
	return r
}
