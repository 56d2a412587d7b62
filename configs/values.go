package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// listen reads an address to listen on.
func (b *loader) listen(flag string, r Role, fallback string) string {
	f := b.find(settingOf(flag), r)
	if !f.given() && fallback != "" {
		f.texts = []string{fallback}
	}
	if f.from.name == "PORT" && b.s.Process.All {
		f.texts = []string{"127.0.0.1" + f.text()}
	}
	if !b.single(f) {
		return ""
	}
	if problem, remedy := checkListen(f.text()); problem != "" {
		b.bad.add(flag, f.from, problem, remedy)
	}
	b.bound = append(b.bound, f)
	b.row(f, quote(f.text()))
	return f.text()
}

// dial reads an address to connect to.
func (b *loader) dial(flag string, r Role) string {
	f := b.find(settingOf(flag), r)
	if !f.given() {
		b.row(f, "")
		return ""
	}
	address, problem, remedy := checkDial(f.text(), 50055)
	if problem != "" {
		b.bad.add(flag, f.from, problem, remedy)
	}
	b.row(f, quote(address))
	return address
}

// existing reads the path of a file that has to be there.
func (b *loader) existing(flag string, r Role) string {
	f := b.find(settingOf(flag), r)
	if !f.given() {
		b.row(f, "")
		return ""
	}
	path := b.path(f)
	b.mustExist(flag, f.from, path)
	b.row(f, quote(path))
	return path
}

func (b *loader) mustExist(flag string, from origin, path string) {
	info, err := os.Stat(path)
	switch {
	case path == "":
		b.bad.add(flag, from, "it names no file", "give a path, or leave it out")
	case err != nil:
		b.bad.add(flag, from, "the file cannot be read: "+err.Error(), "check the path and who may read it")
	case info.IsDir():
		b.bad.add(flag, from, path+" is a directory", "give the path of a file")
	}
}

// dataDir reads where state is kept.
func (b *loader) dataDir(r Role) string {
	f := b.find(settingOf("data-dir"), r)
	dir := b.path(f)
	switch {
	case !f.given():
		if dir = DataDir(b.src.Environ, b.src.UID); dir == "" {
			b.bad.add("data-dir", f.from, "there is no place to keep state: neither STATE_DIRECTORY nor XDG_STATE_HOME nor HOME is set", "give --data-dir DIR")
		}
	case dir == "":
		b.bad.add("data-dir", f.from, "it names no directory", "give a path, or leave it out")
	}
	dir = filepath.Clean(dir)
	b.row(f, quote(dir))
	return dir
}

// stateDir reads where a proxy or gateway keeps its state: the data directory,
// or nowhere with --state memory.
func (b *loader) stateDir(r Role) string {
	if b.word("state", r) == "disk" {
		return b.dataDir(r)
	}
	state, dir := b.find(settingOf("state"), r), b.find(settingOf("data-dir"), r)
	switch {
	case b.s.Process.All:
		b.bad.add("state", state.from, "with --role all core is in the same process, and core keeps its state on a disk", "leave it out, or run the roles in processes of their own")
	case dir.given() && (dir.from.kind == fromFlag || dir.from.kind == fromFile) && !b.runs(RoleCore): // an image says where state would be
		b.bad.add("data-dir", dir.from, "with --state memory nothing is kept there", "leave one of them out")
	}
	return ""
}

// needsDisk refuses certificates of a public CA where nothing is kept: each
// start would order them anew, and CAs allow few orders a week.
func (b *loader) needsDisk(p *Proxy) {
	if p.ACME != nil && p.DataDir == "" {
		b.bad.add("state", b.find(settingOf("state"), RoleProxy).from, "certificates of a public CA would be ordered at every start, which no CA allows for long",
			"keep the state on a disk, or let what stands in front end TLS (--tls off with --trusted-front)")
	}
}

// word reads one of a few words.
func (b *loader) word(flag string, r Role) string {
	f := b.find(settingOf(flag), r)
	if b.unknownWord(f) {
		return f.setting.fallback
	}
	b.row(f, quote(f.text()))
	return f.text()
}

// unknownWord refuses what is none of the words of the setting.
func (b *loader) unknownWord(f found) bool {
	words := strings.Split(f.setting.kind, "|")
	if slices.Contains(words, f.text()) {
		return false
	}
	remedy := "write " + strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
	b.bad.add(f.setting.flag, f.from, fmt.Sprintf("%q is not one of the words it can be", f.text()), remedy)
	return true
}

// duration reads a duration within bounds.
func (b *loader) duration(f found, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(f.text())
	if err != nil {
		b.bad.add(f.setting.flag, f.from, fmt.Sprintf("%q is no duration", f.text()), "write a number with a unit, such as 30s, 5m or 24h")
		return least
	}
	if d < least || d > most {
		b.bad.add(f.setting.flag, f.from, f.text()+" is out of range", fmt.Sprintf("write a duration from %s to %s", short(least), short(most)))
	}
	b.row(f, quote(short(d)))
	return d
}

// join reads the token of a role.
func (b *loader) join(r Role, prompt string) string {
	value, file := b.find(settingOf("join"), r), b.find(settingOf("join-file"), r)
	for _, f := range []found{value, file} {
		if f.given() && b.s.Process.All {
			b.bad.add(f.setting.flag, f.from, "--role all joins its own parts and takes no token", "leave it out, or name the roles one by one")
			return ""
		}
		if !b.single(f) {
			return ""
		}
	}
	f := b.secret("join", r, b.src.ReadSecret, prompt, func(missing string) {
		// A token is spent once the component has joined, and people tidy up.
		b.warn(missing + "; it is needed only until the component has joined")
	})
	token := f.text()
	if token != "" && (!strings.HasPrefix(token, "sp1.") || strings.ContainsAny(token, " \t\r\n")) {
		b.bad.add(f.setting.flag, f.from, "this is no join token", "paste the whole token, which begins with sp1., as '"+string(r)+" add' printed it")
	}
	b.row(f, "")
	return token
}

// DataDir is where state is kept when no setting says otherwise:
// SALLYPORT_DATA_DIR, else the first of STATE_DIRECTORY as systemd sets it,
// else /var/lib/sallyport for root, else sallyport in the XDG state directory.
// It is empty when none of them is known.
func DataDir(environ []string, uid int) string {
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	state, _, _ := strings.Cut(env["STATE_DIRECTORY"], ":")
	switch {
	case env["SALLYPORT_DATA_DIR"] != "":
		dir, err := filepath.Abs(env["SALLYPORT_DATA_DIR"])
		if err != nil {
			return env["SALLYPORT_DATA_DIR"]
		}
		return dir
	case state != "":
		return state
	case uid == 0:
		return "/var/lib/sallyport"
	case filepath.IsAbs(env["XDG_STATE_HOME"]):
		return filepath.Join(env["XDG_STATE_HOME"], "sallyport")
	case filepath.IsAbs(env["HOME"]):
		return filepath.Join(env["HOME"], ".local", "state", "sallyport")
	}
	return ""
}

// at is the origin of one element of a list.
func (f found) at(i int) origin {
	o := f.from
	if i < len(f.items) {
		o.pos = f.items[i].Pos
	}
	return o
}

// join lists roles as a sentence does.
func join(roles []Role) string {
	s := make([]string, len(roles))
	for i, r := range roles {
		s[i] = string(r)
	}
	if len(s) < 2 {
		return strings.Join(s, "")
	}
	return strings.Join(s[:len(s)-1], ", ") + " and " + s[len(s)-1]
}

// short writes a duration without zero parts: 24h and not 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
