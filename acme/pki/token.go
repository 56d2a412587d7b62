package pki

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
)

// Token is a join token: what `gateway add` and `proxy add` print. The seed is
// the secret. It never crosses the wire and core does not keep it; both sides
// derive a key from it together with everything else in the token, so that a
// token of which anything was changed is another token.
type Token struct {
	Role       Role   // RoleProxy or RoleGateway
	Name       string // of the component
	Expires    time.Time
	Core       string     // gateways: HOST:PORT of core
	Peers      []string   // proxies: the addresses core comes from
	Pins       [][32]byte // SHA-256 of the public keys of the current and the next root
	GRPCTLS    string     // certificate of the listening side: internal, acme or files; "" is internal
	ServerName string     // by which that certificate is verified; "" is the host that is dialled
	Reusable   bool
	Seed       [32]byte `json:"-"`
}

const (
	tokenPrefix   = "sp1."
	maxTokenText  = 4 << 10
	maxTokenPeers = 64
	maxTokenPins  = 4
	maxTokenField = 255
	checksumSize  = 4
)

// The numbers of roles and listener modes in tokens. Never renumbered.
var (
	tokenRoles = []Role{1: RoleProxy, 2: RoleGateway}
	tokenModes = []string{"internal", "acme", "files"}
)

const tokenReusable = 1 // the only flag so far

// NewToken checks t, draws its seed from rand and returns the finished token,
// in the form in which ParseToken will return it.
func NewToken(t Token, rand io.Reader) (Token, error) {
	if _, err := io.ReadFull(rand, t.Seed[:]); err != nil {
		return Token{}, fmt.Errorf("make a join token: draw its seed: %w", err)
	}
	if t.GRPCTLS == "" {
		t.GRPCTLS = tokenModes[0]
	}
	t.Expires = t.Expires.UTC().Truncate(time.Second)
	t.Peers = append([]string(nil), t.Peers...)
	t.Pins = append([][32]byte(nil), t.Pins...)
	if err := t.check(); err != nil {
		return Token{}, fmt.Errorf("make a join token: %w", err)
	}
	if n := len(t.String()); n > maxTokenText {
		return Token{}, fmt.Errorf("make a join token: it would have %d characters and %d are allowed; name fewer peers, or a CIDR", n, maxTokenText)
	}
	return t, nil
}

// check is what holds for every token.
func (t Token) check() error {
	switch {
	case t.Role != RoleProxy && t.Role != RoleGateway:
		return fmt.Errorf("role %q does not join by a token", string(t.Role))
	case t.Expires.Unix() <= 0 || t.Expires.Unix() > 1<<40:
		return errors.New("it has no expiry time")
	case len(t.Pins) == 0 || len(t.Pins) > maxTokenPins:
		return fmt.Errorf("it has %d pins of core's root", len(t.Pins))
	case t.Seed == [32]byte{}:
		return errors.New("its seed is empty")
	case len(t.Peers) > maxTokenPeers:
		return fmt.Errorf("it has %d peers, %d are allowed", len(t.Peers), maxTokenPeers)
	case t.Role == RoleGateway && len(t.Peers) > 0:
		return errors.New("a gateway's token carries core's address and no peers")
	case t.Role == RoleProxy && t.Core != "":
		return errors.New("a proxy's token carries no address of core, which dials the proxy")
	}
	if err := ValidName(t.Name); err != nil {
		return err
	}
	if t.Role == RoleGateway {
		if err := checkHostPort(t.Core); err != nil {
			return fmt.Errorf("core's address: %w", err)
		}
	}
	for _, p := range t.Peers {
		if err := checkTokenText(p); err != nil || p == "" {
			return fmt.Errorf("peer %q is not an address, CIDR or name", printable(p, 64))
		}
	}
	if err := checkTokenText(t.ServerName); err != nil {
		return fmt.Errorf("server name: %w", err)
	}
	_, err := t.mode()
	return err
}

func (t Token) mode() (byte, error) {
	for i, m := range tokenModes {
		if m == t.GRPCTLS || i == 0 && t.GRPCTLS == "" {
			return byte(i), nil
		}
	}
	return 0, fmt.Errorf("listener certificate %q is unknown: internal, acme or files", printable(t.GRPCTLS, 32))
}

// public is everything in the token but the seed, in the one encoding that the
// token has: numbers big-endian, texts and lists with their length before them.
func (t Token) public() []byte {
	var b []byte
	text := func(s string) { b = append(append(b, byte(len(s))), s...) }
	for n, r := range tokenRoles {
		if n > 0 && r == t.Role {
			b = append(b, byte(n))
		}
	}
	var flags byte
	if t.Reusable {
		flags |= tokenReusable
	}
	mode, _ := t.mode()
	b = append(b, flags, mode)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	text(t.Name)
	text(t.Core)
	text(t.ServerName)
	b = append(b, byte(len(t.Peers)))
	for _, p := range t.Peers {
		text(p)
	}
	b = append(b, byte(len(t.Pins)))
	for _, p := range t.Pins {
		b = append(b, p[:]...)
	}
	return b
}

// String is the token as an operator pastes it. It holds the secret.
func (t Token) String() string {
	b := append(t.public(), t.Seed[:]...)
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:checksumSize]...))
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.String("role", string(t.Role)), slog.String("name", t.Name), slog.Time("expires", t.Expires))
}

// Format writes the token for %s and %q, which are asked for by who means to
// show it, and keeps the secret out of %v, %+v and %#v, by which structs that
// contain a token end up in logs.
func (t Token) Format(f fmt.State, verb rune) {
	switch verb {
	case 's':
		io.WriteString(f, t.String())
	case 'q':
		io.WriteString(f, strconv.Quote(t.String()))
	default:
		fmt.Fprintf(f, "join token of %s %s", t.Role, t.Name)
	}
}

// ParseToken reads a token. There is exactly one text per token: what it
// returns gives the same text again, and every byte of the text has a meaning.
// That it has not expired is for its user to check (Expired).
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, errors.New("the join token is empty: paste the whole line that `gateway add` or `proxy add` printed on core")
	}
	if len(s) > maxTokenText {
		return Token{}, fmt.Errorf("the join token has %d characters, which is too many: paste what `gateway add` or `proxy add` printed", len(s))
	}
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("a join token begins with %q: paste what `gateway add` or `proxy add` printed", tokenPrefix)
	}
	const damaged = "the join token is damaged (%s): paste it again, whole, without line breaks"
	if strings.ContainsAny(body, "\r\n") { // which the decoder would pass over
		return Token{}, fmt.Errorf(damaged, "it has line breaks")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return Token{}, fmt.Errorf(damaged, "it has characters that do not belong there")
	}
	if len(b) < checksumSize {
		return Token{}, fmt.Errorf(damaged, "it is too short")
	}
	b, sum := b[:len(b)-checksumSize], b[len(b)-checksumSize:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:checksumSize]) {
		return Token{}, fmt.Errorf(damaged, "its checksum is wrong")
	}
	t, err := decodeToken(b)
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return Token{}, fmt.Errorf("the join token cannot be used: %w; a newer version may have made it, else add the component again", err)
	}
	return t, nil
}

func decodeToken(b []byte) (Token, error) {
	short := false
	take := func(n int) []byte {
		if len(b) < n {
			short, b = true, nil
			return make([]byte, n)
		}
		head := b[:n]
		b = b[n:]
		return head
	}
	text := func() string { return string(take(int(take(1)[0]))) }

	var t Token
	if n := int(take(1)[0]); n >= 1 && n < len(tokenRoles) {
		t.Role = tokenRoles[n]
	} else {
		return Token{}, errors.New("its role is unknown")
	}
	flags := take(1)[0]
	if flags&^tokenReusable != 0 {
		return Token{}, errors.New("it has flags that are unknown")
	}
	t.Reusable = flags&tokenReusable != 0
	if n := int(take(1)[0]); n < len(tokenModes) {
		t.GRPCTLS = tokenModes[n]
	} else {
		return Token{}, errors.New("its listener certificate is unknown")
	}
	expires := binary.BigEndian.Uint64(take(8))
	if expires > 1<<40 {
		return Token{}, errors.New("its expiry time is out of range")
	}
	t.Expires = time.Unix(int64(expires), 0).UTC()
	t.Name, t.Core, t.ServerName = text(), text(), text()
	for n := take(1)[0]; n > 0 && !short; n-- {
		t.Peers = append(t.Peers, text())
	}
	for n := take(1)[0]; n > 0 && !short; n-- {
		t.Pins = append(t.Pins, [32]byte(take(32)))
	}
	t.Seed = [32]byte(take(32))
	if short {
		return Token{}, errors.New("it ends too early")
	}
	if len(b) > 0 {
		return Token{}, fmt.Errorf("%d bytes follow its end", len(b))
	}
	return t, nil
}

// Expired says so, with the clock it was compared with; nil before the end.
func (t Token) Expired(now time.Time) error {
	if now.Before(t.Expires) {
		return nil
	}
	return refusef(CodeTokenExpired, fmt.Sprintf("check the clock; else make a new one on core: sallyport %s rm %s, then %s add %s", t.Role, t.Name, t.Role, t.Name),
		"the join token for %s %s expired at %s, and this machine's clock says %s", t.Role, t.Name, clock(t.Expires), clock(now))
}

func checkHostPort(s string) error {
	if err := checkTokenText(s); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" {
		return fmt.Errorf("%q is not HOST:PORT", printable(s, 255))
	}
	return nil
}

func checkTokenText(s string) error {
	if len(s) > maxTokenField {
		return fmt.Errorf("%d characters are too many", len(s))
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return fmt.Errorf("%q has characters that do not belong there", printable(s, 64))
		}
	}
	return nil
}
