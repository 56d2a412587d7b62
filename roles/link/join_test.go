package link

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// wire records every byte of the connections it makes.
type wire struct {
	mu    sync.Mutex
	bytes []byte
	conns int
}

type wireConn struct {
	net.Conn
	w *wire
}

func (w *wire) connect(ctx context.Context, network, address string) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.conns++
	w.mu.Unlock()
	return &wireConn{nc, w}, nil
}

func (w *wire) saw(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes = append(w.bytes, b...)
}

func (c *wireConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.w.saw(b[:n])
	return n, err
}

func (c *wireConn) Write(b []byte) (int, error) {
	c.w.saw(b)
	return c.Conn.Write(b)
}

// joining is a gateway or a proxy on its way in: both directions in one form.
type joining struct {
	c    *ca
	log  logged
	wire wire
	role pki.Role
	core string // address of core's port
	self *Self  // core's
}

func newJoining(t *testing.T, role pki.Role) *joining {
	j := &joining{c: newCA(t), role: role}
	p := corePort(j.c, &j.log)
	j.self = p.Self
	if role == pki.RoleGateway {
		j.core = listen(t, p)
	}
	return j
}

// join runs both ends and returns what each of them got.
func (j *joining) join(t *testing.T, n *Newcomer) (grant *Grant, newcomer, core error) {
	t.Helper()
	ctx := testContext(t)
	if j.role == pki.RoleGateway {
		d := &Dialler{Self: NewSelf(), Token: &n.Token, Connect: j.wire.connect}
		conn, err := d.Dial(ctx, j.core, ALPNJoin, pki.Expect{Role: pki.RoleCore})
		if err != nil {
			return nil, err, nil
		}
		grant, newcomer = n.Join(ctx, conn)
		return grant, newcomer, nil
	}
	type result struct {
		grant *Grant
		err   error
	}
	results := make(chan result, 1)
	port := proxyPort(NewSelf(), &n.Token, &j.log)
	port.Handlers[ALPNJoin] = func(ctx context.Context, conn *Conn) {
		g, err := n.Join(ctx, conn)
		results <- result{g, err}
	}
	addr := listen(t, port)
	d := &Dialler{Self: j.self, BootstrapKey: n.Token.PublicKey(), Connect: j.wire.connect}
	conn, err := d.Dial(ctx, addr, ALPNJoin, pki.Expect{Role: pki.RoleProxy, Name: n.Token.Name})
	if err != nil {
		return nil, nil, err
	}
	core = j.c.registrar(j.log.logger()).Serve(ctx, conn)
	r := <-results
	return r.grant, r.err, core
}

func bothRoles(t *testing.T, f func(t *testing.T, role pki.Role)) {
	for _, role := range []pki.Role{pki.RoleGateway, pki.RoleProxy} {
		t.Run(string(role), func(t *testing.T) { f(t, role) })
	}
}

func TestJoin(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		j := newJoining(t, role)
		token := j.c.token(role, "orders", time.Now().Add(time.Hour))
		dir := filepath.Join(t.TempDir(), "state")
		n := &Newcomer{Token: token, Role: role, Dir: dir, Version: "1.2.3"}
		g, err, core := j.join(t, n)
		if err != nil || core != nil {
			t.Fatalf("newcomer: %v, core: %v", err, core)
		}
		if g.Credentials.ID != j.c.id(role, "orders") || g.Name != "orders" {
			t.Fatalf("granted %+v", g)
		}
		stored, bundle, err := pki.LoadCredentials(dir)
		if err != nil || stored.ID != g.Credentials.ID {
			t.Fatalf("stored %v, %v", stored, err)
		}
		if _, err := pki.PendingKey(dir); err == nil {
			t.Fatal("the pending key is still there")
		}
		if j.wire.conns != 1 {
			t.Fatalf("%d connections were made, one is enough", j.wire.conns)
		}

		// The new identity opens a link.
		self := NewSelf()
		self.Set(stored, bundle)
		if role == pki.RoleGateway {
			conn, err := (&Dialler{Self: self}).Dial(testContext(t), j.core, ALPNControl, pki.Expect{Role: pki.RoleCore})
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		} else {
			addr := listen(t, proxyPort(self, nil, &j.log))
			conn, err := (&Dialler{Self: j.self}).Dial(testContext(t), addr, ALPNControl, pki.Expect{Role: pki.RoleProxy, Name: "orders"})
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
	})
}

// TestSeedStaysHome: not one byte of the seed's forms crosses the wire, nor
// does the token, nor the key it makes.
func TestSeedStaysHome(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		j := newJoining(t, role)
		token := j.c.token(role, "orders", time.Now().Add(time.Hour))
		if _, err, core := j.join(t, &Newcomer{Token: token, Role: role}); err != nil || core != nil {
			t.Fatal(err, core)
		}
		seen := j.wire.bytes
		if len(seen) < 2000 || seen[0] != 0x16 {
			t.Fatalf("captured %d bytes: that was no handshake", len(seen))
		}
		seed := token.Seed[:]
		secret := map[string][]byte{
			"seed": seed, "half of the seed": seed[:16], "other half": seed[16:],
			"hex": []byte(hex.EncodeToString(seed)), "base64": []byte(base64.RawURLEncoding.EncodeToString(seed)),
			"token": []byte(token.String())[8:40], "bootstrap key": token.BootstrapKey().Seed(), "public key": token.PublicKey(),
		}
		for what, b := range secret {
			if bytes.Contains(seen, b) {
				t.Errorf("%s is on the wire", what)
			}
		}
		// The capture can find things: what TLS shows in the clear is there.
		if !bytes.Contains(seen, []byte(ALPNJoin)) {
			t.Error("the capture lacks even the ALPN of the ClientHello")
		}
	})
}

func TestJoinRefused(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		other := map[pki.Role]pki.Role{pki.RoleGateway: pki.RoleProxy, pki.RoleProxy: pki.RoleGateway}[role]
		j := newJoining(t, role)
		// both checks the refusal on both sides. A gateway's is in core's log,
		// a proxy's is the error of core's Serve.
		both := func(t *testing.T, code string, newcomer, core error) {
			t.Helper()
			t.Log(wantRefusal(t, newcomer, code))
			if role == pki.RoleGateway {
				j.log.awaits(t, "refused a connection", "code="+code, "remedy=", "protocol="+ALPNJoin)
			} else {
				wantRefusal(t, core, code)
			}
		}
		t.Run("expired token", func(t *testing.T) {
			n := &Newcomer{Token: j.c.token(role, "late", time.Now().Add(-time.Minute)), Role: role}
			_, err, core := j.join(t, n)
			both(t, pki.CodeTokenExpired, err, core)
		})
		t.Run("token of the other role, seen here", func(t *testing.T) {
			n := &Newcomer{Token: j.c.token(other, "mixed", time.Now().Add(time.Hour)), Role: role}
			_, err, core := j.join(t, n)
			wantRefusal(t, err, "token_other_role")
			if role == pki.RoleProxy {
				wantRefusal(t, core, "token_other_role")
			}
		})
		t.Run("token of the other role, seen by core", func(t *testing.T) {
			// The newcomer believes to be what the token says and yet dials (or is dialled).
			n := &Newcomer{Token: j.c.token(other, "mixed2", time.Now().Add(time.Hour)), Role: other}
			_, err, core := j.join(t, n)
			both(t, "token_other_role", err, core)
		})
		t.Run("unknown token", func(t *testing.T) {
			token := j.c.token(role, "forgotten", time.Now().Add(time.Hour))
			j.c.mu.Lock()
			delete(j.c.tokens, string(token.PublicKey()))
			j.c.mu.Unlock()
			_, err, core := j.join(t, &Newcomer{Token: token, Role: role})
			both(t, "token_unknown", err, core)
		})
		t.Run("second key", func(t *testing.T) {
			token := j.c.token(role, "twice", time.Now().Add(time.Hour))
			if _, err, core := j.join(t, &Newcomer{Token: token, Role: role}); err != nil || core != nil {
				t.Fatal(err, core)
			}
			_, err, core := j.join(t, &Newcomer{Token: token, Role: role})
			both(t, "token_used_by_another_key", err, core)
			if r, _ := pki.AsRefusal(err); strings.Count(r.Cause, "127.0.0.1") != 2 {
				t.Fatalf("both addresses should be named: %s", r.Cause)
			}
			if len(j.c.alarms) != 1 {
				t.Fatalf("alarms: %q", j.c.alarms)
			}
		})
		t.Run("wrong root pin", func(t *testing.T) {
			elsewhere := newCA(t)
			token := elsewhere.token(role, "astray", time.Now().Add(time.Hour))
			_, err, core := j.join(t, &Newcomer{Token: token, Role: role})
			if role == pki.RoleProxy {
				j.log.awaits(t, "refused a connection", "code="+pki.CodePinMismatch, "remedy=")
				t.Log(wantRefusal(t, core, pki.CodePinMismatch)) // by Why
			} else {
				wantRefusal(t, err, pki.CodePinMismatch)
				j.log.awaits(t, "refused a connection", "code="+pki.CodeRefusedByPeer)
			}
		})
	})
}

// TestJoinWithIdentity: a component that has joined does not join again, and a
// stranger's own certificate is no token.
func TestJoinWithIdentity(t *testing.T) {
	j := newJoining(t, pki.RoleGateway)
	d := &Dialler{Self: j.c.self(pki.RoleGateway, "orders")}
	conn, err := d.Dial(testContext(t), j.core, ALPNJoin, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		t.Fatal(err)
	}
	n := &Newcomer{Token: j.c.token(pki.RoleGateway, "x", time.Now().Add(time.Hour)), Role: pki.RoleGateway}
	_, err = n.Join(testContext(t), conn)
	wantRefusal(t, err, "bootstrap_certificate_missing")
	j.log.awaits(t, "refused a connection", "code=bootstrap_certificate_missing")
	// And Why gives the same verdict about the same certificate.
	r, err := d.why(testContext(t), j.core, ALPNJoin, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, r, "bootstrap_certificate_missing")
}

// TestCoreIsDialledWrong: core finds another key than the token's at the address.
func TestCoreIsDialledWrong(t *testing.T) {
	c := newCA(t)
	var log logged
	mine, theirs := c.token(pki.RoleProxy, "dmz", time.Now().Add(time.Hour)), c.token(pki.RoleProxy, "other", time.Now().Add(time.Hour))
	addr := listen(t, proxyPort(NewSelf(), &theirs, &log))
	d := &Dialler{Self: c.self(pki.RoleCore, "core"), BootstrapKey: mine.PublicKey()}
	_, err := d.Dial(testContext(t), addr, ALPNJoin, pki.Expect{Role: pki.RoleProxy, Name: "dmz"})
	wantRefusal(t, err, "bootstrap_key_other")
	log.awaits(t, "refused a connection", "code="+pki.CodeRefusedByPeer)
}

// TestJoinAgain: the answer is lost, the newcomer dies and comes back: the same
// key gets the same certificate.
func TestJoinAgain(t *testing.T) {
	bothRoles(t, func(t *testing.T, role pki.Role) {
		j := newJoining(t, role)
		token := j.c.token(role, "orders", time.Now().Add(time.Hour))
		dir := filepath.Join(t.TempDir(), "state")

		// The directory cannot take the identity: a directory is in its place.
		if err := os.MkdirAll(filepath.Join(dir, "identity.pem", "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err, core := j.join(t, &Newcomer{Token: token, Role: role, Dir: dir})
		if err == nil {
			t.Fatal("joined without storing")
		}
		if role == pki.RoleProxy && core == nil {
			t.Fatal("core believes that the newcomer has stored")
		}
		if j.c.stored != 0 {
			t.Fatal("core was told that the grant is stored")
		}
		key, err := pki.PendingKey(dir)
		if err != nil {
			t.Fatalf("the key should have been saved before its use: %v", err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "identity.pem")); err != nil {
			t.Fatal(err)
		}
		g, err, core := j.join(t, &Newcomer{Token: token, Role: role, Dir: dir})
		if err != nil || core != nil {
			t.Fatal(err, core)
		}
		if len(j.c.alarms) != 0 || j.c.stored != 1 {
			t.Fatalf("alarms %q, stored %d", j.c.alarms, j.c.stored)
		}
		wantSPKI, _ := pki.SPKIHash(key.Public())
		gotSPKI, _ := pki.SPKIHash(g.Credentials.Chain[0].PublicKey)
		if wantSPKI != gotSPKI {
			t.Fatal("the certificate is not for the key of the first attempt")
		}
	})
}

// TestGrantIsChecked: core is authenticated, its answer is checked all the same.
func TestGrantIsChecked(t *testing.T) {
	c, other := newCA(t), newCA(t)
	token := c.token(pki.RoleGateway, "orders", time.Now().Add(time.Hour))
	n := &Newcomer{Token: token, Role: pki.RoleGateway}
	key, err := n.csrKey()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(c *ca, name string, role pki.Role) *control.JoinGrant {
		i, err := c.authority.IssueComponent(pki.ComponentRequest{ID: c.id(role, name), Incarnation: 1, PublicKey: key.Public(), Lifetime: time.Hour}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return &control.JoinGrant{Chain: i.DER(), Bundle: c.authority.Bundle().Proto(), Name: name}
	}
	good := issue(c, "orders", pki.RoleGateway)
	if _, err := n.accept(good, key, c.id(pki.RoleCore, "core")); err != nil {
		t.Fatal(err)
	}
	foreign := c.credentials(pki.RoleGateway, "orders")
	for name, g := range map[string]*control.JoinGrant{
		"nothing":      {},
		"another name": issue(c, "stock", pki.RoleGateway),
		"another role": issue(c, "orders", pki.RoleProxy),
		"another CA":   issue(other, "orders", pki.RoleGateway),
		"another key":  {Chain: [][]byte{foreign.Chain[0].Raw, foreign.Chain[1].Raw}, Bundle: good.Bundle, Name: "orders"},
		"no bundle":    {Chain: good.Chain, Name: "orders"},
		"name only":    {Chain: good.Chain, Bundle: good.Bundle, Name: "orders-1"},
	} {
		if _, err := n.accept(g, key, c.id(pki.RoleCore, "core")); err == nil {
			t.Errorf("%s was accepted", name)
		} else {
			t.Log(name+":", err)
		}
	}
	if _, err := n.accept(good, key, pki.ID{TrustDomain: "elsewhere.internal", Role: pki.RoleCore, Name: "core"}); err == nil {
		t.Error("a bundle of another trust domain was accepted")
	}
}
