package core

import (
	"fmt"

	"sallyport/acme/pki"
	"sallyport/configs"
)

// secrets are those settings that can change while core runs: what they say is
// in files that somebody replaces, and no comparison of settings shows it.
type secrets struct {
	webhook configs.Secret
	backup  configs.Secret // passphrase of scheduled backups
	ca      configs.Secret // passphrase of the CA's keys
}

// Reload puts the secrets of settings that were read again in force, in the
// running core that info describes, and says which have changed. With another
// passphrase the CA's keys are sealed anew at once, while they are open: after a
// restart the new passphrase alone would not open them.
func (i Info) Reload(next configs.Core) (changed []string, err error) {
	c := i.core
	c.reloading.Lock()
	defer c.reloading.Unlock()
	was := c.secrets.Load()
	is := *was
	if is.webhook = next.AlertWebhook; is.webhook != was.webhook {
		changed = append(changed, "alert-webhook")
	}
	if is.backup = next.BackupPassphrase; is.backup != was.backup && is.backup != "" && was.backup != "" {
		changed = append(changed, "backup-passphrase-file")
	} else {
		is.backup = was.backup // backups begin or end at the next start, with their directory
	}
	c.secrets.Store(&is)
	if next.CAPassphrase == was.ca || next.CAPassphrase == "" || was.ca == "" {
		return changed, nil
	}
	if _, err := c.ca.change(func(ca *pki.Authority) (*pki.Authority, error) { return ca.Reseal(secretOf(next)) }); err != nil {
		return changed, fmt.Errorf("ca-passphrase-file: the former passphrase opens the CA still, keep it: %w", err)
	}
	is.ca = next.CAPassphrase
	c.secrets.Store(&is)
	return append(changed, "ca-passphrase-file"), nil
}
