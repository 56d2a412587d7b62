package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// outsideCA is a CA that has nothing to do with Sallyport.
type outsideCA struct {
	t    *testing.T
	dir  string
	file string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOutsideCA(t *testing.T) *outsideCA {
	t.Helper()
	ca := &outsideCA{t: t, dir: t.TempDir()}
	ca.file = filepath.Join(ca.dir, "outside-ca.pem")
	ca.key = newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "An outside CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, ca.file, "CERTIFICATE", der)
	return ca
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// writePEM replaces the file in one step, as whoever renews a file should.
func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	err := os.WriteFile(file+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// outsidePair are the files of one certificate.
type outsidePair struct {
	cert, key string
	serial    *big.Int // of the newest certificate in them
}

// pair makes a certificate for 127.0.0.1 with the given serial number.
func (ca *outsideCA) pair(name string, serial int64) *outsidePair {
	p := &outsidePair{cert: filepath.Join(ca.dir, name+".crt"), key: filepath.Join(ca.dir, name+".key")}
	ca.renew(p, serial)
	return p
}

// renew writes a new key and certificate into the files of p.
func (ca *outsideCA) renew(p *outsidePair, serial int64) {
	ca.t.Helper()
	key := newKey(ca.t)
	p.serial = big.NewInt(serial)
	template := &x509.Certificate{SerialNumber: p.serial, Subject: pkix.Name{CommonName: filepath.Base(p.cert)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 2, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	writePEM(ca.t, p.key, "PRIVATE KEY", keyDER)
	writePEM(ca.t, p.cert, "CERTIFICATE", der)
}

// presented is the certificate that the gRPC port at address shows.
func presented(address string) (*x509.Certificate, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address,
		&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"sallyport-renew/1"}})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

func wantPresented(t *testing.T, limit time.Duration, address string, p *outsidePair) {
	t.Helper()
	eventually(t, limit, "the port shows the newest certificate of "+p.cert, func() error {
		c, err := presented(address)
		if err != nil {
			return err
		}
		if c.SerialNumber.Cmp(p.serial) != 0 {
			return fmt.Errorf("it shows %v of %v", c.SerialNumber, c.Subject)
		}
		return nil
	})
}

// setting is one name and its value, without the form in which it is said.
type setting struct{ flag, defguard, value string }

// forms are the ways in which a setting can be said. Each returns what is
// added to the command line and to the environment.
var forms = map[string]func(t *testing.T, dir string, settings []setting) (args, env []string){
	"flag": func(_ *testing.T, _ string, settings []setting) (args, env []string) {
		for _, s := range settings {
			args = append(args, "--"+s.flag, s.value)
		}
		return args, nil
	},
	"SALLYPORT_ variable": func(_ *testing.T, _ string, settings []setting) (args, env []string) {
		for _, s := range settings {
			env = append(env, "SALLYPORT_"+strings.ToUpper(strings.ReplaceAll(s.flag, "-", "_"))+"="+s.value)
		}
		return nil, env
	},
	"DEFGUARD_ variable": func(_ *testing.T, _ string, settings []setting) (args, env []string) {
		for _, s := range settings {
			env = append(env, s.defguard+"="+s.value)
		}
		return nil, env
	},
	"file": func(t *testing.T, dir string, settings []setting) (args, env []string) {
		file, err := os.CreateTemp(dir, "*.toml")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range settings {
			fmt.Fprintf(file, "%s = %q\n", strings.ReplaceAll(s.flag, "-", "_"), s.value)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		return []string{"--config", file.Name()}, nil
	},
}

// filesDeployment is core, a proxy and a gateway, joined by the printed lines,
// with certificates of an outside CA on both gRPC ports.
type filesDeployment struct {
	*deployment
	ca                  *outsideCA
	corePair, proxyPair *outsidePair
}

// deployFiles says the certificates and the CA in the given form.
func deployFiles(t *testing.T, form, policy string) *filesDeployment {
	t.Helper()
	say, known := forms[form]
	if !known {
		t.Fatalf("no such form: %s", form)
	}
	dir := t.TempDir()
	ca := newOutsideCA(t)
	d := &filesDeployment{ca: ca, corePair: ca.pair("core", 1001), proxyPair: ca.pair("proxy", 2001)}
	said := func(settings ...setting) (s said) {
		s.args, s.env = say(t, dir, settings)
		return s
	}
	d.deployment = deployPorts(t, policy, ports{
		core: said(setting{"grpc-cert", "DEFGUARD_GRPC_CERT", d.corePair.cert},
			setting{"grpc-key", "DEFGUARD_GRPC_KEY", d.corePair.key},
			setting{"proxy-grpc-ca", "DEFGUARD_PROXY_GRPC_CA", ca.file}),
		proxy: said(setting{"grpc-cert", "DEFGUARD_PROXY_GRPC_CERT", d.proxyPair.cert},
			setting{"grpc-key", "DEFGUARD_PROXY_GRPC_KEY", d.proxyPair.key}),
	})
	office := said(setting{"grpc-ca", "DEFGUARD_GRPC_CA", ca.file})
	g := d.inviteSaying("office", office)
	g.start(t)
	d.waitReady("office")
	d.waitRouted(testService, "office")
	return d
}

// said is what one process is told beside what it needs in any case.
type said struct{ args, env []string }

// ports says which certificates the gRPC ports show, and how they are verified.
type ports struct {
	core, proxy said
	addProxy    []string // more words of proxy add
}

// deployPorts is deploy, with certificates of others on the gRPC ports.
func deployPorts(t *testing.T, policy string, p ports) *deployment {
	t.Helper()
	d := &deployment{
		t: t, access: "failures", dir: t.TempDir(), gateways: map[string]*process{}, health: map[string]string{},
		coreAddr:  fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		proxyGRPC: fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		public:    fmt.Sprintf("127.0.0.1:%d", freePort(t)),
	}
	for _, name := range []string{"core", "proxy"} {
		d.health[name] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	}
	d.coreEnv = []string{"SALLYPORT_DATA_DIR=" + filepath.Join(d.dir, "core")}
	t.Cleanup(d.close)
	d.core = &process{name: "core", log: &buffer{}, env: baseEnv(append(p.core.env, d.coreEnv...)...),
		args: append([]string{binary, "--role", "core", "--grpc-address", d.coreAddr, "--health-address", d.health["core"]}, p.core.args...)}
	d.core.start(t)
	d.waitAdmin()
	d.applyPolicy(policy)
	d.caFile = filepath.Join(d.dir, "ca.pem")
	d.exportRoots()
	line := strings.TrimSpace(run(t, d.coreEnv, append([]string{"proxy", "add", "dmz1", "--address", d.proxyGRPC, "--core-ip", "127.0.0.1"}, p.addProxy...)...))
	d.proxy = &process{name: "proxy", log: &buffer{}, args: shellLine(line, p.proxy.args),
		env: baseEnv(append(p.proxy.env, "SALLYPORT_DATA_DIR="+filepath.Join(d.dir, "proxy"), "SALLYPORT_GRPC_ADDRESS="+d.proxyGRPC,
			"SALLYPORT_PUBLIC_ADDRESS="+d.public, "SALLYPORT_HEALTH_ADDRESS="+d.health["proxy"])...)}
	d.proxy.start(t)
	d.waitReady("proxy")
	return d
}

// inviteSaying is inviteGateway for one that serves testService and is told
// more than the printed line says.
func (d *deployment) inviteSaying(name string, s said) *process {
	d.t.Helper()
	g := d.inviteGateway(name, serveTests, append(slices.Clone(s.env), "SALLYPORT_UPSTREAM=interop="+startInteropServer(d.t))...)
	g.args = shellLine(strings.TrimPrefix(g.args[2], "exec "), s.args)
	return g
}

// shellLine is the line that core printed, with more words.
func shellLine(line string, more []string) []string {
	return append([]string{"sh", "-c", `exec ` + line + ` "$@"`, "sh"}, more...)
}

func (d *deployment) waitAdmin() {
	d.t.Helper()
	eventually(d.t, 15*time.Second, "core answers on its admin socket", func() error {
		if _, errOut, err := tryRun(d.coreEnv, "status"); err != nil {
			return errors.New(errOut)
		}
		return nil
	})
}

func (d *deployment) wantCall(what string) {
	d.t.Helper()
	client := testgrpc.NewTestServiceClient(d.dial())
	eventually(d.t, 20*time.Second, "a call goes through "+what, func() error {
		_, err := client.EmptyCall(d.t.Context(), &testgrpc.Empty{})
		return err
	})
}

// component returns state and gRPC mode of the only component of a role.
func (d *filesDeployment) component(role string) (state, mode, all string) {
	d.t.Helper()
	all = run(d.t, d.coreEnv, role, "ls", "--json")
	var list map[string]json.RawMessage
	var rows []struct {
		State   string
		GRPCTLS string `json:"grpc_tls"`
	}
	if err := json.Unmarshal([]byte(all), &list); err != nil {
		d.t.Fatalf("%v: %s", err, all)
	}
	for _, v := range list {
		if json.Unmarshal(v, &rows) == nil && len(rows) == 1 {
			return rows[0].State, rows[0].GRPCTLS, all
		}
	}
	d.t.Fatalf("not one %s: %s", role, all)
	return "", "", ""
}

// TestGRPCPortNames: the names that guides give to the certificates of the
// gRPC ports and to the CA that verifies them, in every form: the ports show
// the certificates, the dialling sides verify them, and calls go through.
func TestGRPCPortNames(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	for form := range forms {
		t.Run(form, func(t *testing.T) {
			d := deployFiles(t, form, interopPolicy)
			wantPresented(t, time.Second, d.coreAddr, d.corePair)
			wantPresented(t, time.Second, d.proxyGRPC, d.proxyPair)
			if state, mode, all := d.component("proxy"); state != "connected" || mode != "files" {
				t.Errorf("the proxy is %s in mode %s: %s", state, mode, all)
			}
			d.wantCall("core and proxy in mode files")
		})
	}

	// That the CA was read shows where it is the wrong one.
	t.Run("another CA is refused", func(t *testing.T) {
		d := deployFiles(t, "flag", interopPolicy)
		other := newOutsideCA(t)
		g := d.gateways["office"]
		g.kill()
		g.args[len(g.args)-1] = other.file
		g.start(t)
		waitLog(t, g, "unknown_authority", "--grpc-ca")
		d.core.stop(t, 40*time.Second)
		d.core.args[len(d.core.args)-1] = other.file
		d.core.start(t)
		waitLog(t, d.core, "unknown_authority", "--proxy-grpc-ca")
	})
}

// TestGRPCPortFilesRenewed: files that something else renews are shown without
// a restart, bad ones are reported and the old ones stay.
func TestGRPCPortFilesRenewed(t *testing.T) {
	t.Parallel()
	d := deployFiles(t, "flag", interopPolicy)
	l := startLoad(d.clientAt(d.public), 2)
	for _, side := range []struct {
		process *process
		address string
		pair    *outsidePair
	}{{d.core, d.coreAddr, d.corePair}, {d.proxy, d.proxyGRPC, d.proxyPair}} {
		serial := side.pair.serial.Int64()
		d.ca.renew(side.pair, serial+1)
		wantPresented(t, 15*time.Second, side.address, side.pair)

		if err := os.WriteFile(side.pair.cert, []byte("no certificate at all\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		waitLog(t, side.process, side.pair.cert, "cannot be used, the former stay")
		wantPresented(t, time.Second, side.address, side.pair) // the one before

		d.ca.renew(side.pair, serial+2)
		wantPresented(t, 15*time.Second, side.address, side.pair)
	}
	l.stop()
	l.wantAll(t, "calls")
}

// TestStolenOutsideCertificate: whoever has the certificate and key of a gRPC
// port, and its address, and not the identity, gets nothing, whatever he says
// in the identity's place.
func TestStolenOutsideCertificate(t *testing.T) {
	notWithShort(t)
	t.Parallel()
	d := deployFiles(t, "flag", interopPolicy)
	for _, side := range []struct {
		name             string
		real, dialler    *process
		address, storage string
		pair             *outsidePair
	}{
		{"core", d.core, d.gateways["office"], d.coreAddr, filepath.Join(d.dir, "core", "core"), d.corePair},
		{"proxy", d.proxy, d.core, d.proxyGRPC, filepath.Join(d.dir, "proxy", "proxy"), d.proxyPair},
	} {
		genuine := identityChain(t, side.storage)
		forged, forgedKey := forgeIdentity(t, genuine[0])
		side.real.stop(t, 40*time.Second)
		for _, c := range []struct {
			name    string
			preface func(*tls.ConnectionState) ([]byte, error)
			want    string
		}{
			{"no identity", func(*tls.ConnectionState) ([]byte, error) { return []byte{0, 0}, nil }, "listener_mode"},
			{"an identity of another CA", forgedPreface(side.name, side.pair, [][]byte{forged}, forgedKey), "unknown_authority"},
			{"the genuine certificates without their key", forgedPreface(side.name, side.pair, rawChain(genuine), forgedKey), "preface_signature"},
		} {
			t.Run(side.name+"/"+c.name, func(t *testing.T) {
				said := len(side.dialler.log.String())
				asked := impostor(t, side.address, side.pair, c.preface)
				select {
				case <-asked:
				case <-time.After(20 * time.Second):
					t.Fatal("nobody has dialled the impostor")
				}
				var refusal string
				eventually(t, 15*time.Second, "the dialler refuses it as "+c.want, func() error {
					for line := range strings.SplitSeq(side.dialler.log.String()[said:], "\n") {
						if strings.Contains(line, "refused, trying again") && strings.Contains(line, c.want) {
							refusal = line
							return nil
						}
					}
					return errors.New(side.dialler.log.String()[said:])
				})
				t.Log(refusal)
				if side.name == "proxy" {
					if state, _, all := d.component("proxy"); state == "connected" {
						t.Errorf("the impostor counts as connected: %s", all)
					}
				}
			})
		}
		side.real.start(t)
		if side.name == "core" {
			d.waitAdmin()
		}
		d.wantCall("when the real " + side.name + " is back")
	}
}

// identityChain reads the certificates of the newest identity in dir.
func identityChain(t *testing.T, dir string) []*x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if len(chain) > 0 && chain[len(chain)-1].CheckSignatureFrom(c) != nil {
			break // the roots follow
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 || len(chain[0].URIs) != 1 {
		t.Fatalf("no identity in %s", dir)
	}
	return chain
}

func rawChain(chain []*x509.Certificate) (raw [][]byte) {
	for _, c := range chain {
		raw = append(raw, c.Raw)
	}
	return raw
}

// forgeIdentity makes a certificate that says what genuine says, by a CA of
// its own.
func forgeIdentity(t *testing.T, genuine *x509.Certificate) (der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	ca := newOutsideCA(t)
	key = newKey(t)
	template := &x509.Certificate{SerialNumber: genuine.SerialNumber, Subject: genuine.Subject, NotBefore: genuine.NotBefore, NotAfter: genuine.NotAfter,
		KeyUsage: genuine.KeyUsage, ExtKeyUsage: genuine.ExtKeyUsage, URIs: genuine.URIs, DNSNames: genuine.DNSNames, IPAddresses: genuine.IPAddresses,
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// forgedPreface makes the identity preface as the listener of a role would,
// with these certificates and this key.
func forgedPreface(role string, outside *outsidePair, chain [][]byte, key *ecdsa.PrivateKey) func(*tls.ConnectionState) ([]byte, error) {
	return func(cs *tls.ConnectionState) ([]byte, error) {
		secret, err := cs.ExportKeyingMaterial("EXPORTER-sallyport-identity", nil, 32)
		if err != nil {
			return nil, err
		}
		pair, err := tls.LoadX509KeyPair(outside.cert, outside.key)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(pair.Certificate[0])
		var message []byte
		for _, part := range [][]byte{[]byte("sallyport-identity-v1"), []byte(cs.NegotiatedProtocol), []byte(role), sum[:], secret} {
			message = append(append(message, byte(len(part))), part...)
		}
		digest := sha256.Sum256(message)
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		preface := []byte{byte(len(chain))}
		for _, part := range append(append([][]byte{}, chain...), signature) {
			preface = append(append(preface, byte(len(part)>>8), byte(len(part))), part...)
		}
		return append([]byte{byte(len(preface) >> 8), byte(len(preface))}, preface...), nil
	}
}

// impostor serves TLS at address with the pair, takes whatever protocol and
// client certificate it is offered, and sends the preface. The channel tells
// that somebody has connected.
func impostor(t *testing.T, address string, p *outsidePair, preface func(*tls.ConnectionState) ([]byte, error)) <-chan struct{} {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := config.Clone()
		c.NextProtos = hello.SupportedProtos
		return c, nil
	}
	l, err := tls.Listen("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked := make(chan struct{}, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				tc := c.(*tls.Conn)
				if tc.Handshake() != nil {
					return
				}
				select {
				case asked <- struct{}{}:
				default:
				}
				cs := tc.ConnectionState()
				if b, err := preface(&cs); err == nil {
					c.Write(b)
				}
				c.Read(make([]byte, 1))
			}()
		}
	}()
	return asked
}
