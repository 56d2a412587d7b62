package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"sallyport/acme/pki"
)

// reloadEvery is how often the files are looked at. They are read and
// compared, not watched: so a renamed file, a symbolic link that points
// elsewhere and a Kubernetes secret are all seen.
const reloadEvery = 2 * time.Second

// maxCertificateFile bounds what is read of a file.
const maxCertificateFile = 1 << 20

// files is a certificate that something else renews: certbot, cert-manager, a
// human. A new pair that cannot be used leaves the old one in service and is
// reported once.
type files struct {
	cert, key string
	every     time.Duration
	changed   func()
	log       *slog.Logger
	now       func() time.Time
	held      atomic.Pointer[tls.Certificate]
	seen      [sha256.Size]byte // of both files, as last judged
	unsettled [sha256.Size]byte // of a bad pair seen once
}

// openFiles reads the pair for the first time; it has to be good.
func openFiles(cert, key string, log *slog.Logger, changed func()) (*files, error) {
	f := &files{cert: cert, key: key, every: reloadEvery, changed: changed, log: log, now: time.Now}
	c, sum, err := f.read()
	if err != nil {
		return nil, err
	}
	f.seen = sum
	f.held.Store(c)
	if f.now().After(c.Leaf.NotAfter) {
		log.Warn("the certificate of the public port has expired: renew it, it is picked up without a restart", "file", cert, "expired", c.Leaf.NotAfter)
	}
	return f, nil
}

func (f *files) current() (*tls.Certificate, error) { return f.held.Load(), nil }

func (f *files) run(ctx context.Context) {
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.look()
		case <-ctx.Done():
			return
		}
	}
}

// look takes a new pair into service if it is one and is good.
func (f *files) look() {
	c, sum, err := f.read()
	if sum == f.seen {
		return
	}
	held := f.held.Load()
	if err == nil && f.now().After(c.Leaf.NotAfter) && f.now().Before(held.Leaf.NotAfter) {
		err = fmt.Errorf("%s: the new certificate expired at %s", f.cert, c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if err != nil && sum != f.unsettled {
		// Two files are not replaced in one instant: a pair caught in between
		// is no news before it has been seen twice.
		f.unsettled = sum
		return
	}
	f.seen = sum
	if err != nil {
		f.log.Error("new certificate files of the public port cannot be used, the former stay in service", "cause", err.Error(), "until", held.Leaf.NotAfter)
		return
	}
	if bytes.Equal(c.Certificate[0], held.Certificate[0]) && len(c.Certificate) == len(held.Certificate) {
		return
	}
	f.held.Store(c)
	f.log.Info("the public port has a new certificate", "file", f.cert, "names", c.Leaf.DNSNames, "until", c.Leaf.NotAfter)
	f.changed()
}

// read reads the pair. The sum is that of what was read, also when it is bad.
func (f *files) read() (*tls.Certificate, [sha256.Size]byte, error) {
	hash := sha256.New()
	cert, certErr := readBounded(f.cert)
	key, keyErr := readBounded(f.key)
	fmt.Fprintf(hash, "%d\n%s%d\n%s%v%v", len(cert), cert, len(key), key, certErr, keyErr)
	var sum [sha256.Size]byte
	hash.Sum(sum[:0])
	if certErr != nil {
		return nil, sum, fmt.Errorf("certificate file: %w", certErr)
	}
	if keyErr != nil {
		return nil, sum, fmt.Errorf("key file: %w", keyErr)
	}
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		why := pki.Explain(err)
		return nil, sum, fmt.Errorf("%s with %s: %w", f.cert, f.key, &why)
	}
	return &c, sum, nil
}

func readBounded(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxCertificateFile {
		return nil, fmt.Errorf("%s is larger than %d KiB", name, maxCertificateFile>>10)
	}
	return os.ReadFile(name)
}
