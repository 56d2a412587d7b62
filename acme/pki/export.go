package pki

import (
	"bytes"
	"fmt"

	"filippo.io/age"
)

// Export is the CA as a backup takes it along: the files of its directory,
// sealed with a key that is made for this copy alone. OpenAuthority reads them
// with that key as the key file; so a backup needs no secret of the host that
// made it, and nothing of it touches a disk here. The copy is as secret as the
// CA's keys in the clear.
func (a *Authority) Export() (files map[string][]byte, keyFile []byte, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, nil, fmt.Errorf("export the CA: %w", err)
	}
	plain, err := a.state.encode()
	if err != nil {
		return nil, nil, fmt.Errorf("export the CA: %w", err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, id.Recipient())
	if err != nil {
		return nil, nil, fmt.Errorf("export the CA: %w", err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, nil, fmt.Errorf("export the CA: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, nil, fmt.Errorf("export the CA: %w", err)
	}
	return map[string][]byte{sealedFile: sealed.Bytes(), publicFile: a.Bundle().PEM()}, []byte(id.String() + "\n"), nil
}
