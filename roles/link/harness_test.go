package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ca is a generated installation: authority, core's identity, join tokens.
type ca struct {
	t         *testing.T
	authority *pki.Authority

	mu     sync.Mutex
	tokens map[string]*tokenRow // by public key
	alarms []string
	stored int
}

type tokenRow struct {
	role   pki.Role
	name   string
	expiry time.Time
	spki   [32]byte
	source string
	grant  *control.JoinGrant
}

func newCA(t *testing.T) *ca {
	t.Helper()
	a, err := pki.CreateAuthority(filepath.Join(t.TempDir(), "ca"), pki.Secret{}, "test.internal", time.Now().Add(-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return &ca{t: t, authority: a, tokens: map[string]*tokenRow{}}
}

func (c *ca) id(role pki.Role, name string) pki.ID {
	return pki.ID{TrustDomain: c.authority.TrustDomain(), Role: role, Name: name}
}

func (c *ca) credentials(role pki.Role, name string) *pki.Credentials {
	c.t.Helper()
	return c.credentialsAt(role, name, time.Now())
}

// credentialsAt are valid from a minute before at to an hour after.
func (c *ca) credentialsAt(role pki.Role, name string, at time.Time) *pki.Credentials {
	c.t.Helper()
	key, err := pki.NewKey("p256")
	if err != nil {
		c.t.Fatal(err)
	}
	issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: c.id(role, name), Incarnation: 1, PublicKey: key.Public(), Lifetime: time.Hour}, at)
	if err != nil {
		c.t.Fatal(err)
	}
	return &pki.Credentials{ID: c.id(role, name), Chain: issued.Chain, Key: key}
}

// self is a joined component.
func (c *ca) self(role pki.Role, name string) *Self {
	s := NewSelf()
	s.Set(c.credentials(role, name), c.authority.Bundle())
	return s
}

// leaf is the identity that callers and services get: under the other intermediate.
func (c *ca) leaf(r pki.LeafRequest) *pki.Credentials {
	c.t.Helper()
	key, err := pki.NewKey("p256")
	if err != nil {
		c.t.Fatal(err)
	}
	r.PublicKey, r.Lifetime = key.Public(), time.Hour
	issued, err := c.authority.IssueLeaf(r, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	return &pki.Credentials{ID: r.ID, Chain: issued.Chain, Key: key}
}

func (c *ca) token(role pki.Role, name string, expiry time.Time) pki.Token {
	c.t.Helper()
	want := pki.Token{Role: role, Name: name, Expires: expiry, Pins: c.authority.Pins()}
	if role == pki.RoleGateway {
		want.Core = "127.0.0.1:50055"
	} else {
		want.Peers = []string{"127.0.0.1"}
	}
	token, err := pki.NewToken(want, rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	// What the newcomer has is what was pasted.
	if token, err = pki.ParseToken(token.String()); err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[string(token.PublicKey())] = &tokenRow{role: role, name: name, expiry: expiry}
	return token
}

func (c *ca) judge(key ed25519.PublicKey, role pki.Role) (*tokenRow, *pki.Refusal) {
	row := c.tokens[string(key)]
	switch {
	case row == nil:
		return nil, RefuseTokenUnknown()
	case row.role != role:
		return nil, RefuseTokenRole(row.role, role)
	case time.Now().After(row.expiry):
		return nil, RefuseTokenExpired(row.expiry)
	}
	return row, nil
}

func (c *ca) registrar(log *slog.Logger) *Registrar {
	return &Registrar{Log: log, Adopt: func(_ context.Context, a JoinAttempt) (*control.JoinGrant, *pki.Refusal) {
		c.mu.Lock()
		defer c.mu.Unlock()
		row, r := c.judge(a.TokenKey, a.Role)
		if r != nil {
			return nil, r
		}
		if row.grant != nil && row.spki != a.SPKI {
			c.alarms = append(c.alarms, "second key on the token of "+row.name)
			return nil, RefuseTokenBound(row.source, a.Source.String())
		}
		if row.grant == nil {
			issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: c.id(row.role, row.name), Incarnation: 1, PublicKey: a.PublicKey, Lifetime: time.Hour}, time.Now())
			if err != nil {
				return nil, refusalOf(err)
			}
			row.spki, row.source = a.SPKI, a.Source.String()
			row.grant = &control.JoinGrant{Chain: issued.DER(), Bundle: c.authority.Bundle().Proto(), Name: row.name}
		}
		return row.grant, nil
	}, Stored: func(context.Context, JoinAttempt) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.stored++
	}}
}

func (c *ca) joinKey(role pki.Role) func(ed25519.PublicKey, netip.AddrPort) *pki.Refusal {
	return func(key ed25519.PublicKey, _ netip.AddrPort) *pki.Refusal {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, r := c.judge(key, role)
		return r
	}
}

// logged collects what is logged.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// awaits waits until all of words stand in one line of the log.
func (l *logged) awaits(t *testing.T, words ...string) {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
	for {
		for line := range strings.Lines(l.text()) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("no line of the log has all of %q:\n%s", words, l.text())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// listen serves a port on loopback until the test ends.
func listen(t *testing.T, p *Port) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, p, l)
	return l.Addr().String()
}

func serve(t *testing.T, p *Port, l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// hold is a handler that keeps the connection until the peer closes it.
func hold(ctx context.Context, c *Conn) {
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

func wantRefusal(t *testing.T, err error, code string) *pki.Refusal {
	t.Helper()
	r, ok := pki.AsRefusal(err)
	if !ok || r.Code != code {
		t.Fatalf("got %v (%#v), want the refusal %s", err, r, code)
	}
	if r.Cause == "" || r.Remedy == "" {
		t.Fatalf("refusal %s without cause or remedy: %#v", code, r)
	}
	return r
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("the test took too long"))
	t.Cleanup(cancel)
	return ctx
}

func revocationOf(c *pki.Credentials) []*control.Revocation {
	return []*control.Revocation{{Identity: c.ID.String(), Incarnation: c.Incarnation()}}
}

func revocationByKey(c *pki.Credentials) []*control.Revocation {
	sum := pki.SPKI(c.Chain[0])
	return []*control.Revocation{{Key: sum[:]}}
}
