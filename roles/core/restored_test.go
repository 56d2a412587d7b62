package core

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
	"sallyport/roles/control"
	"sallyport/roles/link"
	"sallyport/roles/relay"
)

// TestJoinedAfterTheBackup: who was invited then and joined afterwards connects
// to the restored core by itself, with the token spent; who was added afterwards
// is told to be added again.
func TestJoinedAfterTheBackup(t *testing.T) {
	r := start(t, settings(t))
	token := r.invite("late")
	startProxy := r.inviteProxy("dmz1", "", nil)
	file := r.backup()
	late := &gateway{member: newMember(t, pki.RoleGateway, "late", r.log), core: r.info.GRPCAddress, seen: make(chan []relay.Field, 1)}
	if err := late.join(token); err != nil {
		t.Fatal(err)
	}
	unknown := r.addGateway("unknown")
	startProxy()
	eventually(t, "the proxy has joined", func() error {
		if m := r.component("proxy", "dmz1"); m.GetState() != "connected" {
			return fmt.Errorf("%v", m)
		}
		return nil
	})
	r.end()
	fresh := settings(t)
	if _, err := restoreTo(t, fresh, file, func(r *Restoration) { r.AcceptLoss = true }); err != nil {
		t.Fatal(err)
	}
	r = start(t, fresh)
	late.core, unknown.core = r.info.GRPCAddress, r.info.GRPCAddress
	late.connect()
	for _, c := range [][2]string{{"gateway", "late"}, {"proxy", "dmz1"}} {
		eventually(t, c[1]+" is taken in", func() error {
			if m := r.component(c[0], c[1]); m.GetState() != "connected" || m.GetAcknowledgedGeneration() == 0 {
				return fmt.Errorf("%v\n%s", m, r.log)
			}
			return nil
		})
	}
	rows := must(r.admin.ListAudit(context.Background(), &control.ListAuditRequest{Limit: 100})).GetRows()
	for _, who := range []string{"gateway/late", "proxy/dmz1"} {
		audited := false
		for _, row := range rows {
			audited = audited || row.GetAction() == "key.confirm" && row.GetSubject() == who && strings.Contains(row.GetDetail(), "issued after the backup")
		}
		if !audited {
			t.Errorf("%s was taken in and not audited: %v", who, rows)
		}
	}
	if err := r.stranger("late").join(token); !strings.HasPrefix(code(err), "token_") {
		t.Errorf("its token is still good: %v", err)
	}
	_, err := (&link.Dialler{Self: unknown.self, Log: unknown.log}).Dial(context.Background(), r.info.GRPCAddress, link.ALPNControl, pki.Expect{Role: pki.RoleCore})
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Code != "not_joined" || !strings.Contains(refusal.Remedy, "gateway add unknown") {
		t.Errorf("one that this core never heard of is told %v", err)
	}
}

// TestARestoredCoreRenewsNothingYet: not on sessions, nor by recovery, before it
// has heard everybody. Who has expired is heard as it asks to recover.
func TestARestoredCoreRenewsNothingYet(t *testing.T) {
	r := start(t, settings(t))
	slept, up, last := r.addGateway("slept"), r.addGateway("up"), r.addGateway("last")
	r.addGateway("thief")
	gone := slept.connect()
	file := r.backup()
	out, err := r.admin.RemoveComponent(context.Background(), &control.RemoveComponentRequest{Role: "gateway", Name: "thief"})
	if err != nil || out.GetRevocation().GetEnforced() != 1 {
		t.Fatal(out, err)
	}
	gone()
	r.end()
	fresh := settings(t)
	if _, err := restoreTo(t, fresh, file, nil); err != nil {
		t.Fatal(err)
	}
	r = start(t, fresh)
	for _, g := range []*gateway{slept, up, last} {
		g.core = r.info.GRPCAddress
	}
	awaits := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprint("core waits for ", want), func() error {
			if now := r.admin.(*admin).core.relearning.awaits(); fmt.Sprint(now) != fmt.Sprint(want) {
				return fmt.Errorf("it waits for %v\n%s", now, r.log)
			}
			return nil
		})
	}
	serial := func(g *gateway) string { return pki.Serial(g.self.Credentials().Chain[0]) }
	renew := func(g *gateway) error {
		key, err := pki.NewKey("p256")
		if err != nil {
			t.Fatal(err)
		}
		csr := must(pki.NewCSR(key))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = g.end.Request(ctx, csr, control.CertificateRequest_PURPOSE_IDENTITY)
		return err
	}
	up.connect()
	awaits("gateway/last", "gateway/slept", "gateway/thief")
	if err := renew(up); code(err) != "core_error" || !strings.Contains(err.Error(), "gateway/last") {
		t.Errorf("it renewed: %v", err)
	}
	former := serial(slept)
	slept.renewer.Trouble(&pki.Refusal{Code: pki.CodeExpired, Cause: "the test says so"})
	awaits("gateway/last") // and thief is known to be revoked
	if m := r.component("gateway", "thief"); m != nil {
		t.Errorf("what slept knows was not taken: %v", m)
	}
	if serial(slept) != former {
		t.Error("it recovered an identity")
	}
	last.connect()
	awaits()
	if err := renew(up); err != nil {
		t.Error(err)
	}
	eventually(t, "who slept has recovered", func() error {
		if serial(slept) == former {
			return fmt.Errorf("%s", r.log)
		}
		return nil
	})
}

// TestAFreshHostOfComponentsWithoutADisk: where all components joined by reusable
// tokens, a restored core waited for nobody, and what was revoked after the backup
// was good again until the first of them came.
func TestAFreshHostOfComponentsWithoutADisk(t *testing.T) {
	r := start(t, settings(t))
	added := must(r.admin.AddComponent(context.Background(), &control.AddComponentRequest{Role: "gateway", Name: "pool", Peers: []string{"127.0.0.1"}, Reusable: true, Uses: 3, TtlSeconds: 3600}))
	var pool []*gateway
	for range 2 {
		g := &gateway{member: newMember(t, pki.RoleGateway, "pool", r.log), core: r.info.GRPCAddress, seen: make(chan []relay.Field, 1)}
		g.renewer.Dial = g.dialRenew
		if err := g.join(added.GetToken()); err != nil {
			t.Fatal(err)
		}
		pool = append(pool, g)
	}
	gone := pool[0].connect()
	must(r.admin.CreateAPIKey(context.Background(), &control.CreateAPIKeyRequest{Name: "leaked"}))
	file := r.backup()
	must(r.admin.RevokeAPIKey(context.Background(), &control.RevokeAPIKeyRequest{Name: "leaked"}))
	eventually(t, "the instance knows of the revocation", func() error {
		if held := pool[0].self.RevocationsHead().GetSequence(); held != 1 {
			return fmt.Errorf("it holds %d entries", held)
		}
		return nil
	})
	gone()
	r.end()
	fresh := settings(t)
	out, err := restoreTo(t, fresh, file, nil)
	if err != nil || fmt.Sprint(out.Awaits) != "[gateway/pool]" || !out.Any {
		t.Fatalf("%+v, %v", out, err)
	}
	r = start(t, fresh)
	revoked := func() bool {
		return must(r.admin.ListAPIKeys(context.Background(), &control.ListAPIKeysRequest{})).GetKeys()[0].GetRevokedUnix() != 0
	}
	if r.admin.(*admin).core.relearning.holds() == "" || revoked() {
		t.Error("core relays before it knows what was revoked")
	}
	if err := (&gateway{member: newMember(t, pki.RoleGateway, "pool", r.log), core: r.info.GRPCAddress}).join(added.GetToken()); code(err) != "core_error" || !strings.Contains(err.Error(), "gateway/pool") {
		t.Errorf("an instance joins: %v", err)
	}
	pool[0].core = r.info.GRPCAddress
	pool[0].connect()
	eventually(t, "one instance was heard", func() error {
		if waits := r.admin.(*admin).core.relearning.holds(); waits != "" {
			return fmt.Errorf("%s: %v", waits, r.admin.(*admin).core.relearning.awaits())
		}
		return nil
	})
	if !revoked() {
		t.Error("the API key is good again")
	}
}

// TestAFreshHostWhereCoreWasStartedAlready: its own CA, which no component knows,
// counted as newer than the backup's and stayed, and core waited for nobody.
func TestAFreshHostWhereCoreWasStartedAlready(t *testing.T) {
	r := start(t, settings(t))
	r.addGateway("orders")
	file := r.backup()
	r.end()
	fresh := settings(t)
	start(t, fresh).end()
	for _, lost := range []string{"", "ca", "core.db"} {
		if lost != "" {
			if err := os.Rename(filepath.Join(fresh.DataDir, lost), filepath.Join(t.TempDir(), lost)); err != nil {
				t.Fatal(err)
			}
		}
		out, err := restoreTo(t, fresh, file, nil)
		if lost == "core.db" { // as well
			if err != nil || fmt.Sprint(out.Awaits) != "[gateway/orders]" || out.KeptCA {
				t.Errorf("%+v, %v", out, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), "another core") || exists(restoringPath(fresh.DataDir)) {
			t.Errorf("without %q: %+v, %v", lost, out, err)
		}
	}
}

// TestRestoreAfterRotations: the CA that is there has no root of the backup's any
// more, and is the same core's.
func TestRestoreAfterRotations(t *testing.T) {
	s := settings(t)
	r := start(t, s)
	file := r.backup()
	must(r.admin.RotateCA(context.Background(), &control.RotateCARequest{Action: control.RotateCARequest_ACTION_COMPROMISED}))
	r.end()
	out, err := restoreTo(t, s, file, nil)
	if err != nil || !out.KeptCA {
		t.Errorf("%+v, %v", out, err)
	}
}
