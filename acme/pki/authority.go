package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

var (
	// ErrNoAuthority means that the directory holds no CA at all.
	ErrNoAuthority = errors.New("there is no certificate authority")
	// ErrAuthorityExists means that CreateAuthority would have had to overwrite.
	ErrAuthorityExists = errors.New("there is something already, and a certificate authority is never overwritten")
	// ErrAuthorityChanged means that somebody else has changed the CA since it
	// was opened.
	ErrAuthorityChanged = errors.New("the certificate authority was changed by another process meanwhile")
)

// The files of an authority.
const (
	sealedFile = "authority.age" // everything, sealed
	publicFile = "ca.crt"        // the roots, for others to install; written, never read
)

// Authority issues certificates. It is immutable and safe for concurrent use:
// what changes a CA returns the Authority to use from then on, after it is
// durable. Its keys are in memory in the clear and on disk sealed only.
type Authority struct {
	dir    string
	secret Secret
	sealed [32]byte // hash of the file that holds state
	state  *state

	// What issues at present, out of state.
	trustDomain string
	root        *x509.Certificate
	components  issuer
	callers     callersIssuer
	pins        [][32]byte
}

// CreateAuthority makes a CA and stores it in dir, which must not exist or be
// empty. The directory appears whole or not at all: everything is written and
// synced beside it and then renamed. The key file that secret may name is made
// first, if it is not there.
func CreateAuthority(dir string, secret Secret, trustDomain string, now time.Time) (*Authority, error) {
	fail := func(err error) (*Authority, error) {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create the certificate authority in %s: %w; use an empty directory, or remove that one if its certificates are to die", dir, ErrAuthorityExists)
		}
		return nil, fmt.Errorf("create the certificate authority in %s: %w", dir, err)
	}
	if err := ValidTrustDomain(trustDomain); err != nil {
		return fail(err)
	}
	s, err := newState(trustDomain, 1, now)
	if err != nil {
		return fail(err)
	}
	a, err := placeAuthority(dir, secret, s)
	if err != nil {
		return fail(err)
	}
	return a, nil
}

// placeAuthority seals a state into a directory that it makes; fs.ErrExist if
// there is something. The key file that secret may name is made first.
func placeAuthority(dir string, secret Secret, s *state) (*Authority, error) {
	secret, err := secret.at(dir)
	if err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fs.ErrExist // before a key file is made
	}
	if err := secret.prepare(); err != nil {
		return nil, err
	}
	sealed, err := sealState(s, secret)
	if err != nil {
		return nil, err
	}
	if err := writeDir(dir, map[string][]byte{sealedFile: sealed, publicFile: s.bundle().PEM()}); err != nil {
		return nil, err
	}
	return newAuthority(dir, secret, sealed, s)
}

// OpenAuthority reads what CreateAuthority stored, or what changed it since,
// and checks that keys and certificates belong together. ErrWrongSecret tells
// that the secret is another one. A directory that holds something else is an
// error that is not ErrNoAuthority, so that nobody makes a second CA over the
// remains of the first.
func OpenAuthority(dir string, secret Secret) (*Authority, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, fmt.Errorf("open the certificate authority in %s: %w; make one with: sallyport ca init %s", dir, ErrNoAuthority, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open the certificate authority: %w", err)
	}
	a, err := readAuthority(dir, secret)
	if errors.Is(err, ErrWrongSecret) {
		return nil, fmt.Errorf("open the certificate authority in %s: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the certificate authority in %s: %w; restore the directory from a backup, do not make a new one over it", dir, err)
	}
	return a, nil
}

func readAuthority(dir string, secret Secret) (*Authority, error) {
	secret, err := secret.at(dir)
	if err != nil {
		return nil, err
	}
	sealed, err := readPrivate(filepath.Join(dir, sealedFile))
	if err != nil {
		return nil, err
	}
	plain, err := secret.unseal(sealed)
	if err != nil {
		return nil, err
	}
	s, err := decodeState(plain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sealedFile, err)
	}
	return newAuthority(dir, secret, sealed, s)
}

func newAuthority(dir string, secret Secret, sealed []byte, s *state) (*Authority, error) {
	pins, err := s.pins()
	if err != nil {
		return nil, err
	}
	h := s.issuing()
	a := &Authority{dir: dir, secret: secret, sealed: sha256.Sum256(sealed), state: s,
		trustDomain: s.trustDomain, root: h.root.cert, components: h.components, pins: pins}
	if s.imported != nil {
		a.callers = *s.imported
	} else {
		a.callers = callersIssuer{h.callers, []*x509.Certificate{h.root.cert}}
	}
	return a, nil
}

// sealState encodes and seals a state, after it has been read back as it will
// be read.
func sealState(s *state, secret Secret) ([]byte, error) {
	plain, err := s.encode()
	if err != nil {
		return nil, err
	}
	if len(plain) > maxPEM {
		return nil, fmt.Errorf("its state of %d bytes is too large", len(plain))
	}
	if _, err := decodeState(plain); err != nil {
		return nil, fmt.Errorf("the new state does not pass our own check and was thrown away; please report this: %w", err)
	}
	return secret.seal(plain)
}

// change stores a changed state and returns the Authority for it. Kill -9 at
// any point leaves the old file or the new one. If another process has changed
// the CA meanwhile, nothing is written.
func (a *Authority) change(secret Secret, now time.Time, edit func(s *state) error) (*Authority, error) {
	s := a.state.clone()
	if err := edit(s); err != nil {
		return nil, err
	}
	s.revision++
	s.recovery = slices.DeleteFunc(s.recovery, func(r retired) bool { return !now.IsZero() && now.After(r.until) })
	sealed, err := sealState(s, secret)
	if err != nil {
		return nil, err
	}
	unlock, err := lockDir(a.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	path := filepath.Join(a.dir, sealedFile)
	held, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(held) != a.sealed {
		return nil, fmt.Errorf("%w: nothing was written; open it again", ErrAuthorityChanged)
	}
	removeTemps(path)
	if err := replaceFile(path, sealed); err != nil {
		return nil, err
	}
	// For people; if this fails, or never happens, nothing depends on it.
	public := filepath.Join(a.dir, publicFile)
	removeTemps(public)
	_ = placeFile(public, s.bundle().PEM(), 0o644, os.Rename)
	return newAuthority(a.dir, secret, sealed, s)
}

// Reseal stores the keys under another secret. A key file that was used before
// stays where it is: it still opens older backups.
func (a *Authority) Reseal(secret Secret) (*Authority, error) {
	secret, err := secret.at(a.dir)
	if err == nil {
		err = secret.prepare()
	}
	var next *Authority
	if err == nil {
		next, err = a.change(secret, time.Time{}, func(*state) error { return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("seal the CA's keys anew: %w", err)
	}
	return next, nil
}

// Bundle is what components anchor on, in the phase that the CA is in.
func (a *Authority) Bundle() *Bundle { return a.state.bundle() }

// Pins are the SHA-256 of the public keys of the current and of the next root,
// for join tokens.
func (a *Authority) Pins() [][32]byte { return append([][32]byte(nil), a.pins...) }

// TrustDomain is the trust domain of every identity the authority gives.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// Format names the authority, so that no verb prints its keys.
func (a *Authority) Format(f fmt.State, _ rune) {
	io.WriteString(f, "certificate authority of "+a.trustDomain)
}

// LogValue keeps the keys out of logs.
func (a *Authority) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(a)) }

// CACertificate is a CA certificate and what it is for.
type CACertificate struct {
	What string // "root", "components' issuer", "callers' issuer", "next root", …
	Cert *x509.Certificate
}

// Certificates lists every CA certificate that is in force or will be, those
// that issue first, for status, metrics and alerts.
func (a *Authority) Certificates() []CACertificate {
	out := []CACertificate{{"root", a.root}, {"components' issuer", a.components.cert}, {"callers' issuer", a.callers.cert}}
	if a.state.imported != nil {
		for _, c := range a.callers.above {
			out = append(out, CACertificate{"imported CA", c})
		}
	}
	if o := a.state.other(); o != nil {
		which := "next "
		if a.state.phase == PhaseActivated {
			which = "former "
		}
		out = append(out, CACertificate{which + "root", o.root.cert}, CACertificate{which + "components' issuer", o.components.cert})
		if o.callers.cert != nil {
			out = append(out, CACertificate{which + "callers' issuer", o.callers.cert})
		}
	}
	for _, c := range a.state.former {
		out = append(out, CACertificate{"former callers' issuer", c.cert})
	}
	return out
}
