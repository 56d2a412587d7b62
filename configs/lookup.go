package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// found is the value of one setting for one role, and where it was found.
type found struct {
	setting setting
	role    Role
	from    origin
	texts   []string
	items   []*Value // of a list in the file: elements with their positions
}

func (f found) text() string {
	if len(f.texts) == 0 {
		return ""
	}
	return f.texts[0]
}

func (f found) given() bool { return f.from.kind != fromDefault }

// lookup finds values by precedence: flag, environment (our variable, then the
// one that people know from Defguard), the role's table, the file's top level.
type lookup struct {
	flags   *Flags
	environ map[string]string
	file    string
	root    *Table
	dir     string // of the file: what its relative paths are relative to
	bad     *problems
}

func newLookup(flags *Flags, environ []string, bad *problems) *lookup {
	l := &lookup{flags: flags, environ: map[string]string{}, bad: bad}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			l.environ[k] = v
		}
	}
	return l
}

// open reads the settings file, if one is named.
func (l *lookup) open() {
	s := settingOf("config")
	f := l.find(s, "")
	if !f.given() {
		return
	}
	path, err := filepath.Abs(f.text())
	if err != nil || f.text() == "" {
		l.bad.add(s.flag, f.from, "it names no file", "give the path of a settings file, or leave it out")
		return
	}
	text, err := readBounded(path, MaxFile)
	if err != nil {
		l.bad.add(s.flag, f.from, "the settings file cannot be read: "+err.Error(), "check the path and who may read it")
		return
	}
	root, err := ParseTOML(path, text)
	if err != nil {
		l.bad.errs = append(l.bad.errs, err)
		return
	}
	l.file, l.dir, l.root = path, filepath.Dir(path), root
	l.checkKeys(root, "")
}

// checkKeys refuses keys that mean nothing where they stand.
func (l *lookup) checkKeys(t *Table, table Role) {
	var known []string
	for _, s := range settings() {
		if s.kind != "config" && (table == "" || s.has(table)) {
			known = append(known, s.key)
		}
	}
	for _, key := range t.Keys {
		v := t.Values[key]
		if table == "" && isRole(key) && v.Kind == "table" {
			l.checkKeys(v.Table, Role(key))
			continue
		}
		at := origin{kind: fromFile, name: key, file: l.file, pos: v.KeyPos}
		if table == "" && isRole(key) && (key != string(RoleCore) || v.Kind != "string") {
			l.bad.add(key, at, "it is a table of settings, and here it is "+article(v.Kind), "write ["+key+"]")
			continue
		}
		if slices.Contains(known, key) {
			continue
		}
		in := "the settings file"
		if table != "" {
			in = "[" + string(table) + "]"
		}
		if key == "config" {
			l.bad.add(key, at, "a settings file cannot name another", "remove the line")
		} else if s, ok := settingOfKey(key); ok { // a known key in the wrong table
			remedy := "move it to the top of the file"
			if len(s.roles) > 0 {
				remedy = "it belongs to " + tables(s.roles)
			}
			l.bad.add(s.flag, at, "it is no setting of "+in, remedy)
		} else if near := Nearest(strings.ReplaceAll(key, "-", "_"), known); near != "" {
			l.bad.add(key, at, "unknown key in "+in, "did you mean "+near+"?")
		} else {
			l.bad.add(key, at, "unknown key in "+in, "the keys are the flags of 'sallyport --help' with _ for -")
		}
	}
}

// find returns the value of a setting for a role ("" is the process).
func (l *lookup) find(s setting, role Role) found {
	f := found{setting: s, role: role}
	if texts, ok := s.flagValue(l.flags); ok {
		f.texts, f.from = texts, origin{kind: fromFlag, name: "--" + s.flag}
		return f
	}
	if texts, ok := s.environValue(l.environ); ok {
		f.texts, f.from = texts, origin{kind: fromEnviron, name: s.env}
		return f
	}
	if name := s.defguard[role]; strings.TrimSpace(l.environ[name]) != "" {
		f.texts, f.from = []string{l.environ[name]}, origin{kind: fromEnviron, name: name}
		return f
	}
	if port := l.environ["PORT"]; port != "" && s.flag == "public-address" {
		f.texts, f.from = []string{":" + port}, origin{kind: fromEnviron, name: "PORT"}
		return f
	}
	for _, table := range []Role{role, ""} {
		t := l.root
		if table != "" {
			if v := l.root.Get(string(table)); v != nil {
				t = v.Table
			} else {
				continue
			}
		}
		if v := t.Get(s.key); v != nil && (v.Kind != "table" || !isRole(s.key)) {
			f.from = origin{kind: fromFile, name: s.key, file: l.file, pos: v.KeyPos, role: table}
			l.read(&f, v)
			return f
		}
	}
	if s.fallback != "" {
		f.texts = []string{s.fallback}
	}
	return f
}

// everywhere returns every value of a setting for a role, the one that wins last.
func (l *lookup) everywhere(s setting, role Role) []found {
	var all []found
	for _, table := range []Role{"", role} {
		t := l.root
		if table != "" {
			v := l.root.Get(string(table))
			if v == nil {
				continue
			}
			t = v.Table
		}
		if v := t.Get(s.key); v != nil {
			f := found{setting: s, role: role, from: origin{kind: fromFile, name: s.key, file: l.file, pos: v.KeyPos, role: table}}
			l.read(&f, v)
			all = append(all, f)
		}
	}
	if texts, ok := s.environValue(l.environ); ok {
		all = append(all, found{setting: s, role: role, texts: texts, from: origin{kind: fromEnviron, name: s.env}})
	}
	if texts, ok := s.flagValue(l.flags); ok {
		all = append(all, found{setting: s, role: role, texts: texts, from: origin{kind: fromFlag, name: "--" + s.flag}})
	}
	return all
}

// read takes a value of the file.
func (l *lookup) read(f *found, v *Value) {
	s := f.setting
	switch {
	case s.kind == "upstreams" && v.Kind == "list":
		f.items = v.List
	case s.kind == "limits" && v.Kind == "table":
		for _, name := range v.Table.Keys {
			item := v.Table.Values[name]
			if item.Kind != "string" && item.Kind != "integer" {
				at := f.from
				at.pos = item.Pos
				l.bad.add(s.flag, at, "a limit is a number or a text, and this is "+article(item.Kind), "write a number, or a text such as \"64KiB\" or \"10s\"")
				continue
			}
			f.texts = append(f.texts, name+"="+item.Text)
			f.items = append(f.items, item)
		}
	case v.Kind == "string" && s.kind != "true|false" || s.kind == "count" && v.Kind == "integer" || s.kind == "true|false" && v.Kind == "boolean":
		f.texts = []string{v.Text}
		f.items = []*Value{v}
	case (s.list || s.kind == "roles") && v.Kind == "list":
		for _, item := range v.List {
			if item.Kind != "string" {
				at := f.from
				at.pos = item.Pos
				l.bad.add(s.flag, at, "a list of texts holds "+article(item.Kind), "write every element in quotes")
				continue
			}
			f.texts = append(f.texts, item.Text)
			f.items = append(f.items, item)
		}
	case s.kind == "true|false":
		l.bad.add(s.flag, f.from, "true or false is needed here and this is "+article(v.Kind), "write "+s.key+" = true or "+s.key+" = false")
	default:
		remedy := fmt.Sprintf("write %s = %s", s.key, quote(v.Text))
		if v.Kind == "list" || v.Kind == "table" {
			remedy = fmt.Sprintf("write %s = \"…\"", s.key)
		}
		l.bad.add(s.flag, f.from, "a text is needed here and this is "+article(v.Kind), remedy)
		f.texts = nil
	}
}

// outranks says whether a wins over b.
func outranks(a, b origin) bool {
	if a.kind != b.kind {
		return a.kind > b.kind
	}
	return a.role != "" && b.role == ""
}

// path makes a path absolute: relative to the settings file where it was
// written there, else to the working directory.
func (l *lookup) path(f found) string { return l.pathOf(f.from, f.text()) }

func (l *lookup) pathOf(from origin, p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	if from.kind == fromFile {
		return filepath.Join(l.dir, p)
	}
	if abs, err := filepath.Abs(p); err == nil {
		return abs
	}
	return p
}

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fmt.Errorf("%s is a directory", path)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s has %d bytes, more than the %d that are read", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}

func isRole(s string) bool {
	return s == string(RoleCore) || s == string(RoleProxy) || s == string(RoleGateway)
}

// tables writes roles as the tables of the file: [core] and [proxy].
func tables(roles []Role) string {
	var s []string
	for _, r := range roles {
		s = append(s, "["+string(r)+"]")
	}
	return strings.Join(s, " and ")
}
