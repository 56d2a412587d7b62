// Package acmetest runs Pebble, the small ACME server of Let's Encrypt for tests,
// in the process of a test: a real CA whose validation really comes to the ports
// of this host, and which can be told to be difficult. Nothing outside tests
// imports it.
package acmetest

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"sallyport/configs"
)

// Options say what the CA is like.
type Options struct {
	HTTPPort, TLSPort int    // of 127.0.0.1, where challenges are looked for
	Validity          uint64 // of certificates, in seconds; 0: 90 days
	NonceReject       int    // percent of good nonces that are refused
	EABKeyID, EABKey  string // of the one external account; empty: none is needed
	Down              bool   // it does not answer before Up
}

// CA is a running one. Names below .bad.example lead nowhere; all others lead to
// 127.0.0.1.
type CA struct {
	URL    string // of the directory
	Root   string // file: who vouches for the directory's TLS
	Issuer string // file: who vouches for the certificates

	server *httptest.Server

	mu     sync.Mutex           // guards what follows
	counts map[string]int       // of requests that succeeded, by Request
	before func(request string) // called before each request that changes something
	forge  func([]byte) []byte  // what is sent instead of a chain
}

// The requests that are counted.
const (
	NewAccount = "new account" // made, not found
	NewOrder   = "new order"
	Challenge  = "challenge"
	Finalize   = "finalize"
	Download   = "download"
)

var environment sync.Mutex // Pebble reads its settings there

// Start runs a CA until the test ends.
func Start(t testing.TB, o Options) *CA {
	t.Helper()
	dir := t.TempDir()
	c := &CA{counts: make(map[string]int), Root: filepath.Join(dir, "directory.pem"), Issuer: filepath.Join(dir, "issuer.pem")}
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	if o.EABKeyID != "" {
		if err := store.AddExternalAccountKeyByID(o.EABKeyID, o.EABKey); err != nil {
			t.Fatal(err)
		}
	}
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "default", ValidityPeriod: o.Validity}})
	c.write(t, c.Issuer, authority.GetRootCert(0).PEM())

	environment.Lock()
	for name, value := range map[string]string{"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": strconv.Itoa(o.NonceReject), "PEBBLE_AUTHZREUSE": "0"} {
		os.Setenv(name, value)
		defer os.Unsetenv(name)
	}
	front := wfe.New(quiet, store, va.New(quiet, o.HTTPPort, o.TLSPort, false, resolver(t), store), authority, []string{"pebble.example"}, false, o.EABKeyID != "", 0, 0)
	environment.Unlock()

	handler := front.Handler()
	c.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serve(handler, w, r) }))
	c.server.Config.ErrorLog = quiet
	c.URL = "https://" + c.server.Listener.Addr().String() + wfe.DirectoryPath
	t.Cleanup(c.server.Close)
	if o.Down {
		c.server.Listener.Close()
		// Its certificate is needed before it answers.
		other := httptest.NewTLSServer(handler)
		c.write(t, c.Root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw}))
		other.Close()
		return c
	}
	c.server.StartTLS()
	c.write(t, c.Root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.server.Certificate().Raw}))
	return c
}

// Up lets a CA answer that was down.
func (c *CA) Up(t testing.TB) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", c.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.server.Listener = l
	c.server.StartTLS()
}

func (c *CA) write(t testing.TB, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Settings are those of a client of this CA.
func (c *CA) Settings() configs.ACME { return configs.ACME{Directory: c.URL, Root: c.Root} }

// Before sets what is called before each request; nil: nothing.
func (c *CA) Before(f func(request string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before = f
}

// Forge sets what makes other chains, in PEM, of those that are downloaded; nil:
// they are sent as they are.
func (c *CA) Forge(f func(chain []byte) []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forge = f
}

// Count is how many requests of a kind have succeeded.
func (c *CA) Count(request string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[request]
}

func (c *CA) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	kind := ""
	for prefix, k := range map[string]string{"/sign-me-up": NewAccount, "/order-plz": NewOrder, "/chalZ/": Challenge, "/finalize-order/": Finalize, "/certZ/": Download} {
		if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, prefix) {
			kind = k
		}
	}
	if kind == "" {
		next.ServeHTTP(w, r)
		return
	}
	c.mu.Lock()
	before, forge := c.before, c.forge
	c.mu.Unlock()
	if before != nil {
		before(kind)
	}
	s := &status{ResponseWriter: w, code: http.StatusOK}
	if kind == Download && forge != nil {
		kept := httptest.NewRecorder()
		next.ServeHTTP(kept, r)
		maps.Copy(w.Header(), kept.Header())
		w.Header().Del("Content-Length")
		s.WriteHeader(kept.Code)
		_, _ = w.Write(forge(kept.Body.Bytes()))
	} else {
		next.ServeHTTP(s, r)
	}
	if good := s.code == http.StatusOK || s.code == http.StatusCreated; good && (kind != NewAccount || s.code == http.StatusCreated) {
		c.mu.Lock()
		c.counts[kind]++
		c.mu.Unlock()
	}
}

type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}

// resolver answers every question for an address with 127.0.0.1, but those for
// bad names.
func resolver(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: l, Net: "tcp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		switch {
		case strings.HasSuffix(name, ".bad.example."):
			a.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1)})
		}
		_ = w.WriteMsg(a)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
	return l.Addr().String()
}
