package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/link"
)

// TestCallsOutliveCertificates: identity and public port live on certificates
// of eleven and ten seconds, under calls without a pause and with a stream that
// is open all the time.
func TestCallsOutliveCertificates(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.lifetime, core.publicLife = 11*time.Second, 10*time.Second
	key := core.apiKey("ci", time.Time{})
	core.reports = make(chan []*control.Certificate, 100)
	r := joined(t, core)
	cc := r.dial(nil)
	chat, err := demo.NewEchoClient(cc).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	talk := func() {
		t.Helper()
		if err := chat.Send(&demo.SayRequest{Text: "x"}); err != nil {
			t.Fatalf("the open stream, after %d renewals: %v", core.renewed.Load(), err)
		}
		if _, err := chat.Recv(); err != nil {
			t.Fatalf("the open stream, after %d renewals: %v", core.renewed.Load(), err)
		}
	}
	served := map[string]bool{}
	calls := 0
	for began := time.Now(); core.renewed.Load() < 2 || time.Since(began) < 16*time.Second; calls++ {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%d renewals in %s", core.renewed.Load(), time.Since(began))
		}
		if err := say(withKey(t.Context(), key), cc); err != nil {
			t.Fatalf("call %d, after %d renewals: %v", calls, core.renewed.Load(), err)
		}
		<-core.calls
		if calls%50 == 0 {
			talk()
			nc, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil)) // a certificate that has expired would fail
			if err != nil {
				t.Fatalf("a new caller, after %d renewals: %v", core.renewed.Load(), err)
			}
			served[pki.Serial(nc.ConnectionState().PeerCertificates[0])] = true
			nc.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
	talk()
	_ = chat.CloseSend()
	if len(served) < 3 {
		t.Errorf("the public port showed %d certificates of 10 s in 16 s", len(served))
	}
	select {
	case list := <-core.reports:
		if len(list) != 1 || list[0].GetWhat() != publicPort || list[0].GetNotAfterUnix() == 0 {
			t.Errorf("reported %v", list)
		}
	default:
		t.Error("the public port's new certificates were not reported")
	}
}

// TestExpiredIdentityRecovers: the proxy was off when its certificate ended;
// core comes and renews it.
func TestExpiredIdentityRecovers(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.lifetime = 10 * time.Second
	dir := t.TempDir()
	r := runProxy(t, core, configs.Proxy{DataDir: dir, Join: core.token.String()})
	core.join(r.info.GRPCAddress)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	former, _, err := pki.LoadCredentials(filepath.Join(dir, "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(former.NotAfter()) + time.Second)
	core.lifetime = time.Hour
	key := core.apiKey("ci", time.Time{})
	r = runProxy(t, core, configs.Proxy{DataDir: dir})
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if n := core.recovered.Load(); n != 1 {
		t.Errorf("%d recoveries", n)
	}
	if err := say(withKey(t.Context(), key), r.dial(nil)); err != nil {
		t.Error(err)
	}
}

// TestFilesMode: the gRPC port shows a certificate of another CA, from files;
// core verifies that, and the identity behind it, when it joins and after.
func TestFilesMode(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	other := newFakeCore(t)
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := other.authority.IssueLeaf(pki.LeafRequest{PublicKey: key.Public(), Server: true, DNS: []string{"dmz.example"}, Lifetime: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := pki.MarshalKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "tls.key"), text)
	write(t, filepath.Join(dir, "tls.crt"), issued.PEM())
	pool := x509.NewCertPool()
	for _, root := range other.authority.Bundle().Roots {
		pool.AddCert(root)
	}
	core.outside = &link.Outside{Roots: func() *x509.CertPool { return pool }, ServerName: "dmz.example"}
	call := core.apiKey("ci", time.Time{})
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), GRPCTLS: "files", GRPCCert: filepath.Join(dir, "tls.crt"), GRPCKey: filepath.Join(dir, "tls.key")})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if err := say(withKey(t.Context(), call), r.dial(nil)); err != nil {
		t.Error(err)
	}
	held := core.end.Sessions()[0].Hello.GetCertificates()
	if len(held) == 0 || held[0].GetWhat() != "the gRPC port" || held[0].GetSerial() != issued.Serial {
		t.Errorf("hello reports %v", held)
	}
	// What stands there is nothing to a core that expects the identity itself.
	plain := &link.Dialler{Self: core.self}
	if conn, err := plain.Dial(t.Context(), r.info.GRPCAddress, link.ALPNControl, pki.Expect{Role: pki.RoleProxy, Name: "dmz1"}); err == nil {
		conn.Close()
		t.Error("a port that shows files was taken for one that shows its identity")
	}
}
