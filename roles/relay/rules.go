package relay

import (
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

// Field is one header field. Names are lower case.
type Field struct {
	Name, Value string
	Sensitive   bool // never enters a compression table, here or further on
}

// Violation is a rule that a request broke.
type Violation struct {
	Code    codes.Code // for a peer that speaks gRPC
	HTTP    int        // :status for one that does not, 0 when a gRPC status can be read
	Reason  string     // stable snake_case, for metrics and logs
	Message string     // for the caller
}

// Error is the message.
func (v *Violation) Error() string { return v.Message }

// CheckRequest applies the header rules of every hop to a request's fields,
// pseudo-headers included. The engine calls it before a handler sees the call,
// after the rules of RFC 9113.
func CheckRequest(header []Field, edge bool) *Violation {
	return checkRequest(header, edge, 0, false, false)
}

// checkRequest leaves out fields with a bit in clean, and with checked set what
// checkPseudo has seen to.
func checkRequest(header []Field, edge bool, clean uint64, checked, web bool) *Violation {
	var method, path, content string
	authorizations := 0
	for i := range header {
		if clean>>i&1 != 0 {
			continue
		}
		f := &header[i]
		switch f.Name {
		case ":method":
			method = f.Value
		case ":path":
			path = f.Value
		case "content-type":
			content = f.Value
		case "authorization":
			if authorizations++; authorizations > 1 {
				return &Violation{Code: codes.Unauthenticated, Reason: "authorization_twice", Message: "more than one authorization header: send one"}
			}
		case "te":
			if f.Value != "trailers" {
				return &Violation{Code: codes.InvalidArgument, Reason: "te", Message: "te may only say trailers"}
			}
		case "grpc-timeout":
			if _, ok := parseTimeout(f.Value); !ok {
				return &Violation{Code: codes.InvalidArgument, Reason: "timeout", Message: "malformed grpc-timeout"}
			}
		default:
			if !checked && hopByHop(f.Name) {
				return &Violation{Code: codes.InvalidArgument, Reason: "hop_by_hop", Message: "header " + f.Name + " has no meaning in HTTP/2"}
			}
			if !edge && reservedSpelling(f.Name) {
				return &Violation{Code: codes.InvalidArgument, Reason: "reserved", Message: "header " + f.Name + " is reserved"}
			}
		}
		if !checked && (!validName(f.Name) || !validValue(f.Value)) {
			return &Violation{Code: codes.InvalidArgument, Reason: "characters", Message: "a header holds characters that it must not"}
		}
	}
	switch {
	case method != "POST":
		return &Violation{Code: codes.Unimplemented, HTTP: 405, Reason: "method", Message: "gRPC calls are made with POST"}
	case !grpcContent(content) && !(web && isWebContent(content)):
		return &Violation{Code: codes.Internal, HTTP: 415, Reason: "content_type", Message: "the content-type is not application/grpc"}
	case !ValidPath(path):
		return &Violation{Code: codes.Unimplemented, Reason: "path", Message: "malformed method name: it has to be /package.Service/Method"}
	}
	return nil
}

func grpcContent(s string) bool {
	rest, ok := strings.CutPrefix(s, contentTypeGRPC)
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// ValidPath says whether path is /[package.]Service/Method, byte for byte:
// letters, digits and underscores between single dots and the two slashes.
func ValidPath(path string) bool {
	if len(path) < 4 || path[0] != '/' {
		return false
	}
	slashes, start := 0, true // start: a name begins here
	for i := 1; i < len(path); i++ {
		switch c := path[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
			start = false
		case c >= '0' && c <= '9':
			if start {
				return false
			}
		case c == '.':
			if start || slashes > 0 {
				return false
			}
			start = true
		case c == '/':
			if start || slashes > 0 {
				return false
			}
			slashes, start = 1, true
		default:
			return false
		}
	}
	return slashes == 1 && !start
}

// StripReserved returns header without the fields that only our own components
// may write, in any spelling. The engine calls it at an edge.
func StripReserved(header []Field) []Field {
	return dropFields(header, Reserved)
}

// Reserved says whether a field name, in any spelling, is one that only our own
// components write.
func Reserved(name string) bool {
	if len(name) < 9 {
		return false
	}
	switch name[0] | 0x20 {
	case 's':
		return hasFold(name, "sallyport-")
	case 'f':
		return len(name) == len("forwarded") && hasFold(name, "forwarded")
	case 'x':
		return hasFold(name, "x-forwarded-") || len(name) == len("x-real-ip") && hasFold(name, "x-real-ip")
	}
	return false
}

// reservedSpelling finds the forms of our names that are not the proper one.
func reservedSpelling(name string) bool {
	return len(name) > 9 && name[0]|0x20 == 's' && hasFold(name, "sallyport-") && !strings.HasPrefix(name, "sallyport-")
}

// hasFold is strings.HasPrefix with upper case as lower and underscores as
// hyphens.
func hasFold(s, prefix string) bool {
	if len(s) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		} else if c == '_' {
			c = '-'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// dropOurs takes sallyport-* and hop-by-hop fields out of responses and
// trailers, and content-length: a call that a hop has to end would not keep it.
func dropOurs(fields []Field) []Field {
	return dropFields(fields, func(name string) bool {
		return name == "content-length" || len(name) > 9 && name[0]|0x20 == 's' && hasFold(name, "sallyport-") || hopByHop(name)
	})
}

// dropFields leaves fields as it is unless there is something to drop.
func dropFields(fields []Field, drop func(string) bool) []Field {
	for i := range fields {
		if !drop(fields[i].Name) {
			continue
		}
		kept := append(make([]Field, 0, len(fields)-1), fields[:i]...)
		for _, f := range fields[i+1:] {
			if !drop(f.Name) {
				kept = append(kept, f)
			}
		}
		return kept
	}
	return fields
}

// parseTimeout reads a grpc-timeout.
func parseTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	n := time.Duration(0)
	for _, c := range []byte(s[:len(s)-1]) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + time.Duration(c-'0')
	}
	const most = 10 * 365 * 24 * time.Hour
	if n > most/unit {
		return most, true
	}
	return n * unit, true
}

func itoa(n int) string { return strconv.Itoa(n) }
