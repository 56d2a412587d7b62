package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// trusting is NewClient that believes the certificate of a test's server.
func trusting(srv *httptest.Server) *http.Client {
	client := NewClient()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	client.Transport.(bounded).next.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return client
}

func TestFetch(t *testing.T) {
	keys := published(t, ec(t, "k")).JWKS()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keys) }))
	defer plain.Close()
	mux := http.NewServeMux()
	srv := httptest.NewTLSServer(mux)
	defer srv.Close()
	document := func(path, issuer, jwks string) {
		mux.HandleFunc(path+"/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"authorization_endpoint":"https://x","token_endpoint":"https://x"}`, issuer, jwks)
		})
	}
	mux.HandleFunc("/jwks", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keys) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxJWKS+10)) })
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/jwks", http.StatusFound) })
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, plain.URL, http.StatusFound) })
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/long/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte(strings.Repeat("x", 5000)))
	})
	for name, c := range map[string]struct{ at, issuer, jwks, want string }{
		"good":                  {"/a", srv.URL + "/a", srv.URL + "/jwks", ""},
		"redirected":            {"/b", srv.URL + "/b", srv.URL + "/elsewhere", ""},
		"of another issuer":     {"/c", srv.URL + "/other", srv.URL + "/jwks", "did not match"},
		"keys over http":        {"/d", srv.URL + "/d", plain.URL, "https alone"},
		"redirected to http":    {"/e", srv.URL + "/e", srv.URL + "/plain", "https alone"},
		"keys in a file":        {"/f", srv.URL + "/f", "file:///etc/passwd", "no place for keys"},
		"no place":              {"/g", srv.URL + "/g", "", "no place for keys"},
		"round and round":       {"/h", srv.URL + "/h", srv.URL + "/round", "redirected more than"},
		"too large":             {"/i", srv.URL + "/i", srv.URL + "/large", "larger than"},
		"keys are not there":    {"/j", srv.URL + "/j", srv.URL + "/nothing", "404"},
		"discovery is no such":  {"/k", "", "", "did not match"},
		"no discovery document": {"", srv.URL + "/none", "", "404"},
		"a long refusal":        {"", srv.URL + "/long", "", "418"},
	} {
		if c.at != "" {
			document(c.at, c.issuer, c.jwks)
			c.issuer = srv.URL + c.at
		}
		got, err := Fetch(context.Background(), trusting(srv), c.issuer)
		switch {
		case c.want == "" && (err != nil || got.Len() != 1):
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 600):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := Fetch(context.Background(), NewClient(), srv.URL+"/a"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server with a certificate of nobody: %v", err)
	}
}

// TestFetchEnds: an endpoint that says nothing holds nobody up.
func TestFetchEnds(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	srv := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		stop()
		<-r.Context().Done()
	}))
	defer srv.Close()
	if _, err := Fetch(ctx, trusting(srv), srv.URL); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, published(t, ec(t, "k")).JWKS(), 0o600); err != nil {
		t.Fatal(err)
	}
	if keys, err := ReadFile(path); err != nil || keys.Len() != 1 {
		t.Error(err)
	}
	for _, bad := range []string{filepath.Dir(path), path + ".not", "/dev/zero"} {
		if _, err := ReadFile(bad); err == nil || !strings.Contains(err.Error(), "jwks_file") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
