package acme

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/acme/acmetest"
	"sallyport/store"
)

// host is the ports of one host: where a CA comes to look.
type host struct {
	http, tls net.Listener
}

func newHost(t *testing.T) *host {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	return &host{listen(), listen()}
}

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

func (h *host) options() acmetest.Options {
	return acmetest.Options{HTTPPort: port(h.http), TLSPort: port(h.tls)}
}

// runner is a Manager with its ports and its database.
type runner struct {
	*Manager
	db   *store.ACME
	log  *lockedLog
	stop func() // and wait
}

type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// runManager runs a Manager whose challenges are answered at h; h may be nil when
// somebody else answers.
func runManager(t *testing.T, dir string, h *host, s Settings) *runner {
	t.Helper()
	db, err := store.OpenACME(filepath.Join(dir, "acme.db"))
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{db: db, log: &lockedLog{}}
	s.Storage, s.KeyFile = db, filepath.Join(dir, "acme.key")
	s.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if s.pause == nil {
		s.pause = func(int, error) time.Duration { return 100 * time.Millisecond }
	}
	if s.Check == 0 {
		s.Check = 100 * time.Millisecond
	}
	if s.Instead == "" {
		s.Instead = "--tls files"
	}
	if r.Manager, err = New(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Manager.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if h != nil {
		serveHost(ctx, &running, h, r.Manager)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	t.Cleanup(r.stop)
	return r
}

// serveHost answers at the ports of a host, as the proxy does.
func serveHost(ctx context.Context, running *sync.WaitGroup, h *host, m *Manager) {
	running.Go(func() { _ = (&Front{Manager: m}).Serve(ctx, h.http) })
	running.Go(func() {
		stop := context.AfterFunc(ctx, func() { h.tls.Close() })
		defer stop()
		for {
			nc, err := h.tls.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(10 * time.Second))
				_ = tls.Server(nc, &tls.Config{NextProtos: []string{"h2"}, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
					return m.Certificate(hello.ServerName, m.set.Domains)
				}, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
					return m.Challenge(hello), nil
				}}).Handshake()
			}()
		}
	})
}

// until waits for a condition.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within two minutes", what)
		}
	}
}

func (r *runner) leaf(name string) *x509.Certificate {
	if c, err := r.CertificateOf(name); err == nil {
		return c.Leaf
	}
	return nil
}

// good checks that a certificate is for the name and of the CA.
func good(t *testing.T, ca *acmetest.CA, c *tls.Certificate, name string) {
	t.Helper()
	text, err := os.ReadFile(ca.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	for _, der := range c.Certificate[1:] {
		i, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(i)
	}
	if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name}); err != nil {
		t.Errorf("the certificate of %s: %v", name, err)
	}
}

// TestIssueAndRenew: both challenges, each alone, with half of all nonces refused;
// the former certificate serves until the next is there, and restarts order
// nothing.
func TestIssueAndRenew(t *testing.T) {
	for name, which := range map[string]Settings{"HTTP-01": {HTTP: true}, "TLS-ALPN-01": {TLSALPN: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, dir := newHost(t), t.TempDir()
			o := h.options()
			// Pebble says that it is due at some time of its short life.
			o.Validity, o.NonceReject = 8, 50
			ca := acmetest.Start(t, o)
			which.Domains, which.CA = []string{"api.example.org"}, ca.Settings()
			r := runManager(t, dir, h, which)
			until(t, "the first certificate", func() bool { return r.leaf("api.example.org") != nil })
			first, err := r.Certificate("api.example.org", which.Domains)
			if err != nil {
				t.Fatal(err)
			}
			good(t, ca, first, "api.example.org")
			until(t, "its renewal", func() bool {
				if r.leaf("api.example.org") == nil {
					t.Fatal("nothing serves while it is renewed")
				}
				return !r.leaf("api.example.org").Equal(first.Leaf)
			})
			if n := ca.Count(acmetest.NewAccount); n != 1 {
				t.Errorf("%d accounts", n)
			}
			if !strings.Contains(r.log.String(), "got renewal info") {
				t.Error("the CA is not asked when to renew")
			}
			r.stop()
			text, err := os.ReadFile(filepath.Join(dir, "acme.db"))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "PRIVATE KEY") || strings.Contains(r.log.String(), "PRIVATE KEY") {
				t.Error("a private key lies in the clear")
			}
		})
	}
}

// TestOneBadDomain of three: the others are had, the process goes on, and why is
// said.
func TestOneBadDomain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ca := acmetest.Start(t, h.options())
	r := runManager(t, t.TempDir(), h, Settings{HTTP: true, TLSALPN: true, CA: ca.Settings(), Domains: []string{"no.bad.example", "a.example.org", "b.example.org"}})
	until(t, "the good ones, and the failure of the bad one", func() bool {
		return r.leaf("a.example.org") != nil && r.leaf("b.example.org") != nil && r.States()[0].Failures > 1
	})
	s := r.States()[0]
	for _, w := range []string{"refused it", "no.bad.example", "port 80", "port 443", "--tls files"} {
		if !strings.Contains(s.Error, w) {
			t.Errorf("%q is missing in: %s", w, s.Error)
		}
	}
	if _, err := r.Certificate("no.bad.example", r.set.Domains); err == nil || !strings.Contains(err.Error(), "no certificate for no.bad.example") {
		t.Errorf("a handshake for it gives %v", err)
	}
	// Who asks for no name, or another, gets one that says what this is.
	if c, err := r.Certificate("", r.set.Domains); err != nil || c.Leaf.VerifyHostname("a.example.org") != nil {
		t.Errorf("without a name: %v", err)
	}
	if n := strings.Count(r.log.String(), "could not be had"); n != 1+s.Failures/10 && n != 2+s.Failures/10 {
		t.Errorf("%d lines about %d failures", n, s.Failures)
	}
}

// TestDirectoryDown: nothing waits for it, and when it is there the order goes on.
func TestDirectoryDown(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	o := h.options()
	o.Down = true
	ca := acmetest.Start(t, o)
	changed := make(chan struct{}, 100)
	r := runManager(t, t.TempDir(), h, Settings{HTTP: true, CA: ca.Settings(), Domains: []string{"a.example.org"}, Changed: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	until(t, "a failure", func() bool { return r.States()[0].Failures > 0 })
	if s := r.States()[0]; !strings.Contains(s.Error, "cannot be reached") || s.Next.IsZero() || s.Leaf != nil {
		t.Errorf("got %+v", s)
	}
	<-changed
	ca.Up(t)
	until(t, "the certificate", func() bool { return r.leaf("a.example.org") != nil })
	if s := r.States()[0]; s.Error != "" || s.Failures != 0 {
		t.Errorf("still %+v", s)
	}
}

// TestContention: two with one storage order once; one answers for the other,
// and both serve the same.
func TestContention(t *testing.T) {
	t.Parallel()
	h, dir := newHost(t), t.TempDir()
	ca := acmetest.Start(t, h.options())
	s := Settings{HTTP: true, CA: ca.Settings(), Domains: []string{"a.example.org", "b.example.org"}}
	one := runManager(t, dir, h, s)
	until(t, "the one who answers", one.started)
	two := runManager(t, dir, nil, s)
	until(t, "both have both", func() bool {
		return one.leaf("a.example.org") != nil && two.leaf("a.example.org") != nil && one.leaf("b.example.org") != nil && two.leaf("b.example.org") != nil
	})
	for _, name := range s.Domains {
		if !one.leaf(name).Equal(two.leaf(name)) {
			t.Errorf("two certificates for %s", name)
		}
	}
	if orders, accounts := ca.Count(acmetest.NewOrder), ca.Count(acmetest.NewAccount); orders != 2 || accounts != 1 {
		t.Errorf("%d orders by %d accounts", orders, accounts)
	}
}

// TestExternalAccount: the CA wants one, and says so.
func TestExternalAccount(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	o := h.options()
	o.EABKeyID, o.EABKey = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	ca := acmetest.Start(t, o)
	s := Settings{HTTP: true, CA: ca.Settings(), Domains: []string{"a.example.org"}}
	without := runManager(t, t.TempDir(), nil, s)
	until(t, "a failure without", func() bool { return without.States()[0].Failures > 0 })
	if e := without.States()[0].Error; !strings.Contains(e, "--acme-eab-key-id") {
		t.Errorf("got: %s", e)
	}
	s.CA.EABKeyID, s.CA.EABKey = o.EABKeyID, "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	with := runManager(t, t.TempDir(), h, s)
	until(t, "the certificate", func() bool { return with.leaf("a.example.org") != nil })
	if strings.Contains(with.log.String(), o.EABKey) {
		t.Error("the MAC key is logged")
	}
}

const childEnv = "SALLYPORT_TEST_ACME_CHILD"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		child(strings.Split(args, "|"))
	}
	os.Exit(m.Run())
}

// child is a process that orders a certificate: directory of its data, of the
// CA, root of the CA, address of plain HTTP; if that is empty, the one where
// another process answers.
func child(args []string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	db, err := store.OpenACME(filepath.Join(args[0], "acme.db"))
	fail(err)
	db.LeaseTime = 2 * time.Second
	s := Settings{HTTP: true, Domains: []string{"a.example.org"}, Storage: db, KeyFile: filepath.Join(args[0], "acme.key"), Check: 50 * time.Millisecond,
		pause: func(int, error) time.Duration { return 100 * time.Millisecond }}
	s.CA.Directory, s.CA.Root = args[1], args[2]
	m, err := New(context.Background(), s)
	fail(err)
	if args[3] == "" { // whoever answers for this one has to be there
		for {
			nc, err := net.Dial("tcp", args[4])
			if err == nil {
				nc.Close()
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	go func() { fail(m.Run(context.Background())) }()
	<-m.ready
	if args[3] != "" {
		l, err := net.Listen("tcp", args[3])
		fail(err)
		go func() { fail((&Front{Manager: m}).Serve(context.Background(), l)) }()
	}
	for {
		if _, err := m.CertificateOf("a.example.org"); err == nil {
			fmt.Println("served")
			select {} // until killed
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func startChild(t *testing.T, dir string, ca *acmetest.CA, address, other string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{dir, ca.URL, ca.Root, address, other}, "|"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// TestTwoProcesses with one storage order once, although one of them cannot be
// reached by the CA at all.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	h, dir := newHost(t), t.TempDir()
	h.http.Close()
	ca := acmetest.Start(t, h.options())
	for _, address := range []string{h.http.Addr().String(), ""} {
		cmd, out := startChild(t, dir, ca, address, h.http.Addr().String())
		defer cmd.Wait()
		defer cmd.Process.Kill()
		defer func() {
			if line, err := out.ReadString('\n'); line != "served\n" {
				t.Errorf("a process said %q (%v)", line, err)
			}
			if orders, accounts := ca.Count(acmetest.NewOrder), ca.Count(acmetest.NewAccount); orders != 1 || accounts != 1 {
				t.Errorf("%d orders by %d accounts", orders, accounts)
			}
		}()
	}
}

// TestKilled at each request of an order: the next process goes on, with the same
// account, and no half of anything is left.
func TestKilled(t *testing.T) {
	for _, at := range []string{acmetest.NewAccount, acmetest.NewOrder, acmetest.Challenge, acmetest.Finalize, acmetest.Download} {
		t.Run(strings.ReplaceAll(at, " ", "-"), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.http.Close() // the child listens there
			ca := acmetest.Start(t, h.options())
			dir := t.TempDir()
			start := func() (*exec.Cmd, *bufio.Reader) { return startChild(t, dir, ca, h.http.Addr().String(), "") }
			var killed atomic.Bool
			gone := make(chan struct{})
			first, out := start()
			ca.Before(func(request string) {
				if request != at || !killed.CompareAndSwap(false, true) {
					return
				}
				// After the CA has done it and before the answer is there is the
				// worst moment for accounts; the CA goes on with the request.
				first.Process.Kill()
				first.Wait()
				close(gone)
			})
			if line, err := out.ReadString('\n'); err == nil {
				t.Fatalf("not killed; it said %q", line)
			}
			<-gone
			second, out := start()
			defer second.Wait()
			defer second.Process.Kill()
			if line, err := out.ReadString('\n'); line != "served\n" {
				t.Fatalf("the next process said %q (%v)", line, err)
			}
			if n := ca.Count(acmetest.NewAccount); n != 1 {
				t.Errorf("%d accounts", n)
			}
		})
	}
}

// TestFront: what is no challenge is sent to https, if it is for a name that is
// served there.
func TestFront(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		if err := (&Front{Names: []string{"api.example.org"}, Port: "8443"}).Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, c := range []struct {
		method, host, path, location string
		status                       int
	}{
		{"GET", "api.example.org", "/x?y=1", "https://api.example.org:8443/x?y=1", 308},
		{"HEAD", "API.example.org:80", "/", "https://api.example.org:8443/", 308},
		{"GET", "evil.example", "/", "", 404},
		{"POST", "api.example.org", "/a.A/B", "", 403},
		{"GET", "api.example.org", "/.well-known/acme-challenge/token", "", 404},
	} {
		request, err := http.NewRequest(c.method, "http://"+l.Addr().String()+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = c.host
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != c.status || response.Header.Get("Location") != c.location {
			t.Errorf("%s %s%s: %s to %q", c.method, c.host, c.path, response.Status, response.Header.Get("Location"))
		}
	}
	// A crowd of one source finds its bound, and whoever is in it is not cut.
	var open []net.Conn
	for range frontOfSource + 10 {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		open = append(open, nc)
	}
	last := open[len(open)-1]
	last.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && err == nil {
		t.Error("the one too many is served")
	}
}

// TestChallengeConfig: acme-tls/1 is for handshakes that want nothing else.
func TestChallengeConfig(t *testing.T) {
	t.Parallel()
	ca := acmetest.Start(t, acmetest.Options{HTTPPort: 1, TLSPort: 1, Down: true})
	r := runManager(t, t.TempDir(), nil, Settings{TLSALPN: true, CA: ca.Settings(), Domains: []string{"stranger.example.org"}})
	until(t, "the start", r.started)
	for _, protos := range [][]string{nil, {"h2"}, {"h2", ProtocolChallenge}, {ProtocolChallenge, "h2"}} {
		if r.Challenge(&tls.ClientHelloInfo{SupportedProtos: protos, ServerName: "stranger.example.org"}) != nil {
			t.Errorf("%q is taken for a challenge", protos)
		}
	}
	c := r.Challenge(&tls.ClientHelloInfo{SupportedProtos: []string{ProtocolChallenge}, ServerName: "stranger.example.org"})
	if c == nil {
		t.Fatal("a challenge is not recognised")
	}
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		defer far.Close()
		_ = tls.Client(far, &tls.Config{NextProtos: []string{ProtocolChallenge}, ServerName: "stranger.example.org", InsecureSkipVerify: true}).Handshake()
	}()
	if err := tls.Server(near, c).Handshake(); err == nil {
		t.Error("a stranger is given a proof")
	}
}

// TestWrongKey: a database without its key file says what to do.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := store.OpenACME(filepath.Join(dir, "acme.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := Settings{Storage: db, KeyFile: filepath.Join(dir, "acme.key"), Domains: []string{"a.example.org"}}
	if _, err := New(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(s.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if _, err := New(t.Context(), s); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if err := os.Remove(s.KeyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), s); err == nil || !strings.Contains(err.Error(), "does not open it") {
		t.Errorf("with another key: %v", err)
	}
}
