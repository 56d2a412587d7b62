package relay

import (
	"strconv"
	"strings"
)

// What RFC 9113 section 8 says about fields, pseudo-headers and content-length.

// hopByHop names the fields that RFC 9113 section 8.2.2 forbids.
func hopByHop(name string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

// checkField applies RFC 9113 section 8.2.1 and 8.2.2 to a regular field.
func checkField(f *Field) error {
	switch {
	case !validName(f.Name):
		return streamErr(codeProtocol, "malformed field name %q", f.Name)
	case !validValue(f.Value):
		return streamErr(codeProtocol, "malformed value of field %s", f.Name)
	case hopByHop(f.Name):
		return streamErr(codeProtocol, "field %s has no meaning in HTTP/2", f.Name)
	case f.Name == "te" && f.Value != "trailers":
		return streamErr(codeProtocol, "te is not trailers")
	}
	return nil
}

var nameBytes = func() (ok [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz" {
		ok[c] = true
	}
	return ok
}()

// validName says whether s is a field name in lower case; pseudo-headers have
// one colon, in front.
func validName(s string) bool {
	if len(s) > 0 && s[0] == ':' {
		s = s[1:]
	}
	for i := range len(s) {
		if !nameBytes[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

// validValue refuses NUL, CR, LF, other control characters, and blanks at either
// end.
func validValue(s string) bool {
	if s == "" {
		return true
	}
	if c := s[0]; c == ' ' || c == '\t' {
		return false
	}
	if c := s[len(s)-1]; c == ' ' || c == '\t' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// checkPseudo applies the rules of RFC 9113 section 8.3 to a request and returns
// its content-length, -1 without.
// Fields with a bit in clean are known to be in order.
func checkPseudo(fields []Field, clean uint64) (length int64, err error) {
	length = -1
	var seen [4]bool
	var authority, host string
	regular := false
	for i := range fields {
		if clean>>i&1 != 0 {
			regular = true
			continue
		}
		f := &fields[i]
		if f.Name == "" {
			return -1, streamErr(codeProtocol, "field without a name")
		}
		if f.Name[0] != ':' {
			regular = true
			if err := checkField(f); err != nil {
				return -1, err
			}
			switch f.Name {
			case "content-length":
				if length, err = contentLength(f.Value, length); err != nil {
					return -1, err
				}
			case "host":
				host = f.Value
			}
			continue
		}
		n := -1
		switch f.Name {
		case ":method":
			n = 0
		case ":scheme":
			n = 1
		case ":path":
			n = 2
		case ":authority":
			n, authority = 3, f.Value
		}
		switch {
		case n < 0:
			return -1, streamErr(codeProtocol, "unknown pseudo-header %q", f.Name)
		case regular:
			return -1, streamErr(codeProtocol, "pseudo-header %s after regular fields", f.Name)
		case seen[n]:
			return -1, streamErr(codeProtocol, "pseudo-header %s twice", f.Name)
		case f.Value == "" && n != 3, !validValue(f.Value):
			return -1, streamErr(codeProtocol, "malformed pseudo-header %s", f.Name)
		}
		seen[n] = true
	}
	if !seen[0] || !seen[1] || !seen[2] {
		return -1, streamErr(codeProtocol, "a request needs :method, :scheme and :path")
	}
	if host != "" && authority != "" && !strings.EqualFold(host, authority) {
		return -1, streamErr(codeProtocol, "host is not :authority")
	}
	return length, nil
}

func contentLength(s string, before int64) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || before >= 0 && int64(n) != before {
		return -1, streamErr(codeProtocol, "malformed content-length %q", s)
	}
	return int64(n), nil
}

// checkResponse applies the rules to a response's header.
func checkResponse(fields []Field, clean uint64) (status int, length int64, err error) {
	length = -1
	for i := range fields {
		if clean>>i&1 != 0 {
			continue
		}
		f := &fields[i]
		switch {
		case f.Name == "":
			return 0, -1, streamErr(codeProtocol, "field without a name")
		case f.Name == ":status":
			n, err := strconv.Atoi(f.Value)
			if i != 0 || err != nil || len(f.Value) != 3 || n < 100 || n == 101 {
				return 0, -1, streamErr(codeProtocol, "malformed :status %q", f.Value)
			}
			status = n
			continue
		case f.Name[0] == ':':
			return 0, -1, streamErr(codeProtocol, "unknown pseudo-header %q", f.Name)
		case f.Name == "content-length":
			if length, err = contentLength(f.Value, length); err != nil {
				return 0, -1, err
			}
		}
		if err := checkField(f); err != nil {
			return 0, -1, err
		}
	}
	if status == 0 {
		return 0, -1, streamErr(codeProtocol, "a response without :status")
	}
	return status, length, nil
}

// checkTrailers applies the rules to trailers of either direction.
func checkTrailers(fields []Field, clean uint64) error {
	for i := range fields {
		if clean>>i&1 != 0 {
			continue
		}
		f := &fields[i]
		if f.Name == "" || f.Name[0] == ':' {
			return streamErr(codeProtocol, "pseudo-header %q in trailers", f.Name)
		}
		if err := checkField(f); err != nil {
			return err
		}
	}
	return nil
}
