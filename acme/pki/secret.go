package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"

	"filippo.io/age"
)

// ErrWrongSecret means that the authority's keys do not open with the secret
// that was given. The message around it says with which they do.
var ErrWrongSecret = errors.New("the secret does not open the certificate authority's keys")

// Secret is what the authority's private keys are sealed with: a passphrase, or
// an age identity in a file of its own, 0600, that is made together with the
// CA. The zero Secret is the key file beside the CA's directory (KeyFileBeside).
// Printing a Secret does not show the passphrase.
type Secret struct {
	Passphrase string
	KeyFile    string

	work int // of scrypt, log2; 0: scryptWork
}

const (
	// scryptWork makes one guess cost 128 MiB and some tenths of a second.
	scryptWork    = 17
	minPassphrase = 8
)

// KeyFileBeside is the path of the key file where nobody chose one: DIR.key.
// Whoever copies the CA's directory alone has copied no key.
func KeyFileBeside(dir string) string { return filepath.Clean(dir) + ".key" }

// LogValue keeps the passphrase out of logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.describe()) }

// Format keeps the passphrase out of everything that is printed.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.describe()) }

// MarshalText keeps the passphrase out of every encoding of structs that hold
// a Secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.describe()), nil }

func (s Secret) describe() string {
	switch {
	case s.Passphrase != "":
		return "a passphrase"
	case s.KeyFile != "":
		return "the key file " + s.KeyFile
	}
	return "the key file beside the CA"
}

// at fills in what is left open, for the authority in dir.
func (s Secret) at(dir string) (Secret, error) {
	if s.Passphrase != "" && s.KeyFile != "" {
		return s, errors.New("the CA's keys are sealed with a passphrase or with a key file: give one of --ca-passphrase-file and --ca-key-file")
	}
	if s.Passphrase != "" {
		return s, nil
	}
	if s.KeyFile == "" {
		s.KeyFile = KeyFileBeside(dir)
	}
	rel, err := filepath.Rel(dir, s.KeyFile)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return s, fmt.Errorf("the key file %s would lie in the CA's own directory, where every copy of the CA takes it along: keep it elsewhere", s.KeyFile)
	}
	return s, nil
}

// prepare refuses weak passphrases and makes the key file if there is none. A
// key file that exists is used as it is.
func (s Secret) prepare() error {
	if s.Passphrase != "" {
		if len(s.Passphrase) < minPassphrase {
			return fmt.Errorf("the passphrase of the CA has %d characters: use a random one of at least %d, such as `openssl rand -base64 24` makes", len(s.Passphrase), minPassphrase)
		}
		return nil
	}
	_, err := s.identity()
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	text := "# This key opens the certificate authority of Sallyport. Keep it, keep it secret, and keep it apart from the CA's directory.\n# public key: " +
		id.Recipient().String() + "\n" + id.String() + "\n"
	if err := mkdirSynced(filepath.Dir(s.KeyFile)); err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	removeTemps(s.KeyFile)
	if err := createFile(s.KeyFile, []byte(text)); err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	return nil
}

// identity reads the key file.
func (s Secret) identity() (age.Identity, error) {
	text, err := readPrivate(s.KeyFile)
	if err != nil {
		return nil, err
	}
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("the key file %s cannot be read (%w): it holds one line that begins with AGE-SECRET-KEY-", s.KeyFile, err)
	}
	if len(ids) != 1 {
		return nil, fmt.Errorf("the key file %s holds %d keys instead of one", s.KeyFile, len(ids))
	}
	return ids[0], nil
}

// seal encrypts and authenticates the authority's state.
func (s Secret) seal(plain []byte) ([]byte, error) {
	var to age.Recipient
	if s.Passphrase != "" {
		r, err := age.NewScryptRecipient(s.Passphrase)
		if err != nil {
			return nil, err
		}
		r.SetWorkFactor(scryptWork)
		if s.work > 0 {
			r.SetWorkFactor(s.work)
		}
		to = r
	} else {
		id, err := s.identity()
		if err != nil {
			return nil, err
		}
		switch id := id.(type) {
		case *age.X25519Identity:
			to = id.Recipient()
		case *age.HybridIdentity:
			to = id.Recipient()
		default:
			return nil, fmt.Errorf("the key file %s holds a key of a kind that is not supported", s.KeyFile)
		}
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err != nil {
		return nil, fmt.Errorf("seal the CA's keys: %w", err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("seal the CA's keys: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal the CA's keys: %w", err)
	}
	return out.Bytes(), nil
}

// unseal is the reverse of seal. ErrWrongSecret names the remedy.
func (s Secret) unseal(sealed []byte) ([]byte, error) {
	// The kind of secret stands in the header, in the clear.
	byPassphrase := bytes.Contains(sealed[:min(len(sealed), 256)], []byte("\n-> scrypt "))
	var id age.Identity
	switch {
	case byPassphrase && s.Passphrase == "":
		return nil, fmt.Errorf("%w: they are sealed with a passphrase; name its file with --ca-passphrase-file", ErrWrongSecret)
	case !byPassphrase && s.Passphrase != "":
		return nil, fmt.Errorf("%w: they are sealed with a key file and not with a passphrase; name it with --ca-key-file", ErrWrongSecret)
	case byPassphrase:
		p, err := age.NewScryptIdentity(s.Passphrase)
		if err != nil {
			return nil, err
		}
		id = p
	default:
		var err error
		if id, err = s.identity(); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: the key file %s is not there; put it back, or name it with --ca-key-file", ErrWrongSecret, s.KeyFile)
		} else if err != nil {
			return nil, err
		}
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), id)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		if byPassphrase {
			return nil, fmt.Errorf("%w: the passphrase is another one; use the one that the CA was made or last resealed with", ErrWrongSecret)
		}
		return nil, fmt.Errorf("%w: the key file %s is that of another CA, or of this one before it was resealed; put the right one there, or name it with --ca-key-file", ErrWrongSecret, s.KeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", sealedFile, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPEM))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", sealedFile, err)
	}
	return plain, nil
}
