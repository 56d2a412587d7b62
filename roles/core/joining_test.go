package core

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
)

// invite adds a gateway and returns its token.
func (r *running) invite(name string) string {
	r.t.Helper()
	added, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: name, Peers: []string{"127.0.0.1"}})
	if err != nil {
		r.t.Fatal(err)
	}
	return added.GetToken()
}

// stranger is a gateway that has not joined.
func (r *running) stranger(name string) *gateway {
	return &gateway{member: newMember(r.t, pki.RoleGateway, name, r.log), core: r.info.GRPCAddress}
}

func code(err error) string {
	if refusal, ok := pki.AsRefusal(err); ok {
		return refusal.Code
	}
	return fmt.Sprint(err)
}

func TestASecondKeyIsRefusedWithAnAlarm(t *testing.T) {
	r := start(t, settings(t))
	token := r.invite("orders")
	if err := r.stranger("orders").join(token); err != nil {
		t.Fatal(err)
	}
	if got := code(r.stranger("thief").join(token)); got != "token_used_by_another_key" {
		t.Errorf("a second key was answered with %s", got)
	}
	if s := r.log.String(); !strings.Contains(s, "level=ERROR") || !strings.Contains(s, "first from 127.0.0.1, then from 127.0.0.1") {
		t.Error("no alarm in the log, with both addresses")
	}
	audit, err := r.admin.ListAudit(context.Background(), &control.ListAuditRequest{})
	if err != nil || !audit.GetVerified() {
		t.Fatalf("audit: %v %s", err, audit.GetBroken())
	}
	alarms := 0
	for _, row := range audit.GetRows() {
		if strings.HasPrefix(row.GetAction(), "alarm.") && strings.Contains(row.GetDetail(), "127.0.0.1") {
			alarms++
		}
	}
	if alarms != 1 {
		t.Errorf("%d alarms were audited", alarms)
	}
}

// TestAlarmsThinOut: who holds a used token tries again and again, and does not
// fill the log.
func TestAlarmsThinOut(t *testing.T) {
	r := start(t, settings(t))
	token := r.invite("orders")
	for range 17 {
		r.stranger("orders").join(token)
	}
	if n := strings.Count(r.log.String(), "ALARM"); n != 5 { // attempts 1, 2, 4, 8, 16
		t.Errorf("%d alarms were logged", n)
	}
}

// TestRemovedWhileItConnects: a gateway is removed after core has looked it up
// for a new session, and before there is a session that could be cut.
func TestRemovedWhileItConnects(t *testing.T) {
	r := start(t, settings(t))
	g := r.addGateway("orders")
	c := r.info.admin.(*admin).core
	k := key{pki.RoleGateway, "orders"}
	c.registry.remove(k, refuseRemoved(k)) // as it is after a start of core
	c.registry.mu.Lock()
	g.connect()
	time.Sleep(500 * time.Millisecond) // it has been looked up, and waits for its place
	if _, err := c.db.RemoveComponent(context.Background(), actorCore, k.role, k.name); err != nil {
		t.Fatal(err)
	}
	delete(c.registry.components, k)
	c.registry.mu.Unlock()
	eventually(t, "it is told", func() error {
		if !strings.Contains(r.log.String(), "gateway orders was removed") {
			return errors.New("not yet")
		}
		return nil
	})
	if m := c.registry.find(k); m != nil && m.connected.Load() || len(c.sessions.Sessions()) != 0 {
		t.Error("a removed gateway has a session")
	}
}

// TestAnInvitedComponentHasNoIdentity: a certificate that fits it can only be
// from before core's database was lost, or somebody has the CA's keys.
func TestAnInvitedComponentHasNoIdentity(t *testing.T) {
	r := start(t, settings(t))
	r.invite("orders")
	c := r.info.admin.(*admin).core
	ca := c.ca.get()
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	id := pki.ID{TrustDomain: "test.internal", Role: pki.RoleGateway, Name: "orders"}
	issued, err := ca.IssueComponent(pki.ComponentRequest{ID: id, Incarnation: 1, PublicKey: key.Public(), Lifetime: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	refusal := c.check(link.ALPNControl, link.Peer{ID: id, Incarnation: 1, Chain: issued.Chain, Remote: netip.MustParseAddrPort("127.0.0.1:40000")})
	if refusal == nil || refusal.Code != "not_joined" || !strings.Contains(r.log.String(), "unknown_key") {
		t.Errorf("it was let in: %v\n%s", refusal, r.log)
	}
}

func TestWhyATokenIsRefused(t *testing.T) {
	r := start(t, settings(t))
	r.invite("neighbour") // its address keeps the port open to those that are removed
	// Of a component that was removed again.
	token := r.invite("orders")
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "orders"}); err != nil {
		t.Fatal(err)
	}
	if got := code(r.stranger("orders").join(token)); got != "token_unknown" {
		t.Errorf("a withdrawn token was answered with %s", got)
	}
	// Expired before it was used.
	short, err := r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "late", Peers: []string{"any"}, TtlSeconds: 1})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(time.Unix(short.GetExpiresUnix(), 0)) + 50*time.Millisecond)
	if got := code(r.stranger("late").join(short.GetToken())); got != "token_expired" {
		t.Errorf("an expired token was answered with %s", got)
	}
	// Of another core.
	other := start(t, settings(t))
	g := other.stranger("orders")
	g.core = r.info.GRPCAddress
	if err := g.join(other.invite("orders")); err == nil {
		t.Error("a token of another core was accepted")
	}
	// An identity that was removed and added again.
	again := r.stranger("again")
	if err := again.join(r.invite("again")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "again"}); err != nil {
		t.Fatal(err)
	}
	r.invite("again")
	d := link.Dialler{Self: again.self, Log: again.log}
	_, err = d.Dial(context.Background(), r.info.GRPCAddress, link.ALPNControl, pki.Expect{Role: pki.RoleCore})
	if got := code(err); got != pki.CodeRevoked {
		t.Errorf("the former incarnation was answered with %s", got)
	}
}

func TestAProxyGetsACertificateForWhatCoreKnows(t *testing.T) {
	r := start(t, settings(t))
	p := r.addProxy("dmz1")
	key, err := pki.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ders, err := p.end.Request(ctx, csr, control.CertificateRequest_PURPOSE_PUBLIC_PORT)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseChain(ders)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := chain[0].VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if len(chain[0].URIs) != 0 || chain[0].IsCA {
		t.Errorf("the certificate says too much: %v", chain[0].URIs)
	}
	if _, err := p.self.Verifier().Component(chain, pki.Expect{}); err == nil {
		t.Error("the public port's certificate passes as a component's")
	}
	if _, err := p.end.Request(ctx, csr, control.CertificateRequest_PURPOSE_UNSPECIFIED); err == nil {
		t.Error("a certificate without a purpose was issued")
	}
}

func TestAProxyThatMovedIsDialledAnew(t *testing.T) {
	r := start(t, settings(t))
	p := r.addProxy("dmz1")
	// Nobody is at the other address; setting it back finds the proxy again.
	if _, err := r.admin.SetComponent(context.Background(), &control.SetComponentRequest{Role: "proxy", Name: "dmz1", Address: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the proxy is lost, and why is said", func() error {
		m := r.component("proxy", "dmz1")
		if m.GetState() != "lost" || !strings.Contains(m.GetDetail(), "127.0.0.1:1") {
			return errors.New(m.String())
		}
		return nil
	})
	if _, err := r.admin.SetComponent(context.Background(), &control.SetComponentRequest{Role: "proxy", Name: "dmz1", Address: p.address}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the proxy is back", func() error {
		if m := r.component("proxy", "dmz1"); m.GetState() != "connected" {
			return errors.New(m.String())
		}
		return nil
	})
}

func TestIdentityStaysAndIsRenewed(t *testing.T) {
	s := settings(t)
	r := start(t, s)
	serial := func() string {
		t.Helper()
		creds, _, err := pki.LoadCredentials(filepath.Join(s.DataDir, "core"))
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"localhost", "127.0.0.1"} {
			if err := creds.Chain[0].VerifyHostname(host); err != nil {
				t.Error(err)
			}
		}
		if s.Advertise != "" {
			if err := creds.Chain[0].VerifyHostname("core.test"); err != nil {
				t.Error(err)
			}
		}
		return pki.Serial(creds.Chain[0])
	}
	first := serial()
	r.end()
	r = start(t, s)
	if serial() != first {
		t.Error("a restart made a new identity although the old one was good")
	}
	r.end()
	s.Advertise = "core.test:50055"
	r = start(t, s)
	second := serial()
	if second == first {
		t.Error("another name needs another certificate")
	}
	r.end()

	// Renewal is due after three fifths of the lifetime, and not before.
	r = start(t, s)
	c := r.info.admin.(*admin).core
	if err := c.refreshIdentity(context.Background(), time.Now().Add(35*time.Minute)); err != nil || serial() != second {
		t.Errorf("renewed too early, or %v", err)
	}
	if err := c.refreshIdentity(context.Background(), time.Now().Add(37*time.Minute)); err != nil || serial() == second {
		t.Errorf("not renewed, or %v", err)
	}
	if got := pki.Serial(c.self.Credentials().Chain[0]); got != serial() {
		t.Errorf("in use is %s, on disk %s", got, serial())
	}
}

func TestAJitteredRenewalComesBeforeTheEnd(t *testing.T) {
	r := start(t, settings(t))
	leaf := r.info.admin.(*admin).core.self.Credentials().Chain[0]
	issued := leaf.NotAfter.Add(-time.Hour)
	for share, want := range map[float64]time.Duration{0.60: 36 * time.Minute, 0.66: 39*time.Minute + 36*time.Second} {
		if got := renewAt(leaf, share).Sub(issued); got < want-time.Second || got > want+time.Second {
			t.Errorf("renewal at %v of the life is after %v, want %v", share, got, want)
		}
	}
}

func TestTheClockIsLookedAt(t *testing.T) {
	for until, want := range map[time.Duration]time.Duration{14 * time.Hour: time.Minute, 20 * time.Second: 20 * time.Second, -time.Hour: time.Second} {
		if got := nextLook(until, time.Second); got != want {
			t.Errorf("%v before the renewal the next look is after %v, want %v", until, got, want)
		}
	}
}

// TestKilledAfterMakingTheAuthority: the CA is on disk, and the database has
// not heard of it.
func TestKilledAfterMakingTheAuthority(t *testing.T) {
	s := settings(t)
	if _, err := pki.CreateAuthority(authorityDir(s.DataDir), pki.Secret{}, s.TrustDomain, time.Now()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r := start(t, s)
		out, err := r.admin.ListCertificates(context.Background(), &control.ListCertificatesRequest{All: true})
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]int{}
		for _, c := range out.GetCertificates() {
			kinds[c.GetKind()]++
		}
		if kinds["root"] != 1 || kinds["intermediate"] != 2 || kinds["core"] != 1 {
			t.Errorf("it knows %v", kinds)
		}
		r.end()
	}
}

func TestNoSecondAuthorityBesideItsDatabase(t *testing.T) {
	s := settings(t)
	r := start(t, s)
	r.end()
	ca := filepath.Join(s.DataDir, "ca")
	if err := renameAway(ca); err != nil {
		t.Fatal(err)
	}
	err := Run(context.Background(), s, Deps{Log: r.logger(), Version: "test"})
	if err == nil || !strings.Contains(err.Error(), "restore") || !strings.Contains(err.Error(), ca) {
		t.Errorf("core started without its authority: %v", err)
	}
	s.DataDir, s.TrustDomain = filepath.Join(t.TempDir(), "x"), "one.internal"
	start(t, s).end()
	s.TrustDomain = "two.internal"
	if err := Run(context.Background(), s, Deps{Log: r.logger(), Version: "test"}); err == nil || !strings.Contains(err.Error(), "one.internal") {
		t.Errorf("the trust domain of a CA changed: %v", err)
	}
}
