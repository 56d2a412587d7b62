package configs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// checkListen checks HOST:PORT to listen on; without HOST it is every address.
func checkListen(s string) (problem, remedy string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if _, err := strconv.ParseUint(s, 10, 16); err == nil {
			return fmt.Sprintf("%q has no colon", s), fmt.Sprintf("write :%s for every address of this host, or 127.0.0.1:%s", s, s)
		}
		return fmt.Sprintf("%q is no address to listen on", s), "write HOST:PORT, such as 127.0.0.1:8443 or [::1]:8443, or :PORT for every address of this host"
	}
	if p := checkPort(port, true); p != "" {
		return p, "write a number from 1 to 65535, or 0 for any free port"
	}
	if host != "" && !validHost(host) {
		return fmt.Sprintf("%q is no address of a host", host), "write an IP address or a name of this host"
	}
	return "", ""
}

// checkDial checks HOST:PORT to connect to and adds the port if there is none.
func checkDial(s string, port int) (address, problem, remedy string) {
	remedy = "write HOST:PORT, such as core.example.org:" + strconv.Itoa(port)
	if strings.Contains(s, "://") {
		return "", fmt.Sprintf("%q has a scheme; connections between components are always TLS", s), remedy
	}
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		bare := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
		if ip, err := netip.ParseAddr(bare); err == nil && ip.IsValid() || !strings.Contains(s, ":") && validHost(s) {
			return net.JoinHostPort(bare, strconv.Itoa(port)), "", ""
		}
		return "", fmt.Sprintf("%q is no address", s), remedy
	}
	if problem := checkPort(p, false); problem != "" {
		return "", problem, remedy
	}
	if !validHost(host) {
		return "", fmt.Sprintf("%q names no host to connect to", s), remedy
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return "", fmt.Sprintf("%s is where one listens, not where one connects", s), remedy
	}
	return s, "", ""
}

func checkPort(s string, zero bool) string {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 && !zero || strconv.FormatUint(n, 10) != s {
		return fmt.Sprintf("%q is no port", s)
	}
	return ""
}

// validHost accepts IP addresses and host names.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return false
			}
		}
	}
	// 300.1.2.3 is a mistyped address and not a name.
	return strings.Trim(s, "0123456789.") != ""
}

// loopbackHost says whether connections to host stay on this machine.
func loopbackHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// ParseUpstreamAddress reads the address of an upstream: HOST:PORT on this
// host, tls://HOST:PORT, unix:///PATH or h2c://HOST:PORT. Plaintext beyond
// this host is refused unless it is asked for as h2c://.
func ParseUpstreamAddress(s string) (UpstreamAddress, error) {
	none := UpstreamAddress{}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		if path, ok := strings.CutPrefix(s, "unix:"); ok {
			return parseUnix(path)
		}
		host, _, err := splitUpstream(s, 0)
		if err != nil {
			return none, err
		}
		if !loopbackHost(host) {
			return none, fmt.Errorf("%s is not on this host, and without TLS everyone between could read and alter the calls; write tls://%s, or h2c://%s if the network in between is trusted with them", s, s, s)
		}
		return UpstreamAddress{SchemePlain, s}, nil
	}
	switch scheme {
	case "tls":
		host, port, err := splitUpstream(rest, 443)
		if err != nil {
			return none, err
		}
		return UpstreamAddress{SchemeTLS, net.JoinHostPort(host, port)}, nil
	case "h2c":
		if _, _, err := splitUpstream(rest, 0); err != nil {
			return none, err
		}
		return UpstreamAddress{SchemeH2C, rest}, nil
	case "unix":
		return parseUnix(rest)
	case "https", "grpcs":
		return none, fmt.Errorf("%q is not how an upstream is written; write tls://%s", s, strings.TrimSuffix(rest, "/"))
	case "http", "grpc", "tcp", "dns", "passthrough":
		rest = strings.Trim(rest, "/")
		return none, fmt.Errorf("%q is not how an upstream is written; write tls://%s, or h2c://%s where plaintext is wanted", s, rest, rest)
	}
	return none, fmt.Errorf("%q has a scheme that is not known; write tls://HOST:PORT, unix:///PATH, h2c://HOST:PORT, or HOST:PORT on this host", s)
}

func parseUnix(path string) (UpstreamAddress, error) {
	if !strings.HasPrefix(path, "/") || strings.ContainsRune(path, 0) {
		return UpstreamAddress{}, fmt.Errorf("unix:%s is no absolute path; write unix:///run/orders.sock", path)
	}
	if len(path) > 107 {
		return UpstreamAddress{}, fmt.Errorf("the path of a unix socket can have 107 bytes and this one has %d; use a shorter one", len(path))
	}
	return UpstreamAddress{SchemeUnix, path}, nil
}

func splitUpstream(s string, defaultPort int) (host, port string, err error) {
	if strings.ContainsAny(s, "/?#@") {
		return "", "", fmt.Errorf("%q has more than a host and a port; write HOST:PORT alone", s)
	}
	host, port, err = net.SplitHostPort(s)
	if err != nil {
		if defaultPort > 0 && validHost(strings.Trim(s, "[]")) {
			return strings.Trim(s, "[]"), strconv.Itoa(defaultPort), nil
		}
		if _, perr := strconv.ParseUint(s, 10, 16); perr == nil {
			return "", "", fmt.Errorf("%q is a port without a host; write 127.0.0.1:%s", s, s)
		}
		return "", "", fmt.Errorf("%q is no address; write HOST:PORT, such as 127.0.0.1:9000", s)
	}
	if host == "" {
		return "", "", fmt.Errorf("%q names no host; write 127.0.0.1%s for this one", s, s)
	}
	if !validHost(host) {
		return "", "", errors.New(strconv.Quote(host) + " is no host; write an IP address or a name")
	}
	if p := checkPort(port, false); p != "" {
		return "", "", errors.New(p + "; write a number from 1 to 65535")
	}
	return host, port, nil
}
