package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// setNames checks subject alternative names and puts them into t.
func setNames(t *x509.Certificate, dns []string, ips []netip.Addr, uris []string, wildcard bool) error {
	if n := len(dns) + len(ips) + len(uris); n > maxNames {
		return fmt.Errorf("%d names: a certificate takes %d", n, maxNames)
	}
	seen := map[string]bool{}
	for _, name := range dns {
		name = strings.ToLower(name)
		if err := checkDNSName(name, wildcard); err != nil {
			return err
		}
		if !seen[name] {
			seen[name] = true
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	for _, ip := range ips {
		ip = ip.Unmap()
		if !ip.IsValid() || ip.Zone() != "" {
			return fmt.Errorf("IP address %q cannot stand in a certificate: write it without a zone", ip)
		}
		if s := ip.String(); !seen[s] {
			seen[s] = true
			t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
		}
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil || !u.IsAbs() || u.String() != s || len(s) > 512 {
			return fmt.Errorf("URI %q: write it absolute and in its usual form, such as https://example.org/x", printable(s, 256))
		}
		if !seen[s] {
			seen[s] = true
			t.URIs = append(t.URIs, u)
		}
	}
	return nil
}

func checkDNSName(name string, wildcard bool) error {
	rest := name
	if wildcard {
		if after, ok := strings.CutPrefix(name, "*."); ok {
			if rest = after; !strings.Contains(rest, ".") {
				return fmt.Errorf("DNS name %q: a wildcard has to leave two labels, as in *.example.org", name)
			}
		}
	}
	if len(name) > 253 {
		return fmt.Errorf("a DNS name of %d characters is too long", len(name))
	}
	if _, err := netip.ParseAddr(rest); err == nil {
		return fmt.Errorf("%q is an IP address: ask for it as one, not as a DNS name", name)
	}
	for _, label := range strings.Split(rest, ".") {
		ok := label != "" && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-'
		for i := range len(label) {
			c := label[i]
			ok = ok && (c == '-' || c == '_' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9')
		}
		if !ok {
			return fmt.Errorf("%q is not a DNS name (names outside ASCII are written in their xn-- form)", printable(name, 253))
		}
	}
	return nil
}

// leafSubject checks the subject that was asked for, or makes one.
func leafSubject(r LeafRequest, t *x509.Certificate) (pkix.Name, error) {
	if r.Subject == nil {
		n := pkix.Name{CommonName: r.ID.Name}
		if n.CommonName == "" && len(t.DNSNames) > 0 && len(t.DNSNames[0]) <= 64 {
			n.CommonName = t.DNSNames[0]
		}
		if n.CommonName == "" && len(t.IPAddresses) > 0 {
			n.CommonName = t.IPAddresses[0].String()
		}
		if n.CommonName == "" && len(t.DNSNames) == 0 {
			return n, errors.New("the certificate would name nobody: give it a name, a subject or an alternative name")
		}
		return n, nil
	}
	s := *r.Subject
	if len(s.ExtraNames) > 0 {
		return s, errors.New("the subject has attributes beside CN, O, OU, C, ST, L and serialNumber: leave them out")
	}
	parts := append([]string{s.CommonName, s.SerialNumber}, s.Organization...)
	parts = append(parts, s.OrganizationalUnit...)
	for _, p := range append(append(append([]string{}, parts...), append(s.Province, s.Locality...)...), append(s.StreetAddress, s.PostalCode...)...) {
		if len(p) > 128 || p != printable(p, 128) {
			return s, fmt.Errorf("subject: %q is too long or not printable", printable(p, 128))
		}
	}
	for _, p := range parts {
		if len(p) > 64 {
			return s, fmt.Errorf("subject: %q is longer than the 64 characters that certificates allow", p)
		}
	}
	for _, c := range s.Country {
		if len(c) != 2 {
			return s, fmt.Errorf("subject: country %q: use two letters, such as NL", printable(c, 16))
		}
	}
	s.Names = nil // what is encoded is what was checked
	return s, nil
}
