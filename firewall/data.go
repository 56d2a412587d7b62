package firewall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sallyport/configs"
)

// Bounds on what is read from a data file, which a service wrote that root does
// not trust.
const (
	MaxDataSize    = 8 << 20 // bytes
	MaxDataEntries = 65536   // addresses and networks of one role, merged
)

// dataVersion is the form of the data file that this code writes and reads.
const dataVersion = 1

// Data is the content of a data file, firewall.json: from which addresses the
// ports of the roles in one process may be reached, and nothing else. It has no
// room for a port, a name or a rule. As JSON:
//
//	{
//	  "version": 1,
//	  "core": {
//	    "generation": 12,
//	    "any": false,
//	    "peers": [
//	      "10.0.0.0/24",
//	      "2001:db8::7/128"
//	    ]
//	  }
//	}
//
// The roles are core and proxy, each there or not. Prefixes are in the order of
// their addresses, none inside or beside another, so a set has one text. any is
// written out and comes with no peers; no peers and no any means nobody.
type Data struct {
	Core  *Entry // nil: the file says nothing of this role, and its table stays what it is
	Proxy *Entry
}

// Entry is the set of one role.
type Entry struct {
	Generation uint64 // moves with the set; only shown
	Peers      Peers  // without names: Resolve put their addresses in
}

// Roles are those that have a port of which this package writes rules.
func Roles() []configs.Role { return []configs.Role{configs.RoleCore, configs.RoleProxy} }

// Of is the entry of a role, nil without one.
func (d Data) Of(role configs.Role) *Entry {
	switch role {
	case configs.RoleCore:
		return d.Core
	case configs.RoleProxy:
		return d.Proxy
	}
	return nil
}

// With is the data with another entry of a role.
func (d Data) With(role configs.Role, e *Entry) Data {
	switch role {
	case configs.RoleCore:
		d.Core = e
	case configs.RoleProxy:
		d.Proxy = e
	}
	return d
}

// Encode writes data as ParseData reads it. A set with more than MaxDataEntries
// prefixes is an error, and so is one whose names were not resolved: the other
// side looks nothing up.
func (d Data) Encode() ([]byte, error) {
	b := []byte("{\n  \"version\": " + strconv.Itoa(dataVersion))
	for _, role := range Roles() {
		e := d.Of(role)
		if e == nil {
			continue
		}
		switch {
		case len(e.Peers.names) > 0:
			return nil, fmt.Errorf("firewall data of %s: the name %s is not resolved", role, e.Peers.names[0])
		case len(e.Peers.prefixes) > MaxDataEntries:
			return nil, fmt.Errorf("firewall data of %s: %d addresses and networks are too many, %d are allowed: use CIDRs", role, len(e.Peers.prefixes), MaxDataEntries)
		}
		b = fmt.Appendf(b, ",\n  %q: {\n    \"generation\": %d,\n    \"any\": %t,\n    \"peers\": [", role, e.Generation, e.Peers.any)
		for i, p := range e.Peers.prefixes {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, "\n      \""...)
			b = p.AppendTo(b)
			b = append(b, '"')
		}
		if len(e.Peers.prefixes) > 0 {
			b = append(b, "\n    "...)
		}
		b = append(b, "]\n  }"...)
	}
	return append(b, "\n}\n"...), nil
}

// ParseData reads a data file. It is strict, because it may be the word of a
// service that was taken over: every key once and none that is unknown, every
// value of its type, every prefix in its one form, and no byte behind the end.
// A message quotes at most a few characters of what it refuses.
func ParseData(text []byte) (Data, error) {
	d, err := parseData(text)
	if err != nil {
		return Data{}, fmt.Errorf("no firewall data: %w", err)
	}
	return d, nil
}

func parseData(text []byte) (d Data, err error) {
	if len(text) > MaxDataSize {
		return d, fmt.Errorf("more than %d bytes", MaxDataSize)
	}
	r := &dataReader{json.NewDecoder(bytes.NewReader(text))}
	r.UseNumber()
	version := uint64(0)
	err = r.object("the file", func(key string) (err error) {
		switch key {
		case "version":
			if version, err = r.number(key); err == nil && version != dataVersion {
				err = fmt.Errorf("it has version %d, and this binary knows %d", version, dataVersion)
			}
		case "core":
			d.Core, err = r.entry(key)
		case "proxy":
			d.Proxy, err = r.entry(key)
		default:
			err = fmt.Errorf("the key %s is unknown", shown(key))
		}
		return err
	})
	if err != nil {
		return d, err
	}
	if version == 0 {
		return d, errors.New("it has no version")
	}
	if _, err := r.Token(); !errors.Is(err, io.EOF) {
		return d, fmt.Errorf("something follows the end at byte %d", r.InputOffset())
	}
	return d, nil
}

// dataReader reads tokens, so that nothing is built but what belongs there.
type dataReader struct{ *json.Decoder }

func (r *dataReader) token(of string) (json.Token, error) {
	t, err := r.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return nil, fmt.Errorf("%s: no JSON at byte %d", of, syntax.Offset)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", of, err)
	}
	return t, nil
}

func (r *dataReader) delim(of string, want json.Delim) error {
	t, err := r.token(of)
	if err == nil && t != want {
		err = fmt.Errorf("%s: %q is missing at byte %d", of, want, r.InputOffset())
	}
	return err
}

// object reads an object and calls value for every key, which has to read it.
func (r *dataReader) object(of string, value func(key string) error) error {
	if err := r.delim(of, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for r.More() {
		t, err := r.token(of)
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("%s: a key is missing", of)
		}
		if seen[key] {
			return fmt.Errorf("%s: the key %s is there twice", of, shown(key))
		}
		seen[key] = true
		if err := value(key); err != nil {
			return err
		}
	}
	return r.delim(of, '}')
}

func (r *dataReader) number(of string) (uint64, error) {
	t, err := r.token(of)
	if err != nil {
		return 0, err
	}
	n, ok := t.(json.Number)
	v, err := strconv.ParseUint(string(n), 10, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("%s is no number from 0 to 2⁶⁴-1", of)
	}
	return v, nil
}

func (r *dataReader) entry(role string) (*Entry, error) {
	e := &Entry{}
	var generation, anybody, peers bool
	err := r.object(role, func(key string) (err error) {
		switch key {
		case "generation":
			generation = true
			e.Generation, err = r.number(role + ": generation")
		case "any":
			anybody = true
			t, bad := r.token(role + ": any")
			ok := false
			if e.Peers.any, ok = t.(bool); bad == nil && !ok {
				bad = fmt.Errorf("%s: any is neither true nor false", role)
			}
			err = bad
		case "peers":
			peers = true
			e.Peers.prefixes, err = r.prefixes(role)
		default:
			err = fmt.Errorf("%s: the key %s is unknown", role, shown(key))
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case !generation || !anybody || !peers:
		return nil, fmt.Errorf("%s: generation, any and peers have to be there", role)
	case e.Peers.any && len(e.Peers.prefixes) > 0:
		return nil, fmt.Errorf("%s: any comes with no peers", role)
	}
	return e, nil
}

func (r *dataReader) prefixes(role string) (list []netip.Prefix, err error) {
	of := role + ": peers"
	if err := r.delim(of, '['); err != nil {
		return nil, err
	}
	for r.More() {
		if len(list) == MaxDataEntries {
			return nil, fmt.Errorf("%s: more than %d", of, MaxDataEntries)
		}
		t, err := r.token(of)
		if err != nil {
			return nil, err
		}
		text, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("%s: number %d is no text", of, len(list)+1)
		}
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil || p.String() != text || p.Masked() != p || p.Addr().Is4In6():
			return nil, fmt.Errorf("%s: %s is no network such as 10.1.0.0/16 or 10.1.2.3/32", of, shown(text))
		case p.Bits() == 0:
			return nil, fmt.Errorf("%s: %s is everybody, which only any says", of, shown(text))
		}
		list = append(list, p)
	}
	if err := r.delim(of, ']'); err != nil {
		return nil, err
	}
	if !slices.Equal(list, merge(list)) {
		return nil, fmt.Errorf("%s: not in order, or not merged", of)
	}
	return list, nil
}

// shown quotes a little of a text that is not to be trusted.
func shown(s string) string {
	if len(s) > 48 {
		return strconv.QuoteToASCII(strings.ToValidUTF8(s[:48], "")) + "…"
	}
	return strconv.QuoteToASCII(s)
}
