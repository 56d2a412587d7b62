package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOutsideSource: files that something else renews, by every way of
// renewing; a bad pair leaves the former in service and is reported.
func TestOutsideSource(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	cert, key := w.write(dir, w.leaf("one.example"))
	var log logged
	changed := 0
	o, err := OpenOutside("the gRPC port", cert, key, log.logger(), func() { changed++ })
	if err != nil {
		t.Fatal(err)
	}
	shows := func(name string) {
		t.Helper()
		c, err := o.Certificate()
		if err != nil || c.Leaf.Subject.CommonName != name {
			t.Fatalf("shows %v, want %s", c.Leaf.Subject, name)
		}
		if r := o.Report(); r.GetWhat() != "the gRPC port" || !strings.Contains(r.GetSubject(), name) || r.GetNotAfterUnix() != c.Leaf.NotAfter.Unix() {
			t.Errorf("reports %v", r)
		}
	}
	o.look()
	shows("one.example")
	if changed != 0 {
		t.Error("changed, though nothing has")
	}
	w.write(dir, w.leaf("two.example"))
	o.look()
	shows("two.example")

	// Half of a pair: not reported while it may be a moment, then reported.
	third := w.leaf("three.example")
	other := t.TempDir()
	newCert, newKey := w.write(other, third)
	text, _ := os.ReadFile(newCert)
	os.WriteFile(cert, text, 0o600)
	o.look()
	if strings.Contains(log.text(), "cannot be used") {
		t.Error("reported a moment")
	}
	o.look()
	o.look()
	shows("two.example")
	if strings.Count(log.text(), "cannot be used") != 1 || o.Report().GetError() == "" {
		t.Errorf("report %v\n%s", o.Report(), log.text())
	}
	text, _ = os.ReadFile(newKey)
	os.WriteFile(key, text, 0o600)
	o.look()
	shows("three.example")
	if o.Report().GetError() != "" || changed != 2 {
		t.Errorf("report %v, changed %d", o.Report(), changed)
	}
	os.Remove(cert)
	o.look()
	o.look()
	shows("three.example")

	// An expired one does not take the place of a good one.
	c, k := w.make(&x509.Certificate{DNSNames: []string{"old.example"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}, w.mid, w.midKey)
	w.write(dir, &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: k, Leaf: c})
	o.look()
	o.look()
	shows("three.example")

	// A Kubernetes secret: the directory behind a symbolic link is swapped.
	root := t.TempDir()
	for _, name := range []string{"a", "b"} {
		os.Mkdir(filepath.Join(root, name), 0o700)
		w.write(filepath.Join(root, name), w.leaf(name+".example"))
	}
	link := filepath.Join(root, "..data")
	os.Symlink("a", link)
	o, err = OpenOutside("the gRPC port", filepath.Join(link, "tls.crt"), filepath.Join(link, "tls.key"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	shows("a.example")
	os.Symlink("b", link+"2")
	os.Rename(link+"2", link)
	o.look()
	shows("b.example")

	for _, bad := range [][2]string{{cert, filepath.Join(dir, "none")}, {key, key}, {dir, key}} {
		if _, err := OpenOutside("x", bad[0], bad[1], nil, nil); err == nil {
			t.Error("opened", bad)
		}
	}
}

// TestPortFollowsFiles: the next handshake shows the new pair, while Run looks.
func TestPortFollowsFiles(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	cert, key := w.write(dir, w.leaf("one.example"))
	got := make(chan struct{}, 1)
	o, err := OpenOutside("the gRPC port", cert, key, nil, func() { got <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	o.every = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error)
	go func() { done <- o.Run(ctx) }()
	w.write(dir, w.leaf("two.example"))
	select {
	case <-got:
	case <-ctx.Done():
		t.Fatal("never noticed")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if c, _ := o.Certificate(); c.Leaf.Subject.CommonName != "two.example" {
		t.Error(c.Leaf.Subject)
	}
}

// TestAnchors: a file with an intermediate of a public CA survives the CA's
// change of intermediates; one of a private CA vouches for itself alone.
func TestAnchors(t *testing.T) {
	w := newWorld(t)
	system := x509.NewCertPool()
	system.AddCert(w.root)
	public := func() (*x509.CertPool, error) { return system, nil }
	private := func() (*x509.CertPool, error) { return x509.NewCertPool(), nil }
	file := filepath.Join(t.TempDir(), "chain.pem")
	os.WriteFile(file, w.midPEM_, 0o600)
	first := w.leaf("port.example")
	w.mid, w.midKey = w.intermediate("World R2")
	second := w.leaf("port.example")
	verifies := func(a *Anchors, c *tls.Certificate) bool {
		mid, _ := x509.ParseCertificate(c.Certificate[1])
		o := &Outside{Roots: a.Pool, ServerName: "port.example"}
		return o.verify(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.Leaf, mid}}, "", time.Now()) == nil
	}
	var log logged
	a, err := openAnchors(file, log.logger(), public)
	if err != nil {
		t.Fatal(err)
	}
	if !verifies(a, first) || !verifies(a, second) {
		t.Error("the CA's new intermediate is not trusted")
	}
	if !strings.Contains(log.text(), "World Root") {
		t.Error("it does not say that the root is trusted")
	}
	b, err := openAnchors(file, nil, private)
	if err != nil {
		t.Fatal(err)
	}
	if !verifies(b, first) || verifies(b, second) {
		t.Error("an intermediate that no system root stands behind")
	}
	if s, err := openAnchors("system", nil, public); err != nil || !verifies(s, second) {
		t.Error("system", err)
	}

	// The file is followed, a bad one is not.
	other := newWorld(t)
	os.WriteFile(file, []byte("nothing"), 0o600)
	a.look()
	a.look()
	if !verifies(a, first) || strings.Count(log.text(), "cannot be used") != 1 {
		t.Error("a bad file was taken", log.text())
	}
	os.WriteFile(file, other.rootPEM, 0o600)
	a.look()
	if verifies(a, first) || !verifies(a, other.leaf("port.example")) {
		t.Error("the new file is not in force")
	}
	for _, text := range []string{"", "no PEM"} {
		os.WriteFile(file, []byte(text), 0o600)
		if _, err := OpenAnchors(file, nil); err == nil {
			t.Errorf("opened %q", text)
		}
	}
	if _, err := OpenAnchors(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("opened nothing")
	}
}

// TestOutsideOutlivesCA: a leaf that is good for longer than its CA, as openssl
// makes one by default, is said once, and reported until a better one lies there.
func TestOutsideOutlivesCA(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	pair := func(end time.Duration) (string, string) {
		c, k := w.make(&x509.Certificate{DNSNames: []string{"long.example"}, NotAfter: w.mid.NotAfter.Add(end)}, w.mid, w.midKey)
		stranger, _ := w.make(&x509.Certificate{IsCA: true, NotAfter: time.Now().Add(time.Minute)}, nil, nil)
		return w.write(dir, &tls.Certificate{Certificate: [][]byte{c.Raw, stranger.Raw, w.mid.Raw}, PrivateKey: k, Leaf: c})
	}
	cert, key := pair(time.Hour)
	var log logged
	o, err := OpenOutside("the gRPC port", cert, key, log.logger(), nil)
	if err != nil {
		t.Fatal(err)
	}
	o.look()
	if strings.Count(log.text(), "outlives its CA") != 1 || !strings.Contains(o.Report().GetWarning(), "World R1") || o.Report().GetError() != "" {
		t.Errorf("report %v\n%s", o.Report(), log.text())
	}
	pair(0)
	o.look()
	if o.Report().GetWarning() != "" {
		t.Errorf("report %v after the mending", o.Report())
	}
}
