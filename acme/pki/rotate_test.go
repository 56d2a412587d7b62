package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

type rotationStep struct {
	name string
	do   func(*Authority, time.Time) (*Authority, error)
}

var (
	stepPublish     = rotationStep{"publish", (*Authority).Publish}
	stepActivate    = rotationStep{"activate", (*Authority).Activate}
	stepRetire      = rotationStep{"retire", (*Authority).Retire}
	stepRollback    = rotationStep{"rollback", (*Authority).Rollback}
	stepCompromised = rotationStep{"compromised", (*Authority).Compromised}
)

func walk(t testing.TB, a *Authority, now time.Time, steps ...rotationStep) *Authority {
	t.Helper()
	for _, s := range steps {
		next, err := s.do(a, now)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		a = next
	}
	return a
}

// rotate goes through a whole rotation.
func rotate(t testing.TB, a *Authority, now time.Time) *Authority {
	t.Helper()
	return walk(t, a, now, stepPublish, stepActivate, stepRetire)
}

// TestRotation follows a core, a gateway and a client through every phase. In
// each, everything that was issued in it or before verifies by the bundle of
// that phase, and by that of the phase before where components have not heard
// yet.
func TestRotation(t *testing.T) {
	a := testAuthority(t)
	if a.Phase() != PhaseSteady || !a.Since().Equal(epoch) || a.Generation() != 1 || a.NextGeneration() != 0 {
		t.Fatalf("at first: %s since %s, generations %d %d", a.Phase(), a.Since(), a.Generation(), a.NextGeneration())
	}
	client, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: testKey(t).Public(), Client: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	first := issueComponent(t, a, RoleGateway, "office", 1)
	pins := a.Pins()
	before := a
	for i, tc := range []struct {
		step              rotationStep
		phase             Phase
		generation, other uint64
		bundles           int  // hierarchies in the bundle
		old               bool // the first certificates verify on links
	}{
		{stepPublish, PhasePublished, 1, 2, 2, true},
		{stepActivate, PhaseActivated, 2, 1, 2, true},
		{stepRetire, PhaseSteady, 2, 0, 1, false},
	} {
		now := epoch.Add(time.Duration(i+1) * 10 * time.Second) // less than certificates are backdated
		a = walk(t, before, now, tc.step)
		if a.Phase() != tc.phase || !a.Since().Equal(now) || a.Generation() != tc.generation || a.NextGeneration() != tc.other {
			t.Errorf("%s: %s since %s, generations %d %d", tc.step.name, a.Phase(), a.Since(), a.Generation(), a.NextGeneration())
		}
		b := a.Bundle()
		if len(b.Roots) != tc.bundles || len(b.ComponentIntermediates) != tc.bundles || len(b.CallerIntermediates) != 2 {
			t.Errorf("%s: a bundle of %d roots, %d and %d intermediates", tc.step.name, len(b.Roots), len(b.ComponentIntermediates), len(b.CallerIntermediates))
		}
		back, err := BundleFromProto(b.Proto())
		if err != nil || !back.Equal(b) {
			t.Errorf("%s: the bundle does not travel: %v", tc.step.name, err)
		}
		if !bytes.Equal(b.Roots[0].Raw, a.root.Raw) || SPKI(b.Roots[0]) != a.Pins()[0] {
			t.Errorf("%s: the bundle and the pins do not begin with the root that issues", tc.step.name)
		}
		at := func() time.Time { return now }
		fresh := issueComponent(t, a, RoleCore, "core", 1)
		for _, v := range []*Verifier{b.ComponentVerifier(at, nil), b.RootVerifier(at, nil)} {
			if _, err := v.Component(fresh.Chain, Expect{Role: RoleCore}); err != nil {
				t.Errorf("%s: a new certificate: %v", tc.step.name, err)
			}
		}
		if _, err := before.Bundle().ComponentVerifier(at, nil).Component(fresh.Chain, Expect{Role: RoleCore}); err != nil {
			t.Errorf("%s: a new certificate with the bundle of the phase before: %v", tc.step.name, err)
		}
		if _, err := b.ComponentVerifier(at, nil).Component(first.Chain, Expect{Role: RoleGateway}); (err == nil) != tc.old {
			t.Errorf("%s: the first certificate: %v", tc.step.name, err)
		}
		if _, err := a.RecoveryVerifier(at, nil).Recover(first.Chain, Expect{Role: RoleGateway}); err != nil {
			t.Errorf("%s: the first certificate does not recover: %v", tc.step.name, err)
		}
		if id, err := b.CallerVerifier(at, nil).Caller(client.Chain); err != nil || id.Name != "billing" {
			t.Errorf("%s: a client of before: %v", tc.step.name, err)
		}
		if g := a.GenerationOf(fresh.Chain[0]); g != a.Generation() {
			t.Errorf("%s: the new certificate is of generation %d", tc.step.name, g)
		}
		if g := a.GenerationOf(first.Chain[0]); (g == 1) != tc.old {
			t.Errorf("%s: the first certificate is of generation %d", tc.step.name, g)
		}
		opened, err := OpenAuthority(a.dir, Secret{})
		if err != nil || !reflect.DeepEqual(opened.state, a.state) || !opened.Bundle().Equal(b) || !slices.Equal(opened.Pins(), a.Pins()) {
			t.Errorf("%s: it is not on disk as in memory: %v", tc.step.name, err)
		}
		if text, _ := os.ReadFile(filepath.Join(a.dir, publicFile)); !bytes.Equal(text, b.PEM()) {
			t.Errorf("%s: the CA file for others is that of before", tc.step.name)
		}
		before = a
	}
	if a.Pins()[0] != pins[1] || a.Pins()[1] == pins[0] || a.Pins()[1] == pins[1] {
		t.Error("the next root is not the one that was pinned, or there is none after it")
	}
	for _, s := range []rotationStep{stepActivate, stepRetire, stepRollback} {
		if _, err := s.do(a, epoch); !errors.Is(err, ErrWrongPhase) {
			t.Errorf("%s when steady: %v", s.name, err)
		}
	}
}

// TestRotationJoins: tokens of each phase work in every phase after, up to the
// second retirement; then the message says what to do.
func TestRotationJoins(t *testing.T) {
	a := testAuthority(t)
	type made struct {
		when   string
		token  Token
		leaves int // retirements that it survives
	}
	var tokens []made
	retired := 0
	newToken := func(when string) {
		tok, err := NewToken(Token{Role: RoleGateway, Name: "office", Expires: epoch.Add(time.Hour), Core: "core.example.org:50055", Pins: a.Pins()}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		last := retired + 1
		tokens = append(tokens, made{when, tok, last})
	}
	check := func(when string) {
		core := issueComponent(t, a, RoleCore, "core", 1)
		tls := a.RecoveryTLS(core)
		chain, err := ParseChain(tls.Certificate)
		if err != nil {
			t.Fatalf("%s: core's chain is too long: %v", when, err)
		}
		for _, m := range tokens {
			_, err := m.token.VerifyCore(chain, epoch)
			if m.leaves >= retired && err != nil {
				t.Errorf("%s: a token made when %s: %v", when, m.when, err)
			}
			if err != nil && refusalCode(err) != CodePinMismatch {
				t.Errorf("%s: a token made when %s: code %s", when, m.when, refusalCode(err))
			}
		}
	}
	newToken("steady")
	for range 3 {
		for _, s := range []rotationStep{stepPublish, stepActivate, stepRetire} {
			if s.name == "retire" {
				retired++
			}
			a = walk(t, a, epoch, s)
			newToken(s.name)
			check(s.name)
		}
	}
	core := issueComponent(t, a, RoleCore, "core", 1)
	if _, err := tokens[0].token.VerifyCore(a.RecoveryChain(core), epoch); refusalCode(err) != CodePinMismatch || !bytes.Contains([]byte(err.Error()), []byte("rotated twice")) {
		t.Errorf("a token older than three rotations: %v", err)
	}
}

// TestRotationSleeper: a gateway that slept through a rotation, or three, is
// led to the new root by what it has, and core knows it.
func TestRotationSleeper(t *testing.T) {
	a := testAuthority(t)
	sleeper, bundle := issueComponent(t, a, RoleGateway, "office", 1), a.Bundle()
	dir := t.TempDir()
	if err := SaveCredentials(dir, sleeper, bundle); err != nil {
		t.Fatal(err)
	}
	for n := range maxCross + 1 {
		a = rotate(t, a, epoch)
		core := issueComponent(t, a, RoleCore, "core", 1)
		now := sleeper.NotAfter().Add(10 * 24 * time.Hour)
		late, err := a.IssueComponent(ComponentRequest{ID: testID(RoleCore, "core"), Incarnation: 1, PublicKey: core.Key.Public()}, now)
		if err != nil {
			t.Fatal(err)
		}
		core.Chain = late.Chain
		chain := a.RecoveryChain(core)
		if len(chain) > maxChain {
			t.Fatalf("a chain of %d", len(chain))
		}
		at := func() time.Time { return now }
		_, err = bundle.RootVerifier(at, nil).Component(chain, Expect{Role: RoleCore})
		if n < maxCross && err != nil || n >= maxCross && refusalCode(err) != CodeUnknownAuthority {
			t.Errorf("after %d rotations the gateway says of core: %v", n+1, err)
		}
		// The chain proves core alone. On links it is worth nothing.
		if _, err := bundle.ComponentVerifier(at, nil).Component(chain, Expect{Role: RoleCore}); err == nil {
			t.Error("the old component intermediate vouches for the new core")
		}
		if id, err := a.RecoveryVerifier(at, nil).Recover(sleeper.Chain, Expect{Role: RoleGateway}); err != nil || id != sleeper.ID {
			t.Errorf("after %d rotations core says of the gateway: %v", n+1, err)
		}
		// What it is given fits together and is stored.
		key := testKey(t)
		out, err := a.IssueComponent(ComponentRequest{ID: sleeper.ID, Incarnation: 1, PublicKey: key.Public()}, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := SaveCredentials(dir, &Credentials{ID: sleeper.ID, Chain: out.Chain, Key: key}, a.Bundle()); err != nil {
			t.Error(err)
		}
	}
	// Retired issuers are forgotten when nothing of theirs can recover.
	end := epoch.Add(recoveryTime)
	if v := a.RecoveryVerifier(func() time.Time { return end }, nil); len(v.Anchors) != 2+maxCross {
		t.Errorf("%d anchors", len(v.Anchors))
	}
	if v := a.RecoveryVerifier(func() time.Time { return end.Add(time.Second) }, nil); len(v.Anchors) != 1 {
		t.Errorf("%d anchors after the end", len(v.Anchors))
	}
	if a = walk(t, a, end.Add(time.Second), stepPublish); len(a.state.recovery) != 0 {
		t.Errorf("%d retired issuers are kept for nothing", len(a.state.recovery))
	}
}

// TestRotationRollback: from each phase back to the start.
func TestRotationRollback(t *testing.T) {
	a := testAuthority(t)
	b := walk(t, a, epoch, stepPublish, stepRollback)
	if !b.Bundle().Equal(a.Bundle()) || !slices.Equal(b.Pins(), a.Pins()) || b.Phase() != PhaseSteady || b.Generation() != 1 || len(b.state.cross) != 0 {
		t.Error("from published it does not return to the start")
	}
	issueComponent(t, b, RoleGateway, "office", 1)

	// From activated in two steps: the old one issues again first, and both
	// stay trusted until everybody has renewed from it.
	b = walk(t, b, epoch, stepPublish, stepActivate)
	if b.Generation() != 3 {
		t.Errorf("the hierarchy that was published anew has number %d", b.Generation())
	}
	late := issueComponent(t, b, RoleGateway, "office", 1)
	client, err := b.IssueLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: testKey(t).Public(), Client: true}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	b = walk(t, b, epoch, stepRollback)
	at := func() time.Time { return epoch }
	if _, err := b.Bundle().ComponentVerifier(at, nil).Component(late.Chain, Expect{Role: RoleGateway}); err != nil || b.Phase() != PhasePublished || b.Generation() != 1 {
		t.Errorf("%s: %v", b.Phase(), err)
	}
	b = walk(t, b, epoch, stepRollback)
	if !slices.Equal(b.Pins(), a.Pins()) || !slices.EqualFunc(b.Bundle().Roots, a.Bundle().Roots, (*x509.Certificate).Equal) || len(b.Bundle().ComponentIntermediates) != 1 {
		t.Error("from activated it does not return to the start")
	}
	// Who still has a certificate of the dropped hierarchy recovers, and its
	// clients stay good.
	if _, err := b.Bundle().ComponentVerifier(at, nil).Component(late.Chain, Expect{Role: RoleGateway}); err == nil {
		t.Error("the dropped hierarchy is trusted on links")
	}
	if _, err := b.RecoveryVerifier(at, nil).Recover(late.Chain, Expect{Role: RoleGateway}); err != nil {
		t.Error(err)
	}
	if _, err := b.Bundle().CallerVerifier(at, nil).Caller(client.Chain); err != nil {
		t.Error(err)
	}
	if c := rotate(t, b, epoch); c.Pins()[0] != a.Pins()[1] {
		t.Error("a rotation after a rollback leads to another root than tokens pin")
	}
}

// TestRotationCompromised: from each phase, nothing of the old is left that
// anybody trusts, and nothing leads from the old to the new.
func TestRotationCompromised(t *testing.T) {
	for name, steps := range map[string][]rotationStep{
		"steady": nil, "published": {stepPublish}, "activated": {stepPublish, stepActivate}, "rotated": {stepPublish, stepActivate, stepRetire},
	} {
		a := walk(t, testAuthority(t), epoch, steps...)
		stolen := issueComponent(t, a, RoleCore, "core", 1)
		client, err := a.IssueLeaf(LeafRequest{ID: testID(RoleClient, "billing"), PublicKey: testKey(t).Public(), Client: true}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		b := walk(t, a, epoch, stepCompromised)
		if a.Disowned(stolen.Chain[0]) || !b.Disowned(stolen.Chain[0]) || b.Disowned(issueComponent(t, b, RoleCore, "core", 1).Chain[0]) {
			t.Errorf("%s: disowned is not what the old CA alone has made", name)
		}
		if b.Phase() != PhaseSteady || b.Generation() <= a.Generation() || b.Generation() <= a.NextGeneration() {
			t.Errorf("%s: %s, generation %d", name, b.Phase(), b.Generation())
		}
		known := map[[32]byte]bool{}
		for _, p := range a.Pins() {
			known[p] = true
		}
		for _, c := range a.Certificates() {
			known[SPKI(c.Cert)] = true
		}
		for _, p := range b.Pins() {
			if known[p] {
				t.Errorf("%s: an old key is pinned", name)
			}
		}
		for _, c := range b.Certificates() {
			if known[SPKI(c.Cert)] {
				t.Errorf("%s: %s is an old one", name, c.What)
			}
		}
		at := func() time.Time { return epoch }
		bundle := b.Bundle()
		for _, v := range []*Verifier{bundle.ComponentVerifier(at, nil), bundle.RootVerifier(at, nil), b.RecoveryVerifier(at, nil)} {
			if _, err := v.Recover(a.RecoveryChain(stolen), Expect{Role: RoleCore}); err == nil {
				t.Errorf("%s: the old core is trusted", name)
			}
		}
		if _, err := bundle.CallerVerifier(at, nil).Caller(client.Chain); err == nil {
			t.Errorf("%s: an old client is trusted", name)
		}
		core := issueComponent(t, b, RoleCore, "core", 1)
		if _, err := a.Bundle().RootVerifier(at, nil).Component(b.RecoveryChain(core), Expect{Role: RoleCore}); err == nil {
			t.Errorf("%s: the old root leads to the new core", name)
		}
		tok := gatewayToken(t, a)
		if _, err := tok.VerifyCore(b.RecoveryChain(core), epoch); refusalCode(err) != CodePinMismatch {
			t.Errorf("%s: an old token: %v", name, err)
		}
	}
}

// TestOldOrNew stops each step of a rotation at every point at which a killed
// process can have left the directory, and looks at what the next start finds.
func TestOldOrNew(t *testing.T) {
	a := testAuthority(t)
	for _, s := range []rotationStep{stepPublish, stepActivate, stepRollback, stepActivate, stepRetire, stepCompromised} {
		path, public := filepath.Join(a.dir, sealedFile), filepath.Join(a.dir, publicFile)
		oldSealed, _ := os.ReadFile(path)
		oldPublic, _ := os.ReadFile(public)
		next := walk(t, a, epoch, s)
		newSealed, _ := os.ReadFile(path)
		newPublic, _ := os.ReadFile(public)
		write := func(name string, text []byte) {
			if err := os.WriteFile(name, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		temp := filepath.Join(a.dir, tempPrefix+sealedFile+"-1")
		for _, kill := range []struct {
			at    string
			leave func()
			want  *Authority
		}{
			{"before anything", func() {}, a},
			{"an empty temporary file", func() { write(temp, nil) }, a},
			{"half a temporary file", func() { write(temp, newSealed[:len(newSealed)/2]) }, a},
			{"a whole temporary file", func() { write(temp, newSealed) }, a},
			{"after the rename, the old CA file for others", func() { write(path, newSealed) }, next},
			{"half of the CA file for others under its temporary name", func() {
				write(path, newSealed)
				write(filepath.Join(a.dir, tempPrefix+publicFile+"-1"), newPublic[:9])
			}, next},
		} {
			write(path, oldSealed)
			write(public, oldPublic)
			kill.leave()
			got, err := OpenAuthority(a.dir, Secret{})
			if err != nil || !reflect.DeepEqual(got.state, kill.want.state) {
				t.Errorf("%s, killed at %q: %v", s.name, kill.at, err)
				continue
			}
			if kill.want == next {
				continue
			}
			// The step can be done again, and clears away what was left.
			again, err := s.do(got, epoch)
			if err != nil || again.Phase() != next.Phase() {
				t.Errorf("%s again, after a kill at %q: %v", s.name, kill.at, err)
			}
			if left, _ := os.ReadDir(a.dir); len(left) != 2 {
				t.Errorf("%s again, after a kill at %q: %v is left", s.name, kill.at, left)
			}
		}
		os.Remove(filepath.Join(a.dir, tempPrefix+publicFile+"-1"))
		write(path, newSealed)
		a = next
	}
}

// TestKill kills a process that does nothing but rotate, at moments of chance,
// and opens what it leaves.
func TestKill(t *testing.T) {
	if dir := os.Getenv("PKI_TEST_ROTATE"); dir != "" {
		a, err := OpenAuthority(dir, Secret{})
		for err == nil {
			switch a.Phase() {
			case PhaseSteady:
				a, err = a.Publish(epoch)
			case PhasePublished:
				a, err = a.Activate(epoch)
			case PhaseActivated:
				a, err = a.Retire(epoch)
			}
		}
		t.Fatal(err)
	}
	a := testAuthority(t)
	revision := a.state.revision
	file := func() string {
		text, _ := os.ReadFile(filepath.Join(a.dir, sealedFile))
		return string(text)
	}
	for i := range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$", "-test.timeout=30s")
		cmd.Env = append(os.Environ(), "PKI_TEST_ROTATE="+a.dir)
		before := file()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It has begun, and is then killed anywhere.
		for began := time.Now(); file() == before && time.Since(began) < 10*time.Second; {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(11*i) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		b, err := OpenAuthority(a.dir, Secret{})
		if err != nil {
			t.Fatalf("after %d kills: %v", i+1, err)
		}
		issueComponent(t, b, RoleGateway, "office", 1)
		revision = b.state.revision
	}
	if revision < 12 {
		t.Errorf("%d steps in 12 lives: nothing was going on when it was killed", revision)
	}
	b, err := OpenAuthority(a.dir, Secret{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Compromised(epoch); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(a.dir); len(left) != 2 {
		t.Errorf("%v is left", left)
	}
}

// TestChangeFails: a step that cannot be written leaves the authority in use
// and on disk as it was.
func TestChangeFails(t *testing.T) {
	a := testAuthority(t)
	if os.Getuid() != 0 {
		os.Chmod(a.dir, 0o500)
		if _, err := a.Publish(epoch); err == nil {
			t.Error("it was written into a directory that forbids it")
		}
		os.Chmod(a.dir, 0o700)
	}
	if err := os.Rename(KeyFileBeside(a.dir), KeyFileBeside(a.dir)+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Publish(epoch); err == nil {
		t.Error("it was sealed without the key file")
	}
	if err := os.Rename(KeyFileBeside(a.dir)+".away", KeyFileBeside(a.dir)); err != nil {
		t.Fatal(err)
	}
	issueComponent(t, a, RoleGateway, "office", 1)
	b, err := OpenAuthority(a.dir, Secret{})
	if err != nil || b.Phase() != PhaseSteady || b.state.revision != a.state.revision {
		t.Errorf("%v", err)
	}
	// Two hold the same authority; the one that comes second writes nothing.
	if _, err := a.Publish(epoch); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Compromised(epoch); !errors.Is(err, ErrAuthorityChanged) {
		t.Errorf("%v", err)
	}
	if c, err := OpenAuthority(a.dir, Secret{}); err != nil || c.Phase() != PhasePublished {
		t.Errorf("%v", err)
	}
}

func TestRotateDue(t *testing.T) {
	a := testAuthority(t)
	at := a.RotateAt()
	if d := at.Sub(epoch.AddDate(8, 4, 0)); d < -48*time.Hour || d > 48*time.Hour {
		t.Errorf("5/6 of ten years are over at %s", at)
	}
	if a.RotateDue(at.Add(-time.Second)) || !a.RotateDue(at) {
		t.Error("RotateDue")
	}
	if b := walk(t, a, at, stepPublish); b.RotateDue(at.Add(time.Hour)) {
		t.Error("a rotation is due during one")
	}
	b := rotate(t, testAuthority(t), at)
	if b.RotateDue(at) || !b.RotateDue(at.AddDate(9, 0, 0)) {
		t.Error("after a rotation")
	}
}

// TestStateChecks spoils a state behind the steps' back: it is not written, and
// a file that holds it is not taken.
func TestStateChecks(t *testing.T) {
	steady, other := testAuthority(t), testAuthority(t)
	published := walk(t, testAuthority(t), epoch, stepPublish)
	for name, tc := range map[string]struct {
		of    *Authority
		spoil func(s *state)
	}{
		"a phase that is unknown":       {steady, func(s *state) { s.phase = "x" }},
		"steady without the next key":   {steady, func(s *state) { s.nextRootKey = nil }},
		"published alone":               {steady, func(s *state) { s.phase = PhasePublished }},
		"steady with two":               {published, func(s *state) { s.phase = PhaseSteady }},
		"no cross-certificate":          {published, func(s *state) { s.cross = nil }},
		"a foreign next root":           {published, func(s *state) { s.next.root = other.state.base.root }},
		"twice the same root":           {published, func(s *state) { *s.next = s.base }},
		"a number too high":             {steady, func(s *state) { s.base.number = 9 }},
		"foreign components":            {steady, func(s *state) { s.base.components = other.components }},
		"callers as components":         {steady, func(s *state) { s.base.components = s.base.callers }},
		"components as callers":         {steady, func(s *state) { s.base.callers = s.base.components }},
		"no issuer of callers":          {steady, func(s *state) { s.base.callers = issuer{} }},
		"the key of another":            {steady, func(s *state) { s.base.root.key = other.state.base.root.key }},
		"another trust domain":          {steady, func(s *state) { s.trustDomain = "example.org" }},
		"a former issuer of components": {steady, func(s *state) { s.former = []callersIssuer{{issuer: other.components}} }},
	} {
		s := tc.of.state.clone()
		tc.spoil(s)
		plain, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeState(plain); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := tc.of.change(tc.of.secret, epoch, func(s *state) error { tc.spoil(s); return nil }); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}
