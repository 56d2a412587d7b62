package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
)

func TestNoCertificateYet(t *testing.T) {
	core := newFakeCore(t)
	core.refuse = true
	r := runProxy(t, core, configs.Proxy{Join: core.token.String()})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	for {
		if err := r.until(false); strings.Contains(err.Error(), "no certificate") {
			break
		}
	}
	if _, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil)); err == nil {
		t.Error("a handshake succeeded without a certificate")
	}
	core.mu.Lock()
	core.refuse = false
	core.mu.Unlock()
	r.until(true)
}

func TestStrangersAreAnswered(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	exchange := func(nc net.Conn, text string) string {
		t.Helper()
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(nc, text)
		var out bytes.Buffer
		_, _ = io.Copy(&out, nc)
		return out.String()
	}
	plain := func() net.Conn {
		nc, err := net.Dial("tcp", r.info.PublicAddress)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}
	over := func(version uint16, protocols ...string) (net.Conn, error) {
		c := r.tls(nil)
		c.NextProtos, c.MaxVersion = protocols, version
		return tls.Dial("tcp", r.info.PublicAddress, c)
	}
	if got := exchange(plain(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400") || !strings.Contains(got, "TLS") {
		t.Errorf("plain HTTP: %q", got)
	}
	if got := exchange(plain(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); !strings.Contains(got, "TLS") {
		t.Errorf("plain HTTP/2: %q", got)
	}
	for _, protocols := range [][]string{nil, {"http/1.1"}} {
		nc, err := over(tls.VersionTLS13, protocols...)
		if err != nil {
			t.Fatal(err)
		}
		if got := exchange(nc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 404") || !strings.Contains(got, "gRPC") {
			t.Errorf("HTTP/1.1 over TLS, offering %q: %q", protocols, got)
		}
	}
	nc, err := over(tls.VersionTLS13)
	if err != nil {
		t.Fatal(err)
	}
	if got := exchange(nc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); !strings.Contains(got, "ALPN") {
		t.Errorf("HTTP/2 without ALPN: %q", got)
	}
	if _, err := over(tls.VersionTLS13, "sallyport-relay/1"); err == nil {
		t.Error("a component's protocol is spoken at the public port")
	}
	if _, err := over(tls.VersionTLS11, "h2"); err == nil {
		t.Error("TLS 1.1 is spoken at the public port")
	}
	nc, err = over(tls.VersionTLS12, "h2")
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestDenialsAreReported(t *testing.T) {
	core := newFakeCore(t)
	other := core.apiKey("other", time.Time{})
	r := joined(t, core)
	cc := r.dial(nil)
	for range 3 {
		_ = say(t.Context(), cc)
		_ = say(withKey(t.Context(), other), cc)
	}
	want := []string{"127.0.0.1/32 UNAUTHENTICATED 3", "apikey:other PERMISSION_DENIED 3"}
	var got []string
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		core.mu.Lock()
		got = nil
		for _, d := range core.denials {
			got = append(got, fmt.Sprintf("%s %s %d", d.GetCaller(), d.GetCode(), d.GetCount()))
		}
		core.mu.Unlock()
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
	}
	t.Errorf("reported %q, want %q", got, want)
}

func TestDrain(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	cc := r.dial(nil)
	chat, err := demo.NewEchoClient(cc).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() {
		t.Helper()
		if err := chat.Send(&demo.SayRequest{Text: "still there"}); err != nil {
			t.Fatal(err)
		}
		if _, err := chat.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	r.until(false)
	exchange()
	if _, err := net.DialTimeout("tcp", r.info.PublicAddress, time.Second); err == nil {
		// The port may still be closing; a call must not get through in any case.
		if err := say(t.Context(), r.dial(nil)); err == nil {
			t.Error("a new call was taken while draining")
		}
	}
	exchange()
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestDrainTimeEnds(t *testing.T) {
	core := newFakeCore(t)
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), DrainTimeout: 100 * time.Millisecond})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	chat, err := demo.NewEchoClient(r.dial(nil)).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := chat.Send(&demo.SayRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chat.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := chat.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("%v, want Unavailable that says why", err)
	}
}

func TestCertificateFromFilesIsReplacedWhileCallsRun(t *testing.T) {
	core := newFakeCore(t)
	key := core.apiKey("ci", time.Time{})
	dir := t.TempDir()
	put := func() uint64 {
		t.Helper()
		k, err := pki.NewKey("p256")
		if err != nil {
			t.Fatal(err)
		}
		issued, err := core.authority.IssueLeaf(pki.LeafRequest{PublicKey: k.Public(), Server: true, DNS: []string{"localhost"}, Lifetime: time.Hour}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		text, err := pki.MarshalKeyPEM(k)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "tls.key"), text)
		write(t, filepath.Join(dir, "tls.crt"), issued.PEM())
		return issued.Chain[0].SerialNumber.Uint64()
	}
	first := put()
	r := runProxy(t, core, configs.Proxy{Join: core.token.String(), TLS: "files", TLSCert: filepath.Join(dir, "tls.crt"), TLSKey: filepath.Join(dir, "tls.key")})
	core.join(r.info.GRPCAddress)
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if len(core.requests) != 0 {
		t.Errorf("core was asked for %q", core.requests)
	}
	serves := func() uint64 {
		t.Helper()
		nc, err := tls.Dial("tcp", r.info.PublicAddress, r.tls(nil))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		return nc.ConnectionState().PeerCertificates[0].SerialNumber.Uint64()
	}
	if serves() != first {
		t.Fatal("serves another certificate than the files hold")
	}
	cc := r.dial(nil)
	if err := say(withKey(t.Context(), key), cc); err != nil {
		t.Fatal(err)
	}
	second := put()
	for end := time.Now().Add(15 * time.Second); serves() != second; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new files were not taken into service")
		}
	}
	if err := say(withKey(t.Context(), key), cc); err != nil {
		t.Errorf("the open connection: %v", err)
	}
}

func TestHealthOnTheComponentPort(t *testing.T) {
	core := newFakeCore(t)
	r := runProxy(t, core, configs.Proxy{Join: core.token.String()})
	core.join(r.info.GRPCAddress)
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} // a probe that asks nothing else
	cc, err := grpc.NewClient("passthrough:///"+r.info.GRPCAddress, grpc.WithTransportCredentials(grpccreds.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if s, err := healthOf(t.Context(), cc, ""); err != nil || s != notServing {
		t.Errorf("without core: %v, %v", s, err)
	}
	core.connect(r.info.GRPCAddress)
	r.until(true)
	if s, err := healthOf(t.Context(), cc, ""); err != nil || s != serving {
		t.Errorf("with core: %v, %v", s, err)
	}
	if err := say(t.Context(), cc); status.Code(err) != codes.Unimplemented {
		t.Errorf("another service on that port: %v", err)
	}
}

// A client that resumes its TLS session is still who it was.
func TestResumedSessionsKeepTheCertificate(t *testing.T) {
	core := newFakeCore(t)
	r := joined(t, core)
	config := r.tls(core.clientCertificate("billing", time.Hour))
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	resumed := false
	config.VerifyConnection = func(s tls.ConnectionState) error { resumed = s.DidResume; return nil }
	for i := range 2 {
		cc, err := grpc.NewClient("passthrough:///"+r.info.PublicAddress, grpc.WithTransportCredentials(grpccreds.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		if err := say(t.Context(), cc); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
		cc.Close()
	}
	if !resumed {
		t.Error("the second connection did not resume the session of the first")
	}
}

func write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRevocationListAtTheEdge: whoever wants to know fetches it without
// credentials, by either version of HTTP; nothing else lies there.
func TestRevocationListAtTheEdge(t *testing.T) {
	core := newFakeCore(t)
	lists, err := core.authority.CRLs([]pki.CRLEntry{pki.CRLEntryOf(core.clientCertificate("billing", time.Hour).Chain[0], time.Now(), "keyCompromise")}, 7, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := joined(t, core)
	for _, version := range []int{1, 2} {
		transport := &http.Transport{TLSClientConfig: r.tls(nil), ForceAttemptHTTP2: version == 2}
		client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
		get := func(path string) (int, string, []byte) {
			t.Helper()
			answer, err := client.Get("https://" + r.info.PublicAddress + path)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil || answer.ProtoMajor != version {
				t.Fatalf("%s: %s, %v", path, answer.Proto, err)
			}
			return answer.StatusCode, answer.Header.Get("Content-Type"), body
		}
		core.change(func(*control.ProxyPart) { core.crl = nil })
		if code, _, _ := get(crlPath); code < 400 {
			t.Errorf("HTTP/%d, before core sent one: %d", version, code)
		}
		core.change(func(*control.ProxyPart) { core.crl = lists[0] })
		code, kind, body := get(crlPath)
		list, err := x509.ParseRevocationList(body)
		if code != 200 || kind != "application/pkix-crl" || err != nil || len(list.RevokedCertificateEntries) != 1 {
			t.Errorf("HTTP/%d: %d, %s, %v", version, code, kind, err)
		}
		if code, _, _ := get("/.well-known/sallyport/other"); code < 400 {
			t.Errorf("HTTP/%d: something else lies there: %d", version, code)
		}
		// One that does not fit into what is sent at once.
		large := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
		core.change(func(*control.ProxyPart) { core.crl = large })
		if code, _, body := get(crlPath); code != 200 || !bytes.Equal(body, large) {
			t.Errorf("HTTP/%d: %d, %d bytes of %d", version, code, len(body), len(large))
		}
		transport.CloseIdleConnections()
	}
}
