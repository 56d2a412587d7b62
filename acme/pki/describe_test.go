package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestDescribe compares with testdata/describe-*.txt; what is random in a
// certificate is replaced by its name.
func TestDescribe(t *testing.T) {
	a := testAuthority(t)
	key := testKey(t)
	component, err := a.IssueComponent(ComponentRequest{ID: testID(RoleGateway, "office"), Incarnation: 2, PublicKey: key.Public(),
		DNS: []string{"office.example.org"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	service, err := a.IssueLeaf(LeafRequest{ID: testID(RoleService, "orders"), PublicKey: keyOf(t, "rsa2048").Public(), Server: true, Client: true,
		Subject: &pkix.Name{CommonName: "orders", Organization: []string{"Example BV"}, Country: []string{"NL"}},
		DNS:     []string{"orders.example.org", "*.orders.example.org"}, URIs: []string{"https://example.org/orders"}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	hostile := forge(t, a.callers.issuer, &x509.Certificate{SerialNumber: component.Chain[0].SerialNumber, NotBefore: epoch, NotAfter: epoch.Add(time.Hour),
		Subject: pkix.Name{CommonName: "x\x1b[2J\nValid until\tforever"}}, key.Public())
	for name, tc := range map[string]struct {
		cert *x509.Certificate
		now  time.Time
	}{
		"component":  {component.Chain[0], epoch.Add(time.Hour)},
		"service":    {service.Chain[0], epoch.Add(200 * 24 * time.Hour)},
		"root":       {a.root, epoch},
		"components": {a.components.cert, epoch},
		"callers":    {a.callers.cert, epoch.Add(-time.Hour)},
		"hostile":    {hostile, epoch},
	} {
		var b bytes.Buffer
		Describe(&b, tc.cert, tc.now)
		got := b.String()
		print, spki := sha256.Sum256(tc.cert.Raw), sha256.Sum256(tc.cert.RawSubjectPublicKeyInfo)
		got = strings.NewReplacer(Serial(tc.cert), "SERIAL", hex.EncodeToString(print[:]), "FINGERPRINT", hex.EncodeToString(spki[:]), "KEY",
			last8(a.root), "ROOT", last8(a.components.cert), "COMPONENTS", last8(a.callers.cert), "CALLERS").Replace(got)
		file := filepath.Join("testdata", "describe-"+name+".txt")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
		}
	}
}

func last8(c *x509.Certificate) string {
	cn := c.Subject.CommonName
	return cn[len(cn)-8:]
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "less than a second", 59 * time.Second: "59s", 90 * time.Second: "1m 30s", 25 * time.Hour: "1d 1h",
		90 * time.Minute: "1h 30m", -time.Minute: "-1m 0s",
	} {
		if got := span(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}
