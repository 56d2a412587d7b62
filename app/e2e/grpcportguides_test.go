package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openssl runs lines as guides print them, in dir.
func openssl(t *testing.T, dir string, lines ...string) {
	t.Helper()
	tool(t, "openssl")
	for _, line := range lines {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", line)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
}

// pairIn is the pair of two files that openssl has written.
func pairIn(t *testing.T, cert, key string) *outsidePair {
	t.Helper()
	text, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s is no PEM", cert)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return &outsidePair{cert: cert, key: key, serial: new(big.Int).Set(leaf.SerialNumber)}
}

// TestGRPCPortGuides: the commands of the guides, as they are printed, make
// the CA and the certificates of both gRPC ports (REQUIREMENTS A9): a leaf
// without extended key usage, and one for key encipherment alone. Names differ
// from the addresses, and are said.
func TestGRPCPortGuides(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	dir := t.TempDir()
	openssl(t, dir,
		`openssl req -x509 -noenc -subj '/CN=example.local' -newkey rsa:4096 -keyout ca.key -out ca.crt`,
		`openssl req -noenc -newkey rsa:2048 -keyout core.key -out core.csr -subj '/CN=core' -addext subjectAltName=DNS:core.example.local`,
		`openssl x509 -req -in core.csr -CA ca.crt -CAkey ca.key -days 365 -out core.crt -copy_extensions copy`,
		`openssl req -noenc -newkey rsa:2048 -keyout proxy.key -out proxy.csr -subj '/CN=proxy' -addext subjectAltName=DNS:proxy.example.local -addext 'keyUsage=keyEncipherment,dataEncipherment'`,
		`openssl x509 -req -in proxy.csr -CA ca.crt -CAkey ca.key -days 365 -out proxy.crt -copy_extensions copy`)
	file := func(name string) string { return filepath.Join(dir, name) }
	d := deployPorts(t, interopPolicy, ports{
		core:     said{args: []string{"--grpc-cert", file("core.crt"), "--grpc-key", file("core.key"), "--proxy-grpc-ca", file("ca.crt")}},
		proxy:    said{args: []string{"--grpc-cert", file("proxy.crt"), "--grpc-key", file("proxy.key")}},
		addProxy: []string{"--server-name", "proxy.example.local"},
	})
	d.inviteSaying("office", said{args: []string{"--grpc-ca", file("ca.crt"), "--grpc-server-name", "core.example.local"}}).start(t)
	d.waitReady("office")
	d.waitRouted(testService, "office")
	wantPresented(t, 5*time.Second, d.coreAddr, pairIn(t, file("core.crt"), file("core.key")))
	wantPresented(t, 5*time.Second, d.proxyGRPC, pairIn(t, file("proxy.crt"), file("proxy.key")))
	d.wantCall("with openssl's files on both ports")

	// Without the name, and with another one, neither end is believed, and
	// both messages name the setting.
	for name, args := range map[string][]string{"silent": nil, "misled": {"--grpc-server-name", "other.example.local"}} {
		g := d.inviteSaying(name, said{args: append([]string{"--grpc-ca", file("ca.crt")}, args...)})
		g.start(t)
		waitLog(t, g, "name_mismatch", "--grpc-server-name")
	}
	run(t, d.coreEnv, "proxy", "set", "dmz1", "--server-name", "other.example.local")
	waitLog(t, d.core, "name_mismatch", "proxy set --server-name")
	run(t, d.coreEnv, "proxy", "set", "dmz1", "--server-name", "proxy.example.local")
	d.wantCall("when the name is right again")
}

// TestGRPCPortPublicCA stands for a public CA: a root that the system knows,
// and intermediates of it that sign. The dialling sides verify with the
// system's roots, or with chain.pem, the intermediate alone. The files of core
// lie as in a Kubernetes secret and are renewed by swapping a link, under
// another intermediate: who can find the root goes on, with chain.pem too.
func TestGRPCPortPublicCA(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	openssl(t, dir,
		`openssl req -x509 -noenc -subj '/CN=A Public Root' -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout root.key -out root.crt -days 3650`,
		`openssl req -x509 -noenc -subj '/CN=A Root of Somebody Else' -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout other.key -out other.crt -days 3650`)
	for _, n := range []string{"1", "2"} {
		openssl(t, dir,
			`openssl req -noenc -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout int`+n+`.key -out int`+n+`.csr -subj '/O=A Public CA/CN=R`+n+`' -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign`,
			`openssl x509 -req -in int`+n+`.csr -CA root.crt -CAkey root.key -days 365 -out int`+n+`.crt -copy_extensions copy`)
	}
	issue := func(name, intermediate string) {
		t.Helper()
		openssl(t, dir,
			`openssl req -noenc -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout `+name+`.key -out `+name+`.csr -subj /CN=`+name+` -addext subjectAltName=DNS:`+name+`.example.com -addext extendedKeyUsage=serverAuth`,
			`openssl x509 -req -in `+name+`.csr -CA `+intermediate+`.crt -CAkey `+intermediate+`.key -days 90 -out `+name+`.crt -copy_extensions copy`,
			`cat `+name+`.crt `+intermediate+`.crt > `+name+`.fullchain`)
	}
	issue("core", "int1")
	issue("proxy", "int1")

	// As the kubelet lays out a secret: the names are links through ..data,
	// which is a link to a directory that never changes.
	secret := file("secret")
	put := func(generation string) {
		t.Helper()
		openssl(t, dir,
			`mkdir -p secret/..`+generation+` && cp core.fullchain secret/..`+generation+`/tls.crt && cp core.key secret/..`+generation+`/tls.key`,
			`ln -sfn ..`+generation+` secret/..data_tmp && mv -T secret/..data_tmp secret/..data`)
	}
	put("2026_01")
	openssl(t, dir, `ln -s ..data/tls.crt secret/tls.crt && ln -s ..data/tls.key secret/tls.key`)

	knowing := func(root string) []string {
		return []string{"SSL_CERT_FILE=" + file(root), "SSL_CERT_DIR=" + file("no-such-directory")}
	}
	d := deployPorts(t, interopPolicy, ports{
		core: said{env: knowing("root.crt"), args: []string{"--grpc-cert", filepath.Join(secret, "tls.crt"), "--grpc-key", filepath.Join(secret, "tls.key"),
			"--proxy-grpc-ca", "system", "--cert-lifetime", "5m"}}, // and core looks after certificates every five seconds
		proxy:    said{args: []string{"--grpc-cert", file("proxy.fullchain"), "--grpc-key", file("proxy.key")}},
		addProxy: []string{"--server-name", "proxy.example.com"},
	})
	name := []string{"--grpc-server-name", "core.example.com"}
	system := d.inviteSaying("system", said{env: knowing("root.crt"), args: append([]string{"--grpc-ca", "system"}, name...)})
	chain := d.inviteSaying("chain", said{env: knowing("root.crt"), args: append([]string{"--grpc-ca", file("int1.crt")}, name...)})
	alone := d.inviteSaying("alone", said{env: knowing("other.crt"), args: append([]string{"--grpc-ca", file("int1.crt")}, name...)})
	stranger := d.inviteSaying("stranger", said{env: knowing("other.crt"), args: append([]string{"--grpc-ca", "system"}, name...)})
	for _, g := range []*process{system, chain, alone, stranger} {
		g.start(t)
	}
	for _, g := range []*process{system, chain, alone} {
		d.waitReady(g.name)
		d.waitRouted(testService, g.name)
	}
	waitLog(t, stranger, "unknown_authority", "--grpc-ca")
	waitLog(t, chain, "its root is trusted as well", "A Public Root")
	if err := logs(alone, "its root is trusted as well"); err == nil {
		t.Error("a root that the system does not know is trusted")
	}
	d.wantCall("before the renewal")

	l := startLoad(d.clientAt(d.public), 2)
	issue("core", "int2")
	put("2026_02")
	wantPresented(t, 20*time.Second, d.coreAddr, pairIn(t, file("core.crt"), file("core.key")))
	l.stop()
	l.wantAll(t, "calls during the renewal")
	for _, g := range []*process{system, chain, alone} {
		g.stop(t, 20*time.Second)
		g.log = &buffer{}
		g.start(t)
	}
	waitLog(t, alone, "unknown_authority", "--grpc-ca")
	for _, g := range []*process{system, chain} {
		d.waitReady(g.name)
		d.waitState("gateway", g.name, "connected")
	}
	d.wantCall("after the renewal")

	// Half of a new secret, and then none: the former pair stays in service.
	before := pairIn(t, file("core.crt"), file("core.key"))
	openssl(t, dir, `mkdir secret/..2026_03 && cp root.key secret/..2026_03/tls.key && ln -sfn ..2026_03 secret/..data_tmp && mv -T secret/..data_tmp secret/..data`)
	waitLog(t, d.core, filepath.Join(secret, "tls.crt"), "cannot be used, the former stay")
	wantPresented(t, 5*time.Second, d.coreAddr, before)
	often(t, 20*time.Second, "status says that the new files are bad", func() error {
		if out := run(t, d.coreEnv, "status"); !strings.Contains(out, "a newer file was not taken") {
			return errors.New(out)
		}
		return nil
	})
	issue("core", "int2")
	put("2026_04")
	wantPresented(t, 20*time.Second, d.coreAddr, pairIn(t, file("core.crt"), file("core.key")))
}
