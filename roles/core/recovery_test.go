package core

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"sallyport/acme/pki"
	"sallyport/configs"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/store"
)

// TestTheExpiredRecover stops core until a gateway's and a proxy's certificate
// have ended: both come back by themselves, with certificates of the former
// lifetime.
func TestTheExpiredRecover(t *testing.T) {
	s := settings(t)
	s.CertLifetime = 10 * time.Second
	s.GRPCAddress = freeAddress(t)
	r := start(t, s)
	r.apply(openPolicy)
	g := r.addGateway("orders")
	g.connect()
	g.announce(true, "acme.v1.Orders")
	p := r.addProxy("dmz1")
	eventually(t, "a first call", func() error { return second(p.call("/acme.v1.Orders/Get")) })
	r.end()
	ends := g.self.Credentials().NotAfter()
	if at := p.self.Credentials().NotAfter(); at.After(ends) {
		ends = at
	}
	time.Sleep(time.Until(ends) + 200*time.Millisecond)
	r = start(t, s)
	eventually(t, "both are back", func() error { return second(p.call("/acme.v1.Orders/Get")) })
	for _, m := range []*member{g.member, p.member} {
		if !m.self.Credentials().NotAfter().After(time.Now()) {
			t.Errorf("%s still has its old certificate", m.name)
		}
	}
	for _, who := range []string{"gateway=orders", "proxy=dmz1"} {
		if !strings.Contains(r.log.String(), "recovered its identity\" "+who) {
			t.Errorf("%s did not recover its identity", who)
		}
	}
	if strings.Contains(r.log.String(), "ALARM") {
		t.Error("a recovery raised an alarm")
	}
}

// freeAddress is one on which nobody listens, for a core that is started twice.
func freeAddress(t testing.TB) string {
	l, err := listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestARotationGoesOnAfterAKill kills core between what is intended in the
// store, what is done in the CA's files, and what is settled in the store.
func TestARotationGoesOnAfterAKill(t *testing.T) {
	for _, at := range []string{"intended", "done"} {
		t.Run(at, func(t *testing.T) {
			s := settings(t)
			r := start(t, s)
			c := r.admin.(*admin).core
			sleeper := r.addGateway("sleeper") // blocks, so that the rotation stays where it is
			ctx, now := context.Background(), time.Now()
			if err := c.db.IntendRotation(ctx, "test", store.StepPublish, time.Hour, now); err != nil {
				t.Fatal(err)
			}
			if at == "done" {
				if _, err := c.ca.get().Publish(now); err != nil {
					t.Fatal(err)
				}
			}
			r.end()
			r = start(t, s)
			r.phase("published")
			// The files come first, the store a moment later.
			eventually(t, "the step is settled", func() error {
				state, err := r.admin.(*admin).core.db.Rotation(ctx)
				if err != nil || state.Phase != store.PhasePublished || state.Intent != "" || state.Wait != time.Hour {
					return fmt.Errorf("%+v %v", state, err)
				}
				return nil
			})
			if out := r.rotate(&control.RotateCARequest{Action: control.RotateCARequest_ACTION_ROLLBACK}); out.GetPhase() != "steady" {
				t.Error(out)
			}
			_ = sleeper
		})
	}
}

// TestAnAlertReachesTheWebhookOnce has a webhook that fails at first.
func TestAnAlertReachesTheWebhookOnce(t *testing.T) {
	var mu sync.Mutex
	var got []map[string]any
	failures := 1
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if failures > 0 {
			failures--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, _ := io.ReadAll(q.Body)
		var a map[string]any
		if err := json.Unmarshal(body, &a); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		got = append(got, a)
	}))
	defer hook.Close()
	s := settings(t)
	s.AlertWebhook = configs.Secret(hook.URL + "/secret-path")
	r := start(t, s)
	c := r.admin.(*admin).core
	g := r.addGateway("orders")
	g.connect()
	ends := g.self.Credentials().NotAfter()
	eventually(t, "the gateway is there", func() error {
		if m := r.component("gateway", "orders"); m.GetState() != "connected" {
			return errors.New(m.String())
		}
		return nil
	})
	ctx := context.Background()
	// A quarter of its life is left, then a tenth; each is said once.
	for _, left := range []time.Duration{20, 14, 13, 5, 4} {
		if err := c.expiries.look(ctx, ends.Add(-left*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	// A file that a component reports is one of them, and so is a failure to renew.
	g.end.Alert(&control.Alert{Code: "renewal_failed", Text: "core refused", Remedy: "look"})
	g.end.Alert(&control.Alert{Code: "renewal_failed", Text: "core refused", Remedy: "look"})
	count := func(code, subject string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range got {
			if a["code"] == code && strings.Contains(a["subject"].(string), subject) && a["core"] == "test.internal" {
				n++
			}
		}
		return n
	}
	eventually(t, "the alerts arrive", func() error {
		if n, m := count("certificate_expires", "gateway/orders"), count("renewal_failed", "gateway/orders"); n != 2 || m != 1 {
			return errors.New(itoa(n) + " of expiry, " + itoa(m) + " of renewal")
		}
		return nil
	})
	if strings.Contains(r.log.String(), "secret-path") {
		t.Error("the webhook's URL, which is a secret, is in the log")
	}
}

func TestEveryCertificateIsAMetric(t *testing.T) {
	r, g, _ := rig(t, time.Hour)
	c := r.admin.(*admin).core
	if err := c.expiries.look(context.Background(), time.Now()); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registerMetrics(registry, c)
	if n, err := testutil.GatherAndCount(registry, "sallyport_certificate_not_after_seconds"); err != nil || n < 6 {
		t.Errorf("%d certificates, %v", n, err) // root, two issuers, core, gateway, proxy
	}
	out, err := r.admin.Status(context.Background(), &control.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, row := range out.GetCertificates() {
		found = found || row.GetSerial() == serial(g.self) && row.GetAlert() == "" && row.GetNotAfterUnix() == g.self.Credentials().NotAfter().Unix()
	}
	if !found {
		t.Errorf("the gateway's certificate is not in status: %v", out.GetCertificates())
	}
}

// TestThePortMayShowFiles has core's port show a certificate of files: the mode
// is in the token, and both ends still prove their identities.
func TestThePortMayShowFiles(t *testing.T) {
	outside := newOutsideCA(t)
	s := settings(t)
	s.GRPCTLS, s.GRPCCert, s.GRPCKey = link.ModeFiles, outside.cert, outside.key
	r := start(t, s)
	added, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "orders", Peers: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.ParseToken(added.GetToken())
	if err != nil || token.GRPCTLS != link.ModeFiles {
		t.Fatalf("the token says %q, %v", token.GRPCTLS, err)
	}
	anchors, err := link.OpenAnchors(outside.ca, r.logger())
	if err != nil {
		t.Fatal(err)
	}
	out, err := link.OutsideFor(token.GRPCTLS, token.ServerName, anchors, "", "--grpc-ca")
	if err != nil {
		t.Fatal(err)
	}
	g := r.stranger("orders")
	dialler := link.Dialler{Self: g.self, Token: &token, Outside: out, Log: g.log}
	conn, err := dialler.Dial(context.Background(), g.core, link.ALPNJoin, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		t.Fatal(err)
	}
	grant, err := (&link.Newcomer{Token: token, Role: pki.RoleGateway}).Join(context.Background(), conn)
	conn.Close()
	if err != nil {
		t.Fatal(err)
	}
	g.self.Set(grant.Credentials, grant.Bundle)
	dialler.Token = nil
	conn, err = dialler.Dial(context.Background(), g.core, link.ALPNControl, pki.Expect{Role: pki.RoleCore})
	if err != nil {
		t.Fatal(err)
	}
	if conn.Peer.Outside == nil || conn.Peer.ID.Role != pki.RoleCore {
		t.Errorf("the port showed %v", conn.Peer)
	}
	done := make(chan struct{})
	go func() { defer close(done); g.end.Run(g.ctx, conn) }()
	eventually(t, "the snapshot tells the mode", func() error {
		if snapshot, _ := g.last(); snapshot.GetListener().GetMode() != link.ModeFiles {
			return errors.New("no snapshot, or another mode")
		}
		return nil
	})
	conn.Close()
	<-done
	// One that was not told expects an identity, and takes nothing else.
	dialler.Outside = nil
	if conn, err := dialler.Dial(context.Background(), g.core, link.ALPNControl, pki.Expect{Role: pki.RoleCore}); err == nil {
		conn.Close()
		t.Error("a dialler that expects an identity took a certificate of files")
	}
	if _, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "proxy", Name: "dmz1", Peers: []string{"any"}, Address: "127.0.0.1:1", GrpcTls: "files"}); err == nil || !strings.Contains(err.Error(), "--proxy-grpc-ca") {
		t.Errorf("a proxy in mode files was added without its CA: %v", err)
	}
}

// TestEachProxyHasItsMode: one core, a proxy whose port shows its identity and
// one whose port shows a certificate of files, and one that takes the default.
func TestEachProxyHasItsMode(t *testing.T) {
	outside := newOutsideCA(t)
	pair, err := tls.LoadX509KeyPair(outside.cert, outside.key)
	if err != nil {
		t.Fatal(err)
	}
	s := settings(t)
	s.ProxyGRPCCA = outside.ca
	r := start(t, s)
	connected := func(name, mode string) {
		t.Helper()
		eventually(t, name+" is connected", func() error {
			if m := r.component("proxy", name); m.GetState() != "connected" || m.GetGrpcTls() != mode || m.GetAcknowledgedGeneration() == 0 {
				return errors.New(m.String())
			}
			return nil
		})
	}
	plain := r.inviteProxy("plain", link.ModeInternal, nil)()
	connected("plain", link.ModeInternal)
	files := r.inviteProxy("files", link.ModeFiles, &pair)()
	connected("files", link.ModeFiles)
	r.inviteProxy("default", "", &pair)()
	connected("default", link.ModeFiles)
	for p, want := range map[*proxy]string{plain: "", files: link.ModeFiles} {
		if snapshot, _ := p.last(); snapshot.GetListener().GetMode() != want {
			t.Errorf("%s is told that core expects %v", p.name, snapshot.GetListener())
		}
	}
	// What core expects changes with the record, at once.
	must(r.admin.SetComponent(t.Context(), &control.SetComponentRequest{Role: "proxy", Name: "plain", GrpcTls: link.ModeFiles}))
	eventually(t, "core takes nothing else", func() error {
		if m := r.component("proxy", "plain"); m.GetState() == "connected" || m.GetGrpcTls() != link.ModeFiles || m.GetDetail() == "" {
			return errors.New(m.String())
		}
		return nil
	})
	must(r.admin.SetComponent(t.Context(), &control.SetComponentRequest{Role: "proxy", Name: "plain", GrpcTls: link.ModeInternal}))
	connected("plain", link.ModeInternal)
	if _, err := r.admin.SetComponent(t.Context(), &control.SetComponentRequest{Role: "proxy", Name: "plain", GrpcTls: "off"}); err == nil {
		t.Error("an unknown mode was taken")
	}
}
