package store

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// ca stands for the CA's files.
func ca(phase, root string) CAState { return CAState{Phase: phase, Root: hash(root), Since: noon} }

// step intends a step and settles on what the files say then.
func step(t *testing.T, c *Core, name string, then CAState, now time.Time) Rotation {
	t.Helper()
	if err := c.IntendRotation(t.Context(), operator, name, 0, now); err != nil {
		t.Fatal(err)
	}
	r, err := c.SettleRotation(t.Context(), "core", then, now)
	left := ""
	if name == StepRollback && then.Phase == PhasePublished {
		left = StepRollback // it is half of the way back
	}
	if err != nil || r.Intent != left || !r.equal(then) {
		t.Fatalf("%s: %+v, %v", name, r, err)
	}
	return r
}

func TestRotation(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		if r, err := c.Rotation(ctx); err != nil || r.Phase != "" || r.Intent != "" {
			t.Errorf("before anything: %+v, %v", r, err)
		}
		if _, err := c.SettleRotation(ctx, "core", ca(PhaseSteady, "one"), noon); err != nil {
			t.Fatal(err)
		}
		r := step(t, c, StepPublish, ca(PhasePublished, "one"), noon)
		if r.Wait != DefaultRotationWait || !r.Deadline.Equal(noon.Add(DefaultRotationWait)) {
			t.Errorf("published: %+v", r)
		}
		r = step(t, c, StepActivate, ca(PhaseActivated, "two"), noon.Add(time.Hour))
		if !r.Deadline.Equal(noon.Add(time.Hour + DefaultRotationWait)) {
			t.Errorf("activated: %+v", r)
		}
		if err := c.ExtendRotation(ctx, operator, 30*day, noon.Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		r = step(t, c, StepRollback, ca(PhasePublished, "one"), noon.Add(3*time.Hour))
		if r.Wait != 30*day || !r.Deadline.Equal(noon.Add(3*time.Hour+30*day)) {
			t.Errorf("rolled back with another wait: %+v", r)
		}
		if again, err := c.Rotation(ctx); err != nil || again.Intent != StepRollback || !again.Intended.Equal(noon.Add(3*time.Hour)) {
			t.Errorf("half of the way back: %+v, %v", again, err)
		}
		step(t, c, StepActivate, ca(PhaseActivated, "two"), noon)
		r = step(t, c, StepRetire, ca(PhaseSteady, "two"), noon)
		if got, err := c.Rotation(ctx); err != nil || !reflect.DeepEqual(got, r) || !got.Deadline.IsZero() || got.Wait != 0 {
			t.Errorf("at the end: %+v, want %+v, %v", got, r, err)
		}
		// The phase is the same, and yet it was done: the root tells.
		step(t, c, StepCompromised, ca(PhaseSteady, "three"), noon)
		want := "ca.phase ca, ca.publish ca, ca.phase ca, ca.activate ca, ca.phase ca, ca.wait ca, ca.rollback ca, ca.phase ca, ca.activate ca, ca.phase ca, ca.retire ca, ca.phase ca, ca.compromised ca, ca.phase ca"
		if got := strings.Join(actions(t, c), ", "); got != want {
			t.Errorf("audited %s", got)
		}
		verify(t, c)
	})
}

func TestRotationRefusals(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})
		for phase, allowed := range map[string]string{
			PhaseSteady:    "publish compromised",
			PhasePublished: "activate rollback compromised",
			PhaseActivated: "retire rollback compromised",
		} {
			if _, err := c.SettleRotation(ctx, "core", ca(phase, phase), noon); err != nil {
				t.Fatal(err)
			}
			for _, s := range []string{StepPublish, StepActivate, StepRetire, StepRollback, StepCompromised, "dance"} {
				err := c.IntendRotation(ctx, operator, s, 0, noon)
				if strings.Contains(allowed, s) != (err == nil) || err != nil && !errors.Is(err, ErrRotation) {
					t.Errorf("%s while %s: %v", s, phase, err)
				}
			}
			if err := c.SkipInRotation(ctx, operator, pki.RoleGateway, "a"); (phase == PhaseSteady) != errors.Is(err, ErrRotation) {
				t.Errorf("skip while %s: %v", phase, err)
			}
			if err := c.ExtendRotation(ctx, operator, day, noon); (phase == PhaseSteady) != errors.Is(err, ErrRotation) {
				t.Errorf("wait while %s: %v", phase, err)
			}
		}
		if err := c.SkipInRotation(ctx, operator, pki.RoleGateway, "nobody"); err == nil {
			t.Error("one that is not there was skipped")
		}
		for _, bad := range []CAState{{Phase: "full moon", Root: hash("x")}, {Phase: PhaseSteady}} {
			if _, err := c.SettleRotation(ctx, "core", bad, noon); err == nil {
				t.Errorf("settled on %+v", bad)
			}
		}
	})
}

// TestCrashBetweenIntentAndFiles stops core before and after the CA's files
// change; the next start finds what is to be done.
func TestCrashBetweenIntentAndFiles(t *testing.T) {
	steady, published := ca(PhaseSteady, "one"), ca(PhasePublished, "one")
	for _, s := range []struct {
		files CAState // that the next start finds
		want  string  // intent that is left
	}{{steady, StepPublish}, {published, ""}} {
		path := filepath.Join(t.TempDir(), "core.db")
		c := openCore(t, path)
		if _, err := c.SettleRotation(t.Context(), "core", steady, noon); err != nil {
			t.Fatal(err)
		}
		if err := c.IntendRotation(t.Context(), operator, StepPublish, 2*day, noon); err != nil {
			t.Fatal(err)
		}
		c.Close()
		c = openCore(t, path)
		r, err := c.SettleRotation(t.Context(), "core", s.files, noon.Add(time.Hour))
		if err != nil || r.Intent != s.want || r.Phase != s.files.Phase || r.Wait != 2*day {
			t.Errorf("files %s: %+v, %v", s.files.Phase, r, err)
		}
		if s.want == "" {
			continue
		}
		if r, err = c.SettleRotation(t.Context(), "core", published, noon.Add(time.Hour)); err != nil || r.Intent != "" || !r.Deadline.Equal(noon.Add(time.Hour+2*day)) {
			t.Errorf("done at the second attempt: %+v, %v", r, err)
		}
		// Or it is given up.
		if err := errors.Join(c.IntendRotation(t.Context(), operator, StepActivate, 0, noon), c.IntendRotation(t.Context(), operator, "", 0, noon)); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Rotation(t.Context()); err != nil || r.Intent != "" || r.Wait != 2*day {
			t.Errorf("given up: %+v, %v", r, err)
		}
	}
}

// TestWhoBlocksARotation takes three components and an instance through one.
func TestWhoBlocksARotation(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		p := &cast{t: t, c: c, certs: map[string]CertificateRecord{}}
		under := func(key, root string, at time.Time) func(ComponentRecord) (CertificateRecord, [][]byte, error) {
			return func(r ComponentRecord) (CertificateRecord, [][]byte, error) {
				c, chain, err := p.issue(key, at)(r)
				c.Root = hash(root)
				p.certs[key] = c
				return c, chain, err
			}
		}
		for _, name := range []string{"a", "b", "absent"} {
			add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: name}, tokenFor(name))
			if _, err := c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: tokenFor(name).PublicKey, SPKI: hash(name), Issue: under(name, "one", noon)}, noon); err != nil {
				t.Fatal(err)
			}
		}
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "fleet", Reusable: true}, tokenFor("fleet"))
		adopt(t, c, tokenFor("fleet"), "fleet-1")
		add(t, c, ComponentRecord{Role: pki.RoleProxy, Name: "invited"}, tokenFor("invited"))

		both := hash("bundle of both")
		blockers := func(r Rotation) string {
			t.Helper()
			list, err := c.Progress(ctx)
			if err != nil || len(list) != 4 {
				t.Fatalf("%+v, %v", list, err)
			}
			var names []string
			for _, p := range list {
				if r.Blocks(p, both) {
					names = append(names, p.Label())
				}
			}
			return strings.Join(names, " ")
		}
		r, err := c.SettleRotation(ctx, "core", ca(PhaseSteady, "one"), noon)
		if err != nil || blockers(r) != "" {
			t.Errorf("steady: %s blocks, %v", blockers(r), err)
		}
		r = step(t, c, StepPublish, ca(PhasePublished, "one"), noon)
		if got := blockers(r); got != "gateway/a gateway/absent gateway/b" {
			t.Errorf("published: %s", got)
		}
		if err := errors.Join(c.AcknowledgeBundle(ctx, pki.RoleGateway, "a", both), c.AcknowledgeBundle(ctx, pki.RoleGateway, "b", hash("an older one"))); err != nil {
			t.Fatal(err)
		}
		if got := blockers(r); got != "gateway/absent gateway/b" {
			t.Errorf("one has acknowledged: %s", got)
		}
		if err := errors.Join(c.AcknowledgeBundle(ctx, pki.RoleGateway, "b", both), c.SkipInRotation(ctx, operator, pki.RoleGateway, "absent"),
			c.SkipInRotation(ctx, operator, pki.RoleGateway, "absent")); err != nil {
			t.Fatal(err)
		}
		if got := blockers(r); got != "" {
			t.Errorf("one is skipped: %s", got)
		}
		r = step(t, c, StepActivate, ca(PhaseActivated, "two"), noon)
		if got := blockers(r); got != "gateway/a gateway/b" {
			t.Errorf("activated: %s", got)
		}
		if got, err := c.Rotation(ctx); err != nil || !reflect.DeepEqual(got.Skipped, []string{"gateway/absent"}) {
			t.Errorf("skipped %v, %v", got.Skipped, err)
		}
		for _, name := range []string{"a", "b"} {
			if _, err := c.Renew(ctx, "core", Renewal{Holder: KeyUse{Certificate: p.certs[name]}, NewSPKI: hash(name + "2"), Issue: under(name+"2", "two", noon)}, noon); err != nil {
				t.Fatal(err)
			}
		}
		if got := blockers(r); got != "gateway/a gateway/b" {
			t.Errorf("issued and not in use: %s", got)
		}
		if _, err := c.SawKey(ctx, KeyUse{Certificate: p.certs["a2"]}, noon); err != nil {
			t.Fatal(err)
		}
		if got := blockers(r); got != "gateway/b" {
			t.Errorf("one has renewed: %s", got)
		}
		if _, err := c.SawKey(ctx, KeyUse{Certificate: p.certs["b2"]}, noon); err != nil {
			t.Fatal(err)
		}
		r = step(t, c, StepRetire, ca(PhaseSteady, "two"), noon)
		if blockers(r) != "" || len(r.Skipped) != 0 {
			t.Errorf("at the end: %+v", r)
		}
	})
}

func TestAcknowledgements(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})
		add(t, c, ComponentRecord{Role: pki.RoleProxy, Name: "invited"}, tokenFor("invited"))
		for range 2 {
			if err := c.AcknowledgeRevocations(ctx, pki.RoleGateway, "a", 3, 7); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.AcknowledgeBundle(ctx, pki.RoleGateway, "a", hash("bundle")); err != nil {
			t.Fatal(err)
		}
		list, err := c.Progress(ctx)
		if err != nil || len(list) != 1 || list[0].Epoch != 3 || list[0].Revocations != 7 || !reflect.DeepEqual(list[0].Bundle, hash("bundle")) {
			t.Errorf("%+v, %v", list, err)
		}
		for _, name := range []string{"invited", "nobody"} {
			if err := c.AcknowledgeRevocations(ctx, pki.RoleProxy, name, 1, 1); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := c.AcknowledgeBundle(ctx, pki.RoleGateway, "a", []byte("short")); err == nil {
			t.Error("what is no hash was noted")
		}
		// Its next incarnation has acknowledged nothing.
		if _, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, "a"); err != nil {
			t.Fatal(err)
		}
		join(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"})
		if list, err := c.Progress(ctx); err != nil || len(list) != 1 || list[0].Revocations != 0 || list[0].Bundle != nil {
			t.Errorf("added again: %+v, %v", list, err)
		}
	})
}
