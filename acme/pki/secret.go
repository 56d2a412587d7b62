package pki

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
)

// ErrWrongSecret means that the authority's keys do not open with the secret
// that was given. The message around it says with which they do.
var ErrWrongSecret = errors.New("the secret does not open the certificate authority's keys")

// Secret is what the authority's private keys are sealed with: a passphrase, or
// an age identity in a file of its own, 0600, that is made together with the
// CA. The zero Secret is the key file beside the CA's directory (KeyFileBeside).
type Secret struct {
	Passphrase string
	KeyFile    string
}

// KeyFileBeside is the path of the key file where nobody chose one.
func KeyFileBeside(dir string) string { return filepath.Clean(dir) + ".key" }

// LogValue keeps the passphrase out of logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.describe()) }

// Format keeps the passphrase out of everything that is printed.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.describe()) }

func (s Secret) describe() string {
	switch {
	case s.Passphrase != "":
		return "passphrase"
	case s.KeyFile != "":
		return "key file " + s.KeyFile
	}
	return "key file beside the CA"
}
