package core

import (
	"crypto/x509/pkix"
	"fmt"
	"strings"
)

// parseSubject reads a distinguished name as people write it: CN=billing,O=Acme
// or, as openssl does, /O=Acme/CN=billing. A backslash takes the next character
// as it is.
func parseSubject(s string) (*pkix.Name, error) {
	separator := byte(',')
	if strings.HasPrefix(s, "/") {
		separator, s = '/', s[1:]
	}
	name := &pkix.Name{}
	for _, part := range splitEscaped(s, separator) {
		attribute, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		value = unescape(strings.TrimSpace(value))
		if !ok || value == "" {
			return nil, fmt.Errorf("%q is not of the form ATTRIBUTE=VALUE: write it like CN=billing,O=Acme", clean(part))
		}
		switch strings.ToUpper(strings.TrimSpace(attribute)) {
		case "CN":
			if name.CommonName != "" {
				return nil, fmt.Errorf("CN is given twice")
			}
			name.CommonName = value
		case "SERIALNUMBER":
			name.SerialNumber = value
		case "O":
			name.Organization = append(name.Organization, value)
		case "OU":
			name.OrganizationalUnit = append(name.OrganizationalUnit, value)
		case "C":
			name.Country = append(name.Country, value)
		case "ST", "S":
			name.Province = append(name.Province, value)
		case "L":
			name.Locality = append(name.Locality, value)
		default:
			return nil, fmt.Errorf("attribute %q is not known: use CN, O, OU, C, ST, L or serialNumber", clean(attribute))
		}
	}
	return name, nil
}

// splitEscaped splits s at separators that no backslash precedes.
func splitEscaped(s string, separator byte) []string {
	var parts []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case separator:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
