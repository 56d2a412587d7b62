package configs

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// setting is one field of Flags, as its tags describe it.
type setting struct {
	index    int
	flag     string // grpc-address
	key      string // grpc_address
	env      string // SALLYPORT_GRPC_ADDRESS
	roles    []Role // who has it; none: the process
	kind     string // listen, dial, duration, a|b|c, …
	fallback string
	list     bool
	defguard map[Role]string // the variable that Defguard's guide has for the same
}

// settings lists the fields of Flags in their order.
var settings = sync.OnceValue(func() []setting {
	var all []setting
	t := reflect.TypeFor[Flags]()
	for i := range t.NumField() {
		f := t.Field(i)
		s := setting{
			index:    i,
			flag:     f.Tag.Get("name"),
			kind:     f.Tag.Get("kind"),
			fallback: f.Tag.Get("fallback"),
			list:     f.Type.Kind() == reflect.Slice,
		}
		s.key = strings.ReplaceAll(s.flag, "-", "_")
		s.env = "SALLYPORT_" + strings.ToUpper(s.key)
		for kv := range strings.SplitSeq(f.Tag.Get("defguard"), ",") {
			if role, name, ok := strings.Cut(kv, "="); ok {
				if s.defguard == nil {
					s.defguard = map[Role]string{}
				}
				s.defguard[Role(role)] = name
			}
		}
		for r := range strings.SplitSeq(f.Tag.Get("roles"), ",") {
			if r != "process" {
				s.roles = append(s.roles, Role(r))
			}
		}
		all = append(all, s)
	}
	return all
})

func settingOf(flag string) setting {
	for _, s := range settings() {
		if s.flag == flag {
			return s
		}
	}
	panic("configs: no setting is called " + flag)
}

func settingOfKey(key string) (setting, bool) {
	for _, s := range settings() {
		if s.key == key {
			return s, true
		}
	}
	return setting{}, false
}

// has says whether a role has the setting; "" asks for the process.
func (s setting) has(r Role) bool {
	if r == "" {
		return len(s.roles) == 0
	}
	return slices.Contains(s.roles, r)
}

// exclusive settings cannot be shared by two roles: an address can be bound
// once, a token is made for one component.
func (s setting) exclusive() bool {
	return s.kind == "listen" || s.kind == "secret" || s.kind == "secret-file"
}

// flagValue reads the setting from Flags; the second result is false when it
// was not given.
func (s setting) flagValue(f *Flags) ([]string, bool) {
	v := reflect.ValueOf(f).Elem().Field(s.index)
	if s.list {
		return v.Interface().([]string), v.Len() > 0
	}
	if v.IsNil() {
		return nil, false
	}
	if v.Elem().Kind() == reflect.Bool {
		return []string{strconv.FormatBool(v.Elem().Bool())}, true
	}
	return []string{v.Elem().String()}, true
}

// environValue reads the setting from the environment, where an empty
// variable is one that is not set. Lists are separated by blanks, and by
// commas where an element cannot contain one.
func (s setting) environValue(environ map[string]string) ([]string, bool) {
	text := environ[s.env]
	if strings.TrimSpace(text) == "" {
		return nil, false
	}
	if !s.list {
		return []string{text}, true
	}
	if s.kind == "methods" || s.kind == "peers" || s.kind == "cidrs" || s.kind == "limits" || s.kind == "origins" {
		text = strings.ReplaceAll(text, ",", " ")
	}
	return strings.Fields(text), true
}
