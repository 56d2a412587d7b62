package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path"
	"strings"
	"time"
)

// useless says why what a CA handed out is of no use. It is not stored, so that
// the former certificate stays, and the next one is ordered as late as after a
// refusal: the CA counts this one as had.
type useless struct{ cause string }

func (u *useless) Error() string { return u.cause }

// inspect looks at a file before it is stored: a chain has to be of use for the
// domain whose folder it goes to, with the key that was stored before it.
func (s *sealed) inspect(key string, value []byte) error {
	folder, file := path.Split(key)
	ext := path.Ext(file)
	domain := strings.TrimSuffix(file, ext)
	if !strings.HasPrefix(key, "certificates/") || path.Base(folder) != domain {
		return nil
	}
	switch ext {
	case ".key":
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keys[domain] = value
	case ".crt":
		s.mu.Lock()
		private := s.keys[domain]
		delete(s.keys, domain)
		s.mu.Unlock()
		return usable(domain, value, private, time.Now())
	}
	return nil
}

// usable says why a chain is of no use for a domain, as a [useless]. Who vouches
// for it is not looked at: that is for callers to say.
func usable(domain string, chain, private []byte, now time.Time) error {
	no := func(format string, args ...any) error {
		return &useless{"what the CA handed out is of no use: " + fmt.Sprintf(format, args...)}
	}
	block, _ := pem.Decode(chain)
	if block == nil {
		return no("it is no PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return no("it is no certificate (%s)", oneLine(err.Error()))
	}
	if leaf.VerifyHostname(domain) != nil {
		return no("it is no certificate for it, but for %s", oneLine(strings.Join(leaf.DNSNames, ", ")))
	}
	if !leaf.NotAfter.After(now) {
		return no("its end was at %s; here it is %s: is the clock right?", leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if private == nil {
		return nil // it came without one: certmagic has not been seen to do so
	}
	if _, err := tls.X509KeyPair(chain, private); err != nil {
		return no("it is for another key (%s)", oneLine(err.Error()))
	}
	return nil
}

// refused ends the order that ctx belongs to.
func refused(ctx context.Context, err error) error {
	if a, ours := ctx.Value(attemptKey{}).(*attempt); ours {
		a.err = err
		a.cancel()
	}
	return err
}

// pace is how long to wait after the due-th certificate in a row that was due for
// renewal as soon as it was there, left before its end: CAs limit how many they
// hand out, and one that lasts for minutes is renewed in time nevertheless.
func pace(due int, left time.Duration) time.Duration {
	if due == 0 {
		return 0
	}
	return max(0, min(refusalPauses[min(due, len(refusalPauses))-1], left/3))
}
