package acme

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/caddyserver/certmagic"
	"golang.org/x/crypto/chacha20poly1305"
)

// Storage is what certificates, accounts and leases are kept in.
type Storage interface {
	certmagic.Storage
	certmagic.TryLocker
	certmagic.LockLeaseRenewer
}

// sealed encrypts what a storage holds, so that a copy of it is of no use to
// whoever has not also the key: XChaCha20-Poly1305 with the key of a file, bound
// to the name that the value has.
type sealed struct {
	Storage
	aead    cipher.AEAD
	keyFile string

	mu   sync.Mutex        // guards what follows
	keys map[string][]byte // by domain: the one that was stored before its chain, see inspect
}

// probe is a value that says whether the key is that of this storage.
const probe = "sallyport/sealed-with"

// openSealed reads the key, or makes one, and checks that it is the right one.
func openSealed(ctx context.Context, s Storage, keyFile string) (*sealed, error) {
	key := make([]byte, chacha20poly1305.KeySize)
	_, _ = rand.Read(key) // never fails
	if keyFile != "" {
		var err error
		if key, err = readKey(keyFile); err != nil {
			return nil, err
		}
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	v := &sealed{Storage: s, aead: aead, keyFile: keyFile, keys: make(map[string][]byte)}
	switch _, err := v.Load(ctx, probe); {
	case errors.Is(err, fs.ErrNotExist):
		// Two processes that start together write the same.
		return v, v.Store(ctx, probe, []byte("sallyport"))
	case err != nil:
		return nil, err
	}
	return v, nil
}

// readKey reads the key file. If there is none it is made: 0600, whole or not at
// all, and never in the place of another.
func readKey(path string) ([]byte, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the key of the public certificates: %w", err)
		}
		key, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the key of the public certificates: %w", err)
	}
	if len(key) != chacha20poly1305.KeySize {
		return nil, fmt.Errorf("%s is no key of this program: it has %d bytes instead of %d", path, len(key), chacha20poly1305.KeySize)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is open to other users (%v): run chmod 600 %[1]s", path, info.Mode().Perm())
	}
	return key, nil
}

func makeKey(path string) error {
	key := make([]byte, chacha20poly1305.KeySize)
	_, _ = rand.Read(key)                                                        // never fails
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-"+filepath.Base(path)+"-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // refuses to replace
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (s *sealed) overhead() int64 { return int64(s.aead.NonceSize() + s.aead.Overhead()) }

// Store seals value and stores it, unless it is a certificate of no use.
func (s *sealed) Store(ctx context.Context, key string, value []byte) error {
	if err := s.inspect(key, value); err != nil {
		return refused(ctx, err)
	}
	nonce := make([]byte, s.aead.NonceSize(), len(value)+int(s.overhead()))
	_, _ = rand.Read(nonce)
	return s.Storage.Store(ctx, key, s.aead.Seal(nonce, nonce, value, []byte(key)))
}

// Load loads a value and opens it.
func (s *sealed) Load(ctx context.Context, key string) ([]byte, error) {
	text, err := s.Storage.Load(ctx, key)
	if err != nil {
		return nil, err
	}
	if n := s.aead.NonceSize(); len(text) >= n {
		if value, err := s.aead.Open(nil, text[:n], text[n:], []byte(key)); err == nil {
			return value, nil
		}
	}
	return nil, fmt.Errorf("%s: %s does not open it: put the right key file there, or remove the database of public certificates and the key file: certificates are then ordered anew", key, s.keyFile)
}

// Stat tells the size of the value itself.
func (s *sealed) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	info, err := s.Storage.Stat(ctx, key)
	if info.IsTerminal {
		info.Size -= s.overhead()
	}
	return info, err
}

// String names the storage in logs, and nothing else of it.
func (s *sealed) String() string { return "sealed storage" }

// Format keeps the key out of everything that is printed.
func (s *sealed) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

var _ Storage = (*sealed)(nil)
