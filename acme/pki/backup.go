package pki

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
)

// Backup is the whole authority with its keys IN THE CLEAR, for an archive that
// is encrypted as a whole before it touches a disk: so that such an archive and
// its passphrase are all that a fresh host needs, without the passphrase or key
// file that the CA lies sealed with here.
func (a *Authority) Backup() ([]byte, error) {
	text, err := a.state.encode()
	if err != nil {
		return nil, fmt.Errorf("back up the certificate authority: %w", err)
	}
	return append([]byte(backupHead(text)), text...), nil
}

// backupHead is the first line of a backup: that it is one, and its checksum.
func backupHead(text []byte) string {
	return fmt.Sprintf("sallyport certificate authority 1 %x\n", sha256.Sum256(text))
}

// RestoreAuthority stores what Backup gave in dir, which must not exist or be
// empty, sealed with the secret of this host. Like CreateAuthority it never
// overwrites, and the directory appears whole or not at all.
func RestoreAuthority(dir string, secret Secret, backup []byte) (*Authority, error) {
	fail := func(err error) (*Authority, error) {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w; move that directory away first", ErrAuthorityExists)
		}
		return nil, fmt.Errorf("restore the certificate authority in %s: %w", dir, err)
	}
	if len(backup) > maxPEM {
		return fail(fmt.Errorf("a backup of %d bytes is too large", len(backup)))
	}
	head, text, _ := bytes.Cut(backup, []byte("\n"))
	if string(head)+"\n" != backupHead(text) {
		return fail(errors.New("the backup of the CA is damaged, or is none"))
	}
	s, err := decodeState(text)
	if err != nil {
		return fail(fmt.Errorf("the backup: %w", err))
	}
	a, err := placeAuthority(dir, secret, s)
	if err != nil {
		return fail(err)
	}
	return a, nil
}
