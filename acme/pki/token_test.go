package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"
)

func gatewayToken(t testing.TB, a *Authority) Token {
	t.Helper()
	tok, err := NewToken(Token{Role: RoleGateway, Name: "office", Expires: epoch.Add(30 * time.Minute), Core: "core.example.org:50055", Pins: a.Pins()}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenRoundTrip(t *testing.T) {
	a := testAuthority(t)
	for _, in := range []Token{
		{Role: RoleGateway, Name: "office", Expires: epoch, Core: "[2001:db8::1]:50055", Pins: a.Pins()},
		{Role: RoleGateway, Name: "office", Expires: epoch, Core: "c:1", Pins: a.Pins()[:1], GRPCTLS: "files", ServerName: "core.example.org", Reusable: true},
		{Role: RoleProxy, Name: "dmz1", Expires: epoch.Add(999 * time.Millisecond), Peers: []string{"192.0.2.0/24", "core.example.org", "any"}, Pins: a.Pins(), GRPCTLS: "acme"},
		{Role: RoleProxy, Name: "dmz1", Expires: epoch, Pins: a.Pins()},
	} {
		tok, err := NewToken(in, rand.Reader)
		if err != nil {
			t.Error(err)
			continue
		}
		s := tok.String()
		back, err := ParseToken(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if !reflect.DeepEqual(back, tok) || back.String() != s {
			t.Errorf("%+v came back as %+v", tok, back)
		}
		if back, err := ParseToken("  " + s + "\n"); err != nil || back.String() != s {
			t.Errorf("pasted with space around: %v", err)
		}
	}
}

// TestTokenFormat holds the format and the derivation still: tokens made by one
// version are read by the next.
func TestTokenFormat(t *testing.T) {
	var seed, pin [32]byte
	for i := range seed {
		seed[i], pin[i] = byte(i), 0xff-byte(i)
	}
	tok := Token{Role: RoleGateway, Name: "office", Expires: epoch, Core: "core.example.org:50055", GRPCTLS: "internal", Pins: [][32]byte{pin}, Seed: seed}
	const text = "sp1.AgAAAAAAAGmkKkAGb2ZmaWNlFmNvcmUuZXhhbXBsZS5vcmc6NTAwNTUAAAH__v38-_r5-Pf29fTz8vHw7-7t7Ovq6ejn5uXk4-Lh4AABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
	if got := tok.String(); !strings.HasPrefix(got, text) || len(got) != len(text)+6 {
		t.Errorf("token %s", got)
	}
	const public = "41638d6860dcfdd156fff22e33588a6232a3f6cd68cab3a16e9f6e20fc129e5d"
	if got := hex.EncodeToString(tok.PublicKey()); got != public {
		t.Errorf("public key %s", got)
	}
}

func TestNewTokenRefuses(t *testing.T) {
	a := testAuthority(t)
	good := Token{Role: RoleGateway, Name: "office", Expires: epoch, Core: "core.example.org:50055", Pins: a.Pins()}
	for name, spoil := range map[string]func(t *Token){
		"core's role":           func(t *Token) { t.Role = RoleCore },
		"a client's role":       func(t *Token) { t.Role = RoleClient },
		"no name":               func(t *Token) { t.Name = "" },
		"a bad name":            func(t *Token) { t.Name = "Office" },
		"no expiry":             func(t *Token) { t.Expires = time.Time{} },
		"no pins":               func(t *Token) { t.Pins = nil },
		"too many pins":         func(t *Token) { t.Pins = make([][32]byte, 5) },
		"no core":               func(t *Token) { t.Core = "" },
		"core without port":     func(t *Token) { t.Core = "core.example.org" },
		"core with port 0":      func(t *Token) { t.Core = "core.example.org:0" },
		"core with a space":     func(t *Token) { t.Core = "core example.org:1" },
		"a gateway with peers":  func(t *Token) { t.Peers = []string{"any"} },
		"a proxy with core":     func(t *Token) { t.Role = RoleProxy },
		"an empty peer":         func(t *Token) { t.Role, t.Core, t.Peers = RoleProxy, "", []string{""} },
		"an unknown listener":   func(t *Token) { t.GRPCTLS = "none" },
		"a long server name":    func(t *Token) { t.ServerName = strings.Repeat("a", 256) },
		"more than fits in 4 K": func(t *Token) { t.Role, t.Core, t.Peers = RoleProxy, "", slicesOf(64, strings.Repeat("a", 60)) },
	} {
		tok := good
		spoil(&tok)
		if _, err := NewToken(tok, rand.Reader); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewToken(good, bytes.NewReader(make([]byte, 31))); err == nil {
		t.Error("a seed cut short was accepted")
	}
	if _, err := NewToken(good, bytes.NewReader(make([]byte, 32))); err == nil {
		t.Error("an empty seed was accepted")
	}
}

func slicesOf(n int, s string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

// TestTokenTamper flips every bit of a token. The checksum catches accidents;
// whoever computes it anew gets another key, or no token at all.
func TestTokenTamper(t *testing.T) {
	tok := gatewayToken(t, testAuthority(t))
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(tok.String(), tokenPrefix))
	if err != nil {
		t.Fatal(err)
	}
	body := raw[:len(raw)-checksumSize]
	for i := range len(raw) * 8 {
		bad := bytes.Clone(raw)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := ParseToken(tokenPrefix + base64.RawURLEncoding.EncodeToString(bad)); err == nil {
			t.Fatalf("bit %d: accepted", i)
		}
		if i/8 >= len(body) {
			continue
		}
		sum := sha256.Sum256(bad[:len(body)])
		back, err := ParseToken(tokenPrefix + base64.RawURLEncoding.EncodeToString(append(bad[:len(body)], sum[:checksumSize]...)))
		if err == nil && back.PublicKey().Equal(tok.PublicKey()) {
			t.Fatalf("bit %d: changed, and the key stayed the same", i)
		}
	}
	for n := range len(body) {
		sum := sha256.Sum256(body[:n])
		if _, err := ParseToken(tokenPrefix + base64.RawURLEncoding.EncodeToString(append(bytes.Clone(body[:n]), sum[:checksumSize]...))); err == nil {
			t.Fatalf("cut to %d bytes: accepted", n)
		}
	}
	long := append(bytes.Clone(body), 0)
	sum := sha256.Sum256(long)
	if _, err := ParseToken(tokenPrefix + base64.RawURLEncoding.EncodeToString(append(long, sum[:checksumSize]...))); err == nil || !strings.Contains(err.Error(), "follow") {
		t.Errorf("a byte after the end: %v", err)
	}
}

func TestParseTokenRefuses(t *testing.T) {
	s := gatewayToken(t, testAuthority(t)).String()
	for name, in := range map[string]string{
		"nothing":         "",
		"another version": "sp2." + s[4:],
		"no prefix":       s[4:],
		"prefix only":     "sp1.",
		"a line break":    s[:40] + "\n" + s[40:],
		"padding":         s + "=",
		"standard base64": "sp1." + strings.Repeat("+", 100),
		"half":            s[:len(s)/2],
		"too much":        "sp1." + strings.Repeat("A", 5000),
	} {
		if _, err := ParseToken(in); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), s[8:40]) {
			t.Errorf("%s: the error repeats the secret: %v", name, err)
		}
	}
	// The last character may carry bits that belong to no byte; only zeros count.
	for _, name := range []string{"a", "ab", "abc"} { // all lengths modulo three
		tok, err := NewToken(Token{Role: RoleProxy, Name: name, Expires: epoch, Pins: make([][32]byte, 1)}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s := tok.String()
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
			if in := s[:len(s)-1] + string(c); in != s {
				if _, err := ParseToken(in); err == nil {
					t.Errorf("two texts for one token: %s", in)
				}
			}
		}
	}
}

// TestSeedStaysSecret looks for the seed, in whole or in part, in everything
// that leaves the two ends: the key core stores, the certificate on the wire,
// logs.
func TestSeedStaysSecret(t *testing.T) {
	tok := gatewayToken(t, testAuthority(t))
	cert, err := tok.BootstrapCertificate(epoch)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("joining", "token", tok)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("joining", "token", tok)
	type settings struct{ Join Token }
	slog.New(slog.NewTextHandler(&logged, nil)).Info("settings", "settings", settings{tok})
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("settings", "settings", settings{tok})
	fmt.Fprintf(&logged, "%v %+v %#v %v", tok, settings{tok}, settings{tok}, &tok)
	if s := fmt.Sprintf("--join %s", tok); s != "--join "+tok.String() {
		t.Errorf("asked for, the token is not written: %s", s)
	}
	asJSON, _ := json.Marshal(tok)
	for what, public := range map[string][]byte{
		"the public key":            tok.PublicKey(),
		"the private key":           tok.BootstrapKey(), // derived: not the seed itself
		"the bootstrap certificate": cert.Certificate[0],
		"the info of the key":       tok.public(),
		"logs":                      logged.Bytes(),
		"JSON":                      asJSON,
	} {
		for i := 0; i+8 <= len(tok.Seed); i++ {
			part := tok.Seed[i : i+8]
			if bytes.Contains(public, part) || bytes.Contains(public, []byte(hex.EncodeToString(part))) {
				t.Errorf("%s contains bytes %d to %d of the seed", what, i, i+8)
			}
		}
		for i := range 3 { // base64 in any alignment
			if enc := base64.RawURLEncoding.EncodeToString(tok.Seed[i : 24+i]); bytes.Contains(public, []byte(enc)) {
				t.Errorf("%s contains the seed in base64", what)
			}
		}
	}
	if len(logged.Bytes()) == 0 || !bytes.Contains(logged.Bytes(), []byte("office")) {
		t.Error("nothing was logged to look at")
	}
}

func TestBootstrap(t *testing.T) {
	a := testAuthority(t)
	tok := gatewayToken(t, a)
	cert, err := tok.BootstrapCertificate(epoch)
	if err != nil {
		t.Fatal(err)
	}
	key, err := BootstrapPublicKey([]*x509.Certificate{cert.Leaf})
	if err != nil || !key.Equal(tok.PublicKey()) {
		t.Errorf("%v", err)
	}
	if again, _ := ParseToken(tok.String()); !again.PublicKey().Equal(tok.PublicKey()) {
		t.Error("the two ends derive different keys")
	}
	c := issueComponent(t, a, RoleGateway, "office", 1)
	_, edKey, _ := ed25519.GenerateKey(nil)
	client, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "x"), PublicKey: edKey.Public(), Client: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	forged := *cert.Leaf
	forged.Signature = bytes.Clone(forged.Signature)
	forged.Signature[3] ^= 1
	for name, chain := range map[string][]*x509.Certificate{
		"nothing":             nil,
		"a component":         c.Chain,
		"a component's leaf":  c.Chain[:1],
		"a client on ed25519": client.Chain[:1],
		"two certificates":    {cert.Leaf, cert.Leaf},
		"not signed by it":    {&forged},
	} {
		if _, err := BootstrapPublicKey(chain); refusalCode(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyCore(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	tok := gatewayToken(t, a)
	withRoots := func(a *Authority, c *Credentials) []*x509.Certificate {
		return append(append([]*x509.Certificate{}, c.Chain...), a.Bundle().Roots...)
	}
	core := issueComponent(t, a, RoleCore, "core", 1)
	foreign := issueComponent(t, other, RoleCore, "core", 1)

	// A certificate with the pinned root's public key that somebody else made.
	imposter := testRoot(t)
	copied := *a.root
	copied.Subject = imposter.cert.Subject
	copied.RawSubject = nil
	fake := forge(t, imposter, &copied, a.root.PublicKey)

	for _, tc := range []struct {
		name, code string
		chain      []*x509.Certificate
	}{
		{"core", "", withRoots(a, core)},
		{"core, with another root beside its own", "", append(withRoots(a, core), other.root)},
		{"core, without the root", CodePinMismatch, core.Chain},
		{"another core", CodePinMismatch, withRoots(other, foreign)},
		{"another core that shows our root", CodeUnknownAuthority, append(withRoots(other, foreign), a.root)},
		{"our root as the leaf", CodePinMismatch, []*x509.Certificate{a.root}},
		{"the pinned key in a foreign certificate", CodePinMismatch, append(append([]*x509.Certificate{}, core.Chain...), fake)},
		{"a gateway", CodeWrongRole, withRoots(a, issueComponent(t, a, RoleGateway, "office", 1))},
		{"a client that says core", CodeWrongIssuer, func() []*x509.Certificate {
			key := testKey(t)
			leaf := componentTemplate(t, a, RoleCore, "core", key.Public())
			return []*x509.Certificate{forge(t, a.callers.issuer, leaf, key.Public()), a.callers.cert, a.root}
		}()},
		{"the newcomer's own kind of certificate", CodePinMismatch, func() []*x509.Certificate {
			cert, err := tok.BootstrapCertificate(epoch)
			if err != nil {
				t.Fatal(err)
			}
			return []*x509.Certificate{cert.Leaf}
		}()},
		{"nothing", CodeCertificateRequired, nil},
	} {
		id, err := tok.VerifyCore(tc.chain, epoch)
		if refusalCode(err) != tc.code || (err == nil) != (id == testID(RoleCore, "core")) {
			t.Errorf("%s: code %q, want %q: %v %v", tc.name, refusalCode(err), tc.code, id, err)
		}
	}
	if _, err := tok.VerifyCore(withRoots(a, core), epoch.Add(25*time.Hour)); refusalCode(err) != CodeExpired {
		t.Errorf("an expired core: %v", err)
	}
	if chain := core.JoinTLS(a.Bundle()).Certificate; len(chain) != 3 || !bytes.Equal(chain[2], a.root.Raw) {
		t.Errorf("JoinTLS sends %d certificates", len(chain))
	}
}

// After a rotation the token still works, because it pins the next root.
func TestVerifyCoreUnderNextRoot(t *testing.T) {
	a := testAuthority(t)
	next := testRoot(t)
	key := testKey(t)
	template, err := authorityTemplate("Components CA", testDomain, key.Public(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	markComponentIssuer(template, testDomain)
	components := issuer{forge(t, next, template, key.Public()), key}
	tok, err := NewToken(Token{Role: RoleProxy, Name: "dmz1", Expires: epoch.Add(time.Hour),
		Pins: [][32]byte{a.Pins()[0], sha256.Sum256(next.cert.RawSubjectPublicKeyInfo)}}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	coreKey := testKey(t)
	leaf := componentTemplate(t, a, RoleCore, "core", coreKey.Public())
	chain := []*x509.Certificate{forge(t, components, leaf, coreKey.Public()), components.cert, a.root, next.cert}
	if _, err := tok.VerifyCore(chain, epoch); err != nil {
		t.Error(err)
	}
}

func TestTokenExpired(t *testing.T) {
	tok := gatewayToken(t, testAuthority(t))
	if err := tok.Expired(tok.Expires.Add(-time.Second)); err != nil {
		t.Error(err)
	}
	if err := tok.Expired(tok.Expires); !errors.Is(err, &Refusal{Code: CodeTokenExpired}) || !strings.Contains(err.Error(), "clock") {
		t.Error(err)
	}
}

func FuzzParseToken(f *testing.F) {
	a := testAuthority(f)
	add := func(t Token, err error) {
		if err != nil {
			f.Fatal(err)
		}
		raw, _ := base64.RawURLEncoding.DecodeString(t.String()[len(tokenPrefix):])
		f.Add(raw[:len(raw)-checksumSize])
	}
	add(gatewayToken(f, a), nil)
	add(NewToken(Token{Role: RoleProxy, Name: "dmz1", Expires: epoch, Pins: a.Pins(), Peers: []string{"any", "10.0.0.0/8"}, GRPCTLS: "acme", ServerName: "x", Reusable: true}, rand.Reader))
	f.Fuzz(func(t *testing.T, body []byte) {
		// The fuzzer does not guess checksums; it is given them.
		sum := sha256.Sum256(body)
		s := tokenPrefix + base64.RawURLEncoding.EncodeToString(append(bytes.Clone(body), sum[:checksumSize]...))
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if tok.String() != s {
			t.Fatalf("%q parses, and is written %q", s, tok.String())
		}
		if len(tok.PublicKey()) != ed25519.PublicKeySize {
			t.Fatal("no key")
		}
		if fresh, err := NewToken(tok, rand.Reader); err != nil || fresh.PublicKey().Equal(tok.PublicKey()) {
			t.Fatalf("its fields do not make a token: %v", err)
		}
	})
}
