package app

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sallyport/configs"
	"sallyport/roles/core"
)

// restoreVerb puts a backup into a data directory. Core must not run.
type restoreVerb struct {
	File             string `arg:"" help:"The backup; - is stdin."`
	PassphraseFile   string `required:"" type:"path" placeholder:"FILE" help:"File with the passphrase that it was encrypted with. Required."`
	AcceptLoss       bool   `help:"Do not wait for the components to tell what was revoked after the backup was made."`
	Force            bool   `help:"Replace the state that the data directory holds; its revocations are kept."`
	CAPassphraseFile string `name:"ca-passphrase-file" type:"path" from:"env" placeholder:"FILE" help:"Seal the CA's keys with the passphrase in FILE, as core's setting of that name says."`
	CAKeyFile        string `name:"ca-key-file" type:"path" from:"env" placeholder:"FILE" help:"Seal them with the key in FILE, as core's setting of that name says (default beside the CA)."`
	coreFlags
	jsonFlag
}

func (restoreVerb) Help() string {
	return `When core's host or its state is lost: on a stopped core, or on a fresh host with the newest backup and its passphrase. Then start core as it was started before, where its gateways find it and its proxies let it in: every component reconnects by itself. What was revoked stays revoked: from the state that is there, and from the newest list that components hold, for which core waits before it issues or relays, unless --accept-loss.

Example:

    sallyport restore core.backup --passphrase-file backup.pass`
}

func (v *restoreVerb) Run(c *cli) error {
	dir := v.dir(c)
	if reachable(filepath.Join(dir, "admin.sock")) == nil {
		return failed("restore: core is running in "+dir, "stop it first; a backup is restored with nothing running")
	}
	for _, part := range []string{"core.db", "ca"} {
		if _, err := os.Lstat(filepath.Join(dir, part)); err == nil && !v.Force {
			return failed("restore: "+dir+" holds the state of a core already, and is not replaced", "give --force to replace it (its revocations are kept), or another --data-dir")
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			return failed(err.Error(), "")
		}
	}
	passphrase, err := readPassphrase("--passphrase-file", v.PassphraseFile)
	if err != nil {
		return err
	}
	secret, err := sealFlags{CAPassphraseFile: v.CAPassphraseFile, CAKeyFile: v.CAKeyFile}.secret()
	if err != nil {
		return err
	}
	from := c.in
	if v.File != "-" {
		f, err := os.Open(v.File)
		if err != nil {
			return failed(err.Error(), "")
		}
		defer f.Close()
		from = f
	}
	archive, err := core.OpenBackup(from, passphrase)
	if err != nil {
		return failed("restore "+v.File+": "+asProblem(err).What, asProblem(err).Remedy)
	}
	restored, err := core.Restore(c.ctx, core.Restoration{
		Set:     configs.Core{DataDir: dir, CAPassphrase: configs.Secret(secret.Passphrase), CAKeyFile: secret.KeyFile},
		Archive: archive, AcceptLoss: v.AcceptLoss, Actor: operator(), Log: c.warnings(),
	})
	if err != nil {
		return err
	}
	if v.JSON {
		return c.printJSON(object{
			{"data_dir", dir}, {"made", restored.Made.UTC().Format(time.RFC3339)}, {"version", restored.Version},
			{"trust_domain", restored.TrustDomain}, {"epoch", restored.Epoch}, {"kept_ca", restored.KeptCA},
			{"awaits", append([]string{}, restored.Awaits...)}, {"awaits_any", restored.Any},
		})
	}
	fmt.Fprintf(c.out, "%s: core of %s as of %s, made by version %s, now epoch %d\n", dir, restored.TrustDomain, clock(restored.Made.Unix()), restored.Version, restored.Epoch)
	if restored.KeptCA {
		c.say("The CA that was there is as new as that in the backup, or newer, and stays.")
	}
	if len(restored.Awaits) > 0 {
		from := "from"
		if restored.Any {
			from = "from one of"
		}
		c.say("Core will issue and relay when it has heard what was revoked since, %s: %s", from, strings.Join(restored.Awaits, ", "))
	}
	if len(restored.APIKeys) > 0 {
		c.say("%s", c.warning("attention: with --accept-loss, an API key that was revoked after "+clock(restored.Made.Unix())+" is good again; good are: "+strings.Join(restored.APIKeys, ", ")))
	}
	c.say("Start core as it was started before.")
	return nil
}

// operator is who restores, as the audit log shows it.
func operator() string {
	uid := strconv.Itoa(os.Getuid())
	if u, err := user.LookupId(uid); err == nil {
		return "uid:" + uid + " (" + oneLine(u.Username) + ")"
	}
	return "uid:" + uid
}

// warnings is a log whose warnings a person reads.
func (c *cli) warnings() *slog.Logger {
	var w io.Writer = c.err
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: discreet}))
}
