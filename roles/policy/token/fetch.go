package token

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// FetchTimeout bounds one Fetch, from the first byte to the last.
const FetchTimeout = 10 * time.Second

// NewClient returns the client that keys are fetched with: over https alone,
// also when it is sent elsewhere, with answers of at most 512 KiB. It believes
// the system's roots, and honours HTTPS_PROXY.
func NewClient() *http.Client {
	dial := &net.Dialer{Timeout: 5 * time.Second}
	return &http.Client{
		Transport: bounded{&http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: dial.DialContext, TLSHandshakeTimeout: 5 * time.Second,
			ResponseHeaderTimeout: 5 * time.Second, MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		}},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > 3 {
				return errors.New("it was redirected more than three times")
			}
			return overTLS(r.URL)
		},
		Timeout: FetchTimeout,
	}
}

func overTLS(u *url.URL) error {
	if u.Scheme != "https" {
		return fmt.Errorf("it leads to %s, and keys are fetched over https alone", u.Redacted())
	}
	return nil
}

// bounded cuts answers that are too large.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := overTLS(r.URL); err != nil {
		return nil, err
	}
	out, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	out.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(out.Body, maxJWKS+1), out.Body}
	return out, nil
}

// Fetch fetches an issuer's keys by OpenID Connect discovery: the document at
// ISSUER/.well-known/openid-configuration has to name the issuer, byte for byte,
// and says where the keys are.
func Fetch(ctx context.Context, client *http.Client, issuer string) (*Keys, error) {
	ctx, stop := context.WithTimeout(ctx, FetchTimeout)
	defer stop()
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, client), issuer)
	if err != nil {
		return nil, fmt.Errorf("discovery at %s: %w", issuer, clip(err))
	}
	var document struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return nil, fmt.Errorf("discovery at %s: %w", issuer, clip(err))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, document.JWKS, nil)
	if err != nil || request.URL.Host == "" {
		return nil, fmt.Errorf("discovery at %s names no place for keys (jwks_uri)", issuer)
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("keys of %s: %w", issuer, clip(err))
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("keys of %s: %s answers %s", issuer, request.URL.Redacted(), answer.Status)
	}
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("keys of %s: %w", issuer, clip(err))
	}
	keys, err := ParseKeys(raw)
	if err != nil {
		return nil, fmt.Errorf("keys of %s: %w", issuer, err)
	}
	return keys, nil
}

// ReadFile reads keys from a file.
func ReadFile(path string) (*Keys, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("jwks_file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("jwks_file: %s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("jwks_file: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxJWKS+1))
	if err != nil {
		return nil, fmt.Errorf("jwks_file: %w", err)
	}
	keys, err := ParseKeys(raw)
	if err != nil {
		return nil, fmt.Errorf("jwks_file %s: %w", path, err)
	}
	return keys, nil
}

// clip bounds what an error repeats of an answer.
func clip(err error) error {
	if s := err.Error(); len(s) > 300 {
		return errors.New(s[:300] + "…")
	}
	return err
}
