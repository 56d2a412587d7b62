package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/roles/control"
)

func TestCreateAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "ca")
	a, err := CreateAuthority(dir, Secret{}, testDomain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v %v", info.Mode(), err)
	}
	for path, want := range map[string]os.FileMode{
		filepath.Join(dir, sealedFile): 0o600, filepath.Join(dir, publicFile): 0o644, KeyFileBeside(dir): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("%d files, want 2", len(entries))
	}
	if text, _ := os.ReadFile(filepath.Join(dir, publicFile)); !bytes.Equal(text, a.Bundle().PEM()) {
		t.Error("the CA file for others is not the roots")
	}
	if left, _ := os.ReadDir(filepath.Dir(dir)); len(left) != 2 { // the CA and its key file
		t.Errorf("temporary files were left: %v", left)
	}
	pins := a.Pins()
	if len(pins) != 2 || pins[0] == pins[1] || pins[0] != a.Bundle().Pins()[0] {
		t.Errorf("pins %x", pins)
	}
	if want := epoch.AddDate(10, 0, 0); !a.root.NotAfter.Equal(want) || !a.components.cert.NotAfter.Equal(want) || !a.callers.cert.NotAfter.Equal(want) {
		t.Errorf("the CA ends at %s, not at %s", a.root.NotAfter, want)
	}
	again, err := OpenAuthority(dir, Secret{})
	if err != nil || !again.Bundle().Equal(a.Bundle()) || again.TrustDomain() != testDomain {
		t.Errorf("opened again: %v", err)
	}
}

func TestCreateAuthorityNeverOverwrites(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := CreateAuthority(dir, Secret{}, testDomain, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateAuthority(dir, Secret{}, testDomain, epoch); !errors.Is(err, ErrAuthorityExists) {
		t.Errorf("over an authority: %v", err)
	}
	if b, err := OpenAuthority(dir, Secret{}); err != nil || !b.Bundle().Equal(a.Bundle()) {
		t.Errorf("the first one changed: %v", err)
	}
	other := filepath.Join(t.TempDir(), "home")
	os.Mkdir(other, 0o755)
	os.WriteFile(filepath.Join(other, "letter.txt"), []byte("x"), 0o644)
	if _, err := CreateAuthority(other, Secret{}, testDomain, epoch); !errors.Is(err, ErrAuthorityExists) {
		t.Errorf("over somebody's files: %v", err)
	}
	empty := t.TempDir()
	if _, err := CreateAuthority(empty, Secret{}, testDomain, epoch); err != nil {
		t.Errorf("into an empty directory: %v", err)
	}
}

// An authority of which a part is missing or foreign is an error, and never
// the one that makes a caller create another.
func TestOpenAuthorityDamaged(t *testing.T) {
	if _, err := OpenAuthority(filepath.Join(t.TempDir(), "nothing"), Secret{}); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := OpenAuthority(t.TempDir(), Secret{}); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("an empty directory: %v", err)
	}
	foreign := filepath.Join(t.TempDir(), "foreign")
	if _, err := CreateAuthority(foreign, Secret{}, testDomain, epoch); err != nil {
		t.Fatal(err)
	}
	copyOver := func(from, to string) error {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, text, 0o600)
	}
	flip := func(at int) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, sealedFile)
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text[(at+len(text))%len(text)] ^= 1
			return os.WriteFile(path, text, 0o600)
		}
	}
	for how, tc := range map[string]struct {
		secret bool // it is the secret's fault
		damage func(dir string) error
	}{
		"missing":            {false, func(dir string) error { return os.Remove(filepath.Join(dir, sealedFile)) }},
		"cut short":          {false, func(dir string) error { return os.Truncate(filepath.Join(dir, sealedFile), 40) }},
		"cut in the content": {false, func(dir string) error { return os.Truncate(filepath.Join(dir, sealedFile), 400) }},
		"empty":              {false, func(dir string) error { return os.Truncate(filepath.Join(dir, sealedFile), 0) }},
		"readable":           {false, func(dir string) error { return os.Chmod(filepath.Join(dir, sealedFile), 0o640) }},
		"a bit in the head":  {false, flip(160)},
		"a bit in the body":  {false, flip(-9)},
		"foreign": {true, func(dir string) error {
			return copyOver(filepath.Join(foreign, sealedFile), filepath.Join(dir, sealedFile))
		}},
		"foreign key":  {true, func(dir string) error { return copyOver(KeyFileBeside(foreign), KeyFileBeside(dir)) }},
		"no key":       {true, func(dir string) error { return os.Remove(KeyFileBeside(dir)) }},
		"a public key": {false, func(dir string) error { return os.Chmod(KeyFileBeside(dir), 0o644) }},
		"an empty key": {false, func(dir string) error { return os.Truncate(KeyFileBeside(dir), 0) }},
	} {
		dir := filepath.Join(t.TempDir(), "ca")
		if _, err := CreateAuthority(dir, Secret{}, testDomain, epoch); err != nil {
			t.Fatal(err)
		}
		if err := tc.damage(dir); err != nil {
			t.Fatal(err)
		}
		_, err := OpenAuthority(dir, Secret{})
		if err == nil || errors.Is(err, ErrNoAuthority) || errors.Is(err, ErrWrongSecret) != tc.secret {
			t.Errorf("%s: %v", how, err)
		}
		if _, err := CreateAuthority(dir, Secret{}, testDomain, epoch); !errors.Is(err, ErrAuthorityExists) {
			t.Errorf("%s: a new authority was made over it: %v", how, err)
		}
	}
}

// A directory that a crash left half written under its temporary name does not
// count.
func TestCreateAuthorityAfterCrash(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "ca")
	temp := filepath.Join(parent, tempPrefix+"ca-123")
	os.Mkdir(temp, 0o700)
	os.WriteFile(filepath.Join(temp, sealedFile), []byte("age-encryption.org/v1"), 0o600)
	if _, err := OpenAuthority(dir, Secret{}); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("%v", err)
	}
	if _, err := CreateAuthority(dir, Secret{}, testDomain, epoch); err != nil {
		t.Errorf("%v", err)
	}
}

func TestIssueComponent(t *testing.T) {
	a := testAuthority(t)
	key := testKey(t)
	out, err := a.IssueComponent(ComponentRequest{
		ID: testID(RoleCore, "core"), Incarnation: 7, PublicKey: key.Public(),
		DNS: []string{"Core.Example.org", "core.example.org"}, IPs: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Lifetime: time.Hour,
	}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	c := out.Chain[0]
	if len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://sallyport.internal/core/core" {
		t.Errorf("URIs %v", c.URIs)
	}
	if c.Subject.SerialNumber != "7" || len(c.DNSNames) != 1 || c.DNSNames[0] != "core.example.org" || len(c.IPAddresses) != 2 || len(c.IPAddresses[0]) != 4 {
		t.Errorf("subject %s, names %v %v", c.Subject, c.DNSNames, c.IPAddresses)
	}
	if !c.NotBefore.Equal(epoch.Add(-time.Minute)) || !c.NotAfter.Equal(epoch.Add(time.Hour)) {
		t.Errorf("valid %s to %s", c.NotBefore, c.NotAfter)
	}
	if out.Serial != c.SerialNumber.Text(16) || c.SerialNumber.BitLen() > 128 || c.SerialNumber.BitLen() < 64 {
		t.Errorf("serial %s", out.Serial)
	}
	if len(out.Chain) != 2 || !out.Chain[1].Equal(a.components.cert) || len(out.DER()) != 2 {
		t.Errorf("chain of %d", len(out.Chain))
	}
	late, err := a.IssueComponent(ComponentRequest{ID: testID(RoleCore, "core"), Incarnation: 7, PublicKey: key.Public()}, epoch.AddDate(10, 0, 0).Add(-time.Hour))
	if err != nil || !late.Chain[0].NotAfter.Equal(a.root.NotAfter) {
		t.Errorf("at the end of the CA: %v", err)
	}
}

func TestIssueComponentRefuses(t *testing.T) {
	a := testAuthority(t)
	good := ComponentRequest{ID: testID(RoleGateway, "office"), Incarnation: 1, PublicKey: testKey(t).Public()}
	for name, spoil := range map[string]func(r *ComponentRequest){
		"a client":              func(r *ComponentRequest) { r.ID.Role = RoleClient },
		"no role":               func(r *ComponentRequest) { r.ID.Role = "" },
		"another trust domain":  func(r *ComponentRequest) { r.ID.TrustDomain = "example.org" },
		"a name with a slash":   func(r *ComponentRequest) { r.ID.Name = "a/b" },
		"incarnation 0":         func(r *ComponentRequest) { r.Incarnation = 0 },
		"no key":                func(r *ComponentRequest) { r.PublicKey = nil },
		"the CA's key":          func(r *ComponentRequest) { r.PublicKey = a.components.cert.PublicKey },
		"a wildcard":            func(r *ComponentRequest) { r.DNS = []string{"*.example.org"} },
		"an address as name":    func(r *ComponentRequest) { r.DNS = []string{"192.0.2.1"} },
		"a name with a space":   func(r *ComponentRequest) { r.DNS = []string{"a b"} },
		"no address":            func(r *ComponentRequest) { r.IPs = []netip.Addr{{}} },
		"an address with zone":  func(r *ComponentRequest) { r.IPs = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		"a validity of nothing": func(r *ComponentRequest) { r.Lifetime = time.Second },
		"a negative validity":   func(r *ComponentRequest) { r.Lifetime = -time.Hour },
	} {
		r := good
		spoil(&r)
		if out, err := a.IssueComponent(r, epoch); err == nil {
			t.Errorf("%s: issued %v", name, out.Chain[0].URIs)
		}
	}
	if _, err := a.IssueComponent(good, epoch.AddDate(11, 0, 0)); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("after the end of the CA: %v", err)
	}
	if _, err := a.IssueComponent(good, epoch); err != nil {
		t.Error(err)
	}
}

// TestIssueLeafNeverYieldsAComponent tries every field that a user fills in.
func TestIssueLeafNeverYieldsAComponent(t *testing.T) {
	a := testAuthority(t)
	key := testKey(t).Public()
	for _, r := range []LeafRequest{
		{ID: testID(RoleCore, "core"), PublicKey: key, Client: true, Server: true, DNS: []string{"x.org"}},
		{ID: testID(RoleProxy, "dmz1"), PublicKey: key, Client: true},
		{ID: testID(RoleGateway, "office"), PublicKey: key, Client: true},
		{ID: testID(RoleClient, "../core/core"), PublicKey: key, Client: true},
		{ID: ID{testDomain + "/core/core?", RoleClient, "x"}, PublicKey: key, Client: true},
		{ID: testID(RoleClient, "x"), PublicKey: key, Client: true, URIs: []string{"spiffe://sallyport.internal/core/core"}},
		{ID: testID(RoleClient, "x"), PublicKey: key, Client: true, URIs: []string{"SPIFFE://sallyport.internal/core/core"}},
		{PublicKey: key, Client: true, Subject: &pkix.Name{CommonName: "x"}, URIs: []string{"spiffe://sallyport.internal/gateway/office"}},
		{PublicKey: key, Client: true, Subject: &pkix.Name{CommonName: "x"}, URIs: []string{"spiffe://example.org/x"}},
	} {
		if out, err := a.IssueLeaf(r, epoch); err == nil {
			t.Errorf("%+v: issued %v", r, out.Chain[0].URIs)
		}
	}
	// And what is issued is taken by no component verifier, under any anchor.
	out, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "x"), PublicKey: key, Client: true, Server: true, DNS: []string{"x.org"},
		Subject: &pkix.Name{CommonName: "core", SerialNumber: "1"}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*Verifier{a.Bundle().ComponentVerifier(nil, nil), a.Bundle().RootVerifier(nil, nil), a.Bundle().CallerVerifier(nil, nil)} {
		v.Now = func() time.Time { return epoch }
		for _, role := range []Role{RoleCore, RoleProxy, RoleGateway} {
			if _, err := v.Component(out.Chain, Expect{Role: role}); err == nil {
				t.Errorf("a client passed for a %s", role)
			}
		}
	}
}

func TestIssueLeaf(t *testing.T) {
	a := testAuthority(t)
	for _, kind := range KeyKinds {
		key := keyOf(t, kind)
		out, err := a.IssueLeaf(LeafRequest{ID: testID(RoleService, "orders"), PublicKey: key.Public(), Server: true, Client: true,
			DNS: []string{"orders.example.org", "*.orders.example.org", "localhost"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
			URIs: []string{"https://example.org/orders"}}, epoch)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		c := out.Chain[0]
		if c.Subject.CommonName != "orders" || !c.NotAfter.Equal(epoch.Add(DefaultLeafLifetime)) {
			t.Errorf("%s: %s until %s", kind, c.Subject, c.NotAfter)
		}
		if rsa := strings.HasPrefix(kind, "rsa"); rsa != (c.KeyUsage&x509.KeyUsageKeyEncipherment != 0) {
			t.Errorf("%s: key usage %b", kind, c.KeyUsage)
		}
		for _, host := range []string{"orders.example.org", "a.orders.example.org", "localhost", "127.0.0.1"} {
			if err := c.VerifyHostname(host); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
	key := testKey(t).Public()
	for name, r := range map[string]LeafRequest{
		"no use":                    {ID: testID(RoleClient, "x"), PublicKey: key},
		"a client for servers only": {ID: testID(RoleClient, "x"), PublicKey: key, Server: true, DNS: []string{"x.org"}},
		"a service for clients":     {ID: testID(RoleService, "x"), PublicKey: key, Client: true},
		"a server without names":    {ID: testID(RoleService, "x"), PublicKey: key, Server: true},
		"nobody":                    {PublicKey: key, Client: true},
		"a wildcard for all":        {PublicKey: key, Server: true, DNS: []string{"*"}},
		"a wildcard for a TLD":      {PublicKey: key, Server: true, DNS: []string{"*.org"}},
		"a wildcard inside":         {PublicKey: key, Server: true, DNS: []string{"a.*.org"}},
		"longer than the CA":        {PublicKey: key, Server: true, DNS: []string{"x.org"}, Lifetime: 11 * 366 * 24 * time.Hour},
		"a relative URI":            {ID: testID(RoleClient, "x"), PublicKey: key, Client: true, URIs: []string{"/x"}},
		"a long common name":        {PublicKey: key, Client: true, Subject: &pkix.Name{CommonName: strings.Repeat("x", 65)}},
		"a terminal's escape":       {PublicKey: key, Client: true, Subject: &pkix.Name{CommonName: "\x1b[2J"}},
		"a country of three":        {PublicKey: key, Client: true, Subject: &pkix.Name{CommonName: "x", Country: []string{"NLD"}}},
	} {
		if _, err := a.IssueLeaf(r, epoch); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	out, err := a.IssueLeaf(LeafRequest{PublicKey: key, Server: true, DNS: []string{"localhost"}, IPs: []netip.Addr{netip.IPv6Loopback()}}, epoch)
	if err != nil || len(out.Chain[0].URIs) != 0 || out.Chain[0].Subject.CommonName != "localhost" {
		t.Errorf("a server without identity: %v", err)
	}
	out, err = a.IssueLeaf(LeafRequest{PublicKey: key, Client: true, Subject: &pkix.Name{OrganizationalUnit: []string{"client"}}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	v := a.Bundle().CallerVerifier(func() time.Time { return epoch }, nil)
	if _, err := v.Caller(out.Chain); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("a client without identity: %v", err)
	}
}

// TestIssueChecksItself spoils a prepared request behind the profile's back:
// the certificate is signed and does not leave.
func TestIssueChecksItself(t *testing.T) {
	a := testAuthority(t)
	for name, spoil := range map[string]func(p *prepared){
		"a CA":              func(p *prepared) { p.template.IsCA = true },
		"another name":      func(p *prepared) { p.template.URIs[0] = testID(RoleGateway, "depot").URI() },
		"another role":      func(p *prepared) { p.template.URIs[0] = testID(RoleCore, "office").URI() },
		"no EKU":            func(p *prepared) { p.template.ExtKeyUsage = nil },
		"no incarnation":    func(p *prepared) { p.template.Subject.SerialNumber = "" },
		"other incarnation": func(p *prepared) { p.template.Subject.SerialNumber = "2" },
		"callers' issuer":   func(p *prepared) { p.by = a.callers.issuer },
		"over already":      func(p *prepared) { p.template.NotAfter = epoch.Add(-time.Second) },
	} {
		p, err := a.prepareComponent(ComponentRequest{ID: testID(RoleGateway, "office"), Incarnation: 1, PublicKey: testKey(t).Public()}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		spoil(p)
		if out, err := issue(p, epoch); err == nil || out != nil {
			t.Errorf("%s: it left: %v", name, err)
		}
	}
	for name, spoil := range map[string]func(p *prepared){
		"component's issuer, mark and role": func(p *prepared) {
			c := componentTemplate(t, a, RoleCore, "core", p.public)
			p.template, p.by = c, a.components
		},
		"another client": func(p *prepared) { p.template.URIs[0] = testID(RoleClient, "y").URI() },
		"no client use":  func(p *prepared) { p.template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} },
	} {
		p, err := a.prepareLeaf(LeafRequest{ID: testID(RoleClient, "x"), PublicKey: testKey(t).Public(), Client: true}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		spoil(p)
		if out, err := issue(p, epoch); err == nil || out != nil {
			t.Errorf("leaf, %s: it left: %v", name, err)
		}
	}
}

func TestBundleProto(t *testing.T) {
	a, other := testAuthority(t), testAuthority(t)
	b, err := BundleFromProto(a.Bundle().Proto())
	if err != nil || !b.Equal(a.Bundle()) {
		t.Fatalf("%v", err)
	}
	leaf := issueComponent(t, a, RoleGateway, "office", 1).Chain[0]
	for name, spoil := range map[string]func(p *control.TrustBundle){
		"no trust domain":           func(p *control.TrustBundle) { p.TrustDomain = "" },
		"no roots":                  func(p *control.TrustBundle) { p.Roots = nil },
		"no component issuer":       func(p *control.TrustBundle) { p.ComponentIntermediates = nil },
		"callers as components":     func(p *control.TrustBundle) { p.ComponentIntermediates = p.CallerIntermediates },
		"components as callers":     func(p *control.TrustBundle) { p.CallerIntermediates = p.ComponentIntermediates },
		"components as roots":       func(p *control.TrustBundle) { p.Roots = p.ComponentIntermediates },
		"another root":              func(p *control.TrustBundle) { p.Roots = other.Bundle().Proto().Roots },
		"another component issuer":  func(p *control.TrustBundle) { p.ComponentIntermediates = other.Bundle().Proto().ComponentIntermediates },
		"a leaf as root":            func(p *control.TrustBundle) { p.Roots = append(p.Roots, leaf.Raw) },
		"garbage":                   func(p *control.TrustBundle) { p.Roots[0] = p.Roots[0][1:] },
		"more than anybody rotates": func(p *control.TrustBundle) { p.Roots = append(p.Roots, make([][]byte, 20)...) },
	} {
		p := a.Bundle().Proto()
		spoil(p)
		if _, err := BundleFromProto(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := BundleFromProto(nil); err == nil {
		t.Error("nothing was accepted")
	}
	// A foreign CA may issue for callers.
	p := a.Bundle().Proto()
	p.CallerIntermediates = other.Bundle().Proto().Roots
	if _, err := BundleFromProto(p); err != nil {
		t.Errorf("a foreign issuer of callers: %v", err)
	}
}

// TestHandshake lets crypto/tls judge the chains: a service's certificate with
// the CA file that others are given, and a client's.
func TestHandshake(t *testing.T) {
	a := testAuthority(t)
	issue := func(r LeafRequest) tls.Certificate {
		key := testKey(t)
		r.PublicKey = key.Public()
		out, err := a.IssueLeaf(r, epoch)
		if err != nil {
			t.Fatal(err)
		}
		keyPEM, err := MarshalKeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(out.PEM(), keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.Bundle().PEM()) {
		t.Fatal("the CA file has no certificate")
	}
	now := func() time.Time { return epoch }
	near, far := net.Pipe()
	server := tls.Server(far, &tls.Config{Time: now, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{issue(LeafRequest{ID: testID(RoleService, "orders"), Server: true, DNS: []string{"orders.example.org"}})}})
	client := tls.Client(near, &tls.Config{Time: now, RootCAs: pool, ServerName: "orders.example.org",
		Certificates: []tls.Certificate{issue(LeafRequest{ID: testID(RoleClient, "billing"), Client: true})}})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	near.Close()
	far.Close()
}

// TestCurrent: a certificate is current while the bundle vouches for its issuer,
// and, where it is known who issues, while that one does.
func TestCurrent(t *testing.T) {
	var made []*Authority
	for range 2 {
		a, err := CreateAuthority(filepath.Join(t.TempDir(), "ca"), Secret{}, testDomain, epoch)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, a)
	}
	key, err := NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := made[0].IssueLeaf(LeafRequest{PublicKey: key.Public(), Server: true, DNS: []string{"localhost"}, Lifetime: time.Hour}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	own, other := made[0].Bundle(), made[1].Bundle()
	issuer, next := SPKI(own.CallerIntermediates[0]), SPKI(other.CallerIntermediates[0])
	for what, c := range map[string]struct {
		bundle *Bundle
		issuer []byte
		want   bool
	}{
		"the issuer is the one that issues":    {own, issuer[:], true},
		"it is not known who issues":           {own, nil, true},
		"the CA is gone":                       {other, nil, false},
		"the CA before the rotation":           {own, next[:], false},
		"the CA is gone, and who issues known": {other, issuer[:], false},
	} {
		if got := c.bundle.Current(issued.Chain[0], c.issuer); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
