package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// caFlags are on every verb that works with the running core, and with --ca-dir
// on a CA in a directory, with nothing running.
type caFlags struct {
	CADir string `name:"ca-dir" type:"path" placeholder:"DIR" help:"Use the CA that ca init made in DIR instead of the running core's."`
	sealFlags
	coreFlags
}

// sealFlags say what the keys of a CA in a directory are sealed with.
type sealFlags struct {
	CAPassphraseFile string `name:"ca-passphrase-file" type:"path" from:"env" placeholder:"FILE" help:"With --ca-dir: file with the passphrase of its keys."`
	CAKeyFile        string `name:"ca-key-file" type:"path" from:"env" placeholder:"FILE" help:"With --ca-dir: file that opens its keys (default DIR.key)."`
}

// secret is what the flags say.
func (f sealFlags) secret() (pki.Secret, error) {
	if f.CAPassphraseFile == "" {
		return pki.Secret{KeyFile: f.CAKeyFile}, nil
	}
	if f.CAKeyFile != "" {
		return pki.Secret{}, wrong("a CA's keys are sealed with a passphrase or with a key file, not with both", "give one of --ca-passphrase-file and --ca-key-file")
	}
	passphrase, err := readPassphrase("--ca-passphrase-file", f.CAPassphraseFile)
	return pki.Secret{Passphrase: passphrase}, err
}

// readPassphrase reads the only line of a file, as core reads its own.
func readPassphrase(flag, path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", failed(flag+": "+err.Error(), "")
	}
	passphrase := strings.TrimRight(string(text), "\r\n")
	switch {
	case strings.TrimSpace(passphrase) == "":
		return "", failed(flag+": "+path+" is empty", "put a passphrase into it, such as: openssl rand -base64 32 > "+path)
	case len(passphrase) > 4<<10 || strings.ContainsAny(passphrase, "\r\n\x00"):
		return "", failed(flag+": "+path+" has several lines, and a passphrase is one", "write it on one line; is it the right file?")
	}
	return passphrase, nil
}

// issuer is what certificate verbs ask of a CA: core's, over its socket, or one
// in a directory.
type issuer interface {
	IssueCertificate(context.Context, *control.IssueCertificateRequest, ...grpc.CallOption) (*control.IssueCertificateResponse, error)
	ListCertificates(context.Context, *control.ListCertificatesRequest, ...grpc.CallOption) (*control.ListCertificatesResponse, error)
	RevokeCertificate(context.Context, *control.RevokeCertificateRequest, ...grpc.CallOption) (*control.RevokeCertificateResponse, error)
	GetCRL(context.Context, *control.GetCRLRequest, ...grpc.CallOption) (*control.GetCRLResponse, error)
	ShowCA(context.Context, *control.ShowCARequest, ...grpc.CallOption) (*control.ShowCAResponse, error)
	ImportCA(context.Context, *control.ImportCARequest, ...grpc.CallOption) (*control.ShowCAResponse, error)
}

// authority lets ask speak to the CA that the flags name.
func (f caFlags) authority(c *cli, ask func(context.Context, issuer) error) error {
	if f.CADir == "" {
		return f.core(c, func(ctx context.Context, core control.AdminClient) error { return ask(ctx, core) })
	}
	alone, err := f.open()
	if err != nil {
		return err
	}
	if ofCore(f.CADir) {
		c.say("note: %s is the CA of a core, which does not list what is issued past it; it revokes such a certificate by its file", f.CADir)
	}
	return fromCore(ask(c.ctx, alone))
}

// open opens the CA in --ca-dir.
func (f caFlags) open() (*standalone, error) {
	secret, err := f.secret()
	if err != nil {
		return nil, err
	}
	ca, err := pki.OpenAuthority(f.CADir, secret)
	switch {
	case errors.Is(err, pki.ErrNoAuthority):
		return nil, failed("there is no CA in "+f.CADir, "make one with: sallyport ca init "+f.CADir)
	case err != nil:
		return nil, err
	}
	return &standalone{dir: f.CADir, ca: ca}, nil
}

// ofCore reports whether the CA in a directory is that of a core.
func ofCore(dir string) bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(filepath.Clean(dir)), "core.db"))
	return err == nil
}

// rootsOf reads the roots of a CA in a directory, which are no secret.
func rootsOf(dir string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, caFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failed(fmt.Sprintf("there is no CA in %s: it has no %s", dir, caFile), "make one with: sallyport ca init "+dir)
	}
	if err != nil {
		return nil, failed(err.Error(), "")
	}
	return text, nil
}
