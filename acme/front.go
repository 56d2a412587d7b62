package acme

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/certmagic"
)

// Front is what listens on port 80: plain HTTP that answers the challenges of a
// CA, sends callers of the names it knows to https, and tells everybody else that
// there is nothing. It reads no body, keeps no connection open, and is bounded
// per source and as a whole.
type Front struct {
	Manager *Manager // whose storage has the challenges; nil: there are none
	Names   []string // that are served by https; nil: all that may be asked for
	Port    string   // of https as callers reach it; "443" is left out of addresses
}

const (
	frontTime      = 5 * time.Second // of one request
	frontHeader    = 8 << 10
	frontOpen      = 512 // connections at a time
	frontOfSource  = 32  // of them from one IPv4 address or IPv6 /64
	redirectStatus = http.StatusPermanentRedirect
)

// Listen opens the port for plain HTTP (--http-address); nil for an empty address.
func Listen(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("open the port for plain HTTP (--http-address): %w: give another address that port 80 leads to, or off if that is a process of this program with the same --data-dir", err)
	case err != nil:
		return nil, fmt.Errorf("open the port for plain HTTP (--http-address): %w", err)
	}
	return l, nil
}

// Serve answers until ctx ends or the listener fails. It closes the listener.
func (f *Front) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler: f, ReadHeaderTimeout: frontTime, ReadTimeout: frontTime, WriteTimeout: frontTime, MaxHeaderBytes: frontHeader,
		ErrorLog: log.New(io.Discard, "", 0), // what strangers do wrong
	}
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	defer server.Close()
	err := server.Serve(&bounded{Listener: l, sources: make(map[netip.Prefix]int)})
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("plain HTTP (--http-address): %w", err)
}

// ServeHTTP answers one request.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if certmagic.LooksLikeHTTPChallenge(r) {
		if m := f.Manager; m != nil && m.started() && m.set.HTTP && m.issuer.HandleHTTPChallenge(w, r) {
			return
		}
		plainly(w, http.StatusNotFound, "No certificate authority has been asked for a certificate of this name here.")
		return
	}
	host := strings.ToLower(strings.TrimSuffix(hostname(r.Host), "."))
	switch {
	case f.Names != nil && !slices.Contains(f.Names, host), host == "", !strings.HasPrefix(r.URL.Path, "/"):
		plainly(w, http.StatusNotFound, "There is nothing by this name here.")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		// It has been sent in the clear already: no redirect makes that undone.
		plainly(w, http.StatusForbidden, "Calls are taken by https alone. What was sent could be read by everyone in between.")
	default:
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		if f.Port != "" && f.Port != "443" {
			host += ":" + f.Port
		}
		http.Redirect(w, r, "https://"+host+r.URL.RequestURI(), redirectStatus)
	}
}

// hostname is a Host header without its port.
func hostname(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	return strings.Trim(s, "[]")
}

func plainly(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}

// bounded closes connections that are too many.
type bounded struct {
	net.Listener
	mu      sync.Mutex // guards what follows
	open    int
	sources map[netip.Prefix]int
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		nc, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := source(nc.RemoteAddr())
		b.mu.Lock()
		full := b.open >= frontOpen || b.sources[from] >= frontOfSource
		if !full {
			b.open++
			b.sources[from]++
		}
		b.mu.Unlock()
		if !full {
			return &counted{Conn: nc, of: b, from: from}, nil
		}
		nc.Close()
	}
}

func (b *bounded) leave(from netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	if b.sources[from]--; b.sources[from] <= 0 {
		delete(b.sources, from)
	}
}

// source is an IPv4 address or an IPv6 /64.
func source(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}

type counted struct {
	net.Conn
	of   *bounded
	from netip.Prefix
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.of.leave(c.from) })
	return c.Conn.Close()
}
