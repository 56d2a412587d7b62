package policy

import "strings"

// maxPath bounds a method path. The longest names of real services have less
// than a fifth of it.
const maxPath = 1024

// Method is a full method name in its two parts.
type Method struct {
	Service string // acme.orders.v1.Orders
	Name    string // Get
}

// ParseMethod splits /[package.]Service/Method. It is strict, byte by byte,
// and allocates nothing: whatever it accepts has one spelling.
func ParseMethod(path string) (Method, bool) {
	if len(path) < len("/S/M") || len(path) > maxPath || path[0] != '/' {
		return Method{}, false
	}
	slash := 0
	start := true // of an identifier
	for i := 1; i < len(path); i++ {
		switch class[path[i]] {
		case letter:
			start = false
		case digit:
			if start {
				return Method{}, false
			}
		case dot:
			if start || slash > 0 {
				return Method{}, false
			}
			start = true
		case separator:
			if start || slash > 0 {
				return Method{}, false
			}
			slash, start = i, true
		default:
			return Method{}, false
		}
	}
	if start || slash == 0 {
		return Method{}, false
	}
	return Method{Service: path[1:slash], Name: path[slash+1:]}, true
}

const (
	other = iota
	letter
	digit
	dot
	separator
)

var class = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
			t[c] = letter
		case c >= '0' && c <= '9':
			t[c] = digit
		case c == '.':
			t[c] = dot
		case c == '/':
			t[c] = separator
		}
	}
	return t
}()

// matcher finds the most specific pattern for a method: the method itself,
// its service, then its packages from the inside out.
type matcher[T any] struct {
	methods  map[string]T // "/acme.v1.Orders/Get"
	services map[string]T // "/acme.v1.Orders/" for /acme.v1.Orders/*
	packages map[string]T // "/acme.v1." for /acme.v1.*

	shortest, longest int // of the keys of packages: others need not be tried
}

// add puts a pattern that configs.MethodPattern accepts.
func (m *matcher[T]) add(pattern string, v T) {
	to := &m.methods
	if p, wild := strings.CutSuffix(pattern, "*"); wild {
		pattern = p
		if to = &m.services; strings.HasSuffix(p, ".") {
			to = &m.packages
			m.longest = max(m.longest, len(p))
			if m.shortest == 0 || len(p) < m.shortest {
				m.shortest = len(p)
			}
		}
	}
	if *to == nil {
		*to = map[string]T{}
	}
	(*to)[pattern] = v
}

// find looks a well-formed path up.
func (m *matcher[T]) find(path string) (T, bool) {
	if v, ok := m.methods[path]; ok {
		return v, true
	}
	slash := strings.LastIndexByte(path, '/')
	if v, ok := m.services[path[:slash+1]]; ok {
		return v, true
	}
	if len(m.packages) > 0 {
		for n := min(slash, m.longest); n >= m.shortest; n-- {
			if path[n-1] == '.' {
				if v, ok := m.packages[path[:n]]; ok {
					return v, true
				}
			}
		}
	}
	var none T
	return none, false
}

// wider lists the patterns that cover a pattern, itself first, the most
// specific first.
func wider(pattern string) []string {
	list := []string{pattern}
	base, wild := strings.CutSuffix(pattern, "*")
	slash := strings.LastIndexByte(base, '/')
	if slash > 0 && !wild {
		list = append(list, base[:slash+1]+"*")
	}
	end := len(base)
	if slash > 0 {
		end = slash
	} else {
		end-- // the dot of /acme.v1.*, whose own pattern is listed
	}
	for i := end - 1; i > 1; i-- {
		if base[i] == '.' {
			list = append(list, base[:i+1]+"*")
		}
	}
	return list
}

// covers says whether a pattern covers a method or a narrower pattern.
func covers(pattern, name string) bool {
	if p, wild := strings.CutSuffix(pattern, "*"); wild {
		return strings.HasPrefix(name, p)
	}
	return pattern == name
}
