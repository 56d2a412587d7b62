package configs

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// Secret is a text that nothing prints by mistake: formatting, logging and
// marshalling show that there is one, and no more.
type Secret string

const hidden = "[secret]"

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// String does not show the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString does not show the secret.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// LogValue does not show the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText does not show the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// secret finds a setting that can also be given as a file or asked for. gone
// hears of a file that does not exist and need not; nil: it has to exist.
func (l *lookup) secret(flag string, role Role, ask func(string) (string, error), prompt string, gone func(string)) found {
	s, sf := settingOf(flag), settingOf(flag+"-file")
	value, file := l.find(s, role), l.find(sf, role)
	switch {
	case !value.given() && !file.given():
		return value
	case value.from.kind == file.from.kind && value.from.role == file.from.role:
		l.bad.add(s.flag, value.from, "the same is given by "+file.from.long()+" too", "keep one of them")
		return found{setting: s, role: role}
	case !file.given() || outranks(value.from, file.from):
		if value.text() != "-" {
			value.texts = []string{strings.TrimSpace(value.text())}
			return value
		}
		if ask == nil {
			l.bad.add(s.flag, value.from, "- asks for it, and nobody can be asked here", "use --"+sf.flag+" FILE or "+sf.env)
			return found{setting: s, role: role}
		}
		text, err := ask(prompt)
		if err != nil {
			l.bad.add(s.flag, value.from, "it could not be read: "+err.Error(), "use --"+sf.flag+" FILE or "+sf.env)
		}
		value.texts = []string{strings.TrimSpace(text)}
		return value
	}
	value = file
	path := l.path(file)
	text, err := readBounded(path, 64<<10)
	if os.IsNotExist(err) && gone != nil {
		gone(fmt.Sprintf("%s: %s does not exist", file.from.long(), path))
		value.texts = nil
		return value
	}
	if err != nil {
		l.bad.add(sf.flag, file.from, "the file cannot be read: "+err.Error(), "check the path and who may read it")
	} else if strings.TrimSpace(string(text)) == "" {
		l.bad.add(sf.flag, file.from, path+" is empty", "put the text into it, or leave the setting out")
	}
	value.texts = []string{strings.TrimSpace(string(text))}
	return value
}

// credential is the name of the CA's passphrase among systemd's credentials:
// LoadCredential=sallyport-ca-passphrase:/etc/sallyport/ca-passphrase.
const credential = "sallyport-ca-passphrase"

// passphrase reads a passphrase from the file that a setting names. The row
// shows the file.
func (b *loader) passphrase(flag string) (Secret, found) {
	f := b.find(settingOf(flag), RoleCore)
	if dir := b.environ["CREDENTIALS_DIRECTORY"]; !f.given() && flag == "ca-passphrase-file" && filepath.IsAbs(dir) {
		path := filepath.Join(dir, credential)
		if _, err := os.Stat(path); err == nil {
			f.texts, f.from = []string{path}, origin{kind: fromCredential, name: credential}
		}
	}
	if !f.given() {
		b.row(f, "")
		return "", f
	}
	path := b.path(f)
	b.row(f, quote(path))
	text, err := readBounded(path, 4<<10)
	passphrase := strings.TrimRight(string(text), "\r\n")
	switch {
	case path == "":
		b.bad.add(flag, f.from, "it names no file", "give a path, or leave it out")
	case err != nil:
		b.bad.add(flag, f.from, "the file cannot be read: "+err.Error(), "check the path and who may read it")
	case strings.TrimSpace(passphrase) == "":
		b.bad.add(flag, f.from, path+" is empty", "put a passphrase into it, such as: openssl rand -base64 32 > "+path)
	case strings.ContainsAny(passphrase, "\r\n\x00"):
		b.bad.add(flag, f.from, path+" has several lines, and a passphrase is one", "write it on one line; is it the right file?")
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o004 != 0 {
		b.warn(fmt.Sprintf("%s: every user of this host can read %s; run chmod 600 %s", f.from.long(), path, path))
	}
	return Secret(passphrase), f
}
