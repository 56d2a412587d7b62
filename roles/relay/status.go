package relay

import (
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
)

const contentTypeGRPC = "application/grpc"

// statusFields are the fields of a status of ours: trailers-only form while no
// response header was sent, trailers after.
func statusFields(trailersOnly bool, code codes.Code, message string, extra []Field) []Field {
	fields := make([]Field, 0, 4+len(extra))
	if trailersOnly {
		fields = append(fields, Field{Name: ":status", Value: "200"}, Field{Name: "content-type", Value: contentTypeGRPC})
	}
	fields = append(fields, Field{Name: "grpc-status", Value: strconv.Itoa(int(code))})
	if message != "" {
		fields = append(fields, Field{Name: "grpc-message", Value: EncodeMessage(message)})
	}
	return append(fields, extra...)
}

// EncodeMessage percent-encodes text for grpc-message.
func EncodeMessage(s string) string {
	i := 0
	for i < len(s) && s[i] >= ' ' && s[i] <= '~' && s[i] != '%' {
		i++
	}
	if i == len(s) {
		return s
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(s) + 16)
	b.WriteString(s[:i])
	for ; i < len(s); i++ {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// DecodeMessage undoes EncodeMessage, leaving what is not an escape as it is.
func DecodeMessage(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// codeOf reads the status of a response's last header block.
func codeOf(fields []Field) (codes.Code, string) {
	code, message, http := codes.Unknown, "", ""
	found := false
	for i := range fields {
		switch fields[i].Name {
		case "grpc-status":
			if n, err := strconv.ParseUint(fields[i].Value, 10, 32); err == nil {
				code, found = codes.Code(n), true
			}
		case "grpc-message":
			message = DecodeMessage(fields[i].Value)
		case ":status":
			http = fields[i].Value
		}
	}
	if !found && http != "" && http != "200" {
		return codeOfHTTP(http), "HTTP status " + http
	}
	return code, message
}

// codeOfHTTP is the table of the gRPC documents for answers that carry no
// grpc-status.
func codeOfHTTP(status string) codes.Code {
	switch status {
	case "400":
		return codes.Internal
	case "401":
		return codes.Unauthenticated
	case "403":
		return codes.PermissionDenied
	case "404":
		return codes.Unimplemented
	case "429", "502", "503", "504":
		return codes.Unavailable
	}
	return codes.Unknown
}

// codeOfReset is the table of the gRPC documents for RST_STREAM.
func codeOfReset(code errCode) codes.Code {
	switch code {
	case codeRefused:
		return codes.Unavailable
	case codeCancel:
		return codes.Canceled
	case codeCalm:
		return codes.ResourceExhausted
	case codeInadequateSecurity:
		return codes.PermissionDenied
	}
	return codes.Internal
}
