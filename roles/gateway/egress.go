package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"sallyport/roles/relay"
)

// egress reads HTTPS_PROXY and NO_PROXY once, as net/http does: networks that
// let nothing out but through a proxy say so there. Loopback is never proxied.
var egress = sync.OnceValue(func() func(*url.URL) (*url.URL, error) { return egressOf(httpproxy.FromEnvironment()) })

// egressOf is stricter than net/http: a proxy that cannot be understood is an
// error, and not no proxy. Its text is never repeated, since it may hold a
// password anywhere.
func egressOf(c *httpproxy.Config) func(*url.URL) (*url.URL, error) {
	find := c.ProxyFunc()
	if c.HTTPSProxy == "" {
		return find
	}
	text := c.HTTPSProxy
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	via, err := url.Parse(text)
	usable := err == nil && via.Host != "" && via.Opaque == "" && strings.Trim(via.Path, "/") == "" && validPort(via)
	c = &httpproxy.Config{HTTPSProxy: text, NoProxy: c.NoProxy, CGI: c.CGI}
	if usable {
		return c.ProxyFunc()
	}
	c.HTTPSProxy = "http://unknown.invalid" // only to learn what NO_PROXY leaves out
	find = c.ProxyFunc()
	return func(u *url.URL) (*url.URL, error) {
		if via, err := find(u); via == nil {
			return nil, err
		}
		return nil, errors.New("it is no URL of a proxy: write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, special characters of user and password as %XX")
	}
}

func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return u.Hostname() != "" && !strings.HasSuffix(u.Host, ":")
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && n > 0 && u.Hostname() != ""
}

// maxProxyAnswer bounds what a proxy may say before the tunnel is open.
const maxProxyAnswer = 16 << 10

// connectOut opens the TCP connection to core, through the proxy that the
// environment names for it. The proxy sees core's address and nothing else: what
// goes through is TLS from this gateway to core.
func connectOut(ctx context.Context, network, address string) (net.Conn, error) {
	via, err := egress()(&url.URL{Scheme: "https", Host: address})
	if err != nil {
		return nil, fmt.Errorf("HTTPS_PROXY: %w", err)
	}
	if via == nil {
		return connect(ctx, network, address)
	}
	nc, err := tunnel(ctx, via, address)
	if err != nil {
		return nil, fmt.Errorf("through the proxy %s://%s of HTTPS_PROXY: %w", via.Scheme, via.Host, err)
	}
	return nc, nil
}

// tunnel opens a connection to address through via.
func tunnel(ctx context.Context, via *url.URL, address string) (net.Conn, error) {
	switch via.Scheme {
	case "http", "https":
	case "socks5", "socks5h":
		d, err := proxy.FromURL(via, proxy.Direct)
		if err != nil {
			return nil, err
		}
		nc, err := d.(proxy.ContextDialer).DialContext(ctx, "tcp", address)
		return nc, explainedOrNil(err)
	default:
		return nil, fmt.Errorf("%q is no kind of proxy that is known here: write http://, https:// or socks5://", via.Scheme)
	}
	port := via.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[via.Scheme]
	}
	nc, err := connect(ctx, "tcp", net.JoinHostPort(via.Hostname(), port))
	if err != nil {
		return nil, err
	}
	if via.Scheme == "https" {
		secure := tls.Client(nc, &tls.Config{ServerName: via.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
		if err := secure.HandshakeContext(ctx); err != nil {
			nc.Close()
			return nil, explained(err)
		}
		nc = secure
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err = requestTunnel(nc, via, address)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	if via.Scheme == "https" {
		return opaque{nc}, nil
	}
	relay.Restart(nc)
	return nc, nil
}

// opaque hides the TLS to a proxy from the engine, which would take its records
// for those of the link inside.
type opaque struct{ net.Conn }

// requestTunnel asks the proxy at the other end of nc for a connection to
// address (CONNECT, RFC 9110 section 9.3.6).
func requestTunnel(nc net.Conn, via *url.URL, address string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := via.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(nc); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(nc, maxProxyAnswer))
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return fmt.Errorf("it did not answer as an HTTP proxy does: %s", short(err.Error()))
	}
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return errors.New("it wants a user and password: write them into HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT)")
	case resp.StatusCode/100 != 2:
		return fmt.Errorf("it refused to connect to %s: %q; the proxy has to allow CONNECT to that address and port", address, short(resp.Status))
	case r.Buffered() > 0:
		return errors.New("it sent something into the tunnel that core cannot have said")
	}
	return nil
}

// short cuts what a proxy has written, which ends in logs.
func short(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

func explainedOrNil(err error) error {
	if err == nil {
		return nil
	}
	return explained(err)
}
