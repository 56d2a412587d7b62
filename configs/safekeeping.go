package configs

import (
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// sealing reads what the CA's keys are sealed with.
func (b *loader) sealing(c *Core) {
	var passphrase found
	c.CAPassphrase, passphrase = b.passphrase("ca-passphrase-file")
	f := b.find(settingOf("ca-key-file"), RoleCore)
	if !f.given() {
		b.row(f, "")
		return
	}
	c.CAKeyFile = b.path(f)
	switch {
	case c.CAKeyFile == "":
		b.bad.add("ca-key-file", f.from, "it names no file", "give a path, or leave it out")
	case passphrase.given():
		b.bad.add("ca-key-file", f.from, "the CA's keys are sealed with a key file or with a passphrase, and "+passphrase.from.String()+" gives a passphrase", "remove one of them")
	}
	b.row(f, quote(c.CAKeyFile))
}

// backups reads where, how often and how many backups are written.
func (b *loader) backups(c *Core) {
	dir := b.find(settingOf("backup-dir"), RoleCore)
	c.BackupDir = b.path(dir)
	switch {
	case !dir.given():
	case c.BackupDir == "":
		b.bad.add("backup-dir", dir.from, "it names no directory", "give a path, or leave it out")
	case within(c.BackupDir, c.DataDir):
		b.warn(dir.from.long() + ": " + c.BackupDir + " is in the data directory, and what is lost with it needs no backup; choose a directory on another disk or host")
	}
	if dir.given() {
		b.row(dir, quote(c.BackupDir))
	} else {
		b.row(dir, "")
	}
	var passphrase found
	c.BackupPassphrase, passphrase = b.passphrase("backup-passphrase-file")
	if dir.given() && !passphrase.given() {
		b.bad.add("backup-dir", dir.from, "backups hold the keys of the CA and are written encrypted only", "give --backup-passphrase-file FILE too, and keep the passphrase elsewhere as well: without it no backup can be read")
	}
	every, keep := b.find(settingOf("backup-every"), RoleCore), b.find(settingOf("backup-keep"), RoleCore)
	for _, f := range []found{passphrase, every, keep} {
		if f.given() && !dir.given() {
			b.bad.add(f.setting.flag, f.from, "no backups are written without a directory for them", "give --backup-dir DIR, or leave it out")
		}
	}
	c.BackupEvery = b.duration(every, time.Minute, 31*24*time.Hour)
	c.BackupKeep = b.count(keep, 1, 10_000)
	if !dir.given() { // their defaults would be read back as given
		b.unset("backup_every", "backup_keep")
	}
}

// count reads a number within bounds.
func (b *loader) count(f found, least, most int) int {
	n, err := strconv.Atoi(f.text())
	if err != nil || n < least || n > most {
		b.bad.add(f.setting.flag, f.from, fmt.Sprintf("%q is no number from %d to %d", f.text(), least, most), fmt.Sprintf("write one, such as %s", f.setting.fallback))
		return least
	}
	b.row(f, strconv.Itoa(n))
	return n
}

// webhook reads where alerts are posted to. Such URLs let whoever has them
// post, so they are treated as secrets and no message repeats one.
func (b *loader) webhook() Secret {
	f := b.secret("alert-webhook", RoleCore, b.src.ReadSecret, "URL of the alert webhook", nil)
	b.row(f, "")
	if f.text() == "" {
		return ""
	}
	u, err := url.Parse(f.text())
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		b.bad.add(f.setting.flag, f.from, "this is no URL to post to", "write https://HOST/PATH")
	case u.Scheme == "http" && !loopbackHost(u.Hostname()):
		b.bad.add(f.setting.flag, f.from, "without TLS everyone between could read the alerts and the URL", "write https://, or http:// to this host alone")
	}
	return Secret(f.text())
}
