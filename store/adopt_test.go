package store

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/acme/pki"
)

// attempt is one Adopt in a story about one token of gateway "orders".
type attempt struct {
	key    string
	source string
	at     time.Duration // after noon
	want   error         // nil: adopted
	again  bool
	alarms int // audited so far
}

const (
	ttl  = 30 * time.Minute
	here = "192.0.2.1:1000"
	far  = "203.0.113.9:2000"
)

func TestAdopt(t *testing.T) {
	stories := map[string][]attempt{
		"in time":       {{"a", here, time.Minute, nil, false, 0}},
		"at the end":    {{"a", here, ttl - 1, nil, false, 0}},
		"too late":      {{"a", here, ttl, ErrTokenExpired, false, 0}, {"a", here, ttl + time.Hour, ErrTokenExpired, false, 0}},
		"the same key":  {{"a", here, time.Minute, nil, false, 0}, {"a", far, ttl - 1, nil, true, 0}, {"a", here, ttl - 1, nil, true, 0}},
		"closed":        {{"a", here, time.Minute, nil, false, 0}, {"a", here, ttl, ErrTokenClosed, false, 0}},
		"another key":   {{"a", here, time.Minute, nil, false, 0}, {"b", far, 2 * time.Minute, ErrTokenBound, false, 1}, {"a", here, 3 * time.Minute, nil, true, 1}},
		"late and not":  {{"a", here, time.Minute, nil, false, 0}, {"b", far, ttl, ErrTokenClosed, false, 1}},
		"many attempts": {{"a", here, time.Minute, nil, false, 0}, {"b", far, ttl / 2, ErrTokenBound, false, 1}, {"c", far, ttl / 2, ErrTokenBound, false, 2}, {"d", far, ttl / 2, ErrTokenBound, false, 2}, {"e", far, ttl / 2, ErrTokenBound, false, 3}},
	}
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			eachCore(t, func(t *testing.T, c *Core) {
				add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "orders", Peers: []string{"192.0.2.0/24"}}, tokenFor("orders"))
				var first Adopted
				for i, s := range story {
					issued := 0
					got, err := c.Adopt(t.Context(), Actor("gateway/orders from "+s.source), Adoption{
						TokenPublicKey: tokenFor("orders").PublicKey, SPKI: hash(s.key), Source: s.source, Version: "v1",
						Issue: func(r ComponentRecord) (CertificateRecord, [][]byte, error) {
							issued++
							return issue(hash(s.key))(r)
						},
					}, noon.Add(s.at))
					if !errors.Is(err, s.want) {
						t.Fatalf("attempt %d: %v, want %v", i, err, s.want)
					}
					var bound *TokenBoundError
					if s.want == ErrTokenBound && (!errors.As(err, &bound) || bound.Source != here || bound.At != noon.Add(time.Minute)) {
						t.Errorf("attempt %d: %v does not say who was first", i, err)
					}
					if got.Again != s.again || err == nil != (len(got.Chain) == 2) || (issued == 1) != (err == nil && !s.again) {
						t.Errorf("attempt %d: again %v, %d certificates, issued %d times", i, got.Again, len(got.Chain), issued)
					}
					if i == 0 {
						first = got
					}
					if s.again && (got.Serial != first.Serial || !bytes.Equal(got.Chain[0], first.Chain[0]) || !bytes.Equal(got.Chain[1], first.Chain[1])) {
						t.Errorf("attempt %d: another answer than the first one", i)
					}
					if n := strings.Count(strings.Join(actions(t, c), "\n"), "alarm.second_key gateway/orders"); n != s.alarms {
						t.Errorf("attempt %d: %d alarms, want %d", i, n, s.alarms)
					}
				}
				r, err := c.Component(t.Context(), pki.RoleGateway, "orders")
				if err != nil {
					t.Fatal(err)
				}
				token, err := c.TokenByKey(t.Context(), tokenFor("orders").PublicKey)
				if err != nil {
					t.Fatal(err)
				}
				if story[0].want != nil {
					if r.State != StateInvited || token.BoundSPKI != nil {
						t.Errorf("nobody joined, but: %+v %+v", r, token)
					}
				} else {
					if r.State != StateJoined || !bytes.Equal(r.SPKI, hash("a")) || r.Joined != noon.Add(story[0].at) || r.Observed != here || r.Version != "v1" || r.NotAfter != noon.Add(24*time.Hour) {
						t.Errorf("joined as %+v", r)
					}
					if !bytes.Equal(token.BoundSPKI, hash("a")) || token.Source != here || token.BoundAt != r.Joined {
						t.Errorf("token is %+v", token)
					}
					list, err := c.Certificates(t.Context(), true, noon)
					if err != nil || len(list) != 1 || list[0].Serial != first.Serial || list[0].Incarnation != 1 {
						t.Errorf("certificates %+v, %v", list, err)
					}
				}
				verify(t, c)
			})
		})
	}
}

func TestAlarmNamesBothSources(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		add(t, c, ComponentRecord{Role: pki.RoleProxy, Name: "dmz1", Address: "192.0.2.7:50051"}, tokenFor("dmz1"))
		adopt(t, c, tokenFor("dmz1"), "a")
		_, err := c.Adopt(t.Context(), "stranger", Adoption{TokenPublicKey: tokenFor("dmz1").PublicKey, SPKI: hash("b"), Source: far}, noon)
		if !errors.Is(err, ErrTokenBound) {
			t.Fatal(err)
		}
		rows, err := c.AuditRows(t.Context(), 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"192.0.2.1:4", far, "sallyport proxy rm dmz1"} {
			if !strings.Contains(rows[0].Detail, word) {
				t.Errorf("%q does not say %s", rows[0].Detail, word)
			}
		}
	})
}

func TestAdoptRefusals(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		private := ed25519.NewKeyFromSeed(hash("seed"))
		public := private.Public().(ed25519.PublicKey)
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"}, TokenRecord{PublicKey: public, Expires: noon.Add(ttl)})
		before := actions(t, c)

		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		own := sha256.Sum256(der)
		broken := errors.New("the authority is away")
		altered := func(change func(*CertificateRecord, *[][]byte)) func(ComponentRecord) (CertificateRecord, [][]byte, error) {
			return func(r ComponentRecord) (CertificateRecord, [][]byte, error) {
				record, chain, err := issue(hash("k"))(r)
				change(&record, &chain)
				return record, chain, err
			}
		}
		for name, test := range map[string]struct {
			a    Adoption
			want error
			text string
		}{
			"unknown token":   {Adoption{TokenPublicKey: hash("other"), SPKI: hash("k"), Issue: issue(hash("k"))}, ErrTokenUnknown, ""},
			"no token":        {Adoption{SPKI: hash("k"), Issue: issue(hash("k"))}, ErrTokenUnknown, ""},
			"no key":          {Adoption{TokenPublicKey: public, Issue: issue(nil)}, nil, "32 bytes"},
			"bootstrap key":   {Adoption{TokenPublicKey: public, SPKI: own[:], Issue: issue(own[:])}, ErrBootstrapKey, ""},
			"not issued":      {Adoption{TokenPublicKey: public, SPKI: hash("k"), Issue: func(ComponentRecord) (CertificateRecord, [][]byte, error) { return CertificateRecord{}, nil, broken }}, broken, ""},
			"for another key": {Adoption{TokenPublicKey: public, SPKI: hash("k"), Issue: issue(hash("l"))}, nil, "another key"},
			"another name":    {Adoption{TokenPublicKey: public, SPKI: hash("k"), Issue: altered(func(r *CertificateRecord, _ *[][]byte) { r.Identity = "spiffe://sallyport.internal/gateway/b" })}, nil, "gateway/b"},
			"another role":    {Adoption{TokenPublicKey: public, SPKI: hash("k"), Issue: altered(func(r *CertificateRecord, _ *[][]byte) { r.Identity = "spiffe://sallyport.internal/core/a" })}, nil, "core/a"},
			"no chain":        {Adoption{TokenPublicKey: public, SPKI: hash("k"), Issue: altered(func(_ *CertificateRecord, c *[][]byte) { *c = nil })}, nil, "chain"},
		} {
			got, err := c.Adopt(ctx, "newcomer", test.a, noon)
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || got.Chain != nil {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
		// None of them left anything: the token is as it was.
		if after := actions(t, c); len(after) != len(before) {
			t.Errorf("audited: %v", after)
		}
		if a, err := c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: public, SPKI: hash("k"), Issue: issue(hash("k"))}, noon); err != nil || a.Again {
			t.Errorf("the token does not work any more: %v", err)
		}

		// A removed component's token is closed, also for the key that used it.
		if _, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, "a"); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"k", "l"} {
			if _, err := c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: public, SPKI: hash(key), Issue: issue(hash(key))}, noon); !errors.Is(err, ErrTokenClosed) {
				t.Errorf("after removal: %v", err)
			}
		}
	})
}

// TestOneKeyWins lets many keys use one token at the same moment.
func TestOneKeyWins(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "a"}, tokenFor("a"))
		var wg sync.WaitGroup
		errs := make([]error, 16)
		for i := range errs {
			wg.Go(func() {
				key := hash(fmt.Sprint(i % 8)) // each key twice
				_, errs[i] = c.Adopt(t.Context(), "newcomer", Adoption{TokenPublicKey: tokenFor("a").PublicKey, SPKI: key, Issue: issue(key)}, noon)
			})
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			if err == nil {
				won++
				if errs[(i+8)%16] != nil {
					t.Errorf("one key got both answers: %v", errs[(i+8)%16])
				}
			} else if !errors.Is(err, ErrTokenBound) {
				t.Error(err)
			}
		}
		if list, err := c.Certificates(t.Context(), true, noon); won != 2 || err != nil || len(list) != 1 {
			t.Errorf("%d adopted, %d certificates, %v", won, len(list), err)
		}
		verify(t, c)
	})
}

// TestInstancesAwayMakeRoom: an instance without a disk that was killed never
// comes back, and its successor must not wait a day for its place.
func TestInstancesAwayMakeRoom(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		token := tokenFor("edge")
		token.Uses = 2
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "edge", Reusable: true, Peers: []string{"any"}}, token)
		adopt(t, c, token, "1")
		stays := adopt(t, c, token, "2").Component
		later := noon.Add(instanceLives)
		if err := c.SawComponent(ctx, pki.RoleGateway, stays.Name, Sighting{At: later}); err != nil {
			t.Fatal(err)
		}
		heir := Adoption{TokenPublicKey: token.PublicKey, SPKI: hash("3"), Issue: issue(hash("3"))}
		if _, err := c.Adopt(ctx, "newcomer", heir, later.Add(-time.Second)); !errors.Is(err, ErrTokenExhausted) {
			t.Fatalf("both may still live: %v", err)
		}
		if _, err := c.Adopt(ctx, "newcomer", heir, later); err != nil {
			t.Fatalf("one is away: %v", err)
		}
	})
}

// TestInstancesDoNotReturnBeyondTheirNumber: who had a token of two uses made two
// instances, let them be away for five minutes, made two more, and had four.
func TestInstancesDoNotReturnBeyondTheirNumber(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		token := tokenFor("edge")
		token.Uses = 2
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "edge", Reusable: true, Peers: []string{"any"}}, token)
		use := func(a Adopted) KeyUse {
			list, err := c.Certificates(ctx, true, noon)
			i := slices.IndexFunc(list, func(r CertificateRecord) bool { return r.Serial == a.Serial })
			if err != nil || i < 0 {
				t.Fatal(list, err)
			}
			return KeyUse{Certificate: list[i], Source: "192.0.2.7"}
		}
		made := []Adopted{adopt(t, c, token, "1"), adopt(t, c, token, "2")}
		later := noon.Add(instanceLives)
		for _, seed := range []string{"3", "4"} {
			a, err := c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: token.PublicKey, SPKI: hash(seed), Issue: issue(hash(seed))}, later)
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, a)
		}
		for i, a := range made {
			_, seen := c.SawKey(ctx, use(a), later)
			_, checked := c.CheckKey(ctx, use(a), later)
			_, renewed := c.Renew(ctx, "renewing", Renewal{Holder: use(a), NewSPKI: hash("next"), Issue: issue(hash("next"))}, later)
			if i < 2 {
				for what, err := range map[string]error{"session": seen, "link": checked, "renewal": renewed} {
					if !errors.Is(err, ErrTokenExhausted) {
						t.Errorf("instance %d of two, %s: %v", i+1, what, err)
					}
				}
			} else if seen != nil || checked != nil {
				t.Errorf("instance %d lives: %v, %v", i+1, seen, checked)
			}
		}
		// One goes, and one of those that were away has its place, not both.
		if _, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, made[3].Component.Name); err != nil {
			t.Fatal(err)
		}
		if _, err := c.SawKey(ctx, use(made[0]), later); err != nil {
			t.Errorf("there is a place: %v", err)
		}
		if _, err := c.SawKey(ctx, use(made[1]), later); !errors.Is(err, ErrTokenExhausted) {
			t.Errorf("there is none any more: %v", err)
		}
		// After a night of core's they are all away, and return.
		morning := later.Add(8 * time.Hour)
		for _, i := range []int{0, 2} {
			if _, err := c.SawKey(ctx, use(made[i]), morning); err != nil {
				t.Errorf("in the morning: %v", err)
			}
		}
		verify(t, c)
	})
}

func TestReusableGateway(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		token := tokenFor("edge")
		token.Uses = 2
		add(t, c, ComponentRecord{Role: pki.RoleGateway, Name: "edge", Reusable: true, Peers: []string{"any"}, Serve: []string{"a.*"}}, token)
		one := adopt(t, c, token, "1").Component
		two := adopt(t, c, token, "2").Component
		for _, r := range []ComponentRecord{one, two} {
			if !strings.HasPrefix(r.Name, "edge-") || len(r.Name) != len("edge-xxxxxx") || r.Parent != "edge" || r.Reusable || len(r.Serve) != 1 || len(r.Peers) != 1 {
				t.Errorf("instance %+v", r)
			}
		}
		if one.Name == two.Name {
			t.Error("two instances have one name")
		}
		if again := adopt(t, c, token, "1"); again.Component.Name != one.Name || !again.Again {
			t.Errorf("the same key again: %+v", again.Component)
		}
		third := Adoption{TokenPublicKey: token.PublicKey, SPKI: hash("3"), Instance: "zzz333", Issue: issue(hash("3"))}
		if _, err := c.Adopt(ctx, "newcomer", third, noon); !errors.Is(err, ErrTokenExhausted) {
			t.Fatalf("third instance of two: %v", err)
		}

		// One stays away: it is forgotten, revoked, and makes room.
		if err := c.SawComponent(ctx, pki.RoleGateway, two.Name, Sighting{At: noon.Add(25 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		gone, err := c.ForgetInstances(ctx, "core", noon.Add(time.Hour))
		if err != nil || len(gone) != 1 || gone[0].Name != one.Name {
			t.Fatalf("forgotten: %+v, %v", gone, err)
		}
		if r, err := c.Revocations(ctx); err != nil || len(r) != 1 || r[0].Name != one.Name || r[0].Incarnation != 1 {
			t.Errorf("revocations %+v, %v", r, err)
		}
		if a, err := c.Adopt(ctx, "newcomer", third, noon); err != nil || a.Component.Name != "edge-zzz333" {
			t.Fatalf("%+v, %v", a, err)
		}
		if _, err := c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: token.PublicKey, SPKI: hash("1"), Issue: issue(hash("1"))}, noon); !errors.Is(err, ErrTokenClosed) {
			t.Errorf("the forgotten one returns with its old key: %v", err)
		}
		if _, err := c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: token.PublicKey, SPKI: hash("4"), Issue: issue(hash("4"))}, noon.Add(ttl)); !errors.Is(err, ErrTokenExpired) {
			t.Errorf("a new one after the token's time: %v", err)
		}

		// What is set for the gateway holds for its instances; removing it removes them.
		if _, err := c.SetComponent(ctx, operator, pki.RoleGateway, "edge", func(r *ComponentRecord) error { r.Serve = []string{"b.*"}; return nil }); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Component(ctx, pki.RoleGateway, two.Name); err != nil || len(r.Serve) != 1 || r.Serve[0] != "b.*" {
			t.Errorf("%+v, %v", r, err)
		}
		if _, err := c.RemoveComponent(ctx, operator, pki.RoleGateway, "edge"); err != nil {
			t.Fatal(err)
		}
		if list, err := c.Components(ctx, ""); err != nil || len(list) != 0 {
			t.Errorf("left: %+v, %v", list, err)
		}
		if r, err := c.Revocations(ctx); err != nil || len(r) != 4 {
			t.Errorf("revocations %+v, %v", r, err)
		}
		// Names of instances never return: long after, their revocations need not be carried.
		c.Now = func() time.Time { return noon.Add(100 * 24 * time.Hour) }
		if r, err := c.Revocations(ctx); err != nil || len(r) != 1 || r[0].Name != "edge" {
			t.Errorf("revocations much later: %+v, %v", r, err)
		}
		verify(t, c)
	})
}

func TestReusableProxyTakesItsNameAnew(t *testing.T) {
	eachCore(t, func(t *testing.T, c *Core) {
		ctx := t.Context()
		token := tokenFor("edge")
		add(t, c, ComponentRecord{Role: pki.RoleProxy, Name: "edge", Reusable: true}, token)
		first := adopt(t, c, token, "1")
		second := adopt(t, c, token, "2")
		if second.Component.Name != "edge" || second.Component.Incarnation != 1 || second.Again {
			t.Errorf("%+v", second)
		}
		if r, err := c.Revocations(ctx); err != nil || len(r) != 1 || r[0].Serial != first.Serial || r[0].Name != "" {
			t.Errorf("revocations %+v, %v", r, err)
		}
		list, err := c.Certificates(ctx, true, noon)
		if err != nil || len(list) != 2 || list[0].Revoked.IsZero() || !list[1].Revoked.IsZero() {
			t.Errorf("certificates %+v, %v", list, err)
		}
		if list, err := c.Certificates(ctx, false, noon); err != nil || len(list) != 1 || list[0].Serial != second.Serial {
			t.Errorf("current certificates %+v, %v", list, err)
		}
		// The one that lost the name does not get it back with its old key.
		if _, err := c.Adopt(ctx, "newcomer", Adoption{TokenPublicKey: token.PublicKey, SPKI: hash("1"), Source: far, Issue: issue(hash("1"))}, noon); !errors.Is(err, ErrTokenBound) {
			t.Errorf("superseded key: %v", err)
		}
		if !adopt(t, c, token, "2").Again {
			t.Error("the one that has it does not get the same answer")
		}
		got := strings.Join(actions(t, c), ", ")
		if want := "component.add proxy/edge, component.join proxy/edge, certificate.revoke proxy/edge, component.join proxy/edge, alarm.second_key proxy/edge"; got != want {
			t.Errorf("audited %s", got)
		}
	})
}
