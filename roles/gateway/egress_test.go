package gateway

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// connectProxy is an HTTP proxy that knows one name and one user.
func connectProxy(t *testing.T, names map[string]string) *httptest.Server {
	t.Helper()
	var tunnels sync.WaitGroup
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
		user, password, _ := r.BasicAuth()
		switch {
		case r.Method != http.MethodConnect:
			http.Error(w, "tunnels only", http.StatusMethodNotAllowed)
			return
		case user != "gate" || password != "way":
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		case names[r.Host] == "":
			http.Error(w, "not allowed", http.StatusForbidden)
			return
		}
		to, err := net.Dial("tcp", names[r.Host])
		if err != nil {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		from, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			to.Close()
			t.Error(err)
			return
		}
		io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n")
		tunnels.Go(func() { defer to.Close(); io.Copy(to, from) })
		tunnels.Go(func() { defer from.Close(); io.Copy(from, to) })
	}))
	t.Cleanup(func() { s.Close(); tunnels.Wait() })
	return s
}

func TestTunnel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var echoes sync.WaitGroup
	defer echoes.Wait()
	defer l.Close()
	echoes.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			echoes.Go(func() { defer nc.Close(); io.Copy(nc, nc) })
		}
	})
	p := connectProxy(t, map[string]string{"core.test:50055": l.Addr().String()})
	at := func(user *url.Userinfo) *url.URL {
		return &url.URL{Scheme: "http", Host: strings.TrimPrefix(p.URL, "http://"), User: user}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	nc, err := tunnel(ctx, at(url.UserPassword("gate", "way")), "core.test:50055")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "through\n")
	if line, err := bufio.NewReader(nc).ReadString('\n'); err != nil || line != "through\n" {
		t.Errorf("%q, %v", line, err)
	}
	for name, c := range map[string]struct {
		via     *url.URL
		address string
		want    string
	}{
		"no user":     {at(nil), "core.test:50055", "USER:PASSWORD"},
		"not allowed": {at(url.UserPassword("gate", "way")), "core.test:22", "403"},
		"no proxy":    {&url.URL{Scheme: "http", Host: l.Addr().String()}, "core.test:50055", "did not answer as an HTTP proxy"},
		"no kind":     {&url.URL{Scheme: "gopher", Host: "x"}, "core.test:50055", "no kind of proxy"},
	} {
		if _, err := tunnel(ctx, c.via, c.address); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text := at(url.UserPassword("gate", "way")).Redacted(); strings.Contains(text, "way@") {
		t.Errorf("the password is in %s", text)
	}
}

// TestTunnelEndsWithItsContext: a proxy that never answers holds nobody.
func TestTunnelEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tunnel(ctx, &url.URL{Scheme: "http", Host: l.Addr().String()}, "core.test:50055"); err == nil {
		t.Error("a tunnel through nothing")
	}
}

// TestNoProxyIsMisread: what HTTPS_PROXY says in a wrong way was left out
// silently, or stood with its password in the error, which is logged.
func TestNoProxyIsMisread(t *testing.T) {
	was := egress
	defer func() { egress = was }()
	for _, text := range []string{
		"http://user:pa%s3cret@proxy.test:3128", "user:pa%s3cret@proxy.test:3128", "http://user:pa%s3cret@proxy.test:31x28", "user:pa%41s3cret@proxy.test:99999",
		"http://us er:pa%41s3cret@proxy.test:3128", "//user:pa%41s3cret@proxy.test", "http://user:pa%41s3cret@", "http://proxy.test:3128/user:s3cret",
	} {
		egress = func() func(*url.URL) (*url.URL, error) {
			return egressOf(&httpproxy.Config{HTTPSProxy: text, NoProxy: "inside.test"})
		}
		nc, err := connectOut(t.Context(), "tcp", "core.test:50055")
		if err == nil {
			nc.Close()
			t.Errorf("%s: nothing is wrong with it", text)
		} else if !strings.Contains(err.Error(), "HTTPS_PROXY") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", text, err)
		}
		if via, err := egress()(&url.URL{Scheme: "https", Host: "inside.test:50055"}); via != nil || err != nil {
			t.Errorf("%s: what NO_PROXY leaves out: %v, %v", text, via, err)
		}
	}
	for _, text := range []string{"http://user:pa%41s3cret@127.0.0.1:1", "user:pa%41s3cret@127.0.0.1:1", "https://user:pa%41s3cret@127.0.0.1:1/", "socks5://user:pa%41s3cret@127.0.0.1:1"} {
		egress = func() func(*url.URL) (*url.URL, error) { return egressOf(&httpproxy.Config{HTTPSProxy: text}) }
		if _, err := connectOut(t.Context(), "tcp", "core.test:50055"); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1 of HTTPS_PROXY") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestAHostileProxyIsCutShort: what it writes ends in logs.
func TestAHostileProxyIsCutShort(t *testing.T) {
	long := strings.Repeat("x", 10<<10)
	for _, answer := range []string{"HTTP/1.1 503 " + long + "\r\n\r\n", long + "\r\n\r\n", "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 1<<20), "HTTP/1.1 200 OK\r\n\r\nearly"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var served sync.WaitGroup
		served.Go(func() {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			io.WriteString(nc, answer)
		})
		nc, err := tunnel(t.Context(), &url.URL{Scheme: "http", Host: l.Addr().String()}, "core.test:50055")
		if err == nil {
			nc.Close()
			t.Errorf("a tunnel after %.40q", answer)
		} else if len(err.Error()) > 500 {
			t.Errorf("%.40q is told in %d bytes", answer, len(err.Error()))
		}
		l.Close()
		served.Wait()
	}
}
