package configs

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Provenance says of every setting where its value came from.
type Provenance struct{ rows []Row }

// Row is one setting as it holds.
type Row struct {
	Role  string `json:"role,omitempty"` // core, proxy, gateway; empty for the process
	Key   string `json:"key"`            // snake_case, as in the file
	Value string `json:"value"`          // as TOML; empty where nothing is set, and for a secret
	From  string `json:"from"`           // "flag --x", "environment SALLYPORT_X", "FILE:LINE", "default"

	secret bool
	parts  bool // the rows that follow say it
}

// Rows lists every setting of the running roles: the process first, then
// core, proxy and gateway.
func (p Provenance) Rows() []Row { return p.rows }

// row notes a value. value is TOML; empty is not set.
func (b *loader) row(f found, value string) {
	b.provenance.rows = append(b.provenance.rows, Row{
		Role: string(f.role), Key: f.setting.key, Value: value, From: f.from.String(),
		secret: strings.HasPrefix(f.setting.kind, "secret"), // of a passphrase the file is shown
		parts:  f.setting.kind == "limits",
	})
}

// unset takes back what row noted about keys that mean nothing here.
func (b *loader) unset(keys ...string) {
	for i := range b.provenance.rows {
		if slices.Contains(keys, b.provenance.rows[i].Key) {
			b.provenance.rows[i].Value = ""
		}
	}
}

// Print writes the settings as a TOML file that Load would read as the same
// settings, with the origin of every value in a comment. Secrets are left out.
func Print(w io.Writer, s *Settings, p Provenance) error {
	var b strings.Builder
	if s.File != "" {
		fmt.Fprintf(&b, "# Settings file: %s\n", s.File)
	}
	role := ""
	for _, r := range p.rows {
		if r.Role != role {
			role = r.Role
			fmt.Fprintf(&b, "\n[%s]\n", role)
		}
		from := strings.ReplaceAll(r.From, "\n", " ")
		switch {
		case r.parts:
		case r.secret && r.From != "default":
			fmt.Fprintf(&b, "# %s is set and not shown   # %s\n", r.Key, from)
		case r.Value == "":
			fmt.Fprintf(&b, "# %s is not set\n", r.Key)
		default:
			fmt.Fprintf(&b, "%s = %s   # %s\n", r.Key, r.Value, from)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func quoteList(list []string) string {
	if len(list) == 0 {
		return ""
	}
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = quote(s)
	}
	return "[" + strings.Join(q, ", ") + "]"
}
