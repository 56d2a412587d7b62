package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"sallyport/roles/control"
	"sallyport/roles/core"
)

// backupVerb writes the whole state of core into one file.
type backupVerb struct {
	File           string `arg:"" help:"Where it goes; - is stdout."`
	PassphraseFile string `required:"" type:"path" placeholder:"FILE" help:"File with the passphrase that encrypts it. Required."`
	Force          bool   `help:"Replace FILE."`
	coreFlags
	jsonFlag
}

func (backupVerb) Help() string {
	return `When core shall survive the loss of its host: registry, policy, CA with its keys, revocations and audit log in one file, taken while core runs and encrypted as a whole before it touches a disk. That file and its passphrase are all that a fresh host needs; keep them in different places. Core writes such files by itself with --backup-dir.

Example:

    sallyport backup core.backup --passphrase-file backup.pass`
}

func (v *backupVerb) Run(c *cli) error {
	passphrase, err := readPassphrase("--passphrase-file", v.PassphraseFile)
	if err != nil {
		return err
	}
	if v.File == "-" {
		if v.JSON || isTerminal(c.out) {
			return wrong("backup: the file is encrypted, nothing for a terminal or for --json", "give FILE, or send it on: sallyport backup - --passphrase-file F | ssh …")
		}
		return v.fetch(c, passphrase, c.out)
	}
	if err := free(v.Force, v.File); err != nil {
		return err
	}
	size, err := writeStream(v.Force, file{path: v.File, mode: 0o600}, func(w io.Writer) error { return v.fetch(c, passphrase, w) })
	if err != nil {
		return err
	}
	if v.JSON {
		return c.printJSON(object{{"file", v.File}, {"bytes", size}, {"time", time.Now().UTC().Format(time.RFC3339)}})
	}
	fmt.Fprintln(c.out, v.File)
	c.say("%d KiB. Without the passphrase nobody can read it, neither can you: keep both, in different places.", (size+1023)/1024)
	return nil
}

// fetch writes core's archive to w, encrypted.
func (v *backupVerb) fetch(c *cli, passphrase string, w io.Writer) error {
	return v.coreFor(c, backupTimeout, func(ctx context.Context, admin control.AdminClient) error {
		stream, err := admin.Backup(ctx, &control.BackupRequest{})
		if err != nil {
			return err
		}
		sealed, err := core.SealBackup(w, passphrase)
		if err != nil {
			return err
		}
		if err := receive(stream, sealed); err != nil {
			return err
		}
		return sealed.Close()
	})
}

// backupTimeout bounds a backup; it is as long as a large disk is slow.
const backupTimeout = time.Hour

func receive(stream grpc.ServerStreamingClient[control.BackupChunk], to io.Writer) error {
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(chunk.GetData()); err != nil {
			return failed("the backup could not be written: "+err.Error(), "")
		}
	}
}

// writeStream writes a file as it comes: it has its name when all of it is on
// the disk, and never otherwise.
func writeStream(force bool, f file, write func(io.Writer) error) (size int64, err error) {
	t, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)+".*")
	if err != nil {
		return 0, failed(err.Error(), "")
	}
	defer os.Remove(t.Name())
	defer t.Close()
	if err := t.Chmod(f.mode); err != nil {
		return 0, failed(err.Error(), "")
	}
	if err := write(t); err != nil {
		return 0, err
	}
	info, err := t.Stat()
	if err == nil {
		err = errors.Join(t.Sync(), t.Close(), name(t.Name(), f.path, force))
	}
	if err != nil {
		return 0, failed(err.Error(), "")
	}
	syncDir(filepath.Dir(f.path))
	return info.Size(), nil
}
