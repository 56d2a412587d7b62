package configs

import (
	"errors"
	"io"
)

// Sources is the world outside the command line.
type Sources struct {
	Environ []string // as os.Environ gives it

	UID int // decides the default data directory

	// ReadSecret answers "-" given for a secret: it asks on a terminal, or
	// reads a line of standard input. prompt names what is asked for.
	ReadSecret func(prompt string) (string, error)
}

// Provenance says of every setting where its value came from.
type Provenance struct{ rows []Row }

// Row is one setting as it holds.
type Row struct {
	Role  string `json:"role,omitempty"` // core, proxy, gateway; empty for the process
	Key   string `json:"key"`            // snake_case, as in the file
	Value string `json:"value"`          // as TOML; "" for a secret
	From  string `json:"from"`           // "flag --x", "environment SALLYPORT_X", "FILE:LINE", "default"
}

// Rows lists every setting of the running roles, in the order of Flags.
func (p Provenance) Rows() []Row { return p.rows }

// Load makes settings of what the command line, the environment and the file
// say, in this order of precedence, above the defaults. It can be called
// again at any time and changes nothing outside. All that is wrong is
// reported at once, in one error whose parts are *Error.
func Load(flags Flags, src Sources) (*Settings, Provenance, error) {
	return nil, Provenance{}, errors.New("incomplete")
}

// Print writes the settings as a TOML file that Load would read as the same
// settings, with the origin of every value in a comment. Secrets are left out.
func Print(w io.Writer, s *Settings, p Provenance) error { return nil }

// DataDir is where state is kept when no setting says otherwise:
// SALLYPORT_DATA_DIR, else the first of STATE_DIRECTORY as systemd sets it,
// else /var/lib/sallyport for root, else sallyport in the XDG state directory.
// It is empty when none of them is known.
func DataDir(environ []string, uid int) string { return "" }

// ParseUpstreamAddress reads the address of an upstream. Plaintext beyond
// this host is refused unless it is asked for as h2c://.
func ParseUpstreamAddress(s string) (UpstreamAddress, error) {
	return UpstreamAddress{}, errors.New("incomplete")
}

// Error is one thing wrong with the settings.
type Error struct {
	Setting string // as the person wrote it: --grpc-address, SALLYPORT_GRPC_ADDRESS, grpc_address
	From    string // flag --x, environment X, FILE:LINE:COLUMN
	Problem string
	Remedy  string
}

// Error names the origin, the problem and the remedy.
func (e *Error) Error() string { return e.From + ": " + e.Problem + ": " + e.Remedy }
