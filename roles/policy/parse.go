package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/configs"
)

// HealthService needs no credentials unless the file says otherwise.
const HealthService = "grpc.health.v1.Health"

const public = "public"

// Error is one thing wrong with a policy file.
type Error struct {
	File    string
	Pos     configs.Position
	Problem string
	Remedy  string
}

// Error is FILE:LINE:COLUMN, the problem and the remedy.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s; %s", e.File, e.Pos.Line, e.Pos.Column, e.Problem, e.Remedy)
}

// Parse reads a policy file. name is what error messages call it. All that is
// wrong is reported at once, in parts that are *Error or *configs.SyntaxError.
func Parse(name string, text []byte) (*Policy, error) {
	root, err := configs.ParseTOML(name, text)
	if err != nil {
		return nil, err
	}
	f := &file{name: name, p: &Policy{text: slices.Clone(text)}, treated: map[string]int{}}
	f.read(root)
	if len(f.errs) > 0 {
		return nil, errors.Join(f.errs...)
	}
	f.p.compile()
	return f.p, nil
}

// file reads one policy file.
type file struct {
	name string
	p    *Policy
	errs []error

	treated map[string]int // line of the [[method]] of a pattern
}

func (f *file) bad(at configs.Position, problem, remedy string) {
	f.errs = append(f.errs, &Error{f.name, at, problem, remedy})
}

// refuse reports an error that holds its remedy after a semicolon.
func (f *file) refuse(at configs.Position, err error) {
	problem, remedy, _ := strings.Cut(err.Error(), "; ")
	f.bad(at, problem, remedy)
}

func (f *file) read(root *configs.Table) {
	known := []string{"methods", "method", "grant", "issuer", "limit"}
	for _, key := range root.Keys {
		v := root.Values[key]
		switch key {
		case "methods":
			if v.Kind != "table" {
				f.bad(v.KeyPos, "methods is a table", "write [methods]")
				continue
			}
			f.methods(v.Table)
		case "method":
			f.each(key, v, f.method)
		case "grant":
			f.each(key, v, f.grant)
		case "issuer":
			f.each(key, v, f.issuer)
		case "limit":
			f.each(key, v, f.limit)
		default:
			remedy := "a policy has [methods], [[method]], [[grant]], [[issuer]] and [[limit]]"
			if near := configs.Nearest(key, known); near != "" {
				remedy = "did you mean " + near + "?"
			}
			f.bad(v.KeyPos, "unknown key "+key, remedy)
		}
	}
}

func (f *file) each(key string, v *configs.Value, read func(configs.Position, *configs.Table)) {
	if v.Kind != "list" {
		f.bad(v.KeyPos, key+" is a list of tables", "write [["+key+"]]")
		return
	}
	for _, item := range v.List {
		if item.Kind != "table" {
			f.bad(item.Pos, key+" is a list of tables", "write [["+key+"]]")
			continue
		}
		read(item.Pos, item.Table)
	}
}

// methods reads [methods].
func (f *file) methods(t *configs.Table) {
	for _, pattern := range t.Keys {
		v := t.Values[pattern]
		if err := configs.MethodPattern(pattern); err != nil {
			f.refuse(v.KeyPos, err)
			continue
		}
		r := &row{pattern: pattern, line: v.KeyPos.Line}
		r.needs = f.permissions(pattern, v, true)
		if slices.Contains(r.needs, public) {
			if len(r.needs) > 1 {
				f.bad(v.Pos, pattern+" is public and lists permissions too", `write ["public"] alone, or the permissions without it`)
			}
			r.public = true
		}
		f.p.rows = append(f.p.rows, r)
	}
}

// permissions reads a list of permissions.
func (f *file) permissions(of string, v *configs.Value, row bool) []string {
	if v.Kind != "list" {
		f.bad(v.Pos, "the permissions of "+of+" are a list", "write them in brackets, such as [\"user:read\", \"admin\"]")
		return nil
	}
	var list []string
	for _, item := range v.List {
		switch err := checkPermission(item.Text); {
		case item.Kind != "string":
			f.bad(item.Pos, "a permission of "+of+" is no text", "write every permission in quotes")
		case err != nil:
			f.refuse(item.Pos, err)
		case slices.Contains(list, item.Text):
			f.bad(item.Pos, fmt.Sprintf("%q is listed twice", item.Text), "list it once")
		case !row && item.Text == public:
			f.bad(item.Pos, `"public" is no permission that one can hold`, "remove it; a public method needs no grant")
		default:
			list = append(list, item.Text)
		}
	}
	return list
}

func checkPermission(s string) error {
	if s == "" || len(s) > 128 {
		return fmt.Errorf("%q is no permission; write 1 to 128 letters, digits and . : _ - / @", s)
	}
	for _, c := range []byte(s) {
		switch {
		case c == '*':
			return fmt.Errorf("%q has a wildcard, and a permission is an exact word; name each permission", s)
		case class[c] == other && c != ':' && c != '-' && c != '@':
			return fmt.Errorf("%q is no permission; write letters, digits and . : _ - / @", s)
		}
	}
	return nil
}

// method reads one [[method]].
func (f *file) method(at configs.Position, t *configs.Table) {
	m := &treatment{line: at.Line}
	f.keys("[[method]]", t, "match", "max_message", "max_deadline", "forward_authorization")
	match := t.Get("match")
	if match == nil || match.Kind != "string" {
		f.bad(at, "this [[method]] names no method", `write match = "/pkg.Service/Method"`)
		return
	}
	m.match = match.Text
	if err := configs.MethodPattern(m.match); err != nil {
		f.refuse(match.Pos, err)
		return
	}
	if before := f.treated[m.match]; before > 0 {
		f.bad(match.Pos, fmt.Sprintf("%s has a [[method]] in line %d already", m.match, before), "put all of it into one")
	}
	f.treated[m.match] = at.Line
	f.caps(t, &m.Treatment)
	if v := t.Get("forward_authorization"); v != nil {
		if v.Kind != "boolean" {
			f.bad(v.Pos, "forward_authorization is true or false", "write it without quotes")
		}
		m.ForwardAuthorization = v.Text == "true"
	}
	f.p.treats = append(f.p.treats, m)
}

// grant reads one [[grant]].
func (f *file) grant(at configs.Position, t *configs.Table) {
	g := &grant{line: at.Line}
	f.keys("[[grant]]", t, "caller", "apikey", "client_ca", "permissions", "via_proxy", "via_gateway", "listener")
	caller, key, ca := f.text(t, "caller"), f.text(t, "apikey"), f.text(t, "client_ca")
	if ca != nil && !label(ca.Text) {
		f.bad(ca.Pos, fmt.Sprintf("%q is no name of a client CA", ca.Text), "write lower-case letters, digits and -")
	}
	switch {
	case (caller == nil) == (key == nil):
		f.bad(at, "a grant names one caller", `write caller = "spiffe://…", caller = "ISSUER#SUBJECT", or apikey = "…"`)
		return
	case key != nil:
		if !plain(key.Text) {
			f.bad(key.Pos, fmt.Sprintf("%q is no name of an API key", key.Text), "write the name that 'apikey create' was given")
		}
		g.key = holderKey{kind: APIKey, id: "apikey:" + key.Text}
		if ca != nil {
			f.bad(ca.Pos, "client_ca concerns certificates, and this is an API key", "remove it")
		}
	default:
		clientCA := ""
		if ca != nil {
			clientCA = ca.Text
		}
		var err error
		if g.key, err = parseIdentity(caller.Text, clientCA); err != nil {
			f.refuse(caller.Pos, err)
			return
		}
	}
	g.name = fmt.Sprintf("%s (line %d)", g.key.id, g.line)
	if v := t.Get("permissions"); v == nil {
		f.bad(at, "this grant gives nothing", `write permissions = ["…"]`)
	} else {
		g.permissions = f.permissions("this grant", v, false)
		if v.Kind == "list" && len(v.List) == 0 {
			f.bad(v.Pos, "this grant gives nothing", "name a permission, or remove the grant")
		}
	}
	g.viaProxy, g.viaGateway = f.via(t, "via_proxy", g), f.via(t, "via_gateway", g)
	if v := f.text(t, "listener"); v != nil {
		switch {
		case g.key.kind != Gateway:
			f.bad(v.KeyPos, "listener names an entrance of a gateway for local apps, and this caller is none", `remove it, or write caller = "spiffe://TRUST-DOMAIN/gateway/NAME"`)
		case !label(v.Text):
			f.bad(v.Pos, fmt.Sprintf("%q is no label of a listener", v.Text), "write the LABEL of --listen LABEL=ADDRESS: lower-case letters, digits and -")
		default:
			g.listener = v.Text
			g.name = fmt.Sprintf("%s by %s (line %d)", g.key.id, g.listener, g.line)
		}
	}
	f.p.grants = append(f.p.grants, g)
}

// via reads whose word about a certificate is believed.
func (f *file) via(t *configs.Table, key string, g *grant) []string {
	v := t.Get(key)
	if v == nil {
		return nil
	}
	if g.key.kind != Certificate {
		what := "an API key"
		switch g.key.kind {
		case Gateway:
			what = "a gateway"
		case Token:
			what = "a token"
		}
		f.bad(v.KeyPos, key+" says whose word about a client certificate is believed, and core verifies "+what+" itself", "remove it")
		return nil
	}
	if v.Kind != "list" {
		f.bad(v.Pos, key+" is a list", "write "+key+` = ["NAME"]`)
		return nil
	}
	var names []string
	for _, item := range v.List {
		if item.Kind != "string" || !label(item.Text) {
			f.bad(item.Pos, fmt.Sprintf("%q is no name of a component", item.Text), "write the name that it was added with")
			continue
		}
		names = append(names, item.Text)
	}
	return names
}

func (f *file) keys(where string, t *configs.Table, known ...string) {
	for _, key := range t.Keys {
		if slices.Contains(known, key) {
			continue
		}
		remedy := "the keys are " + strings.Join(known, ", ")
		if near := configs.Nearest(key, known); near != "" {
			remedy = "did you mean " + near + "?"
		}
		f.bad(t.Values[key].KeyPos, "unknown key "+key+" in "+where, remedy)
	}
}

func (f *file) text(t *configs.Table, key string) *configs.Value {
	v := t.Get(key)
	if v != nil && v.Kind != "string" {
		f.bad(v.Pos, key+" is a text", "write it in quotes")
		return nil
	}
	return v
}

// parseIdentity reads a caller with a certificate: spiffe://… or cn:NAME.
func parseIdentity(s, clientCA string) (holderKey, error) {
	none := holderKey{}
	if name, ok := strings.CutPrefix(s, "cn:"); ok {
		if clientCA == "" {
			return none, fmt.Errorf("%q is a name in a certificate, and any CA can write any name; add client_ca = \"…\", the CA whose names these are", s)
		}
		if !plain(name) {
			return none, fmt.Errorf("%q is no common name; write the CN of the certificate", name)
		}
		return holderKey{Certificate, s, clientCA}, nil
	}
	if name, ok := strings.CutPrefix(s, "apikey:"); ok {
		return none, fmt.Errorf("an API key is written otherwise; write apikey = %q", name)
	}
	if strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") {
		if clientCA != "" {
			return none, fmt.Errorf("client_ca concerns certificates, and %q is the caller of a token; remove it", s)
		}
		return parseTokenCaller(s)
	}
	id, err := spiffeid.FromString(s)
	if err != nil || id.Path() == "" || len(s) > 2048 {
		return none, fmt.Errorf("%q is no caller; write spiffe://TRUST-DOMAIN/client/NAME, cn:NAME with client_ca, or ISSUER#SUBJECT", s)
	}
	if clientCA != "" {
		return holderKey{Certificate, s, clientCA}, nil
	}
	switch role, _, _ := strings.Cut(id.Path()[1:], "/"); role {
	case "core", "proxy":
		return none, fmt.Errorf("%s is a component that makes no calls of its own; grant to clients and gateways", s)
	case "gateway":
		return holderKey{Gateway, s, ""}, nil
	}
	return holderKey{Certificate, s, ""}, nil
}

// label says whether s can be the name of a component or of a client CA.
func label(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// plain says whether s is a short text without control characters.
func plain(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd })
}
