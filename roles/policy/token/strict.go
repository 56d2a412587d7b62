package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"sallyport/roles/policy"
)

const (
	maxToken = 16 << 10 // bytes
	maxDepth = 16       // of nested values in a token
	maxClaim = 4096     // words in the claims that hold permissions
)

var (
	errForm  = errors.New("it is not three parts of base64url")
	errJSON  = errors.New("it holds no proper JSON object")
	errTwice = errors.New("a member occurs twice in it")
	encoding = base64.RawURLEncoding.Strict()
)

// parts are the header and the claims of a token that nobody has verified.
type parts struct {
	header, claims map[string]any
}

// split reads a token strictly: what is accepted reads the same to everybody.
func split(token string) (*parts, error) {
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || header == "" || payload == "" || signature == "" || strings.Contains(signature, ".") {
		return nil, errForm
	}
	if _, err := encoding.DecodeString(signature); err != nil || strings.ContainsAny(token, "\r\n") {
		return nil, errForm
	}
	p := &parts{}
	var err error
	if p.header, err = object(header); err != nil {
		return nil, err
	}
	if p.claims, err = object(payload); err != nil {
		return nil, err
	}
	return p, nil
}

// object decodes one part.
func object(part string) (map[string]any, error) {
	raw, err := encoding.DecodeString(part)
	if err != nil {
		return nil, errForm
	}
	if !utf8.Valid(raw) {
		return nil, errJSON
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := value(d, maxDepth)
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errJSON
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errJSON
	}
	// Readers of another kind look members up without regard to case.
	folded := make(map[string]bool, len(m))
	for name := range m {
		if f := strings.ToLower(name); folded[f] {
			return nil, errTwice
		} else {
			folded[f] = true
		}
	}
	return m, nil
}

// value decodes one JSON value without members that occur twice.
func value(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil || depth == 0 {
		return nil, errJSON
	}
	switch t {
	case json.Delim('{'):
		m := map[string]any{}
		for d.More() {
			name, err := d.Token()
			key, ok := name.(string)
			if err != nil || !ok {
				return nil, errJSON
			}
			if _, twice := m[key]; twice {
				return nil, errTwice
			}
			if m[key], err = value(d, depth-1); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return m, bad(err)
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := value(d, depth-1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, bad(err)
	}
	return t, nil
}

func bad(err error) error {
	if err != nil {
		return errJSON
	}
	return nil
}

// text is a member that has to be a text, if it is there.
func text(m map[string]any, name string) (s string, there bool, err error) {
	v, there := m[name]
	if !there {
		return "", false, nil
	}
	if s, ok := v.(string); ok {
		return s, true, nil
	}
	return "", true, fmt.Errorf("%s is no text", name)
}

// moment is a NumericDate, if it is there.
func moment(m map[string]any, name string) (t time.Time, there bool, err error) {
	v, there := m[name]
	if !there {
		return time.Time{}, false, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, true, fmt.Errorf("%s is no number", name)
	}
	const latest = 253402300799 // the end of the year 9999
	f, err := n.Float64()
	if err != nil || f < 0 || f > latest {
		return time.Time{}, true, fmt.Errorf("%s is no time", name)
	}
	seconds := int64(f)
	return time.Unix(seconds, int64((f-float64(seconds))*1e9)), true, nil
}

// names says whether aud, a text or a list of texts, has an audience in it.
func names(m map[string]any, audience string) bool {
	switch aud := m["aud"].(type) {
	case string:
		return aud == audience
	case []any:
		found := false
		for _, one := range aud {
			s, ok := one.(string)
			if !ok {
				return false
			}
			found = found || s == audience
		}
		return found
	}
	return false
}

// permissions are the words of an issuer's permission claims that it may grant,
// sorted. A claim is a text of words between spaces, as scope is, or a list of
// texts; anything else gives nothing.
func permissions(m map[string]any, issuer *policy.Issuer) []string {
	var list []string
	give := func(word string) {
		if len(list) < maxClaim && issuer.Grants(word) {
			list = append(list, strings.Clone(word)) // which keeps the rest of the claim out of caches
		}
	}
	for _, name := range issuer.PermissionClaims {
		switch v := claim(m, name).(type) {
		case string:
			for _, word := range strings.Split(v, " ") {
				give(word)
			}
		case []any:
			for _, one := range v {
				if word, ok := one.(string); ok {
					give(word)
				}
			}
		}
	}
	return sorted(list)
}

// claim finds a claim by its name, or else by its path: names of claims may
// have dots of their own (https://example.org/roles).
func claim(m map[string]any, name string) any {
	if v, ok := m[name]; ok {
		return v
	}
	first, rest, path := strings.Cut(name, ".")
	if inner, ok := m[first].(map[string]any); ok && path {
		return claim(inner, rest)
	}
	return nil
}
