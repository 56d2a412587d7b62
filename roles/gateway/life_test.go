package gateway

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/gateway/demo"
	"sallyport/roles/link"
)

// TestCallsOutliveCertificates: a gateway lives on certificates of eleven
// seconds, under calls without a pause and with a stream that is open all the
// time. No call is lost, and the stream ends when its caller ends it.
func TestCallsOutliveCertificates(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.part = demoPart()
	core.lifetime = 11 * time.Second
	g := runGateway(t, configs.Gateway{Join: core.token(), Demo: true})
	g.until(true)
	core.announcement("the demo", serves(echoName))
	client := demo.NewEchoClient(core.client())
	chat, err := client.Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	talk := func(text string) {
		t.Helper()
		if err := chat.Send(&demo.SayRequest{Text: text}); err != nil {
			t.Fatalf("the open stream, after %d renewals: %v", core.renewed.Load(), err)
		}
		if out, err := chat.Recv(); err != nil || out.Text != text {
			t.Fatalf("the open stream, after %d renewals: %v, %v", core.renewed.Load(), out, err)
		}
	}
	first := pki.Serial(core.end.Sessions()[0].Peer.Chain[0])
	calls := 0
	for began := time.Now(); core.renewed.Load() < 2 || time.Since(began) < 16*time.Second; calls++ {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%d renewals in %s", core.renewed.Load(), time.Since(began))
		}
		if _, err := client.Say(t.Context(), &demo.SayRequest{Text: "x"}); err != nil {
			t.Fatalf("call %d, after %d renewals: %v", calls, core.renewed.Load(), err)
		}
		if calls%20 == 0 {
			talk("still here")
		}
		time.Sleep(5 * time.Millisecond)
	}
	talk("the end")
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	sessions := core.end.Sessions()
	if len(sessions) != 1 || pki.Serial(sessions[0].Peer.Chain[0]) == first {
		t.Errorf("the session runs on the first certificate still, or there are %d", len(sessions))
	}
	if n := core.linksMade.Load(); n < 3 {
		t.Errorf("%d links were made in %d renewals", n, core.renewed.Load())
	}
	for {
		select {
		case err := <-g.ready:
			if err != nil && !strings.Contains(err.Error(), "shutting") {
				t.Errorf("not ready: %v", err)
			}
			continue
		default:
		}
		break
	}
}

// TestExpiredIdentityRecovers: the gateway was off when its certificate ended.
func TestExpiredIdentityRecovers(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.part = demoPart()
	core.lifetime = 10 * time.Second
	dir := t.TempDir()
	g := runGateway(t, configs.Gateway{DataDir: dir, Join: core.token(), Demo: true})
	g.until(true)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	former, _, err := pki.LoadCredentials(filepath.Join(dir, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(former.NotAfter()) + time.Second)
	core.lifetime = time.Hour
	g = runGateway(t, configs.Gateway{DataDir: dir, Demo: true})
	g.until(true)
	if core.recovered.Load() != 1 {
		t.Errorf("%d recoveries", core.recovered.Load())
	}
	client := demo.NewEchoClient(core.client())
	if _, err := client.Say(t.Context(), &demo.SayRequest{Text: "x"}); err != nil {
		t.Error(err)
	}
}

// TestRefusedRenewalIsNotReady: core says no long before the certificate ends.
func TestRefusedRenewalIsNotReady(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.part = demoPart()
	core.lifetime = 12 * time.Second
	core.refuse.Store(&pki.Refusal{Code: "key_superseded", Cause: "another key is in use", Remedy: "add the gateway again"})
	g := runGateway(t, configs.Gateway{Join: core.token(), Demo: true})
	g.until(true)
	ends := core.end.Sessions()[0].Peer.Chain[0].NotAfter
	if err := g.until(false); !strings.Contains(err.Error(), "not renewed") || !strings.Contains(err.Error(), "another key") {
		t.Errorf("not ready because %v", err)
	}
	if left := time.Until(ends); left < 2*time.Second {
		t.Errorf("it said so %s before the certificate ended", left)
	}
	core.refuse.Store(nil)
	g.until(true)
}

// TestReportsCertificates: what the upstreams are shown is known to core, and
// what replaces it.
func TestReportsCertificates(t *testing.T) {
	t.Parallel()
	core := newFakeCore(t)
	core.part = demoPart()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key")
	put := func(name string) string {
		k, err := pki.NewKey("p256")
		if err != nil {
			t.Fatal(err)
		}
		issued, err := core.authority.IssueLeaf(pki.LeafRequest{ID: pki.ID{TrustDomain: "test.internal", Role: pki.RoleClient, Name: name}, PublicKey: k.Public(), Client: true, Lifetime: time.Hour}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		text, err := pki.MarshalKeyPEM(k)
		if err := errors.Join(err, os.WriteFile(key, text, 0o600), os.WriteFile(cert, issued.PEM(), 0o600)); err != nil {
			t.Fatal(err)
		}
		return issued.Serial
	}
	serial := put("one")
	core.reports = make(chan []*control.Certificate, 10)
	g := runGateway(t, configs.Gateway{Join: core.token(), Upstreams: []configs.Upstream{{Name: "orders",
		Address: configs.UpstreamAddress{Scheme: configs.SchemeTLS, Target: freeAddress(t)}, Cert: cert, Key: key}}})
	g.until(true)
	held := core.end.Sessions()[0].Hello.GetCertificates()
	if len(held) != 1 || held[0].GetWhat() != "upstream orders" || held[0].GetSerial() != serial || held[0].GetNotAfterUnix() == 0 {
		t.Fatalf("hello reports %v", held)
	}
	serial = put("two")
	select {
	case list := <-core.reports:
		if len(list) != 1 || list[0].GetSerial() != serial {
			t.Errorf("reported %v", list)
		}
	case <-time.After(12 * time.Second):
		t.Error("the new file was not reported")
	}
}

// renewal is core's decision about a gateway's next certificate.
func (c *fakeCore) renew(_ context.Context, a link.RenewAttempt) (*control.JoinGrant, *pki.Refusal) {
	if r := c.refuse.Load(); r != nil {
		return nil, r
	}
	issued, err := c.authority.IssueComponent(pki.ComponentRequest{ID: a.ID, Incarnation: a.Incarnation, PublicKey: a.PublicKey, Lifetime: c.lifetime}, time.Now())
	if err != nil {
		return nil, &pki.Refusal{Code: "core_error", Cause: err.Error(), Remedy: "none"}
	}
	if a.Recovery {
		c.recovered.Add(1)
	} else {
		c.renewed.Add(1)
	}
	return &control.JoinGrant{Chain: issued.DER(), Bundle: c.authority.Bundle().Proto(), Name: a.ID.Name}, nil
}

// TestFilesMode: core's port shows a certificate of another CA; the gateway
// verifies that, joins, works, and does so again after a restart. Without
// --grpc-ca it says what is missing, and with a wrong one it does not come in.
func TestFilesMode(t *testing.T) {
	t.Parallel()
	core, other := newFakeCore(t), newFakeCore(t)
	core.part = demoPart()
	dir := t.TempDir()
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := other.authority.IssueLeaf(pki.LeafRequest{PublicKey: key.Public(), Server: true, DNS: []string{"core.example"}, Lifetime: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := pki.MarshalKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, text []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	core.stop()
	if core.files, err = link.OpenOutside("the gRPC port", file("tls.crt", issued.PEM()), file("tls.key", text), logTo(t), nil); err != nil {
		t.Fatal(err)
	}
	core.start()
	ca, wrong := file("ca.crt", other.authority.Bundle().PEM()), file("wrong.crt", core.authority.Bundle().PEM())

	err = Run(t.Context(), configs.Gateway{DataDir: t.TempDir(), Join: core.token(), Demo: true}, Deps{Log: logTo(t)})
	if err == nil || !strings.Contains(err.Error(), "--grpc-ca") {
		t.Errorf("without a CA: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	dataless := t.TempDir()
	_ = Run(ctx, configs.Gateway{DataDir: dataless, Join: core.token(), Demo: true, GRPCCA: wrong}, Deps{Log: logTo(t)})
	if _, _, err := pki.LoadCredentials(filepath.Join(dataless, "gateway")); !errors.Is(err, pki.ErrNoCredentials) {
		t.Errorf("with another CA it joined: %v", err)
	}

	data := t.TempDir()
	g := runGateway(t, configs.Gateway{DataDir: data, Join: core.token(), Demo: true, GRPCCA: ca})
	g.until(true)
	held := core.end.Sessions()[0].Hello.GetCertificates()
	if len(held) != 1 || held[0].GetWhat() != "CA of core's port" || held[0].GetNotAfterUnix() == 0 {
		t.Errorf("hello reports %v", held)
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	runGateway(t, configs.Gateway{DataDir: data, Demo: true, GRPCCA: ca}).until(true)
}
